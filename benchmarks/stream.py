"""How fast the stream is; writes benchmarks/results/stream.json and prints it.

    python benchmarks/stream.py             # everything, about five minutes on an idle machine
    python benchmarks/stream.py --only songs --only shuffle

songs     seconds of 44.1 kHz stereo FLAC turned into batches a second on one core, beside the bare loop: go to the same
          clips in the tar and decode them with soundfile, nothing else. And with two workers, and by visits.
codes     codes a second for the priors of `tiny` and of the 1B, beside what they eat.
shuffle   how far apart the clips of one song come, beside a full permutation.
start     time and memory until the first clip is known, for 1.2 million songs.
"""

import json
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import typer

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fixtures.tiny_shards import MADE_BY, npy

from megajukebox.data.audio import OffsetReader, encode_flac
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.index import MEMBERS, row_type
from megajukebox.data.shards.shard_set import ShardSample, ShardSet, write_shard
from megajukebox.data.stream.batches import Batches
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.sample_order import Order
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.worker_pool import ReadAhead

RESULT = Path(__file__).parent / "results" / "stream.json"
RATE = 44_100
CLIP = 393_216  # Jukebox's clip for its VQ-VAE, 8.9 s
HOPS = {"top": 128, "middle": 32, "bottom": 8}
ROUNDS = 9  # of each pair of measurements, taken in turn: a loaded machine slows both alike
PARTS = ("songs", "codes", "shuffle", "start")
# Codes a second that one process may eat: `tiny` measured (the fastest of the demo's priors on two cores, both ranks
# together), the 1B at most what a V100 could at its peak of 125 TFLOP/s, with 6 x 981 million operations a code.
EATEN = {"tiny": 19_400, "jukebox_1b_lyrics": 21_300}


def main(
    only: Annotated[list[str] | None, typer.Option(help=f"Any of {', '.join(PARTS)}.")] = None,
) -> None:
    """Measure the stream."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            results[part] = {"songs": songs, "codes": codes, "shuffle": shuffle, "start": start}[
                part
            ](Path(folder))
        print(part, json.dumps(results[part], indent=1), flush=True)
        RESULT.write_text(json.dumps(results, indent=1) + "\n")


# ---- Songs -----------------------------------------------------------------------------------------------------------


def songs(folder: Path) -> dict[str, Any]:
    shards = ShardSet(write_songs(folder / "songs"))
    source = SongClips(shards, CLIP)
    number, found = 96, {}
    pairs = [(bare(shards, number), stream(source, number)) for _ in range(ROUNDS)]
    found["bare_audio_seconds_per_second"] = round(statistics.median(pair[0] for pair in pairs))
    found["stream_audio_seconds_per_second"] = round(statistics.median(pair[1] for pair in pairs))
    found["ratio_to_bare"] = round(statistics.median(pair[1] / pair[0] for pair in pairs), 3)
    found["ratios"] = [round(pair[1] / pair[0], 3) for pair in pairs]
    for visit in (2, 4, 8):
        ratios = [stream(source, number, visit=visit) / stream(source, number) for _ in range(3)]
        found[f"speed_of_{visit}_clips_a_visit_to_1"] = round(statistics.median(ratios), 3)
    cores = [(workers(source, 1), workers(source, 2), bare_twice(shards, number)) for _ in range(3)]
    found["two_workers_to_one"] = round(statistics.median(two / one for one, two, _ in cores), 3)
    found["bare_two_processes_to_one"] = round(statistics.median(twice for _, _, twice in cores), 3)
    return found


def write_songs(folder: Path) -> Path:
    """Twelve songs of a minute of noise and tones, stereo FLAC: as hard to decode as music."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    t = np.arange(60 * RATE)[:, None] / RATE
    samples = []
    for song in range(12):
        tones = (
            sum(np.sin(2 * np.pi * f * t + np.array([0, 1.0])) for f in noise.uniform(80, 2000, 6))
            / 10
        )
        audio = encode_flac(tones + 0.03 * noise.standard_normal((len(t), 2)), RATE)
        samples.append(ShardSample(f"song-{song}", len(t), {"json": b"{}", "flac": audio}))
    write_shard(folder / "songs-000000.tar", samples)
    write_index(folder, ["songs-000000.tar"], kind="songs", sample_rate=RATE, made_by=MADE_BY)
    return folder


def bare(shards: ShardSet, number: int, clock: Callable[[], float] = time.process_time) -> float:
    """Audio seconds a second of the least a reader must do: one open tar, seek, decode. It does not even mix down.

    Seconds of processor time: on a machine that others use too, those of a clock say little.
    """
    order = Order(SongClips(shards, CLIP).clips("train"), shards.songs["shard"], 0)
    places = [order.locate(position)[1:] for position in range(number)]
    begun = clock()
    with open(shards.path(0), "rb") as tar:
        for song, clip in places:
            member = OffsetReader(
                tar, int(shards.songs["audio_offset"][song]), int(shards.songs["audio_bytes"][song])
            )
            with soundfile.SoundFile(member) as file:
                file.seek(clip * CLIP)
                file.read(CLIP, dtype="float32", always_2d=True)
    return number * CLIP / RATE / (clock() - begun)


def stream(
    source: Any, number: int, visit: int = 1, unit: float = CLIP / RATE, batch: int = 4
) -> float:
    """Units a second of processor time through the whole stream in this process, after its first step."""
    clock = time.process_time
    steps = iter(
        Batches(source, seed=0, global_batch=batch, micro_batch=batch, clips_per_song_visit=visit)
    )
    next(steps)
    begun = clock()
    for _ in islice(steps, number // batch):
        pass
    return number // batch * batch * unit / (clock() - begun)


def workers(source: SongClips, count: int) -> float:
    """Audio seconds a second with `count` worker processes, once they run."""
    stream = Batches(source, seed=0, global_batch=4, micro_batch=4, ahead=ReadAhead(count))
    steps = iter(stream)
    for _ in range(3 * count):
        next(steps)
    begun, number = time.perf_counter(), 24
    for _ in islice(steps, number):
        pass
    return number * 4 * CLIP / RATE / (time.perf_counter() - begun)


def bare_twice(shards: ShardSet, number: int) -> float:
    """What two processes of the bare loop do together to what one does: what the machine has to give."""
    alone = bare(shards, number, time.perf_counter)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        return sum(pool.starmap(bare, [(shards, number, time.perf_counter)] * 2)) / alone


# ---- Codes -----------------------------------------------------------------------------------------------------------


def codes(folder: Path) -> dict[str, Any]:
    shards = ShardSet(write_codes(folder / "codes"))
    found: dict[str, Any] = {}
    for preset, window in {"tiny": 512, "jukebox_1b_lyrics": 8192}.items():
        for level in HOPS:
            source = CodeWindows(shards, level, window)
            rate = statistics.median(stream(source, 400, unit=window, batch=8) for _ in range(3))
            times = rate / EATEN[preset]
            found[f"{preset} {level}"] = {
                "codes_per_second": round(rate),
                "times_what_it_eats": round(times, 1),
            }
    return found


def write_codes(folder: Path) -> Path:
    """Forty songs of four minutes."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    frames = 240 * RATE
    members = [
        {
            f"{level}.npy": npy(noise.integers(0, 2048, frames // hop).astype(np.uint16))
            for level, hop in HOPS.items()
        }
        for _ in range(40)
    ]
    samples = [
        ShardSample(f"song-{song}", frames, {"json": b"{}", **members[song]}) for song in range(40)
    ]
    write_shard(folder / "codes-000000.tar", samples)
    vqvae = {"fingerprint": "0" * 64, "hops": HOPS, "codes": dict.fromkeys(HOPS, 2048)}
    write_index(
        folder,
        ["codes-000000.tar"],
        kind="codes",
        sample_rate=RATE,
        made_by=MADE_BY,
        extra={"vqvae": vqvae},
    )
    return folder


# ---- Shuffling -------------------------------------------------------------------------------------------------------


def shuffle(folder: Path) -> dict[str, Any]:
    """Gaps between clips of the same song over an epoch of 400 shards of 64 songs of 27 clips (four minutes each).

    `median_gap` is in clips, as a share of the epoch; `in_a_batch_of_256` is how many of 256 neighbours share a song
    with another of them.
    """
    shards, per_shard, clips = 400, 64, 27
    counts, where = np.full(shards * per_shard, clips), np.repeat(np.arange(shards), per_shard)
    full = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), clips))
    found = {"full permutation": quality(full)}
    for visit in (1, 2, 4, 8):
        order = Order(counts, where, seed=0, block=64, clips_per_song_visit=visit)
        found[f"block 64, {visit} clips a visit"] = quality(songs_in_order(order))
    return found


def songs_in_order(order: Order) -> np.ndarray:
    return np.fromiter(
        (order.locate(p)[1] for p in range(order.clips)), dtype=np.int64, count=order.clips
    )


def quality(song_of: np.ndarray) -> dict[str, float]:
    by_song = np.argsort(song_of, kind="stable")
    gaps = np.diff(by_song)[np.diff(song_of[by_song]) == 0]
    batches = song_of[: len(song_of) // 256 * 256].reshape(-1, 256)
    shared = np.mean([256 - len(np.unique(batch)) for batch in batches])
    median = float(np.median(gaps) / len(song_of))
    return {
        "median_gap": round(median, 5),
        "adjacent": round(float((gaps == 1).mean()), 5),
        "in_a_batch_of_256": round(float(shared), 2),
    }


# ---- Starting --------------------------------------------------------------------------------------------------------


def start(folder: Path) -> dict[str, Any]:
    write_big_index(folder / "big", 1_200_000, 500)
    program = [sys.executable, __file__, "start-here", str(folder / "big")]
    runs = [
        json.loads(subprocess.run(program, capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def write_big_index(folder: Path, number: int, per_shard: int) -> None:
    """An index of songs whose tars do not exist; nothing looks at them before a clip is read."""
    folder.mkdir()
    rows = np.zeros(number, row_type(MEMBERS["songs"]))
    rows["shard"] = np.arange(number) // per_shard
    rows["key"] = [f"{song:07d}-some-artist-some-title-0bd12f9f" for song in range(number)]
    rows["frames"] = np.random.default_rng(0).integers(120 * RATE, 360 * RATE, number)
    rows["json_bytes"] = rows["audio_bytes"] = 1000
    np.save(folder / "songs.npy", rows)
    from megajukebox.common.files import sha256_of

    shards = [
        {
            "name": f"songs-{n:06d}.tar",
            "bytes": 1,
            "sha256": "0" * 64,
            "songs": per_shard,
            "first": n * per_shard,
        }
        for n in range(number // per_shard)
    ]
    index = {
        "format": 1,
        "kind": "songs",
        "made_by": MADE_BY,
        "sample_rate": RATE,
        "members": list(MEMBERS["songs"]),
        "songs": number,
        "seconds": 0.0,
        "shards": shards,
        "years": None,
        "lyrics_model": None,
        "songs_file": {"name": "songs.npy", "sha256": sha256_of(folder / "songs.npy")},
        "vocabulary": {"artist": {f"Artist {n}": 10 for n in range(120_000)}},
    }
    (folder / "index.json").write_text(json.dumps(index))


def start_here(folder: Path) -> dict[str, float]:
    """In a fresh process: seconds of each part of a start, and the memory it takes (MB beyond what imports took)."""
    taken: dict[str, float] = {}
    before = peak_kilobytes()

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        result = work()
        taken[name] = round(time.perf_counter() - begun, 3)
        return result

    shards = timed("open_seconds", lambda: ShardSet(folder))
    timed("open_in_a_worker_seconds", lambda: ShardSet(folder, checked=folder))
    source = timed("clips_and_split_seconds", lambda: SongClips(shards, CLIP, held_out=0.01))
    order = timed("order_seconds", lambda: Order(source.clips("train"), source.shard_of_song, 0))
    timed("first_clip_seconds", lambda: order.locate(0))
    timed("first_clip_of_another_block_seconds", lambda: order.locate(order.clips // 2))
    taken["all_seconds"] = round(sum(taken.values()), 3)
    taken["megabytes"] = round((peak_kilobytes() - before) / 1024)
    taken["clips"] = order.clips
    return taken


def peak_kilobytes() -> int:
    """Peak memory of this program. `ru_maxrss` would begin with that of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


if __name__ == "__main__":
    if sys.argv[1:2] == ["start-here"]:
        print(json.dumps(start_here(Path(sys.argv[2]))))
    else:
        typer.run(main)
