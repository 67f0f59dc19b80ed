"""What run folders and this machine say, and what follows from it: status, time, health."""
