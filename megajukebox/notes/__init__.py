"""Written music: notes, their parts and bars, read from files, written to files, and turned into events for a model."""
