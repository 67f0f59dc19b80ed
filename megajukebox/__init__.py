"""megajukebox: training and fast sampling of Jukebox-class models of music as raw audio.

    from megajukebox import Jukebox, SongRequest

The names below are imported when they are used: `import megajukebox` costs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megajukebox.data.shards.shard_set import ShardSet
    from megajukebox.notes.notes import Notes
    from megajukebox.notes.readers import read_notes
    from megajukebox.sampling.composing.composer import Composer
    from megajukebox.sampling.jukebox import Jukebox
    from megajukebox.sampling.songs.requests import SongRequest
    from megajukebox.training.config import load_preset

__version__ = "0.1.0"
__all__ = [
    "Composer",
    "Jukebox",
    "Notes",
    "ShardSet",
    "SongRequest",
    "__version__",
    "load_preset",
    "read_notes",
]

_MODULES = {
    "Composer": "megajukebox.sampling.composing.composer",
    "Jukebox": "megajukebox.sampling.jukebox",
    "Notes": "megajukebox.notes.notes",
    "ShardSet": "megajukebox.data.shards.shard_set",
    "SongRequest": "megajukebox.sampling.songs.requests",
    "load_preset": "megajukebox.training.config",
    "read_notes": "megajukebox.notes.readers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'megajukebox' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
