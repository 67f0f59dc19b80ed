"""Fold adapters into the weights of a jukebox for good: runs like any other, to export, distil or train further.

    megajukebox merge runs/jukebox --adapter adapters/mine --to runs/mine
    megajukebox merge runs/jukebox --adapter adapters/mine:0.8 --adapter adapters/blues:0.5 --to runs/both

Songs of the new runs are those of `sample RUNS --adapter ...`, code by code. Runs without an adapter are copied.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.commands.extend_vocabulary import copy_files
from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.model_files import FACTS, WEIGHTS, read_facts, save_weights
from megajukebox.common.provenance import made_by
from megajukebox.conditioning.vocabulary import VOCABULARIES, vocabularies_json
from megajukebox.data.adapters import AdapterMix, FoldedTensors, adapters_in, parse_adapter
from megajukebox.sampling.prior_run import PriorRun

# Settings and curves are of the base's training; checkpoints and previews are folders and stay behind as well.
NOT_COPIED = (WEIGHTS, FACTS, VOCABULARIES, "run.yaml", "metrics.jsonl", "events.jsonl", "DONE")
REWRITTEN_FACTS = ("kind", "config", "fingerprint", "step")


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")],
    adapter: Annotated[
        list[str], typer.Option(help="FOLDER or FOLDER:SCALE; may be given several times.")
    ],
    to: Annotated[Path, typer.Option(help="Folder for the new runs; it must not exist.")],
    adapter_anyway: Annotated[
        bool, typer.Option("--adapter-anyway", help="Adapters of other weights will do, too.")
    ] = False,
) -> None:
    """Fold adapters into runs."""
    for level in merge(runs, adapter, to, adapter_anyway):
        typer.echo(f"{level}: adapters are folded in")
    typer.echo(f"{to} is ready to sample from")


def merge(runs: Path, adapters: list[str], to: Path, any_base: bool = False) -> list[str]:
    """Write the runs at `runs` with adapters folded in to `to`. Returns the levels that changed.

    Raises:
        UserError: `to` exists, an adapter is none of these runs, or no level has one.
    """
    if to.exists():
        raise UserError(f"{to} exists; give the new runs a folder of their own")
    folders = sorted(path.parent for path in runs.glob(f"*/{FACTS}"))
    if not folders:
        raise UserError(f"{runs} holds no runs; give the folder of a jukebox")
    mixes = mixes_by_level(adapters)
    unfinished = to.with_name(f"{to.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # what a merge that was killed left
    changed: list[str] = []
    try:
        for folder in folders:
            target = unfinished / folder.name
            make_folder(target)
            facts = read_facts(folder)
            mix = mixes.get(str(facts.get("level"))) if facts["kind"] == "prior" else None
            if mix is None:
                copy_files(folder, target)
                continue
            write_merged(folder, mix, target, any_base)
            changed.append(facts["level"])
        if not changed:
            wanted = ", ".join(mixes)
            raise UserError(f"{runs} has no prior of the {wanted} level, which the adapters are of")
        os.replace(unfinished, to)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return changed


def mixes_by_level(adapters: list[str]) -> dict[str, AdapterMix]:
    """The adapters of each level at their scales."""
    parts: dict[str, list] = {}
    for asked in map(parse_adapter, adapters):
        for level, adapter in adapters_in(asked.path).items():
            parts.setdefault(level, []).append((adapter, asked.scale))
    return {level: AdapterMix.of(of_level) for level, of_level in parts.items()}


def write_merged(folder: Path, mix: AdapterMix, target: Path, any_base: bool) -> None:
    """A run folder that can be sampled from; model.json comes last."""
    facts = read_facts(folder)
    run = PriorRun(folder, {"fingerprint": facts.get("vqvae")}, mix, any_base)
    copy_files(folder, target, NOT_COPIED)
    write_atomic(target / VOCABULARIES, vocabularies_json(run.vocabularies))
    stored = FoldedTensors(folder / WEIGHTS, mix, run.base_vocabularies)
    tensors = {name: stored.pending(name) for name in stored}
    kept = {name: value for name, value in facts.items() if name not in REWRITTEN_FACTS}
    before = {"fingerprint": facts["fingerprint"], "made_by": facts.get("made_by")}
    kept |= {"made_by": made_by(), "merged_from": before, "adapters": mix.facts()}
    save_weights(target, "prior", run.config, tensors, facts["step"], **kept)


if __name__ == "__main__":
    run_command(main, "merge")
