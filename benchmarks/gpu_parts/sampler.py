"""Sampling of the released priors, late in a window: milliseconds a code by each decoding, and whether codes agree."""

from dataclasses import dataclass, field

import torch
from timing import forget_peak, median_seconds, peak_gib, seconds
from torch import Tensor

from gpu_parts.figures import Figures
from gpu_parts.models import WindowFactory, bytes_per_code, prior_config, random_prior, release
from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding.token_sampling import SampledTokens, TokenSampler
from megajukebox.sampling.levels.autoregressive import Autoregressive, build_level_sampler
from megajukebox.sampling.memory_budget import LevelMemory

SONGS = (1, 8, 41)
EAGER_CODES = 48
TARGET_SHARE = {"middle": None, "top": 0.7}  # of the memory's bandwidth; docs/performance.md
EXACT_SONGS = (1, 4)
EXACT_CODES = 256


@torch.inference_mode()
def sampler(figures: Figures) -> None:
    """An upsampler of 1B, then the top of 5B, in bfloat16."""
    for level in ("middle", "top"):
        prior = random_prior(prior_config(level, figures.small), figures.device, torch.bfloat16)
        for songs in SONGS[: 2 if figures.small else None]:
            eager_codes(figures, prior, songs)
            replayed_codes(figures, prior, songs)
            memory(figures, prior, songs)
        del prior
        release()


def eager_codes(figures: Figures, prior: Prior, songs: int) -> None:
    """Milliseconds a code of `sequential`: what many codes take more than few, so that taking in the rest cancels."""
    sequential = build_level_sampler(prior, "sequential")
    make = WindowFactory(prior, songs)
    codes = 4 if figures.small else EAGER_CODES
    known = late(prior, rows=-(-codes // row_length(prior)))

    def milliseconds() -> float:
        taken = [window_seconds(sequential, make, known, new) for new in (codes // 4, codes)]
        return (taken[1] - taken[0]) / (codes - codes // 4) * 1e3

    milliseconds()
    report(figures, prior, songs, "sequential", milliseconds)


def replayed_codes(figures: Figures, prior: Prior, songs: int) -> None:
    """The same of `cuda_graph`: three rows more, after the one whose steps are captured; and what captures take."""
    graphs = build_level_sampler(prior, "cuda_graph")
    make = WindowFactory(prior, songs)
    row = row_length(prior)
    rows = 2 if figures.small else 4
    known = late(prior, rows)
    first = window_seconds(graphs, make, known, row)
    again = window_seconds(graphs, make, known, row)

    def milliseconds() -> float:
        taken = [window_seconds(graphs, make, known, new) for new in (row, rows * row)]
        return (taken[1] - taken[0]) / ((rows - 1) * row) * 1e3

    report(figures, prior, songs, "cuda_graph", milliseconds)
    name = f"{prior.config.level}, {songs} songs, first row with its captures"
    figures.add(name, "s", first, again, note="again: captured before, if graphs outlive a window")


def report(figures: Figures, prior: Prior, songs: int, decoding: str, milliseconds) -> None:
    level = prior.config.level
    floor = bytes_per_code(prior, songs) / figures.copy_bytes_per_second() * 1e3
    share = TARGET_SHARE[level]
    target = floor / share if share and decoding == "cuda_graph" else None
    name = f"{level}, {songs} songs, {decoding}"
    measured = figures.measure(name, "ms a code", milliseconds, floor=floor, target=target)
    speed = bytes_per_code(prior, songs) / measured / 1e6
    figures.add(f"{name}, read", "GB/s", speed)


def memory(figures: Figures, prior: Prior, songs: int) -> None:
    """Peak of a window beside what memory_budget.py allows for it."""
    make = WindowFactory(prior, songs)
    level = LevelMemory(prior.config)
    dtype = prior.head.weight.dtype
    on_cpu = figures.device.type == "cpu"
    bound = level.weight_bytes(dtype) + level.auxiliary_bytes(dtype, on_cpu)
    bound += level.song_bytes(songs, dtype)
    forget_peak()
    window_seconds(build_level_sampler(prior, "sequential"), make, late(prior, 1), 2)
    name = f"{prior.config.level}, {songs} songs, peak"
    note = "resident memory, all of the process" if on_cpu else "the plan is an upper bound"
    figures.add(name, "GiB", peak_gib(), plan=bound / 2**30, note=note)


def row_length(prior: Prior) -> int:
    return prior.config.length // prior.config.transformer.blocks


def late(prior: Prior, rows: int) -> int:
    """How many positions are known before the last `rows` rows of a window: caches are nearly full there."""
    return prior.config.length - rows * row_length(prior)


def window_seconds(sampler: Autoregressive, make: WindowFactory, known: int, new: int) -> float:
    window = make.window(known, new)
    return seconds(lambda: sampler.window_sampler()(sampler.packed, window), make.device)


# ---- Exactness ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearTieCounter(TokenSampler):
    """A token sampler that counts the codes which an error of the logits could have decided."""

    seen: list[Tensor] = field(default_factory=list)

    def __call__(self, *args, **kwargs) -> SampledTokens:
        sampled = super().__call__(*args, **kwargs)
        self.seen.append(sampled.near_tie)
        return sampled


@torch.inference_mode()
def exactness(figures: Figures) -> None:
    """In float32 every exact decoding must give the codes of `sequential`.

    Raises:
        SystemExit: it does not.
    """
    config = prior_config("middle", figures.small)
    prior = random_prior(config, figures.device, torch.float32)
    codes = 2 * row_length(prior) if figures.small else EXACT_CODES
    known = late(prior, rows=codes // row_length(prior))
    differing = []
    for songs in EXACT_SONGS:
        make = WindowFactory(prior, songs)
        plain = make.token_sampler()
        counter = NearTieCounter(plain.keys_B, plain.temperature_B)
        expected = make.window(known, codes, counter)
        sequential = build_level_sampler(prior, "sequential")
        sequential.window_sampler()(sequential.packed, expected)
        share = torch.cat(counter.seen, dim=1).float().mean().item()
        figures.add(f"near ties, {songs} songs", "of all codes", share)
        for decoding in ("cuda_graph", "jacobi"):
            window = make.window(known, codes)
            other = build_level_sampler(prior, decoding)
            work = other.window_sampler()
            taken = median_seconds(lambda: work(other.packed, window), figures.device, 1, 0)  # noqa: B023
            equal = (window.tokens_BT == expected.tokens_BT).float().mean().item()
            name = f"{decoding}, {songs} songs, codes as sequential's"
            figures.add(name, "of all codes", equal, target=1.0, note=f"{taken:.2f} s")
            if equal != 1.0:
                differing.append(name)
    if differing:
        raise SystemExit(f"these should be 1: {', '.join(differing)}")
