"""Evaluate a run or samples: metrics with intervals, a page of plots, and a gate against an earlier report.

    megajukebox evaluate runs/tiny/vqvae --reference shards/songs                      # reconstructions and codebooks
    megajukebox evaluate runs/tiny/top_prior --reference shards/codes                  # bits per code, lyric alignment
    megajukebox evaluate runs/tiny --reference shards/songs --reference shards/codes   # every run of a jukebox
    megajukebox evaluate runs/tiny/composer --reference shards/notes                   # written music (docs/notes.md)
    megajukebox evaluate samples --reference shards/songs --reference shards/codes     # adherence, music, memorization
    megajukebox evaluate samples_student --reference samples_teacher                   # song by song, same requests
    megajukebox evaluate runs/tiny/vqvae --reference shards/songs --gate before/report.json  # exit code 4 if worse
    megajukebox evaluate runs/tiny/top_prior --reference shards/codes --checkpoint newest    # while it is training
    megajukebox evaluate runs/tiny/top_prior --reference shards/codes --checkpoint 400       # as it was at that step

Writes report.json and index.html with its plots into --out, and appends a run's metrics to its scores.jsonl.
docs/evaluation.md defines every metric. Needs scipy: pip install 'megajukebox[evaluate]'.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer
from rich.console import Console

from megajukebox.common.command_line import renamed_options, run_command
from megajukebox.common.device import choose_device
from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open
from megajukebox.common.model_files import FACTS, read_facts, save_weights
from megajukebox.common.untrusted_files import open_inside
from megajukebox.evaluation.context import EvalBudget, EvalContext
from megajukebox.evaluation.evaluate import evaluate, report_of
from megajukebox.evaluation.evaluators.embedding import BUILT_IN, load_embedder
from megajukebox.evaluation.frozen_weights import RUN_FILES
from megajukebox.evaluation.inputs import References
from megajukebox.evaluation.reporting.html_report import write_page
from megajukebox.evaluation.reporting.regression_gate import compare
from megajukebox.evaluation.reporting.report import (
    append_report,
    is_evaluated,
    read_report,
    write_report,
)
from megajukebox.evaluation.reporting.table import print_gate, print_report
from megajukebox.evaluation.targets import targets_in
from megajukebox.training.checkpoint import candidates, folder_of

STANDARD_FACTS = (
    "config",
    "fingerprint",
    "step",
)  # of model.json, which save_weights writes itself
WORSE = 4  # exit code of a gate that found something worse

RefinerRuns = Annotated[
    list[Path] | None,
    typer.Option(
        help="Run of a refiner, for a VQ-VAE (default: those beside it); may be repeated."
    ),
]

EarlierReport = Annotated[
    Path | None,
    typer.Option(help="Earlier report.json: exit with 4 if any metric is worse."),
]
JsbFile = Annotated[
    Path | None,
    typer.Option(help="Jsb16thSeparated.json, for a composer: nats a cell as papers count."),
]


@renamed_options({"--against": "--reference"})
def main(
    target: Annotated[
        Path, typer.Argument(help="A run, a folder of runs, or a folder of samples.")
    ],
    reference: Annotated[
        list[str],
        typer.Option(
            help="Song, code or note shards, or other samples, to compare with (repeatable)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.json and the page.")] = Path("score"),
    gate: EarlierReport = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            help="newest, or a step that the run kept; does nothing if it was evaluated before."
        ),
    ] = None,
    songs: Annotated[
        int, typer.Option(min=1, help="Evaluate at most this many held-out songs.")
    ] = EvalBudget.songs,
    seconds: Annotated[
        float, typer.Option(min=1, help="Evaluate at most this many seconds of each song.")
    ] = EvalBudget.seconds,
    corpus: Annotated[
        int, typer.Option(min=1, help="Compare samples with at most this many training songs.")
    ] = EvalBudget.corpus,
    windows: Annotated[
        int, typer.Option(min=1, help="Evaluate at most this many windows of codes of each song.")
    ] = EvalBudget.windows,
    refiner: RefinerRuns = None,
    jsb: JsbFile = None,
    held_out: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Fraction of songs held out (default: the run's)."),
    ] = None,
    embedder: Annotated[
        Path | None,
        typer.Option(help="Use an .onnx or TorchScript embedder instead of the built-in one."),
    ] = None,
    embedder_rate: Annotated[
        int, typer.Option(help="Sample rate of the embedder's audio in Hz.")
    ] = 16000,
    embedder_seconds: Annotated[
        float, typer.Option(help="Seconds of audio that the embedder gets at once.")
    ] = 4.0,
    trust_code: Annotated[
        bool,
        typer.Option("--trust-code", help="Run a TorchScript embedder, which is a program."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: the GPU if there is one).")
    ] = None,
) -> None:
    """Evaluate TARGET against songs, codes or other samples. Exits with 4 if the gate found something worse."""
    before = read_report(gate) if gate else None
    embed = BUILT_IN
    if embedder:
        embed = load_embedder(embedder, embedder_rate, embedder_seconds, trust_code)
    context = EvalContext(
        References.open(reference),
        EvalBudget(songs, seconds, corpus, windows),
        held_out,
        embed,
        choose_device(asked=device),
        refiner or [],
        jsb=jsb,
    )
    report = evaluate_target(target, checkpoint, context)
    if report is None:
        print(f"{target}: these weights were evaluated before; nothing to do")
        return
    write_report(out / "report.json", report)
    changes = compare(report, before) if before else []
    console = Console()
    print_report(report, console)
    print(write_page(out, report))
    if before and print_gate(changes, console):
        raise SystemExit(WORSE)


def evaluate_target(
    target: Path, checkpoint: str | None, context: EvalContext
) -> dict[str, Any] | None:
    """The report of everything in `target`; None if its checkpoint was evaluated before.

    Every run's own report is appended to the run, for the explorer to draw.
    """
    with at_checkpoint(target, checkpoint) as weights:
        if weights != target:
            context.notes.append(
                f"{target}: weights of its checkpoint {checkpoint}, without any moving average"
            )
        targets = targets_in(weights)
        if checkpoint:
            fingerprints = [entry["fingerprint"] for entry in context.references.describe()]
            settings = context.settings()
            new_targets = []  # without those whose run has a report of these weights and references
            for one in targets:
                run = one.run if one.path.is_relative_to(target) else target
                if run is None or not is_evaluated(run, one.weights, fingerprints, settings):
                    new_targets.append(one)
            targets = new_targets
        if not targets:
            return None
        metrics = []
        for one in targets:
            own_metrics = evaluate(one, context)
            metrics += own_metrics
            run = target if weights != target else one.run
            if run:
                append_report(run, report_of([one], own_metrics, context))
    if weights != target:
        targets = [replace(one, path=target) for one in targets]
    return report_of(targets, metrics, context)


@contextmanager
def at_checkpoint(run: Path, checkpoint: str | None) -> Iterator[Path]:
    """The folder to evaluate: `run` itself for None and "newest", else a temporary one with the weights of a step.

    Raises:
        UserError: the run kept no checkpoint of that step, or is not of a VQ-VAE or a prior.
    """
    if checkpoint is None or checkpoint == "newest":
        yield run
        return
    if not checkpoint.isdecimal():
        raise UserError(
            f"checkpoint {checkpoint!r} is neither newest nor a step; give a number, like 400"
        )
    if not (run / FACTS).is_file() or read_facts(run)["kind"] not in ("vqvae", "prior"):
        raise UserError(
            f"--checkpoint {checkpoint} is for one run of a VQ-VAE or a prior, which {run} is not"
        )
    kept = [path.name for path in candidates(run)]
    checkpoint_folder = folder_of(run, int(checkpoint))
    if checkpoint_folder.name not in kept:
        steps = [str(int(name.removeprefix("step-"))) for name in kept]
        raise UserError(
            f"{run} kept no checkpoint of step {checkpoint}; it has {', '.join(steps) or 'none'}"
        )
    from megajukebox.training.finetune import read_pretrained  # imports DeepSpeed, which is slow

    base = read_pretrained(checkpoint_folder)
    facts = {key: value for key, value in base.facts.items() if key not in STANDARD_FACTS}
    kind = facts.pop("kind")
    with TemporaryDirectory(prefix="scoring-", dir=run.parent) as name:
        folder = Path(name) / run.name
        folder.mkdir()
        for path in run.iterdir():
            if path.suffix in RUN_FILES and path.name != FACTS:
                with open_inside(run, path.name) as file, atomic_open(folder / path.name) as copy:
                    shutil.copyfileobj(file, copy)
        save_weights(folder, kind, base.config, base.weights, base.facts["step"], **facts)
        yield folder


if __name__ == "__main__":
    run_command(main, "evaluate")
