"""What a composer is measured by: nats of every event once, chorales as papers count them, counterpoint beside Bach's."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fixtures.tiny_composer import chorale, make_composer

from megajukebox.common.device import choose_device
from megajukebox.common.errors import UserError
from megajukebox.data.ingest.note_pieces import NotesIngestConfig, find_note_files, prepare_notes
from megajukebox.data.stream.note_windows import PROGRESS, piece_events
from megajukebox.evaluation import composer_metrics as figures
from megajukebox.evaluation.context import EvalBudget, EvalContext
from megajukebox.evaluation.evaluate import evaluate
from megajukebox.evaluation.evaluators.chorales import (
    choir_grid,
    merged,
    notes_of_grid,
    read_jsb,
)
from megajukebox.evaluation.evaluators.embedding import BUILT_IN
from megajukebox.evaluation.evaluators.note_likelihood import piece_nats
from megajukebox.evaluation.inputs import References
from megajukebox.evaluation.targets import target_of_run
from megajukebox.notes.counterpoint import voice_grid
from megajukebox.notes.midi import to_midi
from megajukebox.sampling.composing.composer import Composer, PieceRequest


@pytest.fixture(scope="module")
def composer(tmp_path_factory: pytest.TempPathFactory) -> Composer:
    pieces = [chorale(seed, 8) for seed in range(12)]
    return make_composer(tmp_path_factory.mktemp("runs") / "composer", pieces, known=True)


def labels(composer: Composer) -> dict[str, torch.Tensor]:
    return composer.labels([PieceRequest()], [None])


def test_every_event_is_counted_once_and_short_pieces_as_the_prior_itself_counts(
    composer: Composer,
) -> None:
    short = chorale(3, bars=1, parts=2)
    events = piece_events(short, composer.vocabulary)
    assert len(events.events) <= composer.prior.config.window
    size = composer.prior.config.window
    clock = np.zeros((1, size, events.clock.shape[1]), np.int64)
    clock[0, : len(events.clock)] = events.clock
    clock[..., PROGRESS] = 0
    tokens = torch.zeros(1, size, dtype=torch.int64)
    tokens[0, : len(events.events)] = torch.from_numpy(events.events)
    batch = {
        "codes": tokens,
        "conditions": labels(composer),
        "clock": torch.from_numpy(clock),
        "score": torch.zeros(1, size, 13, dtype=torch.int64),
    }
    with torch.no_grad():
        logits = composer.prior.logits(tokens, composer.prior.conditioning(batch))
    nats = F.cross_entropy(logits[0], tokens[0], reduction="none")[: len(events.events)]
    counted = piece_nats(composer, short, labels(composer))
    assert counted.nats == pytest.approx(float(nats.sum()), rel=1e-5)
    long = piece_nats(composer, chorale(3, bars=8), labels(composer))
    assert long.events > 3 * size and long.nats > 5 * counted.nats


def test_equal_neighbours_are_one_note_in_a_grid() -> None:
    piece = chorale(5)
    grid = choir_grid(piece)
    assert grid is not None
    one = merged(piece, grid)
    assert np.array_equal(voice_grid(one), grid) and len(one.notes) <= len(piece.notes)
    for part in range(4):
        rows = one.notes[one.notes["part"] == part]
        touching = rows["onset"][1:] == rows["onset"][:-1] + rows["length"][:-1]
        assert not (touching & (rows["pitch"][1:] == rows["pitch"][:-1])).any()
    assert choir_grid(chorale(5, parts=3)) is None


def test_a_published_file_is_read_and_another_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "Jsb16thSeparated.json"
    grid = [[67, 60, 55, 43]] * 8 + [[69, -1, 55, 43]] * 8
    path.write_text(json.dumps({"train": [grid], "valid": [grid, grid], "test": [grid]}))
    splits = read_jsb(path)
    assert [len(splits[name]) for name in ("train", "valid", "test")] == [1, 2, 1]
    piece = notes_of_grid(splits["test"][0])
    assert len(piece.notes) == 5 and piece.length == 96  # the alto rests in the second half
    for wrong in ("[]", '{"train": [[[1, 2]]], "valid": [], "test": []}', "no json"):
        path.write_text(wrong)
        with pytest.raises(UserError, match="holds no chorales"):
            read_jsb(path)


def test_a_composer_is_evaluated(
    composer: Composer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for seed in range(20, 28):
        (tmp_path / f"in/{seed}.mid").write_bytes(to_midi(chorale(seed, 3)))
    files, notes = find_note_files(tmp_path / "in", {"artist": "Ann"})
    prepare_notes(files, notes, tmp_path / "out", NotesIngestConfig(), processes=1, made_by={})
    jsb = tmp_path / "jsb.json"
    grids = [choir_grid(chorale(seed, 2)).tolist() for seed in (1, 2, 3)]
    jsb.write_text(json.dumps({"train": grids, "valid": grids, "test": grids[:1]}))
    for name, value in {"MELODIES": 2, "VARIATIONS": 2, "NEW_PIECES": 2, "NEW_BARS": 2}.items():
        monkeypatch.setattr(figures, name, value)
    references = References.open([str(tmp_path / "out")])
    context = EvalContext(
        references, EvalBudget(), 0.5, BUILT_IN, choose_device(asked="cpu"), jsb=jsb
    )
    metrics = {one.name: one for one in evaluate(target_of_run(composer.folder), context)}
    chance = np.log(composer.vocabulary.size)
    assert metrics["held_out/nats_per_note"].value > chance
    assert len(metrics["held_out/nats_per_cell"].items) >= 2
    assert 0.1 < metrics["jsb/valid/nats_per_cell"].value < 10 * chance
    for column in ("one_pass", "best_of_8", "bach", "chance"):
        assert 0 <= metrics[f"harmonising/{column}/triads"].value <= 100
    assert {"new/returning_bars", "new/shared_sixteenths"} <= set(metrics)
    assert not context.refused
