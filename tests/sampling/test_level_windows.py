"""A level of any length: windows start where the specification says, and each sees what it should."""

import json

import numpy as np
import pytest
import torch
from fixtures.paths import SHARED
from fixtures.tiny_models import (
    CODES,
    LYRICS,
    WINDOW,
    little_prior,
    plain_draw,
    sample_level,
    song_conditionings,
    window_task,
)
from torch import Tensor

from megajukebox.conditioning.lyric_windows import window_of_lyrics
from megajukebox.conditioning.schema import SongConditioning
from megajukebox.models.prior import Prior
from megajukebox.sampling.decoding.token_sampling import TokenSampler
from megajukebox.sampling.decoding.window_sampler import sample_window_slowly
from megajukebox.sampling.levels.level_windows import upper_window, window_starts

RECORDED = SHARED / "parity"


def starts_of_the_specification(total: int, window: int, hop: int) -> list[int]:
    """Section 12.2, word by word."""
    starts, start = [], 0
    while start < total - window + hop:
        starts.append(total - window if start + window >= total else start)
        start += hop
    return starts


@pytest.mark.parametrize("hop", [1, 2, 3, 4, 8])
def test_windows_start_where_the_specification_says(hop: int) -> None:
    for total in range(9, 60):
        starts = window_starts(total, 8, hop)
        assert starts == starts_of_the_specification(total, 8, hop)
        covered = {t for start in starts for t in range(start, start + 8)}
        assert covered == set(range(total)) and starts == sorted(set(starts))


@pytest.mark.parametrize("total", [1, 3, 7, 8])
def test_one_window_is_enough_for_a_level_that_fits(total: int) -> None:
    assert window_starts(total, 8, 4) == [0]


def test_windows_of_the_drawing() -> None:
    assert window_starts(18, 8, 4) == [0, 4, 8, 10]


@pytest.mark.parametrize("cascade", ["cascade_sep", "cascade_single"])
def test_windows_start_where_the_reference_started_them(cascade: str) -> None:
    """The recorded starts of ../shared/parity, where that folder is there."""
    if not (RECORDED / cascade).exists():
        pytest.skip("the recordings of the reference are not here")
    facts = json.loads((RECORDED / cascade / "meta.json").read_text())
    for level, hop, fraction in (("0", 8, 0.5), ("1", 32, 0.5), ("2", 128, 0.125)):
        starts, total = facts["starts"][level], facts["sample_length"] // hop
        window = total - starts[-1]
        assert window_starts(total, window, int(fraction * window)) == starts


def test_past_the_end_the_last_upper_code_is_held() -> None:
    upper = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert upper_window(upper, 1, 3).tolist() == [[2, 3, 4], [6, 7, 8]]
    assert upper_window(upper, 2, 5).tolist() == [[3, 4, 4, 4, 4], [7, 8, 8, 8, 8]]


def level_by_hand(
    prior: Prior,
    songs: list[SongConditioning],
    upper: Tensor,
    total: int,
    samples: int,
    draw: TokenSampler,
    hop: int,
    known: Tensor,
) -> Tensor:
    """The twin of `sample_level`: plain lists, windows as the specification walks them, no caches."""
    config, prefix = prior.config, prior.config.prefix_tokens
    codes = known.tolist()
    for start in starts_of_the_specification(total, WINDOW, hop) if total >= WINDOW else [0]:
        done, end = len(codes[0]), min(total, start + WINDOW)
        if done >= end:
            continue
        place = (samples, start * config.hop, WINDOW * config.hop)
        above = [
            [u[min(i, len(u) - 1)] for i in range(start // 4, start // 4 + WINDOW // 4)]
            for u in upper.tolist()
        ]
        batch = {
            "codes": torch.tensor([(row[start:] + [0] * WINDOW)[:WINDOW] for row in codes]),
            "timing": torch.tensor([place] * len(songs)),
            "conditions": {
                n: torch.tensor(np.stack([s.values[n] for s in songs]))
                for n in ("artist", "genres")
            },
            "upper_codes": torch.tensor(above),
        }
        if config.lyrics:
            lyrics = [
                window_of_lyrics(s.tokens, [], *place, config.sample_rate, LYRICS).ids
                for s in songs
            ]
            batch["lyrics"] = torch.tensor(np.stack(lyrics))
        with torch.no_grad():
            window = window_task(
                prior, batch, draw, prefix + done - start, prefix + end - start, start
            )
        made = sample_window_slowly(window)
        for row, new in zip(codes, made[:, prefix + done - start : prefix + end - start].tolist()):
            row += [max(0, code - config.shift) for code in new]
    return torch.tensor(codes)


@pytest.mark.parametrize(
    ("total", "known"), [(16, 0), (40, 0), (36, 3), (36, 18), (8, 0), (8, 5), (20, 20)]
)
@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics", "prefix_dense_16"])
def test_a_level_equals_its_windows_walked_by_hand(schedule: str, total: int, known: int) -> None:
    torch.manual_seed(1)
    prior, songs = little_prior(schedule), song_conditionings(2)
    upper, beginning = torch.randint(CODES, (2, -(-total // 4))), torch.randint(CODES, (2, known))
    draw, samples = plain_draw([7, 8], temperature=2.0), 500
    for hop_fraction in (0.5, 0.25):
        args = (prior, songs, upper, total, samples, draw)
        fast = sample_level(*args, hop_fraction, beginning if known else None)
        assert torch.equal(fast, level_by_hand(*args, int(hop_fraction * WINDOW), beginning))
        assert fast.shape == (2, total) and torch.equal(fast[:, :known], beginning)
        assert fast.min() >= 0 and fast.max() < CODES


def test_a_known_beginning_longer_than_the_level_is_cut() -> None:
    beginning = torch.randint(CODES, (2, 30))
    codes = sample_level(
        little_prior(),
        song_conditionings(2),
        torch.zeros(2, 6, dtype=torch.long),
        24,
        500,
        plain_draw([1, 2]),
        0.5,
        beginning,
    )
    assert torch.equal(codes, beginning[:, :24])


def test_continuing_a_level_gives_what_sampling_it_at_once_gives() -> None:
    """Codes kept from a run that was interrupted change nothing that comes after."""
    prior, songs, upper = little_prior(), song_conditionings(2), torch.randint(CODES, (2, 10))
    draw = plain_draw([1, 2], temperature=2.0)
    whole = sample_level(prior, songs, upper, 40, 500, draw, 0.5)
    for known in (1, 16, 17, 24, 39):
        assert torch.equal(
            sample_level(prior, songs, upper, 40, 500, draw, 0.5, whole[:, :known]), whole
        )


def test_songs_of_a_level_do_not_hear_each_other() -> None:
    prior, songs, upper = (
        little_prior("factored_lyrics"),
        song_conditionings(3),
        torch.randint(CODES, (3, 8)),
    )
    together = sample_level(
        prior, songs, upper, 32, 500, plain_draw([5, 6, 7], temperature=2.0), 0.5
    )
    for b in range(3):
        alone = sample_level(
            prior,
            songs[b : b + 1],
            upper[b : b + 1],
            32,
            500,
            plain_draw([5 + b], temperature=2.0),
            0.5,
        )
        assert torch.equal(alone[0], together[b])


def test_upper_codes_past_the_end_are_held() -> None:
    """An upper level that ends with the last code counts as that code going on."""
    prior, songs, upper = little_prior(), song_conditionings(2), torch.randint(CODES, (2, 2))
    draw = plain_draw([1, 2], temperature=2.0)
    longer = torch.cat([upper, upper[:, -1:], upper[:, -1:]], dim=1)
    short = sample_level(prior, songs, upper, 8, 500, draw, 0.5)
    assert torch.equal(short, sample_level(prior, songs, longer, 8, 500, draw, 0.5))


@pytest.mark.parametrize("hop_fraction", [0.3, 0.2, 0.01])
def test_windows_stay_on_whole_codes_of_the_level_above(hop_fraction: float) -> None:
    """A hop that is no multiple of the ratio is rounded down to one, or upper codes would be those of another time."""
    prior, songs, upper = little_prior(), song_conditionings(2), torch.randint(CODES, (2, 8))
    draw = plain_draw([1, 2], temperature=2.0)
    codes = sample_level(prior, songs, upper, 32, 500, draw, hop_fraction)
    assert torch.equal(codes, sample_level(prior, songs, upper, 32, 500, draw, 0.25))
