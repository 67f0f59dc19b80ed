"""Does it compose or copy? The longest passage of codes, and the nearest clip, that a song shares with training songs.

What is suspicious is not a number from a paper: held-out songs, which nobody can have copied, are looked up in the
same training songs, cut to the samples' length. A sample is suspicious if it comes closer than 99 in 100 of them.
"""

# T codes   N windows   D features
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from megajukebox.evaluation.metrics import MetricValue, mean_metric

Array = np.ndarray
RARE = 0.01  # fraction of held-out pieces that may come as close as what counts as suspicious
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio, as in Fibonacci hashing


# ---- Passages of codes


def without_repeats(codes: Array) -> Array:
    """Codes [T'] of which no two neighbours are equal: a held tone or a silence is one code, however long."""
    if not len(codes):
        return codes.astype(np.uint64)
    new = np.concatenate([[True], codes[1:] != codes[:-1]])
    return codes[new].astype(np.uint64)


def longest_shared(songs: Mapping[str, Array], corpus: Sequence[Array]) -> dict[str, int]:
    """Length of the longest passage of each song [T] that is in a song of the corpus, repeats not counted.

    Passages are compared by hashes of 64 bits. Their length is doubled while a song has one in common
    with the corpus, and then extended as far as possible.
    """
    hashes = {key: without_repeats(codes) for key, codes in songs.items()}
    corpus_hashes = [without_repeats(codes) for codes in corpus]
    size = 1
    sharing = songs_with_shared_hash(hashes, corpus_hashes)
    longest = dict.fromkeys(hashes.keys() - sharing, 0)
    hashes = {key: hashes[key] for key in hashes if key in sharing}
    while hashes:
        doubled, corpus_doubled = join_all(hashes, corpus_hashes, size)
        longer = songs_with_shared_hash(doubled, corpus_doubled)
        ended = {key: hashes[key] for key in hashes.keys() - longer}
        longest |= extend_passages(ended, corpus_hashes, size)
        hashes = {key: doubled[key] for key in longer}
        corpus_hashes = corpus_doubled
        size *= 2
    return longest


def extend_passages(
    hashes: Mapping[str, Array], corpus: Sequence[Array], size: int
) -> dict[str, int]:
    """The longest shared passages of songs that share one of `size` codes (so hashed) and none of twice as many.

    A passage of k codes, size <= k <= 2 size, is known by its first and its last `size` codes, so that any
    k is hashed in one step, and the longest is found by bisection.
    """
    lengths = dict.fromkeys(hashes, size)
    step = size // 2
    while step:
        extended: set[str] = set()
        for length in sorted(set(lengths.values())):
            apart = length + step - size
            some = {key: hashes[key] for key in lengths if lengths[key] == length}
            extended |= songs_with_shared_hash(*join_all(some, corpus, apart))
        for key in extended:
            lengths[key] += step
        step //= 2
    return lengths


def join_all(
    songs: Mapping[str, Array], corpus: Sequence[Array], apart: int
) -> tuple[dict[str, Array], list[Array]]:
    """`join_hashes` of every song and of the corpus."""
    joined = {key: join_hashes(hashes, apart) for key, hashes in songs.items()}
    return joined, [join_hashes(hashes, apart) for hashes in corpus]


def join_hashes(hashes: Array, apart: int) -> Array:
    """Hash what two hashed passages `apart` from each other cover together; empty where the song is too short."""
    if apart == 0:
        return hashes
    if len(hashes) <= apart:
        return hashes[:0]
    one = hashes[:-apart]
    other = hashes[apart:]
    mixed = (one * MULTIPLIER) ^ (other + (one << np.uint64(7)) + np.uint64(apart))
    mixed = (mixed ^ (mixed >> np.uint64(31))) * MULTIPLIER
    return mixed ^ (mixed >> np.uint64(29))


def songs_with_shared_hash(songs: Mapping[str, Array], corpus: Sequence[Array]) -> set[str]:
    """The songs of which a hash occurs in the corpus."""
    wanted = np.unique(np.concatenate([*songs.values(), np.zeros(0, np.uint64)]))
    if not len(wanted):
        return set()
    hit = np.zeros(len(wanted), bool)
    for hashes in corpus:
        index = np.minimum(np.searchsorted(wanted, hashes), len(wanted) - 1)
        hit[index[wanted[index] == hashes]] = True
    common = wanted[hit]
    sharing = set()
    for key, hashes in songs.items():
        if np.isin(hashes, common).any():
            sharing.add(key)
    return sharing


# ---- Clips by their embedding


def nearest_distances(songs: Mapping[str, Array], corpus_MD: Array) -> dict[str, Array]:
    """[N] distance of each of a song's windows to the nearest one of the corpus, in standard deviations a feature."""
    unit_D = 1 / np.maximum(corpus_MD.std(axis=0), 1e-6)
    corpus_MD = corpus_MD * unit_D
    distances = {}
    for key, x_ND in songs.items():
        if len(x_ND):
            y_ND = x_ND * unit_D
            squares_NM = (y_ND**2).sum(1)[:, None] + (corpus_MD**2).sum(1) - 2 * y_ND @ corpus_MD.T
            nearest_N = np.maximum(squares_NM, 0).min(axis=1)
            distances[key] = np.sqrt(nearest_N / x_ND.shape[1])
    return distances


# ---- Metrics


def cut_into_pieces(values: Mapping[str, Array], length: int) -> dict[str, Array]:
    """Sequences cut into pieces of `length`, as long as the samples are; shorter ones stay whole."""
    pieces: dict[str, Array] = {}
    for key, x in values.items():
        count = max(1, len(x) // max(length, 1))
        if count == 1:
            pieces[f"{key}/0"] = x
            continue
        for n in range(count):
            pieces[f"{key}/{n}"] = x[n * length : (n + 1) * length]
    return pieces


def passage_metrics(
    songs: Mapping[str, Array], held_out: Mapping[str, Array], corpus: Sequence[Array]
) -> Iterator[MetricValue]:
    """Of codes [T]: longest shared passages of samples and of held-out pieces, and the fraction that is suspicious."""
    pieces = cut_into_pieces(held_out, median_length(songs))
    of_samples = longest_shared(songs, corpus)
    of_held_out = longest_shared(pieces, corpus)
    yield mean_metric("shared_codes", of_samples)
    yield mean_metric("held_out/shared_codes", of_held_out)
    if of_held_out:
        limit = float(np.quantile(list(of_held_out.values()), 1 - RARE, method="higher"))
        yield MetricValue("limit/shared_codes", limit)
        suspicious = {key: float(count > limit) for key, count in of_samples.items()}
        yield mean_metric("suspicious", suspicious)


def clip_metrics(
    songs: Mapping[str, Array], held_out: Mapping[str, Array], corpus: Mapping[str, Array]
) -> Iterator[MetricValue]:
    """Of embeddings [N, D]: distance to the nearest training window of samples and of held-out pieces, and the
    fraction that is suspicious.
    """
    corpus_windows = [x_ND for x_ND in corpus.values() if len(x_ND)]
    length = median_length(songs)
    if not corpus_windows or not length:
        return
    corpus_MD = np.concatenate(corpus_windows)
    pieces = cut_into_pieces(nearest_distances(held_out, corpus_MD), length)
    of_samples = {}
    for key, x_N in nearest_distances(songs, corpus_MD).items():
        of_samples[key] = float(x_N.min())
    of_held_out = {}
    for key, x_N in pieces.items():
        of_held_out[key] = float(x_N.min())
    yield mean_metric("nearest", of_samples)
    yield mean_metric("held_out/nearest", of_held_out)
    if of_held_out:
        limit = float(np.quantile(list(of_held_out.values()), RARE, method="lower"))
        yield MetricValue("limit/nearest", limit)
        suspicious = {key: float(distance < limit) for key, distance in of_samples.items()}
        yield mean_metric("suspicious", suspicious)


def median_length(songs: Mapping[str, Array]) -> int:
    """Of the songs that are not empty; 0 if all are."""
    lengths = [len(x) for x in songs.values() if len(x)]
    return int(np.median(lengths)) if lengths else 0
