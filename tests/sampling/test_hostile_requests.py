"""Requests, prompts and unfinished songs that somebody else may have written: each costs its own song and no other."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixtures.fuzzing import limited_time, mutated
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import little_vqvae

from megajukebox.common.errors import UserError
from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.models.vqvae import VQVAE
from megajukebox.sampling.batch_job import SamplingRun
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.request_queue import is_complete
from megajukebox.sampling.songs.audio_stream import AudioStream
from megajukebox.sampling.songs.prompt_sources import KnownCodes, load_source
from megajukebox.sampling.songs.requests import SongRequest, parse_requests, read_requests
from megajukebox.sampling.songs.resume_store import ResumeStore

GOOD = {"id": "good", "seconds": 0.6, "temperature": 3.0}
KEY = {"request": {"id": "a"}, "weights": {"vqvae": "x"}}
KNOWN = KnownCodes({"top": np.arange(9)}, {"top": np.arange(9) < 5})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("jukebox") / "runs")


@pytest.fixture(scope="module")
def vqvae() -> VQVAE:
    return little_vqvae()


# ---- Files of requests ------------------------------------------------------------------------------------------------


def alias_bomb() -> str:
    lines = ["- &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "[" * 100_000),
        ("a.json", "[" * 100_000),
        ("a.json", '{"a":' * 100_000),
        ("a.yaml", alias_bomb()),
        ("a.yaml", f"- seed: 0x{'f' * 5000}"),
        ("a.yaml", "!!python/object/apply:os.system [true]"),
        ("a.yaml", "- \x1b]52;c;aGk=\x07: ["),
        ("a.json", "9" * 100_000),
    ],
)
def test_a_file_that_is_a_bomb_is_one_line(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with limited_time(10), pytest.raises(UserError) as refused:
        read_requests(tmp_path / name)
    assert len(str(refused.value)) < 500 and str(refused.value).isprintable()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_requests_from_a_pipe_a_folder_or_a_device_are_refused_at_once(
    tmp_path: Path, make
) -> None:
    make(tmp_path / "a.yaml")
    with limited_time(5), pytest.raises(UserError, match="cannot be read"):
        read_requests(tmp_path / "a.yaml")


def test_requests_may_be_a_link_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump([GOOD]))
    (tmp_path / "b.yaml").symlink_to(tmp_path / "a.yaml")
    assert [request.id for request in read_requests(tmp_path / "b.yaml")[0]] == ["good"]


@pytest.mark.parametrize("name", ["x" * 6000, "a\0b", "/" * 5000, "~/x", "-"])
def test_names_that_no_file_can_have_cost_their_song(
    tmp_path: Path, vqvae: VQVAE, name: str
) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, {"id": "bad", "prompt": name}]))
    valid, refused = read_requests(tmp_path / "a.json")
    assert [request.id for request in valid] == ["good", "bad"] and not refused
    with pytest.raises(UserError) as wrong:
        load_source(name, vqvae, "x", torch.device("cpu"))
    assert len(str(wrong.value)) < 500


def test_what_a_request_holds_moves_no_cursor() -> None:
    entries = [{"id": "\x1b]52;c;aGk=\x07"}, {"id": "a", "\x1b[2J": 1}, ["\x1b"], GOOD]
    valid, refused = parse_requests(entries)
    assert [request.id for request in valid] == ["good"]
    assert len(refused) == 3 and all(line.isprintable() for line in refused)


# ---- Prompts ----------------------------------------------------------------------------------------------------------


def sample_with(folder: Path, arrays: bytes, fingerprint: str) -> Path:
    (folder / "evil.json").write_text(json.dumps({"weights": {"vqvae": fingerprint}}))
    (folder / "evil.codes.npz").write_bytes(arrays)
    return folder / "evil.json"


def saved(folder: Path, compress: bool = False, **arrays: np.ndarray) -> bytes:
    (np.savez_compressed if compress else np.savez)(folder / "x.npz", **arrays)  # type: ignore[arg-type]
    return (folder / "x.npz").read_bytes()


@pytest.mark.parametrize("kind", ["objects", "beyond", "float", "rows", "bomb", "cut", "empty"])
def test_a_bad_prompt_costs_its_song_and_the_others_are_made(
    runs: Path, tmp_path: Path, kind: str
) -> None:
    box = Jukebox(runs)
    arrays = {
        "objects": np.array([{}], object),
        "beyond": np.array([2**62]),
        "float": np.array([1.5]),
        "rows": np.zeros((2, 3), np.uint16),
        "bomb": np.zeros(70_000_000, np.uint16),
    }
    top = arrays.get(kind, np.arange(4, dtype=np.uint16))
    data = saved(tmp_path, kind == "bomb", top=top)
    data = {"cut": data[:-9], "empty": b""}.get(kind, data)
    prompt = sample_with(tmp_path, data, box.weights["vqvae"])
    bad = {"id": "bad", "seconds": 0.6, "prompt": str(prompt)}
    valid, _ = parse_requests([bad, GOOD])
    failed = SamplingRun(box, valid, tmp_path / "out").run()
    assert failed.keys() == {"bad"} and "cannot be read" in failed["bad"]
    assert (tmp_path / "out/good.json").is_file()


@pytest.mark.parametrize(
    "bad",
    [
        {"seconds": 0.6, "keep_seconds": 5e4, "prompt": "/dev/zero"},
        {"seconds": 0.6, "prompt": "pipe"},
        {"seconds": 0.6, "seed": 10**300, "song_seconds": 86400},
        {"infill": "pipe", "replace": [[0, float("inf")]]},
    ],
    ids=["device", "pipe", "large", "infinite"],
)
def test_no_request_stops_the_next(runs: Path, tmp_path: Path, bad: dict) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("prompt", "infill"):
        if bad.get(name) == "pipe":
            bad = bad | {name: str(tmp_path / "pipe")}
    valid, _ = parse_requests([{"id": "bad", **bad}, GOOD])
    with limited_time(60):
        SamplingRun(Jukebox(runs), valid, tmp_path / "out", batch_size=2).run()
    assert (tmp_path / "out/good.json").is_file()


# ---- Unfinished songs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"PK", b"\x93NUMPY", b"[" * 9999, b"{}"])
def test_a_torn_file_of_an_unfinished_song_is_none(tmp_path: Path, content: bytes) -> None:
    store = ResumeStore(tmp_path)
    (store.folder / "a.npz").write_bytes(content)
    assert store.load("a", KEY) is None
    store.save("a", KEY, KNOWN)
    loaded = store.load("a", KEY)
    assert loaded is not None and np.array_equal(loaded.mask["top"], KNOWN.mask["top"])
    (store.folder / "b.npz").symlink_to(store.folder / "a.npz")
    assert store.load("b", KEY) is None


CLAIMS = [b"", b"[]", b'{"host": HERE, "pid": -1}', b'{"host": HERE, "pid": 99999999999999999999}']
CLAIMS += [b'{"host": HERE, "pid": "x"}', b'{"host": HERE}', b"[" * 4000, b"\xff", b"3"]


@pytest.mark.parametrize("content", CLAIMS)
def test_a_claim_that_says_nothing_is_stale(tmp_path: Path, content: bytes) -> None:
    store = ResumeStore(tmp_path)
    here = json.dumps(os.uname().nodename).encode()
    claim = store.folder / "a.claim"
    claim.write_bytes(content.replace(b"HERE", here))
    os.utime(claim, (time.time() - 10,) * 2)
    assert not store.is_claimed("a") and store.claim("a") and store.is_claimed("a")


def test_a_claim_that_is_being_written_is_not_taken(tmp_path: Path) -> None:
    store = ResumeStore(tmp_path)
    (store.folder / "a.claim").touch()
    assert store.is_claimed("a") and not store.claim("a")


def test_a_claim_that_is_a_pipe_or_a_link_is_not_waited_for_nor_followed(tmp_path: Path) -> None:
    store = ResumeStore(tmp_path)
    os.mkfifo(store.folder / "a.claim")
    (tmp_path / "victim").write_text("dear")
    (store.folder / "b.claim").symlink_to(tmp_path / "victim")
    with limited_time(10):
        for song in "ab":
            path = store.folder / f"{song}.claim"
            os.utime(path, (time.time() - 10,) * 2, follow_symlinks=False)
            store.touch(song)
            os.utime(path, (time.time() - 10,) * 2, follow_symlinks=False)
            assert store.claim(song)
    assert (tmp_path / "victim").read_text() == "dear"


def test_partial_audio_is_never_written_through_a_link(tmp_path: Path, vqvae: VQVAE) -> None:
    (tmp_path / "victim").write_bytes(b"dear")
    (tmp_path / "a.part.wav").symlink_to(tmp_path / "victim")
    codes_T = torch.zeros(200, dtype=torch.long)
    with pytest.raises(OSError):
        AudioStream(vqvae, "top", tmp_path / "a.wav").feed(codes_T, len(codes_T))
    assert (tmp_path / "victim").read_bytes() == b"dear"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"request": 3}', '{"request": {}}', "[" * 9999]
)
def test_a_record_that_is_none_is_no_complete_song(
    runs: Path, tmp_path: Path, content: str
) -> None:
    (tmp_path / "good.json").write_text(content)
    assert not is_complete(Jukebox(runs), tmp_path, SongRequest(**GOOD))


# ---- Fuzz -------------------------------------------------------------------------------------------------------------

REQUESTS_YAML = b"""- {id: a, artist: A, genres: [x, y], seconds: 4, seed: 3, temperature: {top: 0.9}}
- {id: b, prompt: a.wav, keep_seconds: 2, lyrics: "la\\n\\nla", aligned: {notes: [[1, 2]]}}
- id: c
  infill: x.json
  replace: [[1, 2.5], [3, 4]]
  variations: 3
"""
LRC = b"[offset: +100]\n[00:01.00][00:09.00] <00:01.00> la <00:01.50> lu <00:02.10>\n\n[00:03.00] li li\n"


def fuzz_requests(draw: random.Random, folder: Path) -> None:
    name = draw.choice(["a.yaml", "a.json"])
    text = REQUESTS_YAML
    if name == "a.json":
        text = json.dumps(yaml.safe_load(REQUESTS_YAML)).encode()
    (folder / name).write_bytes(mutated(text, draw, texts=draw.random() < 0.5))
    try:
        valid, refused = read_requests(folder / name)
    except UserError:
        return
    assert all(line.isprintable() for line in refused)
    for request in valid:
        json.dumps(request.model_dump(mode="json"))


def fuzz_lrc(draw: random.Random, folder: Path) -> None:
    text = mutated(LRC, draw, texts=draw.random() < 0.5).decode(errors="replace")
    plain, words = parse_lrc(text)
    assert len(plain) <= 100 * len(text) + 100
    assert all(0 <= w.start_char < w.end_char <= len(plain) and w.t0 <= w.t1 for w in words)


def fuzz_unfinished(draw: random.Random, folder: Path) -> None:
    store = ResumeStore(folder)
    path = store.folder / "a.npz"
    if not (folder / "whole").exists():
        store.save("a", KEY, KNOWN)
        path.rename(folder / "whole")
    path.write_bytes(mutated((folder / "whole").read_bytes(), draw))
    loaded = store.load("a", KEY)
    for level, codes_T in (loaded.codes if loaded else {}).items():
        assert codes_T.dtype == np.int64 and codes_T.shape == loaded.mask[level].shape  # type: ignore[union-attr]
    claim = store.folder / "a.claim"
    claim.write_bytes(mutated(b'{"host": "x", "pid": 1234}', draw, texts=True))
    store.is_claimed("a")


@pytest.mark.parametrize("fuzz", [fuzz_requests, fuzz_lrc, fuzz_unfinished])
@pytest.mark.parametrize(
    "count", [300, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
def test_any_bytes_are_read_or_refused(tmp_path: Path, fuzz, count: int) -> None:
    for seed in range(count):
        with limited_time(20):
            fuzz(random.Random(seed), tmp_path)


@pytest.mark.parametrize(
    "text",
    ["\n" * 100_000 + "[1:1]x", "[1:1]" * 5_000 + "a " * 5_000, "[" + "9" * 50_000 + ":1]x"],
    ids=["empty lines", "one line often", "digits"],
)
def test_lyrics_cost_time_and_memory_in_proportion_to_their_length(text: str) -> None:
    started = time.process_time()
    plain, _ = parse_lrc(text)
    assert time.process_time() - started < 10  # squared it took minutes, or 500 MB
    assert len(plain) < 20 * len(text)


@pytest.mark.slow
def test_the_command_says_what_is_wrong_and_makes_the_good_song(runs: Path, tmp_path: Path) -> None:
    """An insider's file among the requests of one command, from start to exit."""
    bad = {"id": "\x1b]52;c;aGk=\x07", "seconds": 1}
    long = {"id": "long", "prompt": "x" * 6000}
    (tmp_path / "a.json").write_text(json.dumps([bad, long, GOOD]))
    command = [sys.executable, "-m", "megajukebox", "sample", str(runs), "--requests"]
    command += [str(tmp_path / "a.json"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and (tmp_path / "out/good.json").is_file(), done.stderr
    assert "\x1b" not in done.stdout + done.stderr and "Traceback" not in done.stderr
