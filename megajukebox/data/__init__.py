"""Audio, lyrics, songs and shards: what the models eat, and the files it lives in."""
