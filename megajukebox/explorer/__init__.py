"""The static pages over samples/ and runs/."""
