"""From the user's audio files to song shards."""
