"""One level of some songs: its windows, and the ways to go through them."""
