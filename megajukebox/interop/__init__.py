"""Checkpoints of other programs, as tables of names."""
