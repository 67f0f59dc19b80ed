"""The conditioner of known notes: nothing at its start, and it moves with the music."""

import torch

from megajukebox.models.conditioners import ScoreConditioner, ScoreConfig, example_score

FRAMES, SLOTS = 64, 6


def conditioner() -> tuple[ScoreConfig, ScoreConditioner]:
    config = ScoreConfig(entries=50, slots=SLOTS, width=16, depth=3)
    torch.manual_seed(1)
    return config, ScoreConditioner(config, 24, FRAMES)


def test_it_adds_nothing_at_its_start_and_nothing_where_nothing_is_known() -> None:
    config, module = conditioner()
    assert not module(example_score(config, 2, FRAMES)).any()
    torch.nn.init.normal_(module.project.weight)
    assert not module(torch.zeros(2, FRAMES, 1 + SLOTS, dtype=torch.int64)).any()


def test_notes_moved_by_a_frame_move_what_is_added_by_a_frame() -> None:
    _, module = conditioner()
    torch.nn.init.normal_(module.project.weight)
    ids = torch.zeros(1, FRAMES, SLOTS, dtype=torch.int64)
    ids[0, 30, :3] = torch.tensor([3, 17, 40])
    with torch.no_grad():
        still, moved = module.frames(ids), module.frames(ids.roll(1, dims=1))
    reach = 1 + 1 + 3 + 9  # frames on each side
    inner = slice(30 - reach, 30 + reach)
    torch.testing.assert_close(still[0, inner], moved[0].roll(-1, dims=0)[inner])
    nothing = module.frames(torch.zeros_like(ids))
    changed = (still != nothing).any(-1)[0].nonzero().flatten()
    assert changed.min() == 30 - reach and changed.max() == 30 + reach  # behind and ahead


def test_each_event_is_added_what_its_frame_says() -> None:
    config, module = conditioner()
    torch.nn.init.normal_(module.project.weight)
    score = example_score(config, 2, FRAMES)
    with torch.no_grad():
        added, frames = module(score), module.frames(score[..., 1:])
    for row in range(2):
        for t in range(FRAMES):
            number = int(score[row, t, 0])
            expected = frames[row, number - 1] if number else torch.zeros(24)
            torch.testing.assert_close(added[row, t], expected)
