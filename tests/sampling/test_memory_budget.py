"""The bound of memory is one: caches are what the formula says, a batch stays within it, too little is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import environment
from fixtures.paths import TESTS
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import ROWS, little_prior, plain_draw, prior_batch, window_task

from megajukebox.models.attention import SCHEDULES
from megajukebox.sampling.decoding.decoder import window_decoder
from megajukebox.sampling.decoding.window_sampler import sample_window
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.sampling.memory_budget import (
    CPU_OVERHEAD_BYTES,
    CUDA_OVERHEAD_BYTES,
    BatchFit,
    LevelMemory,
    cache_elements,
    fit_batch,
    level_memory,
    step_nodes,
)
from megajukebox.sampling.prior_run import PriorRun
from megajukebox.sampling.songs.requests import SongRequest

pytestmark = pytest.mark.cold_start  # about what a new process is

F32 = torch.float32
SHORT = [SongRequest(id=f"{n}", seconds=0.3) for n in range(2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
@torch.no_grad()
def test_caches_hold_what_the_formula_says(schedule: str) -> None:
    prior = little_prior(schedule)
    batch = prior_batch(prior.config, songs=3)
    with window_decoder(prior, prior.conditioning(batch), 3) as decoder:
        both = [(layer.memory, getattr(layer, "previous", None)) for layer in decoder.layers]
        held = [x.numel() for pair in both for x in pair if x is not None]
    assert sum(held) == 3 * cache_elements(prior.config)


def test_the_largest_batch_is_the_one_that_just_fits() -> None:
    need = LevelMemory(little_prior().config)
    limit = beside_songs(need) + need.weight_bytes(F32) + need.song_bytes(5, F32)
    assert fit_batch([need], 16, limit, F32, cpu=True) == BatchFit(5, True, limit)
    assert fit_batch([need], 3, limit, F32, cpu=True).songs == 3
    assert fit_batch([LevelMemory(need.config, guided=True)], 16, limit, F32, cpu=True).songs == 2
    assert (
        fit_batch([LevelMemory(need.config, windows_per_song=4)], 16, limit, F32, cpu=True).songs
        == 1
    )
    assert need.song_bytes(70, F32) == LevelMemory(need.config, windows_per_song=9).song_bytes(
        70, F32
    ), "at most so many rows"
    with pytest.raises(ValueError, match="too little for one song"):
        fit_batch([need], 16, 1000, F32, cpu=True)


def test_all_priors_stay_if_they_fit_beside_the_songs() -> None:
    needs = [LevelMemory(little_prior(seed=n).config) for n in range(3)]
    weights, rest = needs[0].weight_bytes(F32), beside_songs(needs[0]) + needs[0].song_bytes(2, F32)
    assert fit_batch(needs, 2, 3 * weights + rest, F32, cpu=True) == BatchFit(
        2, True, 3 * weights + rest
    )
    assert fit_batch(needs, 2, 3 * weights + rest - 1, F32, cpu=True) == BatchFit(
        2, False, weights + rest
    )


def test_graphs_of_every_kept_prior_are_counted_on_a_gpu() -> None:
    plain, graphs = (
        LevelMemory(little_prior().config),
        LevelMemory(little_prior().config, graph_nodes=100),
    )
    assert plain.graph_bytes(2, F32) == 0 < graphs.graph_bytes(2, F32) < graphs.graph_bytes(3, F32)
    assert graphs.song_bytes(2, F32) < plain.song_bytes(2, F32), (
        "its caches are those of the graphs"
    )
    kept = 3 * (graphs.weight_bytes(F32) + graphs.graph_bytes(2, F32))
    working = graphs.auxiliary_bytes(F32, cpu=False) + graphs.song_bytes(2, F32)
    limit = CUDA_OVERHEAD_BYTES + kept + working
    assert fit_batch([graphs] * 3, 2, limit, F32, cpu=False) == BatchFit(2, True, limit)
    assert not fit_batch([graphs] * 3, 2, limit - 1, F32, cpu=False).keep_loaded
    assert step_nodes(plain.config, fused=True) < step_nodes(plain.config, fused=False)


def beside_songs(need: LevelMemory) -> int:
    return CPU_OVERHEAD_BYTES + need.auxiliary_bytes(F32, cpu=True)


def test_kept_priors_are_loaded_once_and_make_the_same_songs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], PriorRun._load
    monkeypatch.setattr(
        PriorRun, "_load", lambda self, *rest: loads.append(self.config.level) or load(self, *rest)
    )
    runs, asked = (
        write_runs(tmp_path),
        [SongRequest(id=f"{n}", seconds=0.3, seed=n, temperature=3.0) for n in range(2)],
    )
    apart, kept = Jukebox(runs), Jukebox(runs)
    kept.keep_loaded = True
    plain = [apart.sample([request])[0] for request in asked]
    assert loads == ["top", "middle", "bottom"] * 2
    loads.clear()
    for song, request in zip(plain, asked):
        again = kept.sample([request])[0]
        assert all((song.codes[level] == again.codes[level]).all() for level in song.codes)
    assert loads == ["top", "middle", "bottom"]


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads a process's peak as Linux tells it"
)
def test_the_peak_of_a_process_keeps_under_the_bound_that_was_printed(tmp_path: Path) -> None:
    """Three priors of 28 MB: all of them, and with just too little for that, one at a time."""
    write_runs(tmp_path / "little")
    shape = {
        "width": 512,
        "depth": 9,
        "heads": 2,
        "blocks": ROWS,
        "attention_ratio": 0.25,
        "init_scale": 0.1,
    }
    write_runs(tmp_path / "runs", transformer={**shape, "schedule": "factored"})
    box = Jukebox(tmp_path / "runs")
    all_of_it = fit_batch(level_memory(box, SHORT), 2, float("inf"), F32, cpu=True).bytes
    command = [sys.executable, __file__, str(tmp_path)]
    own = environment() | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    started = [
        subprocess.Popen([*command, str(limit)], stdout=subprocess.PIPE, text=True, env=own)
        for limit in (all_of_it, all_of_it - 1)
    ]
    peaks = []
    for process, expected in zip(started, ("all priors", "one prior at a time")):
        told, _ = process.communicate(timeout=240)
        assert process.returncode == 0 and expected in told, told
        bound, peak = json.loads(told.splitlines()[-1])
        assert 0.4 * bound < peak < bound, f"{peak / 1e6:.0f} MB of {bound / 1e6:.0f}"
        peaks.append(peak)
    assert peaks[1] < 0.8 * peaks[0]


def peak_here(folder: Path, limit: str) -> None:
    """In a fresh process: the bound, and what sampling added at its peak, in bytes. A little one has warmed it up."""
    torch.set_num_threads(1)
    Jukebox(folder / "little").sample([SongRequest(id="warm", seconds=0.3)])
    box, before = Jukebox(folder / "runs"), kilobytes("VmRSS")
    found = fit_batch(level_memory(box, SHORT), 2, float(limit), F32, cpu=True)
    box.keep_loaded = found.keep_loaded
    print(found)
    box.sample(SHORT, batch_size=found.songs)
    print(json.dumps([found.bytes, 1024 * (kilobytes("VmHWM") - before)]))


def kilobytes(entry: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith(entry)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics", "prefix_dense_16"])
def test_graphs_on_a_gpu_give_the_codes_of_steps_one_by_one(schedule: str) -> None:
    prior = little_prior(schedule).cuda()
    batch = prior_batch(prior.config)
    cuda = {
        k: {n: x.cuda() for n, x in v.items()} if isinstance(v, dict) else v.cuda()
        for k, v in batch.items()
    }
    draw, prefix = (
        plain_draw([1, 2], temperature=2.0).select(torch.tensor([0, 1])),
        prior.config.prefix_tokens,
    )
    draw = type(draw)(draw.keys_B.cuda(), draw.temperature_B.cuda())
    tasks = [window_task(prior, cuda, draw, prefix, prior.config.length) for _ in range(2)]
    for task in tasks:
        task.start_B = task.start_B.cuda()
    rows, steps = (build_level_sampler(prior, way) for way in ("cuda_graph", "sequential"))
    plain = sample_window(steps.packed, tasks[0])  # type: ignore[attr-defined]
    assert torch.equal(rows.window_sampler()(rows.packed, tasks[1]), plain)  # type: ignore[attr-defined]


if __name__ == "__main__":
    peak_here(Path(sys.argv[1]), sys.argv[2])
