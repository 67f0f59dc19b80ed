"""What is asked for, what is known of it beforehand, and the files that a song becomes."""
