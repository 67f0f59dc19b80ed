"""From a list of songs to a finished set of song shards: the plan, the restart, the refusals. Its entry: `prepare.py`.

    songs --plan--> shards of songs --convert (many processes)--> accept (one, in order)--> tars --> index.json

Because songs are accepted in the order of the list, the shards do not depend on the number of processes or on where an
earlier run was killed, and of two songs with the same audio it is always the first that stays.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.process_pool import in_order
from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.conditioning.tokenizers import LYRICS_MODEL
from megajukebox.data.ingest.convert import ConvertedSong, IngestConfig, convert, crashed, sample
from megajukebox.data.ingest.discover import SourceSong
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSample, finished_shard, write_shard

# Bytes stored for a byte that comes in, about: only to fill shards evenly, so a file's name and size are enough.
GROWTH = {".wav": 1.0, ".flac": 1.2, ".ogg": 10.0, ".mp3": 10.0}
OURS = (
    "index.json",
    "songs.npy",
    LYRICS_MODEL,
    "refused.jsonl",
    "plan.json",
    "songs-*.tar",
    "songs-*.rows.json",
)

Plan = dict[str, list[SourceSong]]  # tar name -> its songs

UNSUNG = "the quick brown fox jumps over the lazy dog"  # what a tokenizer is trained on where nothing is sung


@dataclass(frozen=True)
class IngestReport:
    """What came of the songs."""

    index: dict[str, Any]  # index.json
    refused: list[dict[str, str]]  # the lines of refused.jsonl: "song", "reason", "detail"
    made: int  # shards
    kept: int  # shards that were finished before


def prepare_songs(
    songs: list[SourceSong],
    out: Path,
    settings: IngestConfig,
    *,
    processes: int,
    lyrics_vocabulary: int,
    made_by: Mapping[str, str | None],
    fresh: bool = False,
    after_song: Callable[[int], object] = lambda count: None,
) -> IngestReport:
    """Make, or go on making, the shard set `out` of `songs`. `after_song(n)` hears of each n songs that are done.

    ValueError if `out` holds shards of other songs or settings (unless `fresh`), or if every song is refused.
    """
    make_folder(out)
    if fresh:
        clear(out)
    hold_to_plan(out, songs, settings)
    plan = plan_shards(songs, settings)
    kept = {name for name in plan if finished_shard(out / name)}
    if len(kept) < len(plan):
        (out / "index.json").unlink(missing_ok=True)
    shards = make_shards(out, plan, kept, settings, processes, after_song)
    refused = [line for shard in shards for line in shard["notes"]["refused"]]
    write_atomic(
        out / "refused.jsonl", "".join(json.dumps(line) + "\n" for line in refused).encode()
    )
    if len(refused) == len(songs):
        raise ValueError(
            f"all {len(songs)} songs were refused ({reasons(refused)}); {out}/refused.jsonl says why"
        )
    index = write_index(
        out,
        plan,
        kind="songs",
        sample_rate=settings.sample_rate,
        made_by=made_by,
        lyrics_model=train_lyrics_model(out, shards, lyrics_vocabulary),
    )
    return IngestReport(index, refused, made=len(plan) - len(kept), kept=len(kept))


# ---- the plan


def plan_shards(songs: list[SourceSong], settings: IngestConfig) -> Plan:
    """Which song goes where: a function of the list, the sizes of its files and the settings, of nothing else."""
    groups: list[list[SourceSong]] = []
    room = 0.0
    for song in songs:
        size = stored_bytes(song, settings)
        if not groups or len(groups[-1]) == settings.songs_per_shard or size > room:
            groups.append([])
            room = settings.shard_megabytes * 1e6
        groups[-1].append(song)
        room -= size
    return {f"songs-{number:06d}.tar": group for number, group in enumerate(groups)}


def stored_bytes(song: SourceSong, settings: IngestConfig) -> float:
    """About how many bytes a song will fill."""
    depth = 2.5 if settings.codec == "wav" else settings.bits / 16
    return file_stamp(song.path)[0] * GROWTH.get(song.path.suffix.lower(), 10.0) * depth


def file_stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns); zeros for a file that cannot be looked at."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def hold_to_plan(out: Path, songs: list[SourceSong], settings: IngestConfig) -> None:
    """Write plan.json; if it is there already, it must be of the same songs and settings: ValueError if it is not."""
    plan = {
        "format": 1,
        "settings": asdict(settings),
        "songs": len(songs),
        "songs_sha256": songs_sha256(songs),
    }
    path = out / "plan.json"
    if path.is_file():
        if changes := changed(json.loads(path.read_bytes()), plan):
            raise ValueError(
                f"{out} was begun differently: {changes}. Pass --fresh to throw its shards away and begin again, "
                "choose another --out, or go back to what it was begun with"
            )
    elif any(out.glob("*.tar")):
        raise ValueError(f"{out} holds shards but no plan.json; choose another --out")
    else:
        write_atomic(path, (json.dumps(plan, indent=1) + "\n").encode())


def changed(then: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences between two plans in words; "" if there are none."""
    was, is_ = (
        {"tags": False} | then.get("settings", {}),
        now["settings"],
    )  # tags were once not read
    words = [
        f"{name} was {was.get(name)!r} and is now {is_[name]!r}"
        for name in is_
        if was.get(name) != is_[name]
    ]
    if then.get("songs") != now["songs"]:
        words.append(f"it had {then.get('songs')} songs and there are now {now['songs']}")
    elif then.get("songs_sha256") != now["songs_sha256"]:
        words.append("its songs, their metadata, their lyrics or their order have changed since")
    return "; ".join(words)


def songs_sha256(songs: list[SourceSong]) -> str:
    """Changes if the list, a file (by its size and time), or what is said of a song does."""
    total = hashlib.sha256()
    for song in songs:
        facts = [
            song.name,
            *file_stamp(song.path),
            song.metadata,
            song.lyrics,
            song.lyrics_kind,
            song.refusal,
        ]
        total.update((json.dumps(facts) + "\n").encode())
    return total.hexdigest()


def clear(out: Path) -> None:
    """Removes what an earlier run wrote, the index first, so that no half set ever looks finished."""
    for pattern in OURS:
        for path in out.glob(pattern):
            path.unlink()


# ---- the shards


def make_shards(
    out: Path,
    plan: Plan,
    kept: set[str],
    settings: IngestConfig,
    processes: int,
    after_song: Callable[[int], object],
) -> list[dict[str, Any]]:
    """The rows of all shards, in order: of those finished before, and of the others once they are made."""
    missing = [song for name, songs in plan.items() if name not in kept for song in songs]
    shards: list[dict[str, Any]] = []
    stored: dict[str, str] = {}  # sha256 of the audio, and key -> song
    with closing(
        in_order(partial(convert, settings=settings), missing, processes, crashed)
    ) as results:
        for name, songs in plan.items():
            if name in kept:
                shard = finished_shard(out / name)
                assert shard is not None, f"{name} was finished a moment ago"
                after_song(len(songs))
            else:
                shard = make_shard(
                    out / name, songs, islice(results, len(songs)), settings, stored, after_song
                )
            stored.update(shard["notes"]["stored"])
            shards.append(shard)
    return shards


def make_shard(
    path: Path,
    songs: list[SourceSong],
    results: Iterable[ConvertedSong],
    settings: IngestConfig,
    stored: dict[str, str],
    after_song: Callable[[int], object],
) -> dict[str, Any]:
    """Write one shard. Its notes keep what a restart must know: what was refused, and what is stored."""
    notes: dict[str, Any] = {"refused": [], "stored": {}}

    def samples() -> Iterator[ShardSample]:
        for song, result in zip(songs, results):
            made = sample(song, result, settings)
            refusal = result.refusal or twin(made.key, result.sha256, stored)
            if refusal:
                notes["refused"].append(refused_line(song, refusal))
            else:
                new = {result.sha256: song.name, made.key: song.name}
                stored.update(new)
                notes["stored"].update(new)
                yield made
            after_song(1)

    return write_shard(path, samples(), notes)


def twin(key: str, sha256: str, stored: dict[str, str]) -> str | None:
    """The refusal of a song that an earlier one leaves no room for, or None."""
    if sha256 in stored:
        return f"duplicate: the same audio as {stored[sha256]}"
    if key in stored:
        return f"same key: {key} is already {stored[key]}; rename the file"
    return None


def refused_line(song: SourceSong, refusal: str) -> dict[str, str]:
    """A line of refused.jsonl."""
    reason, _, detail = refusal.partition(": ")
    return {"song": song.name, "reason": reason, "detail": detail}


def reasons(refused: list[dict[str, str]]) -> str:
    """`3 silent, 1 too short`"""
    return ", ".join(
        f"{count} {reason}"
        for reason, count in Counter(line["reason"] for line in refused).most_common()
    )


# ---- the lyrics


def train_lyrics_model(out: Path, shards: list[dict[str, Any]], vocabulary: int) -> str | None:
    """Train lyrics.model on the lyrics in the shards; None, and no file, if `vocabulary` is 0.

    Where no song has lyrics it knows little but bytes: a prior that reads lyrics then trains on empty ones, and new
    songs with words, in any script, can still join.
    """
    path = out / LYRICS_MODEL
    if not vocabulary:
        path.unlink(missing_ok=True)
        return None
    from megajukebox.conditioning.tokenizers import (
        train_sentencepiece,  # the converting processes import this file, not that one
    )

    sung = any("lyrics" in song["members"] for shard in shards for song in shard["songs"])
    train_sentencepiece(all_lyrics(out, shards) if sung else [UNSUNG], path, vocabulary)
    return path.name


def all_lyrics(out: Path, shards: list[dict[str, Any]]) -> Iterator[str]:
    """The plain text of every song's lyrics, in order."""
    for shard in shards:
        for offset, size, _ in (
            song["members"]["lyrics"] for song in shard["songs"] if "lyrics" in song["members"]
        ):
            with open(out / shard["name"], "rb") as tar:
                tar.seek(offset)
                text, _ = parse_lrc(tar.read(size).decode())
                yield text
