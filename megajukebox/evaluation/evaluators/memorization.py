"""Does it compose or copy? The longest passage of codes, and the nearest clip, that a song shares with training songs.

What is suspicious is not a number from a paper: held-out songs, which nobody can have copied, are looked up in the
same training songs, cut to the samples' length. A sample is suspicious if it comes closer than 99 in 100 of them.
"""

# T codes   N windows   D features
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from megajukebox.evaluation.metrics import MetricValue, mean_score

Array = np.ndarray
RARE = 0.01  # share of held-out pieces that may come as close as what counts as suspicious
MIX = np.uint64(0x9E3779B97F4A7C15)


# ---- Passages of codes


def without_repeats(codes: Array) -> Array:
    """Codes [T'] of which no two neighbours are equal: a held tone or a silence is one code, however long."""
    new = np.concatenate([[True], codes[1:] != codes[:-1]]) if len(codes) else np.zeros(0, bool)
    return codes[new].astype(np.uint64)


def longest_shared(songs: Mapping[str, Array], corpus: Sequence[Array]) -> dict[str, int]:
    """Codes (repeats not counted) of the longest passage of each song [T] that is found in a song of the corpus.

    Passages are compared by hashes of 64 bits. Their length is doubled while a song has one in common with the corpus,
    and then made as long as can be.
    """
    found: dict[str, int] = {}
    hashes = {key: without_repeats(codes) for key, codes in songs.items()}
    known, size = [without_repeats(codes) for codes in corpus], 1
    found = dict.fromkeys(hashes.keys() - shared(hashes, known), 0)
    hashes = {key: h for key, h in hashes.items() if key not in found}
    while hashes:
        twice, known_twice = (
            {key: join(h, size) for key, h in hashes.items()},
            [join(h, size) for h in known],
        )
        longer = shared(twice, known_twice)
        found |= lengthened({key: h for key, h in hashes.items() if key not in longer}, known, size)
        hashes, known, size = {key: twice[key] for key in longer}, known_twice, 2 * size
    return found


def lengthened(hashes: Mapping[str, Array], known: Sequence[Array], size: int) -> dict[str, int]:
    """The longest shared passages of songs that share one of `size` codes (so hashed) and none of twice as many.

    A passage of k codes, size <= k <= 2 size, is known by its first and its last `size` codes, so that any k is hashed
    in one step, and found by halving.
    """
    lengths, step = dict.fromkeys(hashes, size), size // 2
    while step:
        for length in sorted(set(lengths.values())):
            apart = length + step - size
            some = {key: join(hashes[key], apart) for key in lengths if lengths[key] == length}
            for key in shared(some, [join(h, apart) for h in known]):
                lengths[key] = -(
                    length + step
                )  # marked, so that this round does not lengthen it again
        lengths = {key: abs(length) for key, length in lengths.items()}
        step //= 2
    return lengths


def join(hashes: Array, apart: int) -> Array:
    """Hashes of what two hashed passages `apart` from each other cover together; empty where the song is too short."""
    if apart == 0:
        return hashes
    if len(hashes) <= apart:
        return hashes[:0]
    one, other = hashes[:-apart], hashes[apart:]
    mixed = (one * MIX) ^ (other + (one << np.uint64(7)) + np.uint64(apart))
    mixed = (mixed ^ (mixed >> np.uint64(31))) * MIX
    return mixed ^ (mixed >> np.uint64(29))


def shared(songs: Mapping[str, Array], corpus: Sequence[Array]) -> set[str]:
    """The songs of which a hash occurs in the corpus."""
    wanted = np.unique(np.concatenate([*songs.values(), np.zeros(0, np.uint64)]))
    if not len(wanted):
        return set()
    hit = np.zeros(len(wanted), bool)
    for hashes in corpus:
        place = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        hit[place[wanted[place] == hashes]] = True
    common = wanted[hit]
    return {key for key, hashes in songs.items() if np.isin(hashes, common).any()}


# ---- Clips by their embedding


def nearest(songs: Mapping[str, Array], corpus: Array) -> dict[str, Array]:
    """[N] how far the corpus's nearest window [D] is from each of a song's, in standard deviations a feature."""
    unit = 1 / np.maximum(corpus.std(axis=0), 1e-6)
    known = corpus * unit
    return {
        key: np.sqrt(squared(x * unit, known).min(axis=1) / x.shape[1])
        for key, x in songs.items()
        if len(x)
    }


def squared(x_ND: Array, known_MD: Array) -> Array:
    """[N, M] squared distances."""
    return np.maximum((x_ND**2).sum(1)[:, None] + (known_MD**2).sum(1) - 2 * x_ND @ known_MD.T, 0)


# ---- What is suspicious


def pieces(values: Mapping[str, Array], length: int) -> dict[str, Array]:
    """Sequences cut into pieces of `length`, as long as the samples are; shorter ones stay whole."""
    cut: dict[str, Array] = {}
    for key, x in values.items():
        count = max(1, len(x) // max(length, 1))
        cut |= {
            f"{key}/{n}": x[n * length : (n + 1) * length] if count > 1 else x for n in range(count)
        }
    return cut


def passage_scores(
    songs: Mapping[str, Array], held_out: Mapping[str, Array], corpus: Sequence[Array]
) -> Iterator[MetricValue]:
    """Of codes [T]: the longest shared passages of samples and of held-out pieces, and the share that is suspicious."""
    real = pieces(held_out, typical([len(codes) for codes in songs.values()]))
    ours, theirs = longest_shared(songs, corpus), longest_shared(real, corpus)
    yield mean_score("shared_codes", ours)
    yield mean_score("held_out/shared_codes", theirs)
    if theirs:
        limit = float(np.quantile(list(theirs.values()), 1 - RARE, method="higher"))
        yield MetricValue("limit/shared_codes", limit)
        yield mean_score("suspicious", {key: float(count > limit) for key, count in ours.items()})


def clip_scores(
    songs: Mapping[str, Array], held_out: Mapping[str, Array], corpus: Mapping[str, Array]
) -> Iterator[MetricValue]:
    """Of embeddings [N, D]: each song's nearest training window, that of held-out pieces, and who is suspicious."""
    known = np.concatenate([x for x in corpus.values() if len(x)] or [np.zeros((0, 1))])
    if not len(known) or not any(len(x) for x in songs.values()):
        return
    ours = {key: float(x.min()) for key, x in nearest(songs, known).items()}
    length = typical([len(x) for x in songs.values() if len(x)])
    theirs = {key: float(x.min()) for key, x in pieces(nearest(held_out, known), length).items()}
    yield mean_score("nearest", ours)
    yield mean_score("held_out/nearest", theirs)
    if theirs:
        limit = float(np.quantile(list(theirs.values()), RARE, method="lower"))
        yield MetricValue("limit/nearest", limit)
        yield mean_score(
            "suspicious", {key: float(distance < limit) for key, distance in ours.items()}
        )


def typical(lengths: Sequence[int]) -> int:
    return int(np.median(lengths)) if lengths else 1
