"""Mutated tars, FLACs, JSONs, arrays and lyrics, and what must hold when they are read: only ValueError or OSError."""

import hashlib
import io
import json
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from little_sets import CLIP, MADE_BY, RATE, frames_of, key, npy, ramp, write_codes

from megajukebox.data.audio import encode_flac, read, read_slice
from megajukebox.data.conditions.lrc import parse_lrc
from megajukebox.data.shards.checking import bad_headers
from megajukebox.data.shards.indexing import write_index
from megajukebox.data.shards.sets import Sample, ShardSet, write_shard
from megajukebox.data.stream.clips import SongClips
from megajukebox.data.stream.order import Order, rng
from megajukebox.data.stream.windows import CodeWindows, names_of, read_codes

SECONDS = 20  # of one input; more is a hang
EXTREMES = [b"\x00" * 8, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80\x00\x00\x00", b"-1", b"9" * 20, b"../", b"\n"]
TEXTS = [b"null", b"-1", b"1e999", b"[]", b"{}", b'"../../x"', b"[" * 5000, b"18446744073709551615", b"true", b"\xff"]


def mutated(data: bytes, dice: random.Random, texts: bool = False) -> bytes:
    """`data` after one to four changes: bits, extremes, cuts, insertions, copies of other places."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(changed) + 1)
        size = dice.choice([1, 1, 2, 8, 64, 512])
        match dice.randrange(6):
            case 0 if at < len(changed):
                changed[at] ^= 1 << dice.randrange(8)
            case 1:
                extreme = dice.choice(TEXTS if texts else EXTREMES)
                changed[at : at + len(extreme)] = extreme
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = dice.randbytes(size)
            case 4:
                changed[at:at] = changed[dice.randrange(len(changed) + 1) :][:size]
            case _ if dice.random() < 0.3:
                del changed[at:]
    return bytes(changed)


class Corpus:
    """One small song set and one code set, and for each kind of input a function that spoils it and reads it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.songs = ShardSet(write_flac_songs(folder / "songs"))
        self.codes = ShardSet(write_codes(folder / "codes"))
        self.spoilt = folder / "spoilt"
        self.flac = encode_flac(ramp(3), RATE)
        self.kinds: dict[str, Callable[[random.Random], None]] = {
            "tar": self.tar,
            "flac": self.audio,
            "index": self.index,
            "rows": self.rows,
            "json": self.facts,
            "codes": self.array,
            "lyrics": self.lyrics,
        }

    def tar(self, dice: random.Random) -> None:
        """A shard other than the index says."""
        for shards, source in ((self.songs, SongClips), (self.codes, CodeWindows)):
            original = shards.path(0)
            kept = original.read_bytes()
            original.write_bytes(mutated(kept, dice))
            try:
                each(lambda song, s=shards, kind=source: read_song(s, kind, song), range(3))
                list(bad_headers(original))
            finally:
                original.write_bytes(kept)

    def audio(self, dice: random.Random) -> None:
        data = mutated(self.flac, dice)
        start = dice.choice([0, CLIP, frames_of(3) - CLIP])
        x = expected(lambda: read_slice(io.BytesIO(data), start, CLIP, RATE))
        whole = expected(lambda: read(io.BytesIO(data), RATE))
        for found in (x, whole):
            assert found is None or (np.isfinite(found).all() and np.abs(found).max(initial=0) <= 4)
        assert x is None or len(x) == CLIP

    def index(self, dice: random.Random) -> None:
        data = mutated((self.songs.folder / "index.json").read_bytes(), dice, texts=True)
        self.open_and_read(data, (self.songs.folder / "songs.npy").read_bytes())

    def rows(self, dice: random.Random) -> None:
        """songs.npy changed by someone who mended its checksum."""
        rows = mutated((self.songs.folder / "songs.npy").read_bytes(), dice)
        index = json.loads((self.songs.folder / "index.json").read_bytes())
        index["songs_file"]["sha256"] = hashlib.sha256(rows).hexdigest()
        self.open_and_read(json.dumps(index).encode(), rows)

    def open_and_read(self, index: bytes, rows: bytes) -> None:
        shutil.rmtree(self.spoilt, ignore_errors=True)
        self.spoilt.mkdir()
        (self.spoilt / "index.json").write_bytes(index)
        (self.spoilt / "songs.npy").write_bytes(rows)
        (self.spoilt / "songs-000000.tar").symlink_to(self.songs.path(0))
        shards = expected(lambda: ShardSet(self.spoilt))
        if shards is not None:
            each(lambda song: read_song(shards, SongClips, song), range(min(3, len(shards))))
            expected(lambda: Order(SongClips(shards, CLIP).clips("train"), shards.songs["shard"], 0).locate(0))

    def facts(self, dice: random.Random) -> None:
        """A song's JSON whose checksum is right."""
        data = mutated(self.songs.read_member(0, "json"), dice, texts=True)
        shards = ShardSet(self.songs.folder)
        shards.read_member = lambda row, member: data  # type: ignore[method-assign]
        told = expected(lambda: shards.read_facts(0))
        [names_of(told, name) for name in ("artist", "genres", "year") if told is not None]

    def array(self, dice: random.Random) -> None:
        data = mutated(npy(np.arange(200, dtype=np.uint16)), dice)
        codes = expected(lambda: read_codes(io.BytesIO(data), dice.randrange(150), 50))
        assert codes is None or codes.shape == (50,)

    def lyrics(self, dice: random.Random) -> None:
        line = b"[00:01.00] <00:01.00> la <00:01.50> lu <00:02.10>\n[00:03.00] <00:03.00> li <00:03.10>\n"
        data = mutated(line, dice, texts=True)
        expected(lambda: parse_lrc(data.decode()))


def read_song(shards: ShardSet, kind: type, song: int) -> None:
    source = SongClips(shards, CLIP) if kind is SongClips else CodeWindows(shards, "middle", 8)
    source.read(song, 0, rng(0, "clip", song))


def each(read_one: Callable[[int], None], songs: range) -> None:
    for song in songs:
        expected(lambda song=song: read_one(song))


def expected(work: Callable):  # type: ignore[type-arg, no-untyped-def]
    """`work()`, or None if it raised what readers of broken data may raise."""
    try:
        return work()
    except (ValueError, OSError):
        return None


def write_flac_songs(folder: Path) -> Path:
    """Three songs in one shard."""
    folder.mkdir(parents=True)
    told = [{"version": 1, "key": key(s), "frames": frames_of(s), "artist": "A", "genres": ["x"]} for s in range(3)]
    members = [{"json": json.dumps(told[s]).encode(), "flac": encode_flac(ramp(s), RATE)} for s in range(3)]
    write_shard(folder / "songs-000000.tar", [Sample(key(s), frames_of(s), members[s]) for s in range(3)])
    write_index(folder, ["songs-000000.tar"], kind="songs", sample_rate=RATE, made_by=MADE_BY)
    return folder


@contextmanager
def limited_time(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"no end after {seconds} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def fuzz(folder: Path, seeds: range) -> dict[str, int]:
    """One mutated input a seed, the kinds in turn; counts by kind. Raises what no reader may raise, naming the seed."""
    corpus, counts = Corpus(folder), dict.fromkeys(("tar", "flac", "index", "rows", "json", "codes", "lyrics"), 0)
    kinds = list(corpus.kinds)
    for seed in seeds:
        kind = kinds[seed % len(kinds)]
        try:
            with limited_time(SECONDS):
                corpus.kinds[kind](random.Random(seed))
        except BaseException as error:
            raise AssertionError(f"seed {seed} ({kind}): {type(error).__name__}: {error}") from error
        counts[kind] += 1
    return counts


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
