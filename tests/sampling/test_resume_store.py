"""Songs on their way to files: interrupted ones go on, dead processes' songs are made by others."""

import json
import os
import signal
import subprocess
import sys
import time
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import environment
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import little_vqvae

from megajukebox.sampling.batch_job import SamplingRun, write_summary
from megajukebox.sampling.jukebox import Jukebox, SamplingInterrupted
from megajukebox.sampling.songs.audio_stream import AudioStream, decode_all
from megajukebox.sampling.songs.prompt_sources import KnownCodes
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.resume_store import ResumeStore
from megajukebox.sampling.songs.song_writer import SongWriter

REQUESTS = [SongRequest(id=f"song-{n}", seconds=0.6, seed=n, temperature=3.0) for n in range(3)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("jukebox") / "runs")


def stored(out: Path, song: str) -> dict[str, np.ndarray]:
    with np.load(out / f"{song}.codes.npz") as codes:
        return {level: codes[level] for level in codes.files}


def same_songs(one: Path, other: Path, songs: list[SongRequest]) -> bool:
    """In codes, and byte by byte in audio."""
    for song in songs:
        a, b = stored(one, song.id), stored(other, song.id)
        names = [f"{song.id}{ending}" for ending in (".wav", ".middle.wav", ".top.wav")]
        if not all(np.array_equal(a[n], b[n]) for n in a):
            return False
        if not all((one / n).read_bytes() == (other / n).read_bytes() for n in names):
            return False
    return True


@pytest.mark.parametrize("stops", [1, 4, 9, 20])
def test_a_song_stopped_again_and_again_is_the_song(runs: Path, tmp_path: Path, stops: int) -> None:
    """Stopped after every `stops` reports, in the middle of windows and levels."""
    box = Jukebox(runs)
    box.sample(REQUESTS, sink=SongWriter(box, tmp_path / "whole"))
    attempts = 0
    while attempts < 100:
        attempts, left = attempts + 1, iter([False] * stops + [True])
        try:
            writer = SongWriter(box, tmp_path / "stopped", stop=lambda left=left: next(left))
            box.sample(REQUESTS, sink=writer)
            break
        except SamplingInterrupted:
            assert not list((tmp_path / "stopped").glob("*.json"))
    assert attempts > 1 and same_songs(tmp_path / "whole", tmp_path / "stopped", REQUESTS)
    assert not list((tmp_path / "stopped/.unfinished").iterdir())


def test_what_was_done_of_another_request_or_with_other_weights_is_not_gone_on_with(
    tmp_path: Path,
) -> None:
    kept, known = (
        ResumeStore(tmp_path),
        KnownCodes({"top": np.arange(5)}, {"top": np.arange(5) < 3}),
    )
    kept.save("a", {"request": 1}, known)
    found = kept.load("a", {"request": 1})
    assert (
        found is not None
        and found.codes["top"].tolist() == [0, 1, 2, 3, 4]
        and found.mask["top"].sum() == 3
    )
    assert kept.load("a", {"request": 2}) is None and kept.load("b", {"request": 1}) is None
    (tmp_path / ".unfinished/a.npz").write_bytes(b"torn")
    assert kept.load("a", {"request": 1}) is None


def test_a_claim_is_one_process_s_until_it_is_dead_or_silent(tmp_path: Path) -> None:
    one, other = ResumeStore(tmp_path), ResumeStore(tmp_path, stale=30)
    assert one.claim("a") and not other.claim("a") and other.is_claimed("a")
    claim = tmp_path / ".unfinished/a.claim"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"pid": dead.pid}))
    assert not other.is_claimed("a") and other.claim("a")
    claim.write_text(json.dumps({"host": "another-machine", "pid": 1}))
    assert not one.claim("a")
    os.utime(claim, (time.time() - 60, time.time() - 60))
    assert other.claim("a"), "nobody has touched it for longer than `stale`"
    other.release("a")
    assert one.claim("a")


class SpiedJukebox(Jukebox):
    """Keeps the ids of what it sampled, and fails on the song "odd"."""

    def __init__(self, runs: Path) -> None:
        super().__init__(runs)
        self.sampled: list[str] = []

    def sample(self, requests, *args, **settings):
        ids = [song.request.id for song in requests]
        if "odd" in ids:
            raise RuntimeError("out of\nmemory")
        self.sampled += ids
        return super().sample(requests, *args, **settings)


def test_a_request_that_fails_leaves_the_others_whole(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = SpiedJukebox(runs)
    bad = SongRequest(id="bad", prompt="nowhere.wav")
    odd = SongRequest(id="odd", seconds=0.7)
    run = SamplingRun(box, [REQUESTS[0], bad, REQUESTS[1], odd], tmp_path)
    assert set(run.run()) == {"bad", "odd"}
    assert sorted(box.sampled) == ["song-0", "song-1"]
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) == 2 and all("\n" not in line for line in errors)
    assert any("nowhere.wav" in line for line in errors)
    assert any("out of memory" in line for line in errors)


def test_a_rank_samples_its_share_and_then_what_nobody_works_on(
    runs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = SpiedJukebox(runs)
    assert not SamplingRun(box, REQUESTS, tmp_path, batch_size=1, rank=1, ranks=3).run()
    assert box.sampled == ["song-1", "song-0", "song-2"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*")}
    assert not SamplingRun(box, REQUESTS, tmp_path).run()
    assert len(box.sampled) == 3
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*")}
    changed = [REQUESTS[0], REQUESTS[1].model_copy(update={"seed": 99})]
    assert not SamplingRun(box, changed, tmp_path / "elsewhere").run()
    assert "overwriting" not in caplog.text
    assert not SamplingRun(box, changed, tmp_path).run()
    assert "overwriting" in caplog.text and "song-1.json" in caplog.text


def test_a_dead_rank_loses_no_song_and_the_songs_are_those_of_one_process(
    runs: Path, tmp_path: Path
) -> None:
    """Two ranks; one is killed at its first song. The other makes all of them, as one process would."""
    songs = [{"id": f"song-{n}", "seconds": 2.0, "seed": n, "temperature": 3.0} for n in range(4)]
    (tmp_path / "songs.yaml").write_text(yaml.safe_dump(songs))
    out = tmp_path / "dealt"
    command = [
        sys.executable,
        "-m",
        "megajukebox.sample",
        str(runs),
        "--requests",
        str(tmp_path / "songs.yaml"),
    ]
    command += ["--out", str(out), "--batch-size", "1"]
    ranks = [
        start(command, {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2"}) for rank in (0, 1)
    ]
    wait_for(lambda: (out / ".unfinished/song-1.claim").exists(), ranks)
    ranks[1].send_signal(signal.SIGKILL)
    printed, _ = ranks[0].communicate(timeout=200)
    assert ranks[0].returncode == 0, printed
    assert json.loads((out / ".unfinished/summary.json").read_text())["made"] == [
        song["id"] for song in songs
    ]
    asked = [SongRequest(**song) for song in songs]
    box = Jukebox(runs)
    box.sample(asked, sink=SongWriter(box, tmp_path / "alone"))
    assert same_songs(out, tmp_path / "alone", asked)


def test_a_stopped_command_says_so_and_goes_on(runs: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "megajukebox.sample",
        str(runs),
        "--out",
        str(tmp_path),
        "--seconds",
        "30",
    ]
    process = start(command, {})
    wait_for(lambda: list(tmp_path.glob("*.part.wav")), [process])
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 85 and "resumes from there" in printed, printed
    assert (tmp_path / ".unfinished/song.npz").exists() and not (
        tmp_path / ".unfinished/song.claim"
    ).exists()


def start(command: list[str], more: dict[str, str]) -> subprocess.Popen:
    many = {**environment(), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29876", **more}
    return subprocess.Popen(
        command, env=many, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(what, processes: list[subprocess.Popen], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end and all(p.poll() is None for p in processes), "it never came"
        time.sleep(0.02)


def test_audio_is_heard_before_its_level_is_done_and_ends_as_the_whole(tmp_path: Path) -> None:
    vqvae = little_vqvae()
    for level, count in (("top", 60), ("bottom", 900)):
        codes = torch.randint(16, (count,), generator=torch.Generator().manual_seed(1))
        stream = AudioStream(vqvae, level, tmp_path / f"{level}.wav")
        heard = []
        for done in [*range(0, count, max(1, count // 10)), count]:
            hidden = codes.clone()
            hidden[done:] = 0  # what is not there yet must not matter
            stream.feed(hidden, done)
            if (tmp_path / f"{level}.part.wav").exists():
                heard.append(frames(tmp_path / f"{level}.part.wav"))
        whole = (
            (decode_all(vqvae, codes, level).numpy() * 32768)
            .round()
            .clip(-32768, 32767)
            .astype(np.int16)
        )
        np.testing.assert_array_equal(frames(tmp_path / f"{level}.wav"), whole)
        assert heard and 0 < len(heard[0]) < len(whole), "some was heard before the end"
        assert all(np.array_equal(part, whole[: len(part)]) for part in heard)
        assert not (tmp_path / f"{level}.part.wav").exists()


def test_what_was_heard_stays_when_a_song_goes_on(tmp_path: Path) -> None:
    """A second stream over the part that a first one left never shortens it, and ends as the whole."""
    vqvae, codes = (
        little_vqvae(),
        torch.randint(16, (900,), generator=torch.Generator().manual_seed(1)),
    )
    whole = (
        (decode_all(vqvae, codes, "bottom").numpy() * 32768)
        .round()
        .clip(-32768, 32767)
        .astype(np.int16)
    )
    part = tmp_path / "song.part.wav"
    AudioStream(vqvae, "bottom", tmp_path / "song.wav").feed(codes, 800)
    heard = frames(part)
    assert 2 * 2000 <= len(heard) < len(whole)
    again = AudioStream(vqvae, "bottom", tmp_path / "song.wav")
    for done in (300, 500, 890, 900):
        again.feed(codes, done)
        now = frames(part if done < 900 else tmp_path / "song.wav")
        assert len(now) >= len(heard) and np.array_equal(now, whole[: len(now)])
    assert len(now) == len(whole) and not part.exists()


def test_a_part_of_another_song_of_that_name_is_not_gone_on_with(
    runs: Path, tmp_path: Path
) -> None:
    box, part = Jukebox(runs), tmp_path / "out/song-0.top.part.wav"
    part.parent.mkdir()
    part.write_bytes(bytes(100_000))
    box.sample(REQUESTS[:1], sink=SongWriter(box, tmp_path / "out"))
    box.sample(REQUESTS[:1], sink=SongWriter(box, tmp_path / "fresh"))
    assert not part.exists() and same_songs(tmp_path / "out", tmp_path / "fresh", REQUESTS[:1])


def test_the_summary_tells_of_every_song_the_folder_was_asked_for(
    runs: Path, tmp_path: Path
) -> None:
    bad, good = (
        SongRequest(id="bad", prompt="nowhere.wav"),
        [SongRequest(id=name, seconds=0.2) for name in "abc"],
    )
    summary = tmp_path / ".unfinished/summary.json"
    for song in good:
        if song.id != "c":
            (tmp_path / f"{song.id}.json").write_text("{}")
    summary.parent.mkdir()
    write_summary(tmp_path, [good[0], bad], ["request odd: seconds"], {"bad": "no such file"})
    write_summary(tmp_path, [good[1], good[2]], [], {"c": "no memory"})
    told = json.loads(summary.read_text())
    assert told == {
        "made": ["a", "b"],
        "failed": {"bad": "no such file", "c": "no memory"},
        "refused": ["request odd: seconds"],
    }
    for name in ("c", "odd", "bad"):
        (tmp_path / f"{name}.json").write_text("{}")
    write_summary(tmp_path, [good[2], SongRequest(id="odd"), bad], [], {})
    assert json.loads(summary.read_text()) == {
        "made": ["a", "b", "c", "odd", "bad"],
        "failed": {},
        "refused": [],
    }


def frames(path: Path) -> np.ndarray:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")
