"""Teach trained priors new names: their vocabularies and the tables behind them grow, nothing else moves.

    megajukebox extend-vocabulary runs/tiny --to runs/tiny_grown --artist "New Band" --genre shoegaze    # every level at once
    megajukebox extend-vocabulary runs/tiny --to runs/tiny_grown --name moods=calm --name year=2031    # any condition
    megajukebox extend-vocabulary runs/tiny --to runs/tiny_grown --data shards/new_codes --min-songs 2    # what new songs name

Old names keep their ids, and the priors give the same for them to the last bit. A new name starts as the mean of the
names that the prior knows (as "unknown" where it knows none): it can be sampled at once, and becomes itself by further
training. The rows that the preset left spare are used first, then the table is enlarged.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
import yaml
from torch import Tensor

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import atomic_open, make_folder, write_atomic
from megajukebox.common.model_files import (
    FACTS,
    WEIGHTS,
    PendingTensor,
    StoredTensors,
    read_facts,
    save_weights,
)
from megajukebox.common.old_settings import upgrade_settings
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import open_inside, parse_yaml, read_inside
from megajukebox.conditioning.jukebox_labels import as_written
from megajukebox.conditioning.vocabulary import (
    VOCABULARIES,
    Vocabulary,
    normalised,
    read_vocabularies,
    vocabularies_json,
)
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.models.prior import PriorConfig

Counts = dict[str, dict[str, int]]  # condition -> name -> songs
SETTINGS = "run.yaml"
# Checkpoints are folders and stay behind as well: their optimizer states are of the smaller tables.
NOT_COPIED = (WEIGHTS, FACTS, VOCABULARIES, SETTINGS, "metrics.jsonl", "events.jsonl")


def main(
    runs: Annotated[Path, typer.Argument(help="The folder of the runs, or one run of a prior.")],
    to: Annotated[Path, typer.Option(help="The folder for the grown runs; it must not exist.")],
    artist: Annotated[
        list[str] | None, typer.Option(help="A new artist; may be given several times.")
    ] = None,
    genre: Annotated[
        list[str] | None, typer.Option(help="A new genre; may be given several times.")
    ] = None,
    name: Annotated[
        list[str] | None, typer.Option(help="condition=name for any condition, as moods=calm.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Song or code shards: every name in them.")
    ] = None,
    min_songs: Annotated[
        int, typer.Option(min=1, help="With --data: names on fewer songs stay unknown.")
    ] = 1,
) -> None:
    """Add names to trained priors."""
    asked = [("artist", entry) for entry in artist or []]
    asked += [("genres", entry) for entry in genre or []]
    for text in name or []:
        condition, equals, entry = text.partition("=")
        if not equals or not condition:
            raise UserError(f"--name {text!r} is not condition=name")
        asked.append((condition, entry))
    counts = names_in(ShardSet(data), min_songs) if data else {}
    for growth in grow(runs, to, asked, counts):
        for condition, known in growth.known(asked):
            typer.echo(f"{growth.config.level}: {condition} {known!r} is known already")
        for condition, names in growth.added.items():
            size = growth.config.conditions[condition].table_size
            typer.echo(f"{growth.config.level}: {condition} + {', '.join(names)} (table of {size})")
    typer.echo(f"{to} is ready to sample from")


def names_in(shards: ShardSet, min_songs: int) -> Counts:
    """The names that at least `min_songs` songs of a shard set bear, and its years."""
    counts: Counts = {}
    for condition, names in shards.index["vocabulary"].items():
        counts[condition] = {name: songs for name, songs in names.items() if songs >= min_songs}
    first, last = shards.index["years"] or (0, -1)
    counts["year"] = dict.fromkeys(map(str, range(first, last + 1)), 1)
    return counts


def grow(
    runs: Path, to: Path, asked: list[tuple[str, str]], counts: Counts | None = None
) -> list["Growth"]:
    """Write the runs at `runs` with new names to `to`.

    Runs that learn nothing new are copied. Nothing is at `to` before everything is.

    Args:
        asked: (condition, name) pairs.
        counts: names of songs, by condition, and on how many songs they are.

    Raises:
        UserError: `to` exists, no prior has such a condition, a name cannot be one of its condition, or every
            name is known.
    """
    if to.exists():
        raise UserError(f"{to} exists; give the grown runs a folder of their own")
    folders = [runs]
    if not (runs / FACTS).is_file():
        folders = sorted(path.parent for path in runs.glob(f"*/{FACTS}"))
    priors = [folder for folder in folders if read_facts(folder)["kind"] == "prior"]
    if not priors:
        raise UserError(
            f"{runs} holds no trained prior; give the folder of a jukebox, or a run of a prior"
        )
    growths = list(map(Growth.of, priors))
    conditions: set[str] = set()
    for growth in growths:
        conditions.update(growth.config.conditions)
    for condition, name in asked:
        if condition not in conditions:
            known = ", ".join(sorted(conditions)) or "nothing"
            raise UserError(
                f"no prior in {runs} is conditioned on {condition!r}; they are conditioned on {known}"
            )
        if not normalised(name) or (condition == "year" and not name.isdecimal()):
            wanted = "a year" if condition == "year" else "a name"
            raise UserError(f"{name!r} is no {condition}; give {wanted}")
    growths = [growth.with_names(asked, counts or {}) for growth in growths]
    if not asked and not counts:
        raise UserError(
            "no name was given; give --artist, --genre, --name condition=name, or --data"
        )
    if not any(growth.added for growth in growths):
        raise UserError(f"every one of these names is known to {runs} already; nothing was written")
    write(runs, folders, {growth.folder: growth for growth in growths}, to)
    return growths


# ---- One prior ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Growth:
    """A prior's run, and its vocabularies before and after."""

    folder: Path
    facts: dict[str, Any]
    before: dict[str, Vocabulary]
    after: dict[str, Vocabulary]

    @staticmethod
    def of(folder: Path) -> "Growth":
        """The run in `folder`, not grown yet."""
        facts = read_facts(folder)
        vocabularies = read_vocabularies(folder)
        for condition, label in PriorConfig(**facts["config"]).conditions.items():
            names = len(vocabularies.get(condition, ()))
            if not 0 < names <= label.table_size:
                raise UserError(
                    f"{folder / VOCABULARIES} has {names} names of {condition} for a table of"
                    f" {label.table_size} rows; a prior grows only where the names it has are known"
                    " (after import: give --labels)"
                )
        return Growth(folder, facts, vocabularies, vocabularies)

    def with_names(self, asked: list[tuple[str, str]], counts: Counts) -> "Growth":
        """With the names of `asked` and `counts` behind those it has, for the conditions that it has."""
        after = dict(self.before)
        for condition in self.config.conditions:
            names = dict(counts.get(condition, {}))
            for where, name in asked:
                if where == condition:
                    names[name] = 1
            after[condition] = grown(condition, after[condition], names, self.facts.get("names"))
        return Growth(self.folder, self.facts, self.before, after)

    def known(self, asked: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those of `asked` that it knew before."""
        known: list[tuple[str, str]] = []
        for condition, name in asked:
            if condition not in self.before:
                continue
            words = as_written(self.facts.get("names"), condition, name)
            if all(self.before[condition].id(word) for word in words):
                known.append((condition, name))
        return known

    @cached_property
    def added(self) -> dict[str, tuple[str, ...]]:
        """The new names by condition, where there are any."""
        added: dict[str, tuple[str, ...]] = {}
        for condition, vocabulary in self.after.items():
            new = vocabulary.names[len(self.before[condition]) :]
            if new:
                added[condition] = new
        return added

    @cached_property
    def config(self) -> PriorConfig:
        """The prior's shape: tables become as large as their vocabularies, where those outgrew them."""
        config = PriorConfig(**self.facts["config"])
        labels = {}
        for condition, label in config.conditions.items():
            size = max(label.table_size, len(self.after[condition]))
            labels[condition] = label.model_copy(update={"table_size": size})
        return config.model_copy(update={"conditions": labels})

    def tensors(self) -> dict[str, PendingTensor]:
        """The weights to write, each read in its turn; only the tables of new names are changed."""
        stored = StoredTensors(self.folder / WEIGHTS)
        tensors = {name: stored.pending(name) for name in stored}
        for condition in self.added:
            name = f"labels.tables.{condition}.weight"
            rows = tensors[name]
            known = len(self.before[condition])
            make = partial(grown_rows, rows, known, len(self.after[condition]))
            shape = (self.config.conditions[condition].table_size, rows.shape[1])
            tensors[name] = PendingTensor(rows.dtype, shape, make)
        return tensors


def grown(
    condition: str, vocabulary: Vocabulary, counts: Mapping[str, int], spelling: str | None
) -> Vocabulary:
    """`vocabulary` with the names of `counts` behind; years come in the bins that it has."""
    if condition == "year":
        names = list(vocabulary.names)
        for year in sorted(map(int, counts)):
            bin_of_year = Vocabulary.of_years(year, year, vocabulary.bin_years).names[1]
            if bin_of_year not in names:
                names.append(bin_of_year)
        return Vocabulary(tuple(names))
    spelt: dict[str, int] = {}
    for name, songs in counts.items():
        spelt |= dict.fromkeys(as_written(spelling, condition, name), songs)
    return vocabulary.grown(spelt)


def grown_rows(rows: PendingTensor, known: int, names: int) -> Tensor:
    """`grown_table` of a table that is read now."""
    return grown_table(rows.make(), known, names)


def grown_table(rows_VW: Tensor, known: int, names: int) -> Tensor:
    """A table with a row for each of `names`, of which the first `known` are as they were; spare rows stay behind them.

    A new row is the mean of the known ones: what they have in common, an average artist. Row 0 is "unknown".
    """
    mean_W = rows_VW[1:known].double().mean(0).to(rows_VW.dtype) if known > 1 else rows_VW[0]
    return torch.cat([rows_VW[:known], mean_W.expand(names - known, -1), rows_VW[names:]])


# ---- Writing --------------------------------------------------------------------------------------------------------


def write(runs: Path, folders: list[Path], growths: dict[Path, Growth], to: Path) -> None:
    """Every run into `<to>.partial`, which gets its name when all are whole."""
    unfinished = to.with_name(f"{to.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)  # what a growth that was killed left
    try:
        for folder in folders:
            target = unfinished / folder.relative_to(runs)
            make_folder(target)
            growth = growths.get(folder)
            if growth and growth.added:
                write_grown(growth, target)
            else:
                copy_files(folder, target)
        os.replace(unfinished, to)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_grown(growth: Growth, folder: Path) -> None:
    """A run folder that can be sampled from; model.json comes last.

    run.yaml gets the new sizes: in the model, and in the preset that made it.
    """
    copy_files(growth.folder, folder, NOT_COPIED)
    write_atomic(folder / VOCABULARIES, vocabularies_json(growth.after))
    if (growth.folder / SETTINGS).is_file():
        try:
            record = parse_yaml(read_inside(growth.folder, SETTINGS))
        except ValueError as error:
            raise UserError(f"{growth.folder / SETTINGS} {error}; restore it") from None
        preset, _ = upgrade_settings(record["preset"])
        conditions = dict(preset["conditions"])
        for name, label in growth.config.conditions.items():
            conditions[name] = {**conditions[name], **label.model_dump()}
        # The run trains this level alone: one home of its table sizes is enough.
        trained = growth.config.level
        level = {**preset[trained], "condition_tables": {}}
        preset = {**preset, "conditions": conditions, trained: level}
        settings = {**record, "preset": preset, "model": growth.config.model_dump(mode="json")}
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        write_atomic(folder / SETTINGS, text.encode())
    facts = dict(growth.facts)
    for written_anew in ("kind", "config", "fingerprint", "step"):
        del facts[written_anew]
    before = {
        "fingerprint": growth.facts["fingerprint"],
        "made_by": growth.facts.get("made_by"),
        "added": growth.added,
    }
    facts |= {"made_by": made_by(), "grown_from": before}
    save_weights(folder, "prior", growth.config, growth.tensors(), growth.facts["step"], **facts)


def copy_files(source: Path, folder: Path, left_out: tuple[str, ...] = ()) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name not in left_out and not path.name.endswith(".partial"):
            with open_inside(source, path.name) as file, atomic_open(folder / path.name) as copy:
                shutil.copyfileobj(file, copy)


if __name__ == "__main__":
    run_command(main, "extend-vocabulary")
