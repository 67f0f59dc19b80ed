"""A broken corpus does not stop a run: all damage is skipped, counted by kind and named; too much of it stops."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fixtures.tiny_runs import codes_and_preset, train
from fixtures.tiny_shards import CLIP, RATE, batches, frames_of, key, ramp, steps, write_songs

from megajukebox.data.audio import encode_flac, encode_wav
from megajukebox.data.sample_errors import ALL_KINDS
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSample, ShardSet, write_shard
from megajukebox.data.stream.bad_samples import BadSample, BadSampleCounter
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.records.events import RunStarted
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.records.run_log import RunLog

BROKEN = 2  # the song that is spoilt


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


def with_audio(folder: Path, data: bytes, ending: str) -> Path:
    """Six songs in one shard, one of them with this audio; the index believes all of them to be sound."""
    folder.mkdir()
    audio = {song: {"wav": encode_wav(ramp(song), RATE)} for song in range(6)} | {
        BROKEN: {ending: data}
    }
    told = {
        song: json.dumps({"key": key(song), "frames": frames_of(song)}).encode()
        for song in range(6)
    }
    samples = [ShardSample(key(s), frames_of(s), {"json": told[s], **audio[s]}) for s in range(6)]
    write_shard(folder / "songs-000000.tar", samples)
    made_by = {"version": "0", "commit": None, "command": "tests"}
    write_index(folder, ["songs-000000.tar"], kind="songs", sample_rate=RATE, made_by=made_by)
    return folder


def change_row(folder: Path, **fields: object) -> None:
    """The broken song's row of songs.npy changed, and index.json made to vouch for it."""
    rows = np.load(folder / "songs.npy")
    for field, value in fields.items():
        rows[field][BROKEN] = value
    np.save(folder / "songs.npy", rows)
    index = json.loads((folder / "index.json").read_text())
    index["songs_file"]["sha256"] = hashlib.sha256((folder / "songs.npy").read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


def heard_and_skipped(folder: Path) -> tuple[dict[str, int], set[str]]:
    """(skips by kind, keys named) of 12 steps that must all come."""
    named: set[str] = set()
    source = SongClips(ShardSet(folder), CLIP)
    stream = batches(
        source, max_bad_sample_ratio=1.0, on_bad=lambda shard, key, kind, reason: named.add(key)
    )
    assert len(steps(stream, 12)) == 12
    assert set(stream.bad_samples()) <= set(ALL_KINDS), "else the metrics would leave them out"
    return stream.bad_samples(), named


def corrupt_flac() -> bytes:
    data = bytearray(encode_flac(ramp(BROKEN), RATE))
    for place in range(200, len(data), 97):
        data[place] ^= 0xA5
    return bytes(data)


def promising_flac() -> bytes:
    """A FLAC whose header promises 2^36 - 1 frames."""
    data = bytearray(encode_flac(ramp(BROKEN)[:2000], RATE))
    data[21] |= 0x0F
    data[22:26] = b"\xff\xff\xff\xff"
    return bytes(data)


def not_finite() -> bytes:
    x = ramp(BROKEN)
    x[::100] = np.nan
    return encode_wav(x, RATE)


@pytest.mark.parametrize(
    ("make", "ending", "kind"),
    [
        (corrupt_flac, "flac", {"undecodable", "too_short", "not_finite", "too_loud"}),
        (promising_flac, "flac", {"too_short", "undecodable"}),
        (not_finite, "wav", {"not_finite"}),
        (lambda: encode_wav(9 * ramp(BROKEN) + 5, RATE), "wav", {"too_loud"}),
        (lambda: encode_wav(ramp(BROKEN), 44_100), "wav", {"sample_rate"}),
        (lambda: encode_wav(ramp(BROKEN)[:0], RATE), "wav", {"too_short", "undecodable"}),
        (lambda: b"RIFF but nothing else", "wav", {"undecodable"}),
        (lambda: b"#!/bin/sh\nrm -rf /\n", "flac", {"undecodable"}),
    ],
)
def test_audio_of_every_kind_of_damage_is_skipped_counted_and_named(
    tmp_path: Path, make: Callable[[], bytes], ending: str, kind: set[str]
) -> None:
    skips, named = heard_and_skipped(with_audio(tmp_path / "set", make(), ending))
    assert named == {key(BROKEN)} and skips and set(skips) <= kind


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"json_bytes": 0}, "json"),
        ({"audio_bytes": 0}, "undecodable"),
        ({"audio_bytes": 2**50}, "too_large"),
        ({"audio_offset": 2**62}, "truncated"),
        ({"audio_offset": 3}, "undecodable"),
        ({"key": b"../../etc/passwd"}, "bad_name"),
        ({"key": b"/etc/passwd"}, "bad_name"),
        ({"key": b"\xff\xfe"}, "bad_name"),
    ],
)
def test_rows_that_lie_are_skipped_counted_and_named(
    songs: Path, tmp_path: Path, fields: dict[str, object], kind: str
) -> None:
    folder = shutil.copytree(songs, tmp_path / "set")
    change_row(folder, **fields)
    skips, named = heard_and_skipped(folder)
    assert set(skips) == {kind} and len(named) == 1


@pytest.mark.parametrize("frames", [0, 2**63, 2**64 - 1])
def test_songs_of_no_length_or_an_absurd_one_have_no_clips(
    songs: Path, tmp_path: Path, frames: int
) -> None:
    folder = shutil.copytree(songs, tmp_path / "set")
    change_row(folder, frames=frames)
    source = SongClips(ShardSet(folder), CLIP)
    assert source.clips("train")[BROKEN] == 0 and source.report()["songs_too_short"] == 1
    assert heard_and_skipped(folder) == ({}, set())


def test_a_shard_outside_its_folder_is_never_opened(songs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(songs, tmp_path / "set")
    for name in ("../songs/songs-000000.tar", "/etc/passwd", "..", "a/b.tar"):
        index = json.loads((songs / "index.json").read_text())
        index["shards"][0]["name"] = name
        (folder / "index.json").write_text(json.dumps(index))
        skips, _ = heard_and_skipped(folder)
        assert set(skips) == {"bad_name"}


def test_a_missing_shard_is_skipped_and_nothing_is_ever_written_beside_the_set(
    songs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(songs, tmp_path / "set")
    (folder / "songs-000001.tar").unlink()
    before = sorted(tmp_path.rglob("*"))
    skips, named = heard_and_skipped(folder)
    assert set(skips) == {"missing"} and named <= {key(song) for song in range(5, 9)}
    assert sorted(tmp_path.rglob("*")) == before


def test_above_the_share_the_run_stops_with_a_summary() -> None:
    count = BadSampleCounter(max_ratio=0.1, after=100, on_bad=None)
    bad = [BadSample("a.tar", "x", "too_short", "only 3 of 9 frames at frame 0")] * 8 + [
        BadSample("b.tar", "y", "unavailable", "unavailable: gone")
    ] * 3
    count.add(99, bad)
    with pytest.raises(
        ValueError,
        match=r"11 of 100 .*bad_share 0.1 \(8 too_short, 3 unavailable; 8 in a.tar, 3 in b",
    ):
        count.add(1, [])


def test_every_rank_can_tell_of_its_skips_and_lines_do_not_mix(tmp_path: Path) -> None:
    logs = [RunLog(tmp_path / "run", writes=rank == 0, rank=rank) for rank in range(3)]
    logs[0].event(RunStarted(step=0))
    for n in range(50):
        for log in logs:
            log.bad_sample("a.tar", f"song-{n}", "damaged", "is damaged " + "x" * 400)
    events = read_lines(tmp_path / "run" / "events.jsonl")
    assert len(events) == 151 and {event["rank"] for event in events[1:]} == {0, 1, 2}


def test_a_run_counts_what_every_rank_skipped_and_names_it(tmp_path: Path) -> None:
    data, preset = codes_and_preset(tmp_path, steps=12, bad_share=1.0)
    shard = data / "codes-000000.tar"
    damaged = bytearray(shard.read_bytes())
    damaged[700::1024] = bytes(255 - byte for byte in damaged[700::1024])
    shard.write_bytes(damaged)
    train(data, preset, tmp_path / "run", ranks=2)
    named = [
        event
        for event in read_lines(tmp_path / "run/events.jsonl")
        if event["event"] == "bad_sample"
    ]
    assert {event["rank"] for event in named} == {0, 1} and {event["shard"] for event in named} == {
        shard.name
    }
    last = [m for m in read_lines(tmp_path / "run/metrics.jsonl") if m["split"] == "train"][-1]
    kinds = {name: count for name, count in last.items() if name.startswith("bad_samples_")}
    assert last["bad_samples"] == sum(kinds.values()) == len(named) > 0
