"""What music is conditioned on: lyrics as tokens and times, artists and genres as ids."""
