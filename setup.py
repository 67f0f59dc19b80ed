"""Kept for `pip install -e .` on old tools; everything is declared in pyproject.toml."""

from setuptools import setup

setup()
