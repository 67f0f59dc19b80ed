"""The metrics of a composer: what held-out pieces cost it, how it harmonises their melodies, what it repeats and copies."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from megajukebox.common.progress import track
from megajukebox.conditioning.schema import ConditionResources, conditions_of, read_song
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import ShardSong
from megajukebox.data.stream.note_windows import check_notes
from megajukebox.evaluation.context import EvalContext
from megajukebox.evaluation.evaluators.chorales import (
    choir_grid,
    merged,
    notes_of_grid,
    read_jsb,
)
from megajukebox.evaluation.evaluators.note_likelihood import piece_nats
from megajukebox.evaluation.metrics import MetricValue, mean_metric, prefixed, sum_metric
from megajukebox.evaluation.targets import EvalTarget
from megajukebox.notes.counterpoint import (
    STEPS_A_BAR,
    CopyFinder,
    Counterpoint,
    bars_that_return,
    counterpoint,
)
from megajukebox.notes.notes import Notes
from megajukebox.sampling.composing.composer import Composer, PieceRequest, expand_seeds

MELODIES = 20  # that are harmonised
MELODY_BARS = 8
VARIATIONS = 8  # of which the best is kept
NEW_PIECES, NEW_BARS = 8, 32
RATES = {  # metric: (count, of what)
    "parallel_fifths": ("parallel_fifths", "chords"),
    "parallel_octaves": ("parallel_octaves", "chords"),
    "crossed_voices": ("crossed_steps", "steps"),
    "sharp_dissonances": ("sharp_dissonances", "verticals"),
    "triads": ("triads", "beats"),
    "leaps": ("leaps", "moves"),
}
Pieces = Mapping[str, Notes]
Grids = Mapping[str, np.ndarray]


def composer_metrics(target: EvalTarget, context: EvalContext) -> Iterator[MetricValue]:
    """Of held-out pieces of the note shards in `context.references`."""
    shards = context.references.notes
    assert shards is not None, "TARGET_EVALUATORS requires notes"
    check_notes(shards)
    composer = Composer(target.path)
    rows = context.evaluated_rows(shards, target.path)
    held_out = {shards.key(row): read_piece(shards, row) for row in rows}
    yield from likelihood(composer, shards, rows, held_out, context)
    if context.jsb is not None:
        yield from jsb_likelihood(composer, context)
    grids = {
        key: grid for key, piece in held_out.items() if (grid := choir_grid(piece)) is not None
    }
    if not grids:
        context.notes.append("no held-out piece is for four voices: nothing was harmonised")
        return
    training = []
    for row in context.rows(shards, target.path, held_out=False):
        grid = choir_grid(read_piece(shards, row))
        if grid is not None:
            training.append(grid)
    finder = CopyFinder(training)
    if "score" in composer.prior.aligned:
        yield from harmonising(composer, held_out, grids, finder)
    yield from new_pieces(composer, finder)


def read_piece(shards: ShardSet, row: int) -> Notes:
    return Notes.from_npz(shards.read_member(row, "notes"))


# ---- What pieces cost


def likelihood(
    composer: Composer,
    shards: ShardSet,
    rows: Sequence[int],
    pieces: Pieces,
    context: EvalContext,
) -> Iterator[MetricValue]:
    """Nats a note of every piece as it is; nats a cell of those for four voices, equal neighbours being one note."""
    conditions = conditions_of(composer.prior.config, ConditionResources(composer.names))
    a_note, a_cell = {}, {}
    for row in track(rows, "nats of notes"):
        key = shards.key(row)
        conditioning = read_song(conditions, ShardSong(shards, row))
        labels = {name: torch.from_numpy(ids)[None] for name, ids in conditioning.labels.items()}
        piece = pieces[key]
        try:
            a_note[key] = piece_nats(composer, piece, labels).nats / len(piece.notes)
            grid = choir_grid(piece)
            if grid is not None:
                a_cell[key] = piece_nats(composer, merged(piece, grid), labels).nats / grid.size
        except ValueError as error:
            context.refused[key] = str(error)
    yield mean_metric("held_out/nats_per_note", a_note)
    yield mean_metric("held_out/nats_per_cell", a_cell)


def jsb_likelihood(composer: Composer, context: EvalContext) -> Iterator[MetricValue]:
    """Nats a cell of the published chorales: the sum over all events but TEMPO, over all cells, as papers count."""
    assert context.jsb is not None
    request = PieceRequest()
    labels = composer.labels([request], [None])
    for split, grids in read_jsb(context.jsb).items():
        if split == "train":
            continue
        costs = {}
        for number, grid in enumerate(track(grids, f"jsb {split}")):
            try:
                cost = piece_nats(composer, notes_of_grid(grid), labels)
                costs[f"{split}-{number:03d}"] = np.array([cost.nats - cost.tempo_nats, grid.size])
            except ValueError as error:
                context.refused[f"{split}-{number:03d}"] = str(error)
        yield sum_metric(f"jsb/{split}/nats_per_cell", costs, lambda sums: float(sums[0] / sums[1]))


# ---- Harmonising


def harmonising(
    composer: Composer, pieces: Pieces, grids: Grids, finder: CopyFinder
) -> Iterator[MetricValue]:
    """Melodies of held-out pieces in four voices: one pass, the best of eight, Bach's own, and chance.

    Chance: the lower voices of another piece under the melody.
    """
    keys = list(grids)[:MELODIES]
    bars = {key: first_bars(pieces[key]) for key in keys}
    own: dict[str, np.ndarray] = {}
    one_pass: dict[str, np.ndarray] = {}
    best: dict[str, np.ndarray] = {}
    for key in track(keys, "harmonising"):
        grid = choir_grid(bars[key])
        assert grid is not None
        own[key] = grid
        melody = bars[key].only([0])
        drawn = composer.fill(melody, parts="ATB", variations=VARIATIONS, keep=VARIATIONS)
        first = min(drawn, key=lambda piece: piece.request.seed)
        for kept, piece in ((one_pass, first), (best, drawn[0])):
            written = choir_grid(piece.notes)
            if written is not None:
                kept[key] = written
    chance = {}
    for number, key in enumerate(keys):
        other = own[keys[(number + 1) % len(keys)]]
        length = min(len(own[key]), len(other))
        chance[key] = np.concatenate([own[key][:length, :1], other[:length, 1:]], axis=1)
    columns = {"one_pass": one_pass, "best_of_8": best, "bach": own, "chance": chance}
    for column, found in columns.items():
        yield from prefixed(f"harmonising/{column}", counterpoint_metrics(found))
    for column in ("best_of_8", "bach"):
        copies = {key: float(finder.longest(grid)) for key, grid in columns[column].items()}
        yield mean_metric(f"harmonising/{column}/shared_sixteenths", copies)


def first_bars(piece: Notes) -> Notes:
    """Its first bars, the pickup included."""
    onsets = piece.bars["onset"].tolist()
    return piece if len(onsets) <= MELODY_BARS else piece.clipped(0, onsets[MELODY_BARS])


def counterpoint_metrics(grids: Grids) -> Iterator[MetricValue]:
    """Rates over all pieces of a column, each piece's part in them."""
    counts = {key: counterpoint(grid) for key, grid in grids.items()}
    for name, (part, whole) in RATES.items():
        pairs = {key: rate_pair(one, part, whole) for key, one in counts.items()}
        if pairs:
            yield sum_metric(name, pairs, lambda sums: 100.0 * float(sums[0] / max(sums[1], 1)))
    lengths = {key: rate_pair(one, "sounding", "notes") for key, one in counts.items()}
    if lengths:
        yield sum_metric(
            "sixteenths_per_note", lengths, lambda sums: float(sums[0] / max(sums[1], 1))
        )


def rate_pair(counts: Counterpoint, part: str, whole: str) -> np.ndarray:
    return np.array([getattr(counts, part), getattr(counts, whole)], np.float64)


# ---- New pieces


def new_pieces(composer: Composer, finder: CopyFinder) -> Iterator[MetricValue]:
    """Pieces for four voices of which nothing is known: bars that return, and what training pieces have too."""
    request = PieceRequest(bars=NEW_BARS, instruments=("voice",))
    returning, copies = {}, {}
    for piece in composer.compose(expand_seeds(request, NEW_PIECES)):
        grid = choir_grid(piece.notes)
        if grid is None or len(grid) < 2 * STEPS_A_BAR:
            continue
        key = f"new-{piece.request.seed}"
        returning[key] = 100.0 * bars_that_return(grid)
        copies[key] = float(finder.longest(grid))
    yield mean_metric("new/returning_bars", returning)
    yield mean_metric("new/shared_sixteenths", copies)
