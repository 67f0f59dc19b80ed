"""megajukebox: training and fast sampling of a Jukebox-class model of music as raw audio."""

__version__ = "0.1.0"
