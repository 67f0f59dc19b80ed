"""Windows that a teacher sampled, as a shard set of kind "windows": what a student is trained on.

One sample a window: <key>.json (what made it), <key>.npz with the arrays

    codes [T] uint16            what the teacher sampled, conditioned on conditions.<name>, timing, lyrics, upper_codes
    teacher_bits [T] float32    its surprisal at each code, in bits
    soft_ids [T, K] uint16      its K likeliest codes at every position, and
    soft_log_p [T, K] float16   their log probabilities (natural), given the window before
    taught [] bool              whether the teacher sampled the codes (else they are a real song's)

A key has the part: held-0000000 is conditioned on a song that the teacher was not trained on,
train-0000000 is not.
"""

import contextlib
import io
import json
from typing import Any

import numpy as np

from megajukebox.common.errors import BadSampleError, UserError
from megajukebox.common.npz import read_npz
from megajukebox.data.shards.shard_set import ShardSample, ShardSet
from megajukebox.data.stream.song_dataset import Part, report

HELD_OUT, TRAIN = "held", "train"
STORED_AS = {
    "codes": "<u2",
    "upper_codes": "<u2",
    "soft_ids": "<u2",
    "soft_log_p": "<f2",
    "teacher_bits": "<f4",
}
CONDITIONS_PREFIX = "conditions."  # of the arrays of conditions
MAX_WINDOW_BYTES = 256 << 20  # unpacked; a window of 8,192 codes with 64 soft targets has 2 MB
FIRST_WINDOWS = 16  # tried for the shapes that all have
# The rest is read as int64.
READ_AS = {"soft_log_p": np.float32, "teacher_bits": np.float32, "taught": np.bool_}


def teacher_sample(part: str, number: int, frames: int, arrays: dict[str, Any]) -> ShardSample:
    """One window as a sample of a shard; `frames` is its length in audio samples, `arrays` as
    `read` gives them.
    """
    key = f"{part}-{number:07d}"
    flat = dict(arrays)
    for name, ids in flat.pop("conditions").items():
        flat[f"conditions.{name}"] = ids
    # The stubs of savez would take a more precise type for its argument allow_pickle.
    stored: dict[str, Any] = {n: np.asarray(x, STORED_AS.get(n)) for n, x in flat.items()}
    with io.BytesIO() as file:
        np.savez(file, **stored)
        data = file.getvalue()
    facts = json.dumps({"version": 1, "key": key}).encode()
    return ShardSample(key, frames, {"json": facts, "npz": data})


class TeacherWindows:
    """The windows of a set of kind "windows": a source of training, like `CodeWindows`."""

    def __init__(self, shards: ShardSet):
        if shards.index["kind"] != "windows":
            raise UserError(
                f"{shards.folder} holds {shards.index['kind']}, not windows that a teacher sampled"
            )
        self.shards = shards
        self.shard_of_song = np.asarray(shards.songs["shard"])
        self._layout: dict[str, tuple[int, ...]] | None = None
        self._held_out = np.char.startswith(np.asarray(shards.songs["key"]), HELD_OUT.encode())

    def clips(self, part: Part) -> np.ndarray:
        """One window each, [windows] int64; 0 for those of the other part."""
        return (self._held_out == (part == "held_out")).astype(np.int64)

    def report(self) -> dict[str, int]:
        return report(np.ones(len(self._held_out), dtype=np.int64), self._held_out)

    def facts(self) -> dict[str, object]:
        return {"index": self.shards.fingerprint}

    def read(self, song: int, clip: int, rng: np.random.Generator | None) -> dict[str, Any]:
        """One window as it was written. BadSampleError if it cannot be read, or is not like the others."""
        window = self._read(song)
        if self._layout is None:
            self._layout = self._first_layout()
        if layout_of(window) != self._layout:
            raise BadSampleError(
                "damaged", f"window {self.shards.key(song)} is not like the others"
            )
        return window

    def _first_layout(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the first window that can be read: a teacher samples all alike.

        Raises:
            BadSampleError: none of the first ones can be read.
        """
        count = min(len(self._held_out), FIRST_WINDOWS)
        for song in range(count):
            with contextlib.suppress(BadSampleError, OSError):
                return layout_of(self._read(song))
        raise BadSampleError("damaged", f"none of the first {count} windows can be read")

    def _read(self, song: int) -> dict[str, Any]:
        window: dict[str, Any] = {"conditions": {}}
        try:
            stored = read_npz(self.shards.read_member(song, "window"), MAX_WINDOW_BYTES)
        except BadSampleError:
            raise
        except ValueError as error:
            raise BadSampleError("damaged", f"window {self.shards.key(song)} {error}") from None
        for name, array in stored.items():
            is_integer = np.issubdtype(array.dtype, np.integer)
            default = np.int64 if is_integer else array.dtype
            array = array.astype(READ_AS.get(name, default))
            if name.startswith(CONDITIONS_PREFIX):
                window["conditions"][name.removeprefix(CONDITIONS_PREFIX)] = array
            elif name == "conditions":
                raise BadSampleError("damaged", f"window {self.shards.key(song)} holds {name!r}")
            else:
                window[name] = array
        if "codes" not in window:
            raise BadSampleError("missing", f"window {self.shards.key(song)} holds no codes")
        return window


def layout_of(window: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of every array of a window by name; two windows of one batch share it."""
    flat = {name: array for name, array in window.items() if name != "conditions"}
    flat |= {f"{CONDITIONS_PREFIX}{name}": array for name, array in window["conditions"].items()}
    return {name: array.shape for name, array in flat.items()}
