"""What the ways to sample cost on a trained jukebox, and what cutting windows costs.

    python benchmarks/sampling_trained.py demo/runs                 # after `make demo`; about two minutes
    python benchmarks/sampling_trained.py demo/runs --only wide     # the upsamplers at width 512; three minutes

Writes benchmarks/results/sampling_trained.json. For each level: codes a CPU-second of a thread by each way (one song),
the same of growing caches (sampling.py) over the first window of an upsampler,
codes that differ from the sequential way's (exact: none), codes that one deciding pass settles. For the upsamplers, of
the codes of `parallel_windows`: nats a code under the prior, given all that came before in order, for the 32 codes after
a seam and for all others; and the jump of the log spectrum at seams against everywhere else, in dB; both also for the
sequential codes at the same places. KL is that of the prior's own next code to that of its int8 copy, in bits a code.
`wide`: the upsamplers at the cost of width 512 and depth 12 (widened.py), the same codes. `wall`: a song of --clock
seconds by the ways that `auto` takes, from loaded VQ-VAE to files: how long it takes, and after how long a level can
first be heard.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jukebox_forward import today
from sampling import sample_growing
from torch import Tensor
from widened import widened

from megajukebox.common.files import write_atomic
from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding.decoder import PackedPrior, WindowDecoder, window_decoder
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.autoregressive import WindowParallelDecoding, build_level_sampler
from megajukebox.sampling.levels.level_sampler import LevelJob, window_hop
from megajukebox.sampling.levels.level_windows import WindowRow, build_window, window_spans
from megajukebox.sampling.prior_run import PriorRun
from megajukebox.sampling.songs.audio_stream import AudioStream, decode_all
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import GeneratedSong
from megajukebox.sampling.songs.song_writer import SongWriter

RESULT = Path(__file__).parent / "results" / "sampling_trained.json"
SEAM = 32


def main(
    runs: Annotated[Path, typer.Argument(help="The runs of a trained jukebox.")],
    seconds: Annotated[float, typer.Option()] = 4.0,
    temperature: Annotated[float, typer.Option()] = 0.99,
    clock: Annotated[
        float, typer.Option(help="Seconds of the song that is timed by the clock.")
    ] = 10.0,
    only: Annotated[list[str] | None, typer.Option(help="Any of levels, wide, wall.")] = None,
) -> None:
    """Measure the ways; figures of other parts stay as they are."""
    torch.set_num_threads(1)
    box = Jukebox(runs, "cpu")
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in only or ("levels", "wall"):
        if part == "wall":
            figures = by_the_clock(box, clock)
        else:
            song = box.start_song(
                SongRequest(id="x", seconds=seconds, temperature=temperature, seed=1)
            )
            figures = {"levels": levels, "wide": wide}[part](box, song)
        print(part, json.dumps(figures, indent=1), flush=True)
        asked = {"seconds": seconds, "temperature": temperature}
        steps = {level: run.facts.get("step") for level, run in box.levels.items()}
        results[part] = {"made": today(), "asked": asked, "steps": steps, "figures": figures}
        write_atomic(RESULT, (json.dumps(results, indent=1) + "\n").encode())


TRIED: list[tuple[str, dict[str, Any]]] = [
    ("sequential", {}),
    ("speculative", {"num_draft_tokens": 16}),
    *(("jacobi", {"num_draft_tokens": size}) for size in (8, 16, 32, 64, 128, 256)),
    ("jacobi_windows", {}),
    ("sequential", {"int8": True}),
    ("parallel_windows", {}),
]
WIDE = [TRIED[n] for n in (0, 1, 3, 5, 6, 8, 10)]


def levels(box: Jukebox, song: GeneratedSong) -> dict[str, Any]:
    figures = {}
    for level, run in box.levels.items():
        with run.loaded(box.device, torch.float32) as prior:

            def job(level: str = level, run: PriorRun = run) -> LevelJob:
                return box.build_job(level, [song])

            codes, figures[level] = ways(prior, job, TRIED)
            if level != "top":  # whose layers that read lyrics the growing caches do not have
                figures[level]["growing"] = {"codes_per_second": growing(prior, job())}
                figures[level]["seams"] = seams(box, level, prior, job(), codes)
            sampled = job()
            sampled.codes_BT[:] = codes
            figures[level]["int8_kl_bits_per_code"] = kl_of_int8(prior, sampled)
        song.codes[level] = codes[0].numpy()
        print(level, json.dumps(figures[level], indent=1), flush=True)
    return figures


def wide(box: Jukebox, song: GeneratedSong) -> dict[str, Any]:
    """The upsamplers as if they were wide. Their codes are the trained ones', which stay below."""
    figures: dict[str, Any] = {}
    for level, run in box.levels.items():
        with run.loaded(box.device, torch.float32) as prior:

            def job(level: str = level, run: PriorRun = run) -> LevelJob:
                return box.build_job(level, [song])

            codes, _ = ways(prior, job, [("sequential", {})])
            if level != "top":
                larger = widened(prior)
                same, figures[level] = ways(larger, job, WIDE)
                figures[level]["codes_that_differ_from_the_narrow"] = int((same != codes).sum())
                figures[level]["growing"] = {"codes_per_second": growing(larger, job())}
                print(level, json.dumps(figures[level], indent=1), flush=True)
        song.codes[level] = codes[0].numpy()
    return figures


def ways(
    prior: Prior, job_of: Callable[[], LevelJob], tried: list[tuple[str, dict[str, Any]]]
) -> tuple[Tensor, dict[str, Any]]:
    """The codes [1, T] of the first way, which is the sequential one, and the figures of every way."""
    found: dict[str, Any] = {}
    plain: Tensor | None = None
    passes = [0, 0]
    step = WindowDecoder.step

    def counted(
        self: WindowDecoder, packed: PackedPrior, tokens: Tensor, t: int, size: int = 1
    ) -> Tensor:
        passes[0], passes[1] = passes[0] + (not packed.int8), passes[1] + size * (not packed.int8)
        return step(self, packed, tokens, t, size)

    for way, settings in tried:
        sampler, job = build_level_sampler(prior, way, **settings), job_of()
        passes[:], WindowDecoder.step = [0, 0], counted  # type: ignore[method-assign]
        begun = time.process_time()
        sampler.sample(job, lambda count: None)
        taken = time.process_time() - begun
        WindowDecoder.step = step  # type: ignore[method-assign]
        plain = job.codes_BT if plain is None else plain
        told = {
            "codes_per_second": round(job.total / taken, 1),
            "differ": int((job.codes_BT != plain).sum()),
        }
        if way in ("speculative", "jacobi"):
            told["codes_per_pass"] = round(job.total / passes[0], 2)
            told["positions_a_code"] = round(passes[1] / job.total, 2)
        found[f"{way}{' ' + str(settings) if settings else ''}"] = told
        if settings.get("int8"):
            told["exact"] = False
    assert plain is not None
    return plain, found


def by_the_clock(box: Jukebox, seconds: float) -> dict[str, Any]:
    """A song as `sample` makes it: wall seconds, their share of the audio's, and when each level was first heard."""
    heard: dict[str, float] = {}
    write, begun = AudioStream._write, time.perf_counter()

    def noted(self: AudioStream, audio: Any) -> None:
        write(self, audio)
        heard.setdefault(self.level, round(time.perf_counter() - begun, 2))

    AudioStream._write = noted  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        song = box.sample(
            [SongRequest(id="clock", seconds=seconds, seed=1)], sink=SongWriter(box, out)
        )[0]
    AudioStream._write = write  # type: ignore[method-assign]
    taken, ways = (
        time.perf_counter() - begun,
        {level: made["decoding"] for level, made in song.levels.items()},
    )
    factor = round(taken / seconds, 3)
    return {
        "seconds": seconds,
        "taken": round(taken, 2),
        "real_time_factor": factor,
        "heard": heard,
        "ways": ways,
    }


@torch.inference_mode()
def growing(prior: Prior, job: LevelJob) -> float:
    """Codes a CPU-second by caches that grow, in the first window."""
    span = window_spans(job.total, prior.config.window, window_hop(prior.config, job.hop_fraction))[
        0
    ]
    window = build_window(prior, job, [WindowRow(0, span)])
    begun = time.process_time()
    sample_growing(window)
    return round(span.end / (time.process_time() - begun), 1)


@torch.inference_mode()
def surprisal(prior: Prior, job: LevelJob, codes_1T: Tensor) -> Tensor:
    """Nats of each code [T] under the prior, told what came before as in sampling in order."""
    job.codes_BT[:] = codes_1T
    nats = torch.zeros(job.total)
    for span in window_spans(
        job.total, prior.config.window, window_hop(prior.config, job.hop_fraction)
    ):
        window = build_window(prior, job, [WindowRow(0, span)])
        prefix = prior.config.prefix_tokens
        log_p = prior.logits(window.tokens_BT, window.conditioning)[0].log_softmax(-1)
        picked = -log_p.gather(1, window.tokens_BT[0][:, None])[:, 0]
        nats[span.new : span.end] = picked[
            prefix + span.new - span.start : prefix + span.end - span.start
        ]
    return nats


@torch.inference_mode()
def seams(
    box: Jukebox, level: str, prior: Prior, job: LevelJob, plain_1T: Tensor
) -> dict[str, Any]:
    """What the cuts of `parallel_windows` cost: nats after them and elsewhere, and the jump of the spectrum."""
    sampler = WindowParallelDecoding(prior)
    cut = [span.new for span in sampler.spans(job.total) if span.start]
    sampler.sample(job, lambda count: None)
    ours = job.codes_BT.clone()
    after = torch.zeros(job.total, dtype=torch.bool)
    for seam in cut:
        after[seam : seam + SEAM] = True
    found: dict[str, Any] = {"seams": len(cut)}
    for name, codes in (("parallel_windows", ours), ("sequential", plain_1T)):
        nats = surprisal(prior, job, codes)
        jump = flux(decode_all(box.vqvae, codes[0], level), cut, box.vqvae.config.hops[level])
        found[name] = {
            "nats_after": float(nats[after].mean()),
            "nats_elsewhere": float(nats[~after].mean()),
            **jump,
        }
    return found


def flux(audio_T: Tensor, cut: list[int], hop: int) -> dict[str, float]:
    """Root mean square change of the log spectrum from frame to frame, in dB: at the cuts and everywhere."""
    spectrum = torch.stft(
        audio_T, 512, 128, window=torch.hann_window(512), return_complex=True
    ).abs()
    change = (20 * (spectrum + 1e-4).log10()).diff(dim=1).square().mean(0).sqrt()
    frames = torch.tensor(
        [min(len(change) - 1, max(0, seam * hop // 128 + n)) for seam in cut for n in (-1, 0, 1)]
    )
    return {"flux_at_seams_db": float(change[frames].mean()), "flux_db": float(change.mean())}


@torch.inference_mode()
def kl_of_int8(prior: Prior, job: LevelJob, codes: int = 256) -> float:
    """KL(prior || its int8 copy), bits a code, over the first codes of the level."""
    span = window_spans(job.total, prior.config.window, window_hop(prior.config, job.hop_fraction))[
        0
    ]
    window, exact, rough = (
        build_window(prior, job, [WindowRow(0, span)]),
        PackedPrior(prior),
        PackedPrior(prior, int8=True),
    )
    prefix, log_p = prior.config.prefix_tokens, {}
    for packed in (exact, rough):
        with window_decoder(prior, window.conditioning, 1) as decoder:
            if prefix:
                decoder.prefill(window.tokens_BT[:, :prefix])
            steps = range(prefix, prefix + min(codes, span.end))
            logits = torch.cat([decoder.step(packed, window.tokens_BT, t) for t in steps], dim=1)
        log_p[packed.int8] = logits.double().log_softmax(-1)
    return float(
        (log_p[False].exp() * (log_p[False] - log_p[True])).sum(-1).mean()
        / torch.log(torch.tensor(2.0))
    )


if __name__ == "__main__":
    typer.run(main)
