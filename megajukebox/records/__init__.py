"""What one process writes into a run folder and another reads: typed, versioned records."""
