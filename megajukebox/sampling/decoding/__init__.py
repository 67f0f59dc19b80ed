"""One step of a prior: caches, packed weights, logits, and the code that noise decides."""
