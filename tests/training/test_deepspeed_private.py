"""What we use of DeepSpeed beyond its interface is in the installed version, and all of it is in the table."""

import ast
import importlib
import importlib.metadata
import inspect
from functools import lru_cache
from pathlib import Path

import pytest
import torch

from megajukebox.training import engines
from megajukebox.training.engines.deepspeed_private import (
    DEEPSPEED_PRIVATE,
    DEEPSPEED_VERSION,
    PrivateName,
)

SOURCES = [
    path
    for path in sorted(Path(engines.__file__).parent.glob("*.py"))
    if path.name != "deepspeed_private.py"
]


@lru_cache
def defined_in(module: str) -> tuple[set[str], str]:
    """(names that a module of DeepSpeed defines or assigns, all its texts)."""
    source = inspect.getsource(importlib.import_module(f"deepspeed.{module}"))
    names, texts = set(), []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
    return names, "\n".join(texts)


@pytest.mark.parametrize("row", DEEPSPEED_PRIVATE, ids=lambda row: f"{row.where}:{row.name}")
def test_the_installed_version_has_it(row: PrivateName):
    names, texts = defined_in(row.where)
    installed = importlib.metadata.version("deepspeed")
    assert row.name in names or row.name in texts, (
        f"deepspeed {installed} has no {row.name!r} in deepspeed.{row.where} any more"
        f" (seen in {DEEPSPEED_VERSION}); we use it for: {row.why}"
    )


TORCH_PRIVATE = {"_C", "_distributed_c10d"}  # its flight recorder has no public name


def test_a_name_that_is_gone_is_noticed():
    names, texts = defined_in("runtime.engine")
    assert "_copy_recovery_scripts" not in names and "_copy_recovery_scripts" not in texts


def test_every_row_is_used():
    ours = "\n".join(path.read_text() for path in SOURCES)
    messages = {row.name for row in DEEPSPEED_PRIVATE if " " in row.name}
    assert [row.name for row in DEEPSPEED_PRIVATE if row.name not in ours] == [*messages]


def test_every_private_attribute_that_we_touch_has_a_row():
    """Names with an underscore on anything but `self`."""
    known = {row.name for row in DEEPSPEED_PRIVATE}
    own = {node.name for node in walk() if isinstance(node, ast.FunctionDef)}
    touched = {
        node.attr
        for node in walk()
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    assert touched - own - known == TORCH_PRIVATE


def test_torchs_flight_recorder_is_where_it_was() -> None:
    """Named `_dump_fr_trace_json` for gloo; a version that moves it leaves hangs without their collective."""
    assert callable(torch._C._distributed_c10d._dump_fr_trace_json)


def walk() -> list[ast.AST]:
    nodes: list[ast.AST] = []
    for path in SOURCES:
        nodes += ast.walk(ast.parse(path.read_text()))
    return nodes
