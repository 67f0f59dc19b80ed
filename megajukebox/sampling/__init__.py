"""From a request to a song: cached decoding, windows, levels, audio."""
