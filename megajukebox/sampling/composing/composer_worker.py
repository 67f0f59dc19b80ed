"""A process that keeps a composer loaded and fills one drawn piece after another: what the page Draw starts.

    python -m megajukebox.sampling.composing.composer_worker runs/tiny

A line in is a `FillOrder`, a line out a `FillAnswer` (records/drawn_piece.py), both JSON. The process ends when its
input does.
"""

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import TextIO

import psutil
import torch

from megajukebox.common.errors import UserError
from megajukebox.common.levels import COMPOSER_FOLDER
from megajukebox.common.model_files import FACTS, WEIGHTS
from megajukebox.conditioning.vocabulary import VOCABULARIES
from megajukebox.data.drawn_notes import drawn_of, notes_of
from megajukebox.notes.events import NOTES_VOCABULARY, PartClass, class_name
from megajukebox.notes.notes import Notes
from megajukebox.records.drawn_piece import (
    VOICE_LETTERS,
    VOICES,
    DrawnAnswer,
    DrawnVoices,
    FillAnswer,
    FillOrder,
)
from megajukebox.sampling.composing.composer import Composer

# Files of a run that a composer reads; when one changes, the composer is loaded again.
WATCHED_FILES = (FACTS, WEIGHTS, VOCABULARIES, NOTES_VOCABULARY)
# A quarter a voice: filled before the first order, so that this one waits for no lazy import and no packing of weights.
WARM_UP = FillOrder(piece=DrawnVoices(notes=((0, 24, 67, 0),), bars=1), variations=1, keep=1)


class ComposerServer:
    """The composer of `runs` between orders; loaded again when its files have changed."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self.composer: Composer | None = None
        self.loaded_files: dict[str, tuple[int, int]] = {}

    def answer(self, order: FillOrder) -> FillAnswer:
        """Fill; what goes wrong becomes the answer's reason."""
        began = time.monotonic()
        answers: tuple[DrawnAnswer, ...] = ()
        reason = ""
        try:
            answers = self.fill(order)
        except (ValueError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        return FillAnswer(
            state="failed" if reason else "done",
            reason=reason,
            answers=answers,
            seconds=time.monotonic() - began,
            memory=psutil.Process().memory_info().rss,
        )

    def fill(self, order: FillOrder) -> tuple[DrawnAnswer, ...]:
        """The best pieces. Raises what is wrong with the order or the run."""
        last = min(order.last_bar, order.piece.bars)
        if order.first_bar > last:
            raise UserError(f"bar {order.first_bar} is behind the last one, {order.piece.bars}")
        notes = notes_of(order.piece)
        # By these names the composer knows which voice is which, however few of them have notes.
        names = [class_name(PartClass(part.family, n)) for n, part in enumerate(notes.parts)]
        opened = [name for name, letter in zip(names, VOICE_LETTERS) if letter in order.voices]
        pieces = self.loaded().fill(
            renamed(notes, dict(zip(VOICES, names))),
            parts=", ".join(opened),
            bars=f"{order.first_bar}-{last}",
            seed=order.seed,
            variations=order.variations,
            keep=order.keep,
        )
        answers = []
        for piece in pieces:
            drawn = drawn_of(renamed(piece.notes, dict(zip(names, VOICES))), order.piece.bars)
            # The composer's steps of tempo are coarse, and it was asked for neither tempo nor key.
            drawn = drawn.model_copy(update={"bpm": order.piece.bpm, "key": order.piece.key})
            figures = {name: value for name, value in piece.figures.items() if isfinite(value)}
            answers.append(DrawnAnswer(piece=drawn, seed=piece.request.seed, figures=figures))
        return tuple(answers)

    def loaded(self) -> Composer:
        """The composer of the files as they are now."""
        files = {}  # (modification time in ns, bytes)
        for name in WATCHED_FILES:
            for path in (self.runs / name, self.runs / COMPOSER_FOLDER / name):
                if path.is_file():
                    facts = path.stat()
                    files[str(path)] = (facts.st_mtime_ns, facts.st_size)
        if self.composer is None or files != self.loaded_files:
            self.composer = None  # frees the old one before the new one is loaded
            self.composer = Composer(self.runs)
            self.loaded_files = files
        return self.composer


def renamed(notes: Notes, names: dict[str, str]) -> Notes:
    """The piece with other names of its parts."""
    parts = tuple(part._replace(name=names.get(part.name, part.name)) for part in notes.parts)
    return replace(notes, parts=parts)


def serve(server: ComposerServer, orders: Iterable[str], answers: TextIO) -> None:
    for line in orders:
        answer = server.answer(FillOrder.model_validate_json(line))
        answers.write(answer.model_dump_json() + "\n")
        answers.flush()


def main() -> None:
    """Serve stdin. What libraries print goes to stderr; the pipe carries answers alone."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    server = ComposerServer(Path(sys.argv[1]))
    server.answer(WARM_UP)
    serve(server, sys.stdin, answers)


if __name__ == "__main__":
    main()
