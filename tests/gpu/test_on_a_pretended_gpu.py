"""Training, sampling, students and the codec on a pretended GPU (fixtures/pretend_gpu.py): what a CPU alone hides.

For each row of fixtures/gpu_scenarios.py: no operation mixes tensors of host and device, the result is the CPU's, and
the host neither waits nor launches more often than fixtures/files/pretend_gpu_counts.json says. How to read a failure:

    HostAndDevice: add of host and device tensors at megajukebox/models/x.py:12
        one tensor of that line lies on the host; make it on the device of the others (`device=...`)
    NotInAGraph: the host waits while a graph is captured: _local_scalar_dense at megajukebox/models/x.py:12
        a bool(), int(), item() or a branch on a tensor in what is to be a CUDA graph
    waits rose from 8 to 24
        the report below it says what waits and at which line: "_local_scalar_dense" is bool(), int(), float() or item(),
        "nonzero" a size that the device knows, "to the device" a tensor made on the host
    the codes differ under `cuda_graph` alone
        the step depends on something that a replay does not read again: a Python number, or a tensor that was replaced

A change that is meant to cost less, or more, stores its counts and shows them in the diff:

    PYTHONPATH=tests python -m fixtures.gpu_scenarios               # store; prints what moved
    PYTHONPATH=tests python -m fixtures.gpu_scenarios cuda_graph    # where those with this word wait, what they launch
"""

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from fixtures.gpu_scenarios import (
    SCENARIOS,
    on_pretended_gpu,
    on_the_host,
    stored_counts,
    torch_release,
)
from fixtures.pretend_gpu import HostAndDevice, NotInAGraph, PretendGpu
from torch import Tensor

from megajukebox.sampling.decoding import kv_cache
from megajukebox.sampling.decoding.cuda_graph_rows import RowSteps
from megajukebox.sampling.decoding.token_sampling import SampledTokens, TokenSampler

GRAPHS = SCENARIOS["window factored cuda_graph"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_gpu_gives_the_cpus_result_for_no_more_waits_and_launches(name: str) -> None:
    scenario = SCENARIOS[name]
    result, counts = on_pretended_gpu(scenario)
    if scenario.comparable:
        assert_same(result, on_the_host(scenario))
    stored = stored_counts()
    assert name in stored["counts"], (
        "not stored yet: PYTHONPATH=tests python -m fixtures.gpu_scenarios"
    )
    limits = stored["counts"][name]
    assert counts.graphs or not limits.get("graphs"), "it works, but not by the graphs it should"
    # What a call of torch launches is for the release of torch to say; how often the host waits is our own doing.
    compared = limits if stored["torch"] == torch_release() else ["waits"]
    for kind, number in counts.totals().items():
        if kind in compared:
            assert number <= limits[kind], f"{kind} rose from {limits[kind]}\n{counts.report()}"


def assert_same(result: Tensor, expected: Tensor) -> None:
    """Codes are equal; of sums a few last bits may differ, because layers are laid out otherwise off the CPU."""
    if result.is_floating_point():
        torch.testing.assert_close(
            result, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
        )
    else:
        assert torch.equal(result, expected)


# ---- Planted faults are noticed -------------------------------------------------------------------------------------


def differs_on_the_gpu(gpu: PretendGpu | None = None) -> bool:
    return not torch.equal(on_pretended_gpu(GRAPHS, gpu)[0], on_the_host(GRAPHS))


def test_a_row_that_a_graph_keeps_as_a_number_is_noticed() -> None:
    sound = RowSteps.step

    def with_a_number(self: RowSteps, column: int) -> None:
        row = self.row
        self.row = torch.full_like(row, self.decoder.current)
        sound(self, column)
        self.row = row

    with patch.object(RowSteps, "step", with_a_number):
        assert differs_on_the_gpu()


def test_a_cache_that_is_replaced_between_replays_is_noticed() -> None:
    def replace(self: kv_cache.PreviousRowCache, rows: int) -> None:
        if rows:
            self.padded_previous = self.padded.clone()

    with patch.object(kv_cache.PreviousRowCache, "advance_rows", replace):
        assert differs_on_the_gpu()


def sampler_that_first(look: Callable[[Tensor], object]) -> Callable:
    """`TokenSampler.__call__`, which begins by looking at the logits."""
    sound = TokenSampler.__call__

    def looking(self: TokenSampler, logits: Tensor, *args, **kwargs) -> SampledTokens:
        look(logits)
        return sound(self, logits, *args, **kwargs)

    return looking


def test_an_index_on_the_host_is_noticed() -> None:
    planted = sampler_that_first(lambda logits: logits.index_select(0, torch.arange(2)))
    with (
        patch.object(TokenSampler, "__call__", planted),
        pytest.raises(HostAndDevice, match=r"index_select .* tests/gpu/.*\.py:\d+"),
    ):
        on_pretended_gpu(GRAPHS)


def test_a_check_by_the_host_within_a_step_is_noticed() -> None:
    planted = sampler_that_first(lambda logits: bool(logits.isfinite().all()))
    with (
        patch.object(TokenSampler, "__call__", planted),
        pytest.raises(NotInAGraph, match=r"_local_scalar_dense at tests/gpu/.*\.py:\d+"),
    ):
        on_pretended_gpu(GRAPHS)


def test_a_second_gpu_samples_the_same_codes_once_the_process_has_set_its_device() -> None:
    second = PretendGpu(index=1)
    with second:
        torch.cuda.set_device(1)
    assert not differs_on_the_gpu(second)


def test_a_graph_that_is_captured_on_another_gpu_is_noticed() -> None:
    sound = RowSteps.__init__

    def on_the_first(self: RowSteps, *args) -> None:
        sound(self, *args)
        if self.stream is not None:
            self.stream = torch.cuda.Stream(0)

    with patch.object(RowSteps, "__init__", on_the_first):
        assert differs_on_the_gpu(PretendGpu(index=1))


# ---- The pretended GPU itself ---------------------------------------------------------------------------------------

WAITING: dict[str, tuple[int, Callable[[Tensor], object]]] = {
    "bool": (1, lambda x: bool(x.any())),
    "tolist": (1, lambda x: x.tolist()),
    "to the host": (1, lambda x: x.cpu()),
    "to the device": (1, lambda x: torch.arange(3).to(x.device)),
    "a tensor of a list": (1, lambda x: torch.tensor([1, 2], device=x.device)),
    "a tensor like another": (1, lambda x: x.new_tensor([1, 2])),
    "nonzero": (1, lambda x: x.nonzero()),
    "a mask as an index": (1, lambda x: x[x > 1]),
    "a list as an index": (1, lambda x: x[[0, 1]]),
    "bincount": (2, lambda x: torch.bincount(x)),
    "unique": (1, lambda x: x.unique()),
    "copy_ from the host": (1, lambda x: x.copy_(torch.arange(4))),
    "equal": (1, lambda x: torch.equal(x, x)),
    "synchronize": (1, lambda x: torch.cuda.synchronize()),
    "made on the device": (0, lambda x: torch.arange(3, device=x.device)),
    "an index of the device": (0, lambda x: x[torch.zeros(1, dtype=torch.long, device=x.device)]),
    "a number under a mask": (0, lambda x: x.masked_fill_(x > 1, 7)),
    "a number of the host": (0, lambda x: x + torch.tensor(3)),
    "pinned": (0, lambda x: torch.arange(3).pin_memory().to(x.device, non_blocking=True)),
    "to pinned memory": (
        0,
        lambda x: torch.zeros(4, dtype=torch.long).pin_memory().copy_(x, non_blocking=True),
    ),
    "a type": (0, lambda x: x.to(torch.float32)),
}


@pytest.mark.parametrize("name", WAITING)
def test_waits_are_counted(name: str) -> None:
    waits, work = WAITING[name]
    with PretendGpu() as gpu:
        x = gpu.put(torch.arange(4))
        with gpu.counting() as counts:
            work(x)
    assert counts.num_waits == waits, counts.report()


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x + torch.arange(4),
        lambda x: torch.cat([x, torch.arange(4)]),
        lambda x: torch.stack([x[0], torch.tensor(1)]),
        lambda x: torch.where(x > 1, x, torch.zeros(4, dtype=torch.long)),
        lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: x.to("cuda:1"),
        lambda x: F.scaled_dot_product_attention(
            *[x.float().view(1, 4, 1)] * 2, torch.ones(1, 4, 1)
        ),
    ],
)
def test_what_cuda_refuses_is_refused(mix: Callable[[Tensor], Tensor]) -> None:
    with PretendGpu() as gpu, pytest.raises(HostAndDevice):
        mix(gpu.put(torch.arange(4)))


def test_a_capture_computes_nothing_and_each_replay_reads_memory_again() -> None:
    with PretendGpu() as gpu:
        x = gpu.put(torch.tensor([1.0]))
        total = gpu.put(torch.tensor([0.0]))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            total.add_(x * 2)
        seen = [gpu.host(total).item()]
        for number in (1.0, 10.0):
            x.fill_(number)
            graph.replay()
            seen.append(gpu.host(total).item())
    assert seen == [0.0, 2.0, 22.0]


def test_launches_of_a_replay_are_one_and_its_nodes_are_counted() -> None:
    with PretendGpu() as gpu:
        x = gpu.put(torch.ones(3))
        graph = torch.cuda.CUDAGraph()
        with gpu.counting() as counts:
            with torch.cuda.graph(graph):
                x.add_(1).view(3, 1).mul_(2)
            graph.replay()
            graph.replay()
    assert counts.totals() == {"waits": 0, "launches": 2, "graphs": 1, "nodes": 4}
