"""What a run writes about itself, and who reads it."""
