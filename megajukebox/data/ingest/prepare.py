"""From a list of songs to a finished set of song shards: the plan, the restart, the refusals. Its
entry: `prepare.py`.

    songs --plan--> shards of songs --convert (many processes)--> accept (one, in order)--> tars -->
    index.json

Because songs are accepted in the order of the list, the shards do not depend on the number of
processes or on where an earlier run was killed, and of two songs with the same audio it is always
the first that stays.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.process_pool import in_order
from megajukebox.common.untrusted_files import open_given, parse_json, read_given
from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.conditioning.tokenizers import LYRICS_MODEL
from megajukebox.data.ingest.convert import ConvertedSong, IngestConfig, convert, crashed, sample
from megajukebox.data.ingest.source_song import SourceSong
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSample, finished_shard, write_shard
from megajukebox.records.found_returns import SUFFIX as FOUND_SUFFIX
from megajukebox.records.ingest_notes import NOTES_FILE, IngestNote, note_of_record, write_notes

# Bytes stored for a byte that comes in, about: only to fill shards evenly, so a file's name and
# size
# are enough. Rough: lossy files grow about tenfold as FLAC.
GROWTH = {".wav": 1.0, ".flac": 1.2, ".ogg": 10.0, ".mp3": 10.0}
WAV_GROWTH = 2.5  # a 32-bit float WAV to a FLAC of 16 bits
OUTPUT_FILES = (
    "index.json",
    "songs.npy",
    LYRICS_MODEL,
    "refused.jsonl",
    NOTES_FILE,
    "plan.json",
    "songs-*.tar",
    "songs-*.rows.json",
    f"songs-*{FOUND_SUFFIX}",
)

ShardPlan = dict[str, list[SourceSong]]  # tar name -> its songs

# What a tokenizer is trained on where no song has lyrics.
UNSUNG = "the quick brown fox jumps over the lazy dog"


@dataclass(frozen=True)
class IngestReport:
    """The result of preparing songs."""

    index: dict[str, Any]  # index.json
    refused: list[dict[str, str]]  # the lines of refused.jsonl: "song", "reason", "detail"
    notes: list[
        IngestNote
    ]  # the lines of notes.jsonl: of songs that were stored, and of files passed over
    written: int  # shards
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
    passed_over: Iterable[IngestNote] = (),
    after_song: Callable[[int], object] = lambda count: None,
) -> IngestReport:
    """Make the shard set `out` of `songs`, or resume making it. `after_song(n)` is called for each
    n songs done.

    Args:
        passed_over: notes on what in the collection is no song.

    Raises:
        UserError: `out` holds shards of other songs or settings (unless `fresh`), or every song is
            refused.
    """
    make_folder(out)
    if fresh:
        # the index first, so that no half set ever looks finished
        for pattern in OUTPUT_FILES:
            for path in out.glob(pattern):
                path.unlink()
    check_plan(out, songs, settings)
    plan = plan_shards(songs, settings)
    kept = {name for name in plan if finished_shard(out / name)}
    if len(kept) < len(plan):
        (out / "index.json").unlink(missing_ok=True)
    shards = make_shards(out, plan, kept, settings, processes, after_song)
    refused, notes = gathered_notes(shards)
    all_refused = len(refused) == len(songs)
    for note in passed_over:
        if settings.refuses(note):
            refused.append(refusal_line(note.source, f"{note.kind.value}: {note.detail}"))
        else:
            notes.append(note)
    lines = "".join(json.dumps(line) + "\n" for line in refused)
    write_atomic(out / "refused.jsonl", lines.encode())
    write_notes(out, notes)
    if all_refused:
        raise UserError(
            f"all {len(songs)} songs were refused ({reasons(refused)}); {out}/refused.jsonl says why,"
            f" of the first: {refused[0]['detail'] or refused[0]['reason']}"
        )
    index = write_index(
        out,
        plan,
        kind="songs",
        sample_rate=settings.sample_rate,
        made_by=made_by,
        lyrics_model=train_lyrics_model(out, shards, lyrics_vocabulary),
    )
    return IngestReport(index, refused, notes, written=len(plan) - len(kept), kept=len(kept))


def gathered_notes(
    shards: list[dict[str, Any]],
) -> tuple[list[dict[str, str]], list[IngestNote]]:
    """(lines of refused.jsonl, notes) that the shards keep, in order. Shards of before there were notes have none."""
    refused: list[dict[str, str]] = []
    notes: list[IngestNote] = []
    for shard in shards:
        refused += shard["notes"]["refused"]
        for record in shard["notes"].get("noted", ()):
            note = note_of_record(record)
            if note is not None:
                notes.append(note)
    return refused, notes


def refusal_line(song: str, refusal: str) -> dict[str, str]:
    """A line of refused.jsonl of a refusal `<reason>: <detail>`."""
    reason, _, detail = refusal.partition(": ")
    return {"song": song, "reason": reason, "detail": detail}


# ---- the plan


def plan_shards(songs: list[SourceSong], settings: IngestConfig) -> ShardPlan:
    """Which song goes where: a function of the list, the sizes of its files and the settings, of
    nothing else.
    """
    depth = WAV_GROWTH if settings.codec == "wav" else settings.bits / 16
    groups: list[list[SourceSong]] = []
    free_bytes = 0.0
    for song in songs:
        bytes_in, _ = file_stamp(song.path)
        size = bytes_in * GROWTH.get(song.path.suffix.lower(), max(GROWTH.values())) * depth
        if not groups or len(groups[-1]) == settings.songs_per_shard or size > free_bytes:
            groups.append([])
            free_bytes = settings.shard_megabytes * 1e6
        groups[-1].append(song)
        free_bytes -= size
    return {f"songs-{number:06d}.tar": group for number, group in enumerate(groups)}


def file_stamp(path: Path) -> tuple[int, int]:
    """(bytes, time of the last change in ns); zeros for a file that cannot be looked at."""
    try:
        stat = os.stat(path)
    except OSError:
        return 0, 0
    return stat.st_size, stat.st_mtime_ns


def check_plan(out: Path, songs: list[SourceSong], settings: IngestConfig) -> None:
    """Write plan.json. Raises UserError if one is there already and of other songs or settings."""
    plan = {
        "format": 1,
        "settings": {**asdict(settings), "allow": sorted(settings.allow)},
        "songs": len(songs),
        "songs_sha256": songs_sha256(songs),
    }
    path = out / "plan.json"
    if path.is_file():
        changes = differences(parse_json(read_given(path)), plan)
        if changes:
            raise UserError(
                f"{out} was begun differently: {changes}. Pass --fresh to throw its shards away and begin "
                "again, choose another --out, or go back to what it was begun with"
            )
    elif any(out.glob("*.tar")):
        raise UserError(f"{out} holds shards but no plan.json; choose another --out")
    else:
        write_atomic(path, (json.dumps(plan, indent=1) + "\n").encode())


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences between two plans as text; "" if there are none."""
    # a plan without a setting is of a version that did not know it, and so did not do it
    old_settings = {"tags": False, "strict": False, "allow": [], **before.get("settings", {})}
    changes = []
    for name, value in now["settings"].items():
        if old_settings.get(name) != value:
            changes.append(f"{name} was {old_settings.get(name)!r} and is now {value!r}")
    if before.get("songs") != now["songs"]:
        changes.append(f"it had {before.get('songs')} songs and there are now {now['songs']}")
    elif before.get("songs_sha256") != now["songs_sha256"]:
        changes.append("its songs, their metadata, their lyrics or their order have changed since")
    return "; ".join(changes)


def songs_sha256(songs: list[SourceSong]) -> str:
    """Changes with the list, a file (by its size and time), a song's metadata or its lyrics."""
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


# ---- the shards


def make_shards(
    out: Path,
    plan: ShardPlan,
    kept: set[str],
    settings: IngestConfig,
    processes: int,
    after_song: Callable[[int], object],
) -> list[dict[str, Any]]:
    """The rows of all shards, in order: of those finished before, and of the others as they are
    written.
    """
    missing: list[SourceSong] = []
    for name, songs in plan.items():
        if name not in kept:
            missing += songs
    shards: list[dict[str, Any]] = []
    stored: dict[str, str] = {}  # sha256 of the audio, and key -> song
    with closing(
        in_order(
            partial(convert, settings=settings), missing, processes, crashed, settings.worker_memory
        )
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
    """Write one shard. Its notes keep what a restart must know: what was refused, and what is
    stored.
    """
    notes: dict[str, Any] = {"refused": [], "stored": {}, "noted": []}

    def samples() -> Iterator[ShardSample]:
        for song, result in zip(songs, results):
            new_sample = sample(song, result, settings)
            key = new_sample.key
            refusal = result.refusal
            of_song = (*song.notes, *result.notes)
            if not refusal and result.sha256 in stored:
                refusal = f"duplicate: the same audio as {stored[result.sha256]}"
            elif not refusal and key in stored:
                refusal = f"same key: {key} is already {stored[key]}; rename the file"
            elif not refusal:
                refusal = strict_refusal(of_song, settings)
            if refusal:
                notes["refused"].append(refusal_line(song.name, refusal))
            else:
                notes["noted"] += [note.to_record() for note in of_song]
                names = {result.sha256: song.name, key: song.name}
                stored.update(names)
                notes["stored"].update(names)
                yield new_sample
            after_song(1)

    return write_shard(path, samples(), notes)


def strict_refusal(notes: Iterable[IngestNote], settings: IngestConfig) -> str | None:
    """The first of a song's notes that refuses it, as `<kind>: <detail>`."""
    for note in notes:
        if settings.refuses(note):
            return f"{note.kind.value}: {note.detail}"
    return None


def reasons(refused: list[dict[str, str]]) -> str:
    """`3 silent, 1 too short`"""
    counts = Counter(line["reason"] for line in refused)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())


# ---- the lyrics


def train_lyrics_model(out: Path, shards: list[dict[str, Any]], vocabulary: int) -> str | None:
    """Train lyrics.model on the lyrics in the shards; None, and no file, if `vocabulary` is 0.

    Where no song has lyrics it knows little but bytes: a prior that reads lyrics then trains on
    empty ones, and new songs with words, in any script, can still join.
    """
    path = out / LYRICS_MODEL
    if not vocabulary:
        path.unlink(missing_ok=True)
        return None
    # the converting processes import this file, not that one
    from megajukebox.conditioning.tokenizers import train_sentencepiece

    lyrics = all_lyrics(out, shards)
    first = next(lyrics, UNSUNG)
    train_sentencepiece(chain([first], lyrics), path, vocabulary)
    return path.name


def all_lyrics(out: Path, shards: list[dict[str, Any]]) -> Iterator[str]:
    """The plain text of every song's lyrics, in order."""
    for shard in shards:
        for song in shard["songs"]:
            if "lyrics" not in song["members"]:
                continue
            offset, size, _ = song["members"]["lyrics"]
            with open_given(out / shard["name"]) as tar:
                tar.seek(offset)
                text, _ = parse_lrc(tar.read(size).decode())
            yield text
