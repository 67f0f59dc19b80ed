"""The pages' own server: blind votes, and the Studio that makes songs."""
