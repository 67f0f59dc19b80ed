"""What a recording of a user is, how long it is and what its channels mean, before any decoder reads it."""
