"""The adapters that requests may name: those given by their folders, and those in RUNS/adapters."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from megajukebox.common.errors import UserError
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.data.adapters import Adapter, AdapterMix, ScaledAdapter, adapters_in
from megajukebox.records.adapters import ADAPTER_FACTS
from megajukebox.sampling.songs.requests import SongRequest

ADAPTERS_FOLDER = "adapters"  # of a folder of runs: one folder an adapter


class AdapterLibrary:
    """Adapters by name, each read and checked when it is first asked for.

    Args:
        given: folders of the user's, by the names of which requests ask; their scales are for requests that say none.
        any_base: adapters may have been trained beside other weights.
    """

    def __init__(
        self, runs: Path, given: Sequence[ScaledAdapter] = (), any_base: bool = False
    ) -> None:
        self.any_base = any_base
        self.folders = {folder.name: folder for folder in adapter_folders(runs)}
        self.default: dict[str, float] = {}
        self._read: dict[str, dict[str, Adapter]] = {}
        for adapter in given:
            if adapter.name in self.default:
                raise UserError(
                    f"two adapters are called {adapter.name!r}; rename the folder of one"
                )
            self.folders[adapter.name] = adapter.path
            self.default[adapter.name] = adapter.scale
            self._adapter(adapter.name)  # what is none is refused before a song is begun

    def applied(self, request: SongRequest) -> SongRequest:
        """The request with the adapters that were given for all, unless it names its own."""
        if not self.default or "adapters" in request.model_fields_set:
            return request
        return request.model_copy(update={"adapters": self.default})

    def mix(self, level: str, scales: Mapping[str, float]) -> AdapterMix:
        """The adapters of one level. Raises UserError for an unknown name, or some that do not go together."""
        parts: list[tuple[Adapter, float]] = []
        for name, scale in scales.items():
            adapter = self._adapter(name).get(level)
            if adapter is not None:
                parts.append((adapter, scale))
        return AdapterMix.of(parts)

    def notes(self, request: SongRequest, levels: Iterable[str]) -> list[str]:
        """A line for each adapter that is not of all the levels that are sampled."""
        notes = []
        for name in request.adapters:
            missing = [level for level in levels if level not in self._adapter(name)]
            if missing:
                notes.append(
                    f"adapter {name} has nothing for the {', '.join(missing)} level, which keeps the"
                    " base's sound"
                )
        return notes

    def _adapter(self, name: str) -> dict[str, Adapter]:
        if name not in self.folders:
            known = ", ".join(sorted(self.folders)) or "none"
            raise UserError(
                f"adapter {name!r} is unknown; known are {known} (give its folder: --adapter FOLDER)"
            )
        if name not in self._read:
            self._read[name] = adapters_in(self.folders[name])
        return self._read[name]


def adapter_folders(runs: Path) -> list[Path]:
    """The folders in RUNS/adapters that hold an adapter."""
    folder = runs / ADAPTERS_FOLDER
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        places = [path, *(path / name for name in PRIOR_FOLDERS.values())]
        if any((place / ADAPTER_FACTS).is_file() for place in places):
            found.append(path)
    return found
