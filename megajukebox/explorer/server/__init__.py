"""The pages' own server: blind votes, and the Studio that generates songs."""
