"""Parallel students: what their teacher says, how they emit codes, and how they sample a level."""
