"""How fast codes are sampled, beside plain ways and the limit; writes benchmarks/results/sampling.json and a table.

    python benchmarks/sampling.py                 # all of it, about three minutes on an idle machine
    python benchmarks/sampling.py --only levels   # or cascade; the other's figures stay as they are

Figures are in CPU-seconds (`time.process_time`) of one thread; the ways take turns, and medians are given, of the
ratios too. Random weights: a prior of width 512, depth 12, 32 rows, window 2048, vocabulary 2048 ("large"), and the
bottom of the preset `tiny`.

    naive     no caches: a full forward pass for every code
    growing   as Jukebox has it: caches grow by concatenation, checks that wait for the device, one window at a time
    ours      sequential, one code at a time; ahead: an int8 copy guesses 16 codes; int8: rounded weights
    limit     the weights and the keys and values that a step reads, at the speed at which this thread reads memory
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from jukebox_forward import today
from rich.console import Console
from torch import Tensor

from megajukebox.common.files import write_atomic
from megajukebox.models.prior import Conditioning, Prior, PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.sampling.decoding import gumbel_noise
from megajukebox.sampling.decoding import window_sampler as window_module
from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder, window_decoder
from megajukebox.sampling.decoding.token_sampling import TokenSampler
from megajukebox.sampling.decoding.window_sampler import (
    SamplingWindow,
    sample_window,
    sample_window_speculative,
)
from megajukebox.sampling.levels.autoregressive import SpeculativeDecoding
from megajukebox.training.config import load_preset

RESULT = Path(__file__).parent / "results" / "sampling.json"
TRAINED = RESULT.with_name("sampling_trained.json")
# Of sampling_trained.json: Jacobi decoding in blocks of 128 codes, as it is called now and as version 0.1 called it.
BLOCKS_OF_128 = ("jacobi {'num_draft_tokens': 128}", "fixed_point {'ahead': 128}")
LARGE = TransformerConfig(width=512, depth=12, heads=1, blocks=32)
# A middle part of the window: what a code costs on average, without minutes for each row of the table.
NEW, ROUNDS = 32, 7
BATCHES = (1, 4, 8, 16, 32)  # 8 and 32 for the windows of one song at once


def main(
    only: Annotated[list[str] | None, typer.Option(help="Any of levels, cascade.")] = None,
) -> None:
    """Measure the sampler."""
    torch.set_num_threads(1)
    window_module.prefill = pretend
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in only or ("levels", "cascade"):
        figures = {"levels": levels, "cascade": cascade}[part]()
        results[part] = {"made": today(), "figures": figures}
        write_atomic(RESULT, (json.dumps(results, indent=1) + "\n").encode())
        Console().print(json.dumps(figures, indent=1))


# ---- Jukebox's way, for comparison ----------------------------------------------------------------------------------


class Growing:
    """One window with caches that grow by concatenation, as the released sampler has them: all keys of every layer are
    kept and each pattern gathers its own from them; codes are checked on the host before they are used."""

    def __init__(self, prior: Prior, given: Conditioning, batch: int):
        self.prior, self.given = prior, given
        self.row = prior.config.length // prior.config.transformer.blocks
        self.start = prior.input.start_vector(batch, given.start)
        self.keys: list[Tensor | None] = [None] * len(prior.blocks)
        self.values: list[Tensor | None] = [None] * len(prior.blocks)

    def pretend(self, known: int) -> None:
        """Caches as `known` codes leave them, of zeros: what they hold does not matter for how long a step takes."""
        column = known % self.row
        for d, block in enumerate(self.prior.blocks):
            weight, batch = block.attention.merge.weight, len(self.start)
            kept = {"row": column, "previous_row": self.row + column}.get(
                block.attention.pattern, known
            )
            shape = (batch, kept, block.attention.heads, weight.shape[1] // block.attention.heads)
            self.keys[d], self.values[d] = weight.new_zeros(shape), weight.new_zeros(shape)

    def step(self, tokens_BT: Tensor, t: int) -> Tensor:
        previous = tokens_BT[:, t - 1] if t else None
        assert previous is None or (
            bool((previous >= 0).all()) and bool((previous < self.prior.vocabulary).all())
        )
        h = self.prior.input.one(previous, t, self.start)
        added = None if self.given.added is None else self.given.added[:, t : t + 1]
        h = h if added is None else h + added
        for d, block in enumerate(self.prior.blocks):
            attention = block.attention
            q, k, v = attention.qkv(block.norm_attention(h))
            old_k, old_v = self.keys[d], self.values[d]
            self.keys[d] = k if old_k is None else torch.cat([old_k, k], dim=1)
            self.values[d] = v if old_v is None else torch.cat([old_v, v], dim=1)
            assert self.keys[d].shape[1] == self.values[d].shape[1]
            h = block.update(h, attention.out(self._attend(q, d, attention.pattern, t)))
        return self.prior.predict(h, added)

    def _attend(self, q: Tensor, d: int, pattern: str, t: int) -> Tensor:
        row, column = divmod(t, self.row)
        if pattern == "previous_row" and not row:
            self._trim(d, 2 * self.row)
            return torch.zeros_like(q)
        every_k, every_v = self.keys[d], self.values[d]
        assert every_k is not None and every_v is not None
        if pattern == "row":
            k, v = (x[:, -(column + 1) :] for x in (every_k, every_v))
            self._trim(d, self.row)
        elif pattern == "column":
            k, v = (x[:, column :: self.row] for x in (every_k, every_v))
        else:
            end = every_k.shape[1] - column - 1
            k, v = (x[:, end - self.row : end] for x in (every_k, every_v))
            self._trim(d, 2 * self.row)
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(
            1, 2
        )

    def _trim(self, d: int, most: int) -> None:
        """Rows that are over are dropped where the pattern does not need them, at the end of a row, as there."""
        k, v = self.keys[d], self.values[d]
        assert k is not None and v is not None
        if k.shape[1] > most:
            self.keys[d], self.values[d] = k[:, -most:], v[:, -most:]


def sample_growing(window: SamplingWindow) -> Tensor:
    """A window by `Growing`; a temperature's division and a Categorical with its checks, as there."""
    begin, until = window.unknown_span()
    growing = Growing(window.prior, window.conditioning, len(window.tokens_BT))
    if begin:
        growing.pretend(begin)
    for t in range(begin, until):
        take_growing(growing, window, t)
    return window.tokens_BT


def take_growing(growing: Growing, window: SamplingWindow, t: int) -> None:
    logits = growing.step(window.tokens_BT, t) / 0.99
    window.tokens_BT[:, t] = torch.distributions.Categorical(logits=logits).sample()[:, 0]
    assert window.tokens_BT[:, t].shape == window.tokens_BT[:, 0].shape


# ---- Tokens a CPU-second ------------------------------------------------------------------------------------------


def priors() -> dict[str, Prior]:
    torch.manual_seed(0)
    shared = {
        "level": "top",
        "sample_rate": 44100,
        "hop": 128,
        "codebook_size": 2048,
        "window": 2048,
    }
    bottom = load_preset("tiny").prior_config("bottom", 1)
    alone = {
        "conditions": {},
        "conditions_at_every_position": False,
        "timing": None,
        "upsampler_conditioner": None,
        "lyrics": None,
    }
    tiny = bottom.model_copy(update=alone)
    return {
        "large": Prior(PriorConfig(**shared, transformer=LARGE)).eval(),
        "tiny": Prior(tiny).eval(),
    }


def window_for(prior: Prior, batch: int, known: int, new: int) -> SamplingWindow:
    tokens = torch.randint(
        prior.config.codebook_size,
        (batch, prior.config.window),
        generator=torch.Generator().manual_seed(1),
    )
    stay = torch.ones_like(tokens, dtype=torch.bool)
    stay[:, known : known + new] = False
    draw = TokenSampler(
        gumbel_noise.noise_keys(list(range(batch)), "top"), torch.full((batch,), 0.99)
    )
    given = prior.conditioning({"conditions": {}})
    return SamplingWindow(prior, given, tokens, stay, torch.zeros(batch, dtype=torch.long), draw)


@torch.inference_mode()
def levels() -> list[dict[str, Any]]:
    rows = []
    bandwidth = memory_bandwidth()
    for size, prior in priors().items():
        packed, known = PackedPrior(prior), prior.config.window // 2
        rough, rounded = PackedPrior(prior, int8=True), PackedPrior(prior, int8=True)
        for batch in BATCHES:
            row: dict[str, Any] = {"prior": size, "batch": batch}
            whole = window_for(prior, batch, known, 1)
            row["naive"] = batch / cpu_seconds(
                lambda p=prior, w=whole: p.logits(w.tokens_BT, w.conditioning), 1
            )
            taken = rounds(ways(prior, packed, rough, rounded), prior, batch, known)
            row |= {
                name: batch * NEW / statistics.median(seconds) for name, seconds in taken.items()
            }
            row["limit"] = batch / (bytes_read(prior, batch) / bandwidth)
            row["bandwidth_gb_s"] = bandwidth / 1e9
            for name, key in (("sequential", "times_growing"), ("ahead", "ahead_times_growing")):
                row[key] = statistics.median(
                    g / ours for g, ours in zip(taken["growing"], taken[name])
                )
            row["share_of_limit"] = row["sequential"] / row["limit"]
            rows.append({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()})
            print(rows[-1], flush=True)
    return rows


def ways(
    prior: Prior, packed: PackedPrior, rough: PackedPrior, rounded: PackedPrior
) -> dict[str, Callable[[SamplingWindow], Any]]:
    ahead = SpeculativeDecoding(prior)
    return {
        "growing": sample_growing,
        "sequential": lambda w: sample_window(packed, w),
        "ahead": lambda w: sample_window_speculative(
            packed, w, ahead.draft, ahead.num_draft_tokens
        ),
        "int8": lambda w: sample_window(rounded, w),
    }


def rounds(
    ways: dict[str, Callable[[SamplingWindow], Any]], prior: Prior, batch: int, known: int
) -> dict[str, list[float]]:
    """CPU-seconds of each way for NEW codes in the middle of a window, by rounds: what disturbs one, disturbs all."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for n in range(ROUNDS + 1):
        for name, work in ways.items():
            seconds = cpu_seconds(lambda work=work: work(window_for(prior, batch, known, NEW)), 1)
            if n:  # the first round is for warming up
                taken[name].append(seconds)
    return taken


def pretend(decoder: WindowDecoder, window: SamplingWindow, begin: int) -> None:
    """In place of the fill, which is timed by itself: the memory is there, what it holds does not matter."""
    decoder.current = max(0, begin - 1) // decoder.row


def cpu_seconds(work: Callable[[], Any], repeats: int) -> float:
    taken = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        taken.append(time.process_time() - begun)
    return statistics.median(taken)


def memory_bandwidth() -> float:
    """Bytes a second that one thread reads from 256 MB."""
    x = torch.ones(64 * 2**20)
    x.sum()
    return 4 * len(x) / min(cpu_seconds(x.sum, 1) for _ in range(5))


def bytes_read(prior: Prior, batch: int) -> float:
    """By one step: every weight of the layers and the head once, and on average the keys and values of each pattern."""
    config, shape = prior.config, prior.config.transformer
    weights = sum(p.numel() for p in prior.blocks.parameters()) + prior.head.weight.numel()
    row = config.length / shape.blocks
    keys = {
        "row": row / 2,
        "previous_row": row,
        "column": shape.blocks / 2,
        "dense": config.length / 2,
    }
    seen = sum(keys.get(pattern, 0) for pattern in shape.patterns) * 2 * shape.attention_width
    return 4 * (weights + batch * seen)


# ---- The whole cascade of a song of ten seconds -------------------------------------------------------------------


@torch.inference_mode()
def cascade() -> list[dict[str, Any]]:
    """CPU-seconds for all codes of ten seconds of audio at 44.1 kHz, hops 128, 32, 8, from the rates of `levels`.

    Jukebox's way takes the known part of each window in chunks of 32 codes (timed by our own faster step), one window
    after another; ours takes it in one pass. Windows at once are those of one song: 8 of the middle level, 31 of the
    bottom, with their run-ups, all in lockstep for as many steps as a window is long. Random weights would settle at
    once by `jacobi`: its passes of upsamplers are those of the trained demo (sampling_trained.py), as many and as
    long, at the cost that they have here; the top is by the quicker of `sequential` and `ahead`.
    """
    prior = priors()["large"]
    measured = json.loads(RESULT.read_text())["levels"]["figures"]
    large = {row["batch"]: row for row in measured if row["prior"] == "large"}
    one, at_once = large[1], {"middle": large[8], "bottom": large[32]}
    fill, chunk, window = (
        cpu_seconds(lambda: fill_half(prior), 2),
        chunk_of_32(prior, PackedPrior(prior)),
        prior.config.window,
    )
    rows: list[dict[str, Any]] = []
    for level, hop, hop_fraction in (("top", 128, 0.125), ("middle", 32, 0.5), ("bottom", 8, 0.5)):
        codes = 10 * 44100 // 128 * (128 // hop)
        windows = 1 + max(0, -(-(codes - window) // int(hop_fraction * window)))
        again = windows * window - codes  # codes that later windows take in once more
        row = {"level": level, "codes": codes, "windows": windows}
        row["growing"] = codes / one["growing"] + again / 32 * chunk
        for way in ("sequential", "ahead", "int8"):
            row[way] = codes / one[way] + again / 1024 * fill
        top = min(row["sequential"], row["ahead"])
        for name, way, alone in (("", "sequential", top), (", int8", "int8", row["int8"])):
            many = at_once.get(level)
            row[f"windows at once{name}"] = window * many["batch"] / many[way] if many else alone
        row["fixed point as trained"] = (
            top if level == "top" else codes * settling(prior, level) + again / 1024 * fill
        )
        rows.append(row)
    ways = [name for name in rows[0] if name not in ("level", "codes", "windows")]
    total = {name: sum(row[name] for row in rows) for name in ways}
    speed = {"times_growing": {n: total["growing"] / s for n, s in total.items()}}
    speed["seconds_per_second_of_audio"] = {n: s / 10 for n, s in total.items()}
    return [*rows, {"level": "all", **total, **speed}]


def settling(prior: Prior, level: str) -> float:
    """CPU-seconds a code by blocks as long as those of the trained demo were, which settled as many codes a pass."""
    figures = json.loads(TRAINED.read_text())["levels"]["figures"][level]
    known = next(figures[name] for name in BLOCKS_OF_128 if name in figures)
    block = round(known["codes_per_pass"] * known["positions_a_code"])
    window, packed = window_for(prior, 1, 1024, block), PackedPrior(prior)

    def decide() -> None:
        window.noise = None
        window.sample(decoder.step(packed, window.tokens_BT, 1024, block), 1024)

    with window_decoder(prior, window.conditioning, 1) as decoder:
        pretend(decoder, window, 1024)
        decide()
        return cpu_seconds(decide, 7) / known["codes_per_pass"]


def chunk_of_32(prior: Prior, packed: PackedPrior) -> float:
    window = window_for(prior, 1, 1024, 1)
    with window_decoder(prior, window.conditioning, 1) as decoder:
        return cpu_seconds(lambda: decoder.step(packed, window.tokens_BT, 0, 32), 5)


def fill_half(prior: Prior) -> None:
    window = window_for(prior, 1, 1024, 1)
    with window_decoder(prior, window.conditioning, 1) as decoder:
        decoder.prefill(window.tokens_BT[:, :1024])


if __name__ == "__main__":
    typer.run(main)
