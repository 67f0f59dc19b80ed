"""Chorales as grids of sixteenths: what published figures count, and a published file of them."""

from pathlib import Path

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import parse_json, read_given
from megajukebox.notes.counterpoint import REST, STEP, voice_grid
from megajukebox.notes.events import class_name, part_classes
from megajukebox.notes.fill import CHOIR
from megajukebox.notes.grammar import SINGERS
from megajukebox.notes.instruments import ScorePart, program_of
from megajukebox.notes.notes import NOTE, Notes, bars_of_metre, in_order, steady

MAX_JSB_BYTES = 64 << 20
SPLITS = ("train", "valid", "test")
VOICES = len(CHOIR)


def choir_grid(piece: Notes) -> np.ndarray | None:
    """uint8 [sixteenths, 4] of a piece for soprano, alto, tenor and bass; None of any other."""
    names = [class_name(part_class) for part_class in part_classes(piece.parts)]
    wanted = [f"{SINGERS} {number + 1}" for number in range(VOICES)]
    if sorted(names) != wanted:
        return None
    try:
        return voice_grid(piece, [names.index(name) for name in wanted])
    except ValueError:  # a part that sounds chords
        return None


def merged(piece: Notes, grid: np.ndarray) -> Notes:
    """The piece with equal neighbours as one note: a grid cannot tell a held note from a struck one."""
    return notes_of_grid(grid, piece.bars, piece.tempo)


def notes_of_grid(
    grid: np.ndarray, bars: np.ndarray | None = None, tempo: np.ndarray | None = None
) -> Notes:
    """A choir's piece; without `bars` in 4/4 from its beginning, which a grid does not say."""
    rows = []
    for part, voice in enumerate(grid.T):
        begins = np.flatnonzero(np.concatenate([[True], np.diff(voice.astype(np.int64)) != 0]))
        ends = np.append(begins[1:], len(voice))
        for begin, end in zip(begins.tolist(), ends.tolist()):
            if voice[begin] != REST:
                rows.append((begin * STEP, part, int(voice[begin]), (end - begin) * STEP, 0))
    length = len(grid) * STEP
    parts = [ScorePart(f"{SINGERS} {number + 1}", program_of(SINGERS)) for number in range(VOICES)]
    return Notes(
        in_order(np.array(rows, NOTE)),
        tuple(parts),
        bars_of_metre(4, 4, length) if bars is None else bars,
        steady() if tempo is None else tempo,
        length,
    )


def read_jsb(path: Path) -> dict[str, list[np.ndarray]]:
    """The grids [sixteenths, 4] of each split of a Jsb16thSeparated.json (Boulanger-Lewandowski et al. 2012).

    Raises:
        UserError: the file holds something else.
    """
    try:
        stored = parse_json(read_given(path, MAX_JSB_BYTES))
        splits = {}
        for name in SPLITS:
            splits[name] = [grid_of_rows(rows) for rows in stored[name]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path}: holds no chorales: {type(error).__name__}: {error}; give Jsb16thSeparated.json"
        ) from None
    return splits


def grid_of_rows(rows: list[list[float]]) -> np.ndarray:
    """Raises ValueError for what is no grid of four voices."""
    grid = np.array(rows, np.float64)
    if grid.ndim != 2 or grid.shape[1] != VOICES or not len(grid):
        raise ValueError(f"a piece has the shape {grid.shape}")
    rests = ~np.isfinite(grid) | (grid <= 0)
    if (grid[~rests] > 127).any():
        raise ValueError("a pitch is over 127")
    return np.where(rests, REST, np.nan_to_num(grid)).astype(np.uint8)
