"""From a trained prior to its parallel student: teacher samples, training, divergence."""
