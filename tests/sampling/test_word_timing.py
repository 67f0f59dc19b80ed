"""From attention to the times of words: planted readings are found in noise, by the right head, and reach the page."""

import json
import shutil
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import prior_settings
from fixtures.tiny_shards import HOPS, codes_of, npy, write_set

from megajukebox.commands.align import main
from megajukebox.common.model_files import read_facts
from megajukebox.conditioning.lrc import TimedWord, parse_lrc
from megajukebox.conditioning.schema import SongConditioning
from megajukebox.conditioning.tokenizers import JukeboxCharacters, TokenizedLyrics
from megajukebox.explorer.loaders.samples import read_samples
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.lyrics.head_selection import (
    MIN_FOLLOWING_SCORE,
    AlignedSong,
    AlignmentHead,
    choose_head,
    read_alignment_head,
    write_alignment_head,
)
from megajukebox.sampling.lyrics.word_timing import (
    attention_over_words,
    best_walk,
    monotonicity,
    word_times,
    words_of,
)
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import lyrics_within

TEXT = "the moon is\non the water "
TOKENS = TokenizedLyrics(list(range(1, len(TEXT) + 1)), [(i, i + 1) for i in range(len(TEXT))])


def planted(
    rng: np.random.Generator, noise: float = 0.0, codes: int = 200
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Attention [T, tokens] that reads along, and the codes [first, after last] of each word of TEXT."""
    words = words_of(TEXT)
    edges = np.sort(rng.choice(np.arange(4, codes - 4, 4), 2 * len(words), replace=False)).reshape(
        -1, 2
    )
    attention = noise * rng.random((codes, len(TEXT))) + 1e-30
    for (start, end), (first, last) in zip(words, edges):
        letters = np.linspace(start, end, last - first, endpoint=False).astype(int)
        attention[np.arange(first, last), letters + 1] += (
            1  # what tells of a letter is read one place later
        )
    return attention / attention.sum(1).max(), [tuple(edge) for edge in edges.tolist()]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_planted_words_are_found_within_half_a_code(seed: int, noise: float) -> None:
    attention, edges = planted(np.random.default_rng(seed), noise)
    words, step = words_of(TEXT), 0.01
    sung = word_times(attention_over_words(attention, TOKENS, words), words, step)
    assert [(w.start_char, w.end_char) for w in sung] == words
    for word, (first, last) in zip(sung, edges):
        assert abs(word.t0 - first * step) <= step / 2 and abs(word.t1 - last * step) <= step / 2
        assert word.confidence > 0.3 and (noise or word.confidence == pytest.approx(1))


def test_the_best_walk_is_the_best_of_all_walks() -> None:
    rng, codes, words = np.random.default_rng(0), 6, 3
    for whole in (True, False):
        gain = rng.normal(size=(codes, words))
        walks = []
        for walk in product(range(-1, words), repeat=codes):
            sung = [
                word for i, word in enumerate(walk) if word >= 0 and (i == 0 or walk[i - 1] != word)
            ]
            if sung == list(range(len(sung))) and (len(sung) == words or not whole):
                walks.append((sum(gain[t, word] for t, word in enumerate(walk) if word >= 0), walk))
        assert tuple(best_walk(gain, whole)) == max(walks)[1]


def test_the_head_that_reads_along_scores_best_and_no_other_scores_more_than_noise() -> None:
    rng, words = np.random.default_rng(4), words_of(TEXT)
    attention, _ = planted(rng, noise=0.05)
    size = (200, len(TEXT))
    slow = np.cumsum(
        rng.normal(size=size), axis=0
    )  # wanders, as attention does, but not along the words
    still = np.tile(rng.dirichlet(np.ones(len(TEXT))), (200, 1))
    heads = [
        rng.dirichlet(np.ones(len(TEXT)), 200),
        np.exp(slow / slow.std()),
        still,
        attention[::-1],
        attention,
    ]
    scores = monotonicity(np.stack([attention_over_words(head, TOKENS, words) for head in heads]))
    assert scores.argmax() == len(heads) - 1 and scores[-1] > MIN_FOLLOWING_SCORE
    assert (
        (np.abs(scores[[0, 2]]) < 0.1).all()
        and scores[1] < 0.2
        and scores[3] < -MIN_FOLLOWING_SCORE
    )


def test_more_words_than_codes_are_sung_as_far_as_the_codes_go() -> None:
    words = [(2 * i, 2 * i + 1) for i in range(9)]
    sung = word_times(np.eye(4, 9) + 1e-9, words, 0.1)
    assert [(w.start_char, round(w.t0, 6)) for w in sung] == [(0, 0), (2, 0.1), (4, 0.2), (6, 0.3)]


# ---- In a prior ------------------------------------------------------------------------------------------------------

SUNG = "ab cd efg hi jk "  # 16 characters: a whole lyric window
EDGES = [
    0,
    2,
    3,
    9,
    10,
    11,
    12,
    13,
    20,
    21,
    22,
    23,
    24,
    25,
    26,
    31,
    32,
]  # when each character is sung


def reading_prior(layer: int = 3, head: int = 1) -> Prior:
    """A prior of random weights, one head of which reads one character after the other at the times of EDGES."""
    torch.manual_seed(0)
    shape = {
        "width": 64,
        "depth": 8,
        "heads": 2,
        "blocks": 4,
        "attention_ratio": 0.5,
        "schedule": "factored_lyrics",
    }
    encoder = {"width": 16, "depth": 3, "heads": 1, "blocks": 4, "attention_ratio": 0.5}
    lyrics = {"tokens": 16, "size": 80, "encoder": encoder}
    told = {"upsampler_conditioner": None, "timing": None, "conditions": {}, "lyrics": lyrics}
    prior = Prior(
        PriorConfig(
            **prior_settings("factored_lyrics", level="top", window=32, transformer=shape, **told)
        )
    )
    with torch.no_grad():
        for block in [*prior.blocks[:layer], *prior.lyrics.blocks]:
            for silent in (block.attention.merge, block.mlp.narrow):
                silent.weight.zero_()
        # Inputs tell nothing but the position, as a unit vector ...
        for given in (prior.input, prior.lyrics.input):
            given.tokens.weight.zero_()
            given.start.weight.zero_()
            given.positions.weight.copy_(torch.eye(*given.positions.weight.shape))
        prior.lyrics.project.weight.copy_(torch.eye(64, 16))
        # ... so a head compares the position of a code with that of a character.
        attention, part = prior.blocks[layer].attention, slice(16 * head, 16 * head + 16)
        attention.key_value.weight[part] = torch.eye(16, 64)
        attention.query.weight[part] = 0
        for character, (first, last) in enumerate(pairwise(EDGES)):
            attention.query.weight[16 * head + min(character + 1, 15), first:last] = 0.5
    return prior.eval()


def test_the_head_that_reads_along_is_found_in_a_prior_and_its_error_told() -> None:
    prior, words = reading_prior(), words_of(SUNG)
    seconds = prior.config.hop / prior.config.sample_rate
    timed = [TimedWord(a, b, EDGES[a] * seconds, EDGES[b] * seconds) for a, b in words]
    told = SongConditioning.of(prior.config, {}, JukeboxCharacters("v2").encode(SUNG), timed)
    song = AlignedSong(told, SUNG, torch.randint(11, (32,)), 32 * prior.config.hop)
    choice, scores = choose_head(prior, [song], weights="f")
    assert set(scores) == {(layer, head) for layer in (3, 7) for head in (0, 1)}
    assert choice.pair == (3, 1) and choice.follows and choice.weights == "f" and choice.songs == 1
    assert choice.error_ms == pytest.approx(0, abs=1e-6) and choice.proportion_ms > 1000 * seconds


def test_a_prior_that_does_not_follow_is_said_not_to() -> None:
    prior = reading_prior()
    for block in prior.blocks:
        if block.attention.pattern == "lyrics":
            torch.nn.init.normal_(block.attention.query.weight)
    told = SongConditioning.of(prior.config, {}, JukeboxCharacters("v2").encode(SUNG))
    choice, _ = choose_head(
        prior, [AlignedSong(told, SUNG, torch.randint(11, (32,)), 32 * prior.config.hop)]
    )
    assert not choice.follows and choice.error_ms is None


def test_without_lyrics_there_is_nothing_to_choose() -> None:
    deaf = Prior(PriorConfig(**prior_settings("factored")))
    with pytest.raises(ValueError, match="reads no lyrics"):
        choose_head(deaf, [])
    with pytest.raises(ValueError, match="no song with lyrics"):
        choose_head(reading_prior(), [])


# ---- On disk -------------------------------------------------------------------------------------------------------


def write_codes_of(folder: Path, vqvae: str) -> Path:
    extra = {"vqvae": {"fingerprint": vqvae, "hops": HOPS, "codes": dict.fromkeys(HOPS, 16)}}
    codes = {
        song: {f"{level}.npy": npy(codes_of(song, level) % 16) for level in HOPS}
        for song in range(12)
    }
    return write_set(folder, "codes", codes.__getitem__, extra)


def test_the_verb_writes_its_choice_beside_the_weights(tmp_path: Path, capsys) -> None:
    runs = write_runs(tmp_path / "runs")
    vqvae, prior = (read_facts(runs / name)["fingerprint"] for name in ("vqvae", "top_prior"))
    main(runs, write_codes_of(tmp_path / "codes", vqvae), songs=3, device="cpu")
    choice = read_alignment_head(runs / "top_prior")
    assert (
        choice is not None and choice.songs == 3 and choice.layer == 3 and choice.weights == prior
    )
    assert choice.error_ms is not None, "one of these songs has timed lyrics"
    printed = capsys.readouterr().out
    assert (
        f"median error of a word's start: {choice.error_ms:.0f} ms" in printed
        and "alignment.json" in printed
    )


def test_the_verb_refuses_codes_of_another_vqvae(tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs")
    with pytest.raises(ValueError, match="use that VQ-VAE and the codes it made"):
        main(runs, write_codes_of(tmp_path / "codes", "0" * 64), songs=3, device="cpu")
    assert read_alignment_head(runs / "top_prior") is None


# ---- In samples ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[("encoder", 3), ("prefix", 15)], ids=["encoder", "prefix"])
def runs(request, tmp_path_factory) -> Path:
    """A jukebox whose prior has a head to tell the times by."""
    mode, layer = request.param
    folder = write_runs(tmp_path_factory.mktemp("singing") / "runs", mode)
    write_alignment_head(
        folder / "top_prior", AlignmentHead(layer=layer, head=1, score=1.5, songs=3)
    )
    return folder


def sample(runs: Path, out: Path, **request) -> dict:
    Jukebox(runs).sample([SongRequest(id="a", seconds=4.2, seed=1, **request)])[0].save(out)
    return json.loads((out / "a.json").read_text())


def test_sampled_words_get_times_that_the_page_shows(runs: Path, tmp_path: Path) -> None:
    text = "[Verse]\n\nla la, moon\non the water\n"
    record = sample(runs, tmp_path, lyrics=text)
    assert not (tmp_path / "a.txt").exists()
    plain, words = parse_lrc((tmp_path / "a.lrc").read_text())
    assert (
        plain.split() == text.split()
        and [plain[w.start_char : w.end_char] for w in words] == text.split()
    )
    times = [time for word in words for time in (word.t0, word.t1)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= record["seconds"] + 0.01
    kept = record["alignment"]
    assert (
        kept["head"] == 1
        and kept["score"] == 1.5
        and [w["text"] for w in kept["words"]] == text.split()
    )
    assert all(
        0 <= w["confidence"] <= 1 and abs(w["t0"] - s.t0) < 0.006
        for w, s in zip(kept["words"], words)
    )
    samples, problems = read_samples([tmp_path])
    assert (
        not problems
        and [p.text for line in samples[0].lyrics for p in line if p.start is not None]
        == text.split()
    )


def test_times_that_were_asked_for_stay_and_lyrics_of_an_earlier_song_do_not(
    runs: Path, tmp_path: Path
) -> None:
    given = "[00:00.50] <00:00.50> la <00:01.00> la <00:02.00>"
    assert "alignment" not in sample(runs, tmp_path, lyrics=given)
    assert (tmp_path / "a.lrc").read_text() == given
    weak = Path(shutil.copytree(runs, tmp_path / "weak"))
    write_alignment_head(weak / "top_prior", AlignmentHead(layer=3, head=1, follows=False))
    assert "alignment" not in sample(weak, tmp_path, lyrics="la la")
    assert (tmp_path / "a.txt").read_text() == "la la" and not (tmp_path / "a.lrc").exists()


@pytest.mark.parametrize(
    ("given", "seconds", "kept", "times"),
    [
        ("[00:01.00] la la\n[00:03.00] moon\n", 5.0, "[00:01.00] la la\n[00:03.00] moon\n", None),
        (
            "[00:01.00] la la\n[00:03.50] moon\n[00:11.00] far\n[00:19.00] away",
            5.0,
            None,
            [1, 2, 3, 3.5, 4.5],
        ),
        (
            "[00:04.20] <00:04.20> on <00:04.60> and <00:05.40> on <00:06.00>",
            5.0,
            None,
            [4.2, 4.6, 5],
        ),
        ("[00:07.00] never\n[00:08.00] sung", 5.0, "never\nsung", []),
        ("plain words\nof any length", 5.0, "plain words\nof any length", []),
    ],
)
def test_lyrics_with_times_end_with_the_audio(
    given: str, seconds: float, kept: str | None, times: list[float] | None
) -> None:
    lyrics, is_timed = lyrics_within(given, seconds)
    _, words = parse_lrc(lyrics)
    assert is_timed == bool(words)
    assert kept is None or lyrics == kept
    assert all(word.t1 <= seconds for word in words)
    if times is not None:
        ends = sorted({time for word in words for time in (word.t0, word.t1)})
        assert ends == pytest.approx(times)
    assert "far" not in lyrics and "away" not in lyrics
