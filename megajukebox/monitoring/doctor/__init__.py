"""What can be wrong with machines, alone and together, before a run."""
