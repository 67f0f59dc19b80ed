"""The demo songs: a small grammar of music, played and sung by numpy."""
