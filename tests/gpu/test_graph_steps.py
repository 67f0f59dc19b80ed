"""Graphs of decoding steps on a pretended GPU: kept over windows and batches, of the right device, nothing left over."""

import logging
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from fixtures.gpu_scenarios import SCENARIOS, on_pretended_gpu, on_the_host, stored_counts
from fixtures.pretend_gpu import Counts, PretendGpu
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import (
    CODES,
    ROWS,
    WINDOW,
    little_prior,
    plain_draw,
    prior_batch,
    sample_level,
    song_conditionings,
)
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import read_facts
from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding import step_ops
from megajukebox.sampling.decoding.cuda_graph_rows import MAX_GRAPH_SETS
from megajukebox.sampling.decoding.decoder import WindowDecoder
from megajukebox.sampling.decoding.kv_cache import HEAD_MULTIPLE
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.sampling.levels.decoding_policy import DecodingPolicy
from megajukebox.sampling.levels.level_sampler import LevelSampler, new_job
from megajukebox.sampling.memory_budget import cache_elements
from megajukebox.sampling.prior_run import PriorRun

GRAPHS_OF_A_SET = WINDOW // ROWS  # one a column
UPPER = torch.randint(CODES, (3, 12), generator=torch.Generator().manual_seed(3))
CUDA = torch.device("cuda", 0)


def level_by(
    sampler: LevelSampler, gpu: PretendGpu, songs: int, **settings
) -> tuple[Tensor, Counts]:
    """The codes of a level of three windows on the pretended GPU, and what it cost."""
    draw = gpu.put(plain_draw(list(range(songs)), temperature=2.0, **settings.get("filters", {})))
    upper = gpu.put(UPPER[:songs])
    guidance = settings.get("guidance")
    job = new_job(song_conditionings(songs), 44, 500, draw, 0.5, upper, guidance)
    with gpu.counting() as counts:
        sampler.sample(job, lambda count: None)
    return gpu.host(job.codes_BT), counts


def level_on_the_host(prior: Prior, songs: int, **settings) -> Tensor:
    draw = plain_draw(list(range(songs)), temperature=2.0, **settings.get("filters", {}))
    guidance = settings.get("guidance")
    return sample_level(
        prior, song_conditionings(songs), UPPER[:songs], 44, 500, draw, 0.5, guidance=guidance
    )


def test_graphs_are_kept_over_windows_and_batches_of_one_size() -> None:
    host = little_prior("factored_lyrics")
    captured = []
    with PretendGpu() as gpu:
        sampler = build_level_sampler(gpu.put(little_prior("factored_lyrics")), "cuda_graph")
        for songs in (2, 2, 1, 2, 3, 2):
            codes, counts = level_by(sampler, gpu, songs)
            assert torch.equal(codes, level_on_the_host(host, songs))
            captured.append(counts.graphs)
    assert MAX_GRAPH_SETS == 2
    new = GRAPHS_OF_A_SET
    assert captured == [new, 0, new, 0, new, 0], "the set that was used longest ago has gone"


def test_guided_and_filtered_songs_have_graphs_of_their_own() -> None:
    host = little_prior("factored_lyrics")
    kinds: list[dict] = [
        {},
        {"guidance": [2.0, 1.0]},
        {"guidance": [1.0, 3.0]},
        {"filters": {"top_k": torch.tensor([3, 0])}},
        {"filters": {"top_k": torch.tensor([5, 2])}},
    ]
    captured = []
    with PretendGpu() as gpu:
        sampler = build_level_sampler(gpu.put(little_prior("factored_lyrics")), "cuda_graph")
        for settings in kinds:
            on_host = level_on_the_host(host, 2, **settings)
            codes, counts = level_by(sampler, gpu, 2, **settings)
            assert torch.equal(codes, on_host), settings
            captured.append(counts.graphs)
    new = GRAPHS_OF_A_SET
    assert captured == [new, new, 0, new, 0], "who is guided, and values of filters, are read anew"


def test_a_window_that_begins_with_the_memory_of_the_last_is_noticed() -> None:
    def keep_memory(self: WindowDecoder, conditioning) -> None:
        self.conditioning, self.current, self.reach = conditioning, 0, 1

    host = little_prior("factored_lyrics")
    plain = level_on_the_host(host, 2)
    for planted in (False, True):
        with PretendGpu() as gpu, patch_if(planted, WindowDecoder, "restart", keep_memory):
            sampler = build_level_sampler(gpu.put(little_prior("factored_lyrics")), "cuda_graph")
            second = [level_by(sampler, gpu, 2)[0] for _ in range(2)][1]
        assert torch.equal(second, plain) != planted


def patch_if(wanted: bool, owner: object, name: str, value: Callable):
    return patch.object(owner, name, value if wanted else getattr(owner, name))


def test_the_host_waits_twice_a_row_in_float32_and_once_in_16_bits() -> None:
    """Once for the near ties of the row, once for the count of new codes; never for a code."""
    rows = 44 // ROWS
    for dtype, waits_of_a_row in ((torch.float32, 2), (torch.bfloat16, 1)):
        with PretendGpu() as gpu:
            prior = gpu.put(little_prior("factored_lyrics").to(dtype))
            _, counts = level_by(build_level_sampler(prior, "cuda_graph"), gpu, 2)
        windows = 5
        assert counts.num_waits <= waits_of_a_row * rows + windows + 1, counts.report()


def test_a_second_gpu_needs_no_one_to_set_the_current_device() -> None:
    scenario = SCENARIOS["window factored cuda_graph"]
    codes, counts = on_pretended_gpu(scenario, PretendGpu(index=1))
    assert torch.equal(codes, on_the_host(scenario)) and counts.nodes > 0


@torch.no_grad()
def test_caches_on_a_gpu_hold_padded_heads_as_the_formula_says() -> None:
    prior = little_prior("factored_lyrics")
    with PretendGpu() as gpu:
        there, batch = gpu.put(prior), gpu.put(prior_batch(prior.config, songs=3))
        decoder = WindowDecoder(there, there.conditioning(batch), 3)
    held = 0
    for layer in decoder.layers:
        held += layer.padded.numel()
        held += getattr(layer, "padded_previous", layer.padded[:0]).numel()
        assert layer.padded.shape[-1] == HEAD_MULTIPLE > layer.memory.shape[-1]
    assert held == 3 * cache_elements(prior.config, HEAD_MULTIPLE)


# ---- What decides how a level is sampled ----------------------------------------------------------------------------


def test_auto_takes_graphs_on_a_gpu() -> None:
    config = little_prior().config
    for level in ("top", "middle", "bottom"):
        assert DecodingPolicy().decoding_of(level, 1, config, CUDA) == "cuda_graph"
    cpu = torch.device("cpu")
    assert DecodingPolicy().decoding_of("top", 1, config, cpu) == "sequential"
    assert DecodingPolicy().decoding_of("middle", 1, config, cpu) == "jacobi"
    fast = DecodingPolicy(exact=False)
    assert fast.decoding_of("middle", 1, config, CUDA) == "parallel_windows"
    assert DecodingPolicy(decoding="sequential").decoding_of("top", 1, config, CUDA) == "sequential"


@pytest.mark.parametrize(
    ("policy", "asked"),
    [
        (DecodingPolicy(int8=True), "--int8"),
        (DecodingPolicy(decoding="speculative"), "--decoding speculative"),
    ],
)
def test_weights_of_8_bits_are_refused_on_a_gpu(policy: DecodingPolicy, asked: str) -> None:
    policy.check_device(torch.device("cpu"))
    with pytest.raises(UserError, match=rf"^{asked} .* --precision bfloat16 \(V100: float16\)$"):
        policy.check_device(CUDA)
    DecodingPolicy().check_device(CUDA)


def test_a_level_sampler_stays_with_its_prior_on_a_gpu(tmp_path: Path) -> None:
    runs = write_runs(tmp_path)
    run = PriorRun(runs / "top_prior", read_facts(runs / "vqvae"))
    with run.loaded(torch.device("cpu"), torch.float32) as prior:
        one = run.level_sampler(prior, "cuda_graph", False)
        assert run.level_sampler(prior, "cuda_graph", False) is not one
        with PretendGpu() as gpu:
            there = gpu.put(prior)
            one = run.level_sampler(there, "cuda_graph", False)
            assert run.level_sampler(there, "cuda_graph", False) is one
            assert run.level_sampler(there, "sequential", False) is not one
            assert list(run.kept_samplers) == [("sequential", False)]
    assert not run.kept_samplers, "it would hold the weights of a prior that has gone"
    run.keep_loaded(torch.device("cpu"), torch.float32)
    with pytest.raises(MemoryError), run.loaded(torch.device("cpu"), torch.float32):
        run.kept_samplers["cuda_graph", False] = one
        raise MemoryError
    assert not run.kept_samplers, "the next attempt needs its memory"


# ---- Which operations a step is made of -----------------------------------------------------------------------------


def fused_on(gpu: PretendGpu, dtype: torch.dtype = torch.float32) -> bool:
    step_ops._kernels_agree.cache_clear()
    with gpu, patch.object(step_ops, "has_triton", lambda: True):
        return step_ops.fused_steps(gpu.device, dtype)


def test_kernels_are_taken_from_volta_on() -> None:
    for dtype in step_ops.CHECK_TOLERANCE:
        assert fused_on(PretendGpu(capability=(7, 0)), dtype)
    assert not fused_on(PretendGpu(capability=(6, 1)))
    assert not step_ops.fused_steps(torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("add_norm", lambda *args: [x * 1.1 for x in step_ops.plain_add_norm(*args)], "off by"),
        ("quick_gelu_", lambda x: x.mul_(0), "off by"),
        ("decode_attention", lambda *args: args[0].flatten(1)[:, :450], "off by"),
        ("decode_attention", lambda *args: 1 / 0, "Triton failed on cuda:0"),
    ],
)
def test_a_kernel_that_is_wrong_here_is_not_used(
    name: str, fault: Callable, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    with patch.object(step_ops, name, fault):
        assert not fused_on(PretendGpu())
    assert f"decoding by plain operations: {words}" in caplog.text or words in caplog.text
    step_ops._kernels_agree.cache_clear()


@pytest.mark.parametrize(("level", "nodes"), [("top", 700), ("middle", 650)])
def test_a_code_takes_few_kernels(level: str, nodes: int) -> None:
    """Of the released priors at full depth; it was 1,867 and 1,320. test_on_a_pretended_gpu.py holds the table to it."""
    stored = stored_counts()["counts"][f"released {level} cuda_graph bfloat16 fused"]
    assert stored["nodes"] <= nodes * stored["codes"]
