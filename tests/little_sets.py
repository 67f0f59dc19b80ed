"""Twelve tiny songs and their made-up codes as real shard sets, in which every sample tells its song and its place."""

import io
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megajukebox.data.audio import encode_wav
from megajukebox.data.shards.indexing import write_index
from megajukebox.data.shards.sets import Sample, write_shard
from megajukebox.data.stream.clips import SongClips
from megajukebox.data.stream.stream import Batches

RATE = 11025
HOPS = {"top": 128, "middle": 32, "bottom": 8}
MADE_BY = {"version": "0", "commit": None, "command": "tests"}
SONGS = 12
CLIP = 1024
GLOBAL_BATCH = 8
PLACES = 80  # more than any song has top codes
WINDOW = {"top": 8, "middle": 8, "bottom": 16}


def frames_of(song: int) -> int:
    return 3000 + 517 * song


def ramp(song: int) -> np.ndarray:
    """[T, 2] audio in which every sample tells its song and place: left counts up, right counts down."""
    t = np.arange(frames_of(song), dtype=np.float32) / 2**15
    return np.stack([song / 16 + t, song / 16 - t], axis=1)


def codes_of(song: int, level: str) -> np.ndarray:
    """Codes that tell their place: code i of the top, and all codes below it, are song * PLACES + i."""
    top = song * PLACES + np.arange(frames_of(song) // HOPS["top"])
    return np.repeat(top, HOPS["top"] // HOPS[level]).astype(np.uint16)


def facts_of(song: int) -> bytes:
    facts: dict[str, Any] = {"version": 1, "key": key(song), "frames": frames_of(song), "genres": ["Pop", "Rare"]}
    if song % 2:
        facts["artist"] = f"Artist {song % 4}"
    return json.dumps(facts).encode()


def key(song: int) -> str:
    return f"song-{song:02d}"


def npy(codes: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        np.save(file, codes)
        return file.getvalue()


def lyrics_of(song: int) -> dict[str, bytes]:
    if song == 0:
        return {}
    if song == 1:
        return {"lrc": b"[00:00.00] <00:00.00> first <00:00.10> second <00:00.30>"}
    return {"txt": b"la " * 10 * song}


def write_set(folder: Path, kind: str, members: Callable[[int], dict[str, bytes]], extra: Any = None) -> Path:
    """Three shards of 5, 4 and 3 songs."""
    folder.mkdir()
    names = []
    for shard, songs in enumerate([range(5), range(5, 9), range(9, SONGS)]):
        names.append(f"{kind}-{shard:06d}.tar")
        samples = [Sample(key(s), frames_of(s), {"json": facts_of(s), **members(s), **lyrics_of(s)}) for s in songs]
        write_shard(folder / names[-1], samples)
    write_index(folder, names, kind=kind, sample_rate=RATE, made_by=MADE_BY, extra=extra)
    return folder


def write_songs(folder: Path) -> Path:
    return write_set(folder, "songs", lambda song: {"wav": encode_wav(ramp(song), RATE)})


def write_codes(folder: Path) -> Path:
    vqvae = {"fingerprint": "0" * 64, "hops": HOPS, "codes": dict.fromkeys(HOPS, 2048)}
    return write_set(
        folder,
        "codes",
        lambda song: {f"{level}.npy": npy(codes_of(song, level)) for level in HOPS},
        extra={"vqvae": vqvae},
    )


def batches(source: Any, world: int = 1, rank: int = 0, **changed: Any) -> Batches:
    settings = {"seed": 3, "global_batch": GLOBAL_BATCH, "micro_batch": 1, "world": world, "rank": rank, "block": 2}
    return Batches(source, **{**settings, **changed})


def steps(stream: Batches, count: int) -> list[torch.Tensor]:
    """The first field of each step's micro-batches, one tensor [slots, ...] a step."""
    field = "audio" if isinstance(stream.source, SongClips) else "codes"
    return [torch.cat([batch[field] for batch in step]) for step in islice(iter(stream), count)]


def all_ranks(source: Any, world: int, count: int, **changed: Any) -> list[torch.Tensor]:
    ranks = [steps(batches(source, world, rank, **changed), count) for rank in range(world)]
    return [torch.cat(parts) for parts in zip(*ranks)]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b))
