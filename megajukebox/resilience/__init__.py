"""A run that outlives its processes: endings, attempts, hangs, orders from outside, SLURM."""
