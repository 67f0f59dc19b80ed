"""Score a run or samples: is it better, and than what? Figures, intervals, a page of plots, and a gate.

    megajukebox evaluate runs/tiny/vqvae --against shards/songs                        # reconstructions and codebooks
    megajukebox evaluate runs/tiny/top_prior --against shards/codes                    # bits per code, lyric alignment
    megajukebox evaluate runs/tiny --against shards/songs --against shards/codes       # every run of a jukebox
    megajukebox evaluate samples --against shards/songs --against shards/codes         # what the samples are worth
    megajukebox evaluate samples_student --against samples_teacher                     # song by song, same requests
    megajukebox evaluate runs/tiny/vqvae --against shards/songs --gate before/report.json   # exit status 4 if it is worse
    megajukebox evaluate runs/tiny/top_prior --against shards/codes --checkpoint newest     # beside a training run
    megajukebox evaluate runs/tiny/top_prior --against shards/codes --checkpoint 400        # as it was at that step

Writes report.json and index.html with its plots into --out. A run's figures are appended to its scores.jsonl.
docs/evaluation.md defines every figure.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console

from megajukebox.common.command_line import run_command
from megajukebox.common.model_files import FACTS, read_facts, save_weights
from megajukebox.evaluation.evaluate import EvalBudget
from megajukebox.evaluation.evaluators.embedding import built_in, load_embedder
from megajukebox.evaluation.reporting.html_report import write_page
from megajukebox.evaluation.reporting.regression_gate import compare
from megajukebox.evaluation.reporting.report import (
    append_scores,
    is_scored,
    read_report,
    write_report,
)
from megajukebox.evaluation.reporting.table import show, show_gate
from megajukebox.evaluation.targets import EvalTarget, Evaluator, open_sources, targets_in
from megajukebox.training.checkpoint import candidates, folder_of

WRITTEN = ("config", "fingerprint", "step")  # of model.json: what save_weights writes itself
WORSE = 4  # exit status of a gate that found something worse


def main(
    subject: Annotated[
        Path, typer.Argument(help="A run, a folder of runs, or a folder of samples.")
    ],
    against: Annotated[
        list[str], typer.Option(help="Song shards, code shards, or other samples; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(help="The folder for report.json and the page.")] = Path(
        "score"
    ),
    gate: Annotated[
        Path | None, typer.Option(help="An earlier report.json: exit with 4 if anything is worse.")
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="newest, or a step that the run kept; nothing to do if it was scored before."
        ),
    ] = None,
    songs: Annotated[
        int, typer.Option(min=1, help="Held-out songs judged, at most.")
    ] = EvalBudget.songs,
    seconds: Annotated[
        float, typer.Option(min=1, help="Of each song, at most.")
    ] = EvalBudget.seconds,
    corpus: Annotated[
        int, typer.Option(min=1, help="Training songs that samples are held against.")
    ] = EvalBudget.corpus,
    windows: Annotated[
        int, typer.Option(min=1, help="Windows of codes judged, of each song.")
    ] = EvalBudget.windows,
    held_out: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Share of songs held out; default: the run's."),
    ] = None,
    embedder: Annotated[
        Path | None,
        typer.Option(help="An .onnx or TorchScript embedder instead of the built-in one."),
    ] = None,
    embedder_rate: Annotated[int, typer.Option(help="Hz of the audio that it wants.")] = 16000,
    embedder_seconds: Annotated[
        float, typer.Option(help="Seconds of audio that it wants at once.")
    ] = 4.0,
    trust_code: Annotated[
        bool, typer.Option("--trust-code", help="TorchScript is a program: run it all the same.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda; default: the GPU if there is one.")
    ] = None,
) -> None:
    """Score SUBJECT against songs, codes or other samples. Exits with 4 if the gate found something worse."""
    console = Console()
    try:
        before = read_report(gate) if gate else None
        judge = Evaluator(
            open_sources(against), EvalBudget(songs, seconds, corpus, windows), held_out,
            load_embedder(embedder, embedder_rate, embedder_seconds, trust_code) if embedder else built_in(),
            torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")), say=console.print,
        )  # fmt: skip
        with of_checkpoint(subject, checkpoint) as weights:
            found = targets_in(weights)
            if weights != subject:
                judge.notes.append(
                    f"{subject}: weights of its checkpoint {checkpoint}, without any moving average"
                )
            if checkpoint:
                found = [one for one in found if not scored_before(one, judge, subject)]
            if not found:
                print(f"{subject}: these weights were scored before; nothing to do")
                return
            scores = []
            for one in found:
                scores += (of_one := judge.scores(one))
                if one.run:
                    append_scores(
                        subject if weights != subject else one.run, judge.report([one], of_one)
                    )
        if weights != subject:
            found = [replace(one, path=subject) for one in found]
        report = judge.report(found, scores)
        write_report(out / "report.json", report)
        changes = compare(report, before) if before else []
    except (ValueError, OSError) as error:
        raise SystemExit(f"score: {error}") from error
    show(report, console)
    print(write_page(out, report))
    if before and show_gate(changes, console):
        raise SystemExit(WORSE)


def scored_before(one: EvalTarget, judge: Evaluator, asked: Path) -> bool:
    run = one.run if one.path.is_relative_to(asked) else asked
    return run is not None and is_scored(run, one.weights, judge.fingerprints(), judge.settings())


@contextmanager
def of_checkpoint(run: Path, asked: str | None) -> Iterator[Path]:
    """The folder to score: `run` itself, or a passing one beside it with the weights as they were at a step."""
    if asked in (None, "newest"):
        yield run
        return
    if not asked.isdecimal():
        raise ValueError(
            f"checkpoint {asked!r} is neither newest nor a step; it is a number, like 400"
        )
    if not (run / FACTS).is_file() or read_facts(run)["kind"] not in ("vqvae", "prior"):
        raise ValueError(
            f"--checkpoint {asked} is of one run of a VQ-VAE or a prior, which {run} is not"
        )
    kept = [path.name for path in candidates(run)]
    folder = folder_of(run, int(asked))
    if folder.name not in kept:
        there = ", ".join(str(int(name.removeprefix("step-"))) for name in kept) or "none"
        raise ValueError(f"{run} kept no checkpoint of step {asked}; it has {there}")
    from megajukebox.training.finetune import read_base  # DeepSpeed: only for those who ask

    with TemporaryDirectory(prefix="scoring-", dir=run.parent) as name:
        place, base = Path(name) / run.name, read_base(folder)
        place.mkdir()
        for path in run.iterdir():
            if path.suffix in (".json", ".yaml", ".model") and path.name != FACTS:
                shutil.copyfile(path, place / path.name)
        passing = {key: value for key, value in base.facts.items() if key not in WRITTEN}
        save_weights(
            place, passing.pop("kind"), base.config, base.weights, base.facts["step"], **passing
        )
        yield place


if __name__ == "__main__":
    run_command(main, "evaluate")
