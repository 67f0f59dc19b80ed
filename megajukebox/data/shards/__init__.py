"""Shard sets on disk or behind a URL: writing, indexing, checking and opening them."""
