"""Checkpoints of a run: saving, retention, verification, resuming."""
