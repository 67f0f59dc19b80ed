"""Copies are found and measured, in codes and in embeddings; what is suspicious is learned from held-out songs."""

from itertools import product

import numpy as np
import pytest

from megajukebox.evaluation.evaluators.memorization import (
    clip_metrics,
    cut_into_pieces,
    longest_shared,
    passage_metrics,
    without_repeats,
)

RNG = np.random.default_rng(0)


def codes(seed: int, length: int = 3000, size: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, size, length)


def slow_longest(song: np.ndarray, corpus: list[np.ndarray]) -> int:
    """The plain way: every pair of starts."""
    some, best = without_repeats(song), 0
    for other in map(without_repeats, corpus):
        for i, j in product(range(len(some)), range(len(other))):
            n = 0
            while i + n < len(some) and j + n < len(other) and some[i + n] == other[j + n]:
                n += 1
            best = max(best, n)
    return best


@pytest.mark.parametrize("planted", [5, 13, 37, 100, 256])
def test_a_planted_passage_is_found_at_its_length(planted: int) -> None:
    corpus = [without_repeats(codes(n)).astype(int) for n in range(4)]
    song = codes(99)
    song[700 : 700 + planted] = corpus[2][1000 : 1000 + planted]
    song[699], song[700 + planted] = 1000, 1001  # its neighbours are nobody's
    found = longest_shared({"song": song, "other": codes(98)}, corpus)
    assert found["song"] == planted and found["other"] < 5


def test_it_agrees_with_comparing_every_pair_of_places() -> None:
    songs = {f"{n}": codes(1000 + n, 60, 4) for n in range(8)}
    corpus = [codes(n, 60, 4) for n in range(3)]
    assert longest_shared(songs, corpus) == {
        key: slow_longest(song, corpus) for key, song in songs.items()
    }


def test_what_shares_nothing_or_is_empty_has_no_passage() -> None:
    assert longest_shared({"other": codes(1) + 1000, "empty": codes(1)[:0]}, [codes(2)]) == {
        "other": 0,
        "empty": 0,
    }


def test_a_silence_in_common_is_no_copy() -> None:
    silence = np.zeros(5000, int)
    song = np.concatenate([codes(2, 500), silence[:2000], codes(3, 500)])
    assert longest_shared({"song": song}, [np.concatenate([codes(1), silence])])["song"] < 6


def test_a_sample_that_copies_is_suspicious_and_others_are_not() -> None:
    corpus = [codes(n) for n in range(5)]
    held_out = {f"real{n}": codes(100 + n) for n in range(10)}
    samples = {f"sample{n}": codes(200 + n, 400) for n in range(5)}
    samples["copy"] = corpus[3][100:500]
    found = {score.name: score for score in passage_metrics(samples, held_out, corpus)}
    assert found["suspicious"].items == {key: float(key == "copy") for key in samples}
    assert found["shared_codes"].items["copy"] == len(without_repeats(samples["copy"]))


def test_a_clip_that_is_a_training_clip_is_suspicious() -> None:
    corpus = {f"song{n}": RNG.standard_normal((40, 8)) for n in range(20)}
    held_out = {f"real{n}": RNG.standard_normal((40, 8)) for n in range(20)}
    samples = {f"sample{n}": RNG.standard_normal((4, 8)) for n in range(5)}
    samples["copy"] = np.concatenate([RNG.standard_normal((3, 8)), corpus["song7"][11:12] + 1e-3])
    found = {score.name: score for score in clip_metrics(samples, held_out, corpus)}
    assert found["suspicious"].items["copy"] == 1 and found["suspicious"].value <= 2 / 6
    assert found["nearest"].items["copy"] < 0.01


def test_held_out_songs_are_cut_to_the_length_of_samples() -> None:
    cut = cut_into_pieces({"long": np.arange(10), "short": np.arange(3)}, 4)
    assert {key: len(x) for key, x in cut.items()} == {"long/0": 4, "long/1": 4, "short/0": 3}
