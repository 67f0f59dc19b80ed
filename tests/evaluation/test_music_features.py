"""Tempo, key, chroma and returning sections_of, planted in sound and found again."""

import numpy as np
import pytest

from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.evaluation.audio_features import chroma
from megajukebox.evaluation.evaluators.music_features import (
    MusicFeatures,
    agreement,
    corpus_metrics,
    key,
    key_score,
    tempo_distance,
)
from megajukebox.evaluation.evaluators.repetition import repetition, sections_of
from megajukebox.evaluation.inputs import EvalSong

RATE = 12000
MAJOR_SCALE, MINOR_SCALE = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 11)


def tone(pitch: float, seconds: float) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    wave = sum(np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * h * time) / h for h in (1, 2, 3))
    return np.asarray(wave * np.minimum(1, (seconds - time) * 20)).astype(np.float32) * 0.2


def melody(pitches: list[int], seconds: float = 0.25) -> np.ndarray:
    return np.concatenate([tone(pitch, seconds) for pitch in pitches])


def scale_song(tonic: int, scale: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Eight seconds that dwell on the tonic and the fifth, as tonal music does."""
    steps = np.random.default_rng(seed).choice([*scale, 0, 0, 7, scale[2]], 30)
    return melody([60 + tonic + int(step) for step in steps] + [60 + tonic] * 2)


def beats(per_minute: float, seconds: float = 8.0) -> np.ndarray:
    wave = 1e-3 * np.random.default_rng(0).standard_normal(int(seconds * RATE))
    for start in (np.arange(0.1, seconds - 0.1, 60 / per_minute) * RATE).astype(int):
        wave[start : start + 300] += np.hanning(300) * np.random.default_rng(1).standard_normal(300)
    return wave.astype(np.float32)


@pytest.mark.parametrize("tonic", [0, 5, 9])
@pytest.mark.parametrize(
    ("scale", "mode"), [(MAJOR_SCALE, 0), (MINOR_SCALE, 1)], ids=["major", "minor"]
)
def test_the_planted_key_is_heard(tonic: int, scale: tuple[int, ...], mode: int) -> None:
    assert key(chroma(scale_song(tonic, scale), RATE))[0] == 12 * mode + tonic


def test_the_key_score_is_that_of_mirex() -> None:
    c_major, g_major, a_minor, c_minor, d_major = 0, 7, 12 + 9, 12, 2
    assert [key_score(c_major, k) for k in (c_major, g_major, a_minor, c_minor, d_major)] == [
        1,
        0.5,
        0.3,
        0.2,
        0,
    ]
    assert key_score(a_minor, c_major) == 0.3


def test_audio_agrees_with_itself_and_not_with_other_music() -> None:
    song = scale_song(0, MAJOR_SCALE) + beats(100)
    same = agreement(song, song, RATE)
    assert list(same.values()) == pytest.approx([1.0] * 4)
    other = agreement(song, scale_song(6, MINOR_SCALE, seed=1) + 3 * beats(131), RATE)
    assert (
        other["tempo_agreement"] == 0
        and other["key_agreement"] == 0
        and other["chroma_agreement"] < 0.3
    )


def test_half_the_tempo_is_forgiven_by_the_one_and_not_by_the_other() -> None:
    found = agreement(beats(140), beats(70), RATE)
    assert (found["tempo_agreement"], found["tempo_octave_agreement"]) == (0, 1)


def test_a_song_that_changes_its_tempo_agrees_with_itself_stretch_by_stretch() -> None:
    song = np.concatenate([beats(80), beats(131), beats(100)])
    worn = song + 0.002 * np.random.default_rng(9).standard_normal(len(song)).astype(np.float32)
    assert agreement(song, worn, RATE)["tempo_agreement"] == 1
    other = np.concatenate([beats(80), beats(131), beats(117)])
    assert agreement(song, other, RATE)["tempo_agreement"] == pytest.approx(2 / 3)


def test_the_order_of_notes_matters_to_chroma_agreement() -> None:
    notes = [60, 62, 64, 65, 67, 69, 71, 72] * 4
    assert agreement(melody(notes), melody(notes[::-1]), RATE)["chroma_agreement"] < 0.5


def test_a_second_of_sound_is_not_asked_for_its_tempo() -> None:
    assert agreement(beats(100, 1.0), beats(100, 1.0), RATE) == {}


def heard(
    tempo: float, genre: str | None, tonic: int = 0, scale: tuple[int, ...] = MAJOR_SCALE
) -> MusicFeatures:
    shares = np.full(12, 0.01)
    shares[[(step + tonic) % 12 for step in scale]] = 1
    return MusicFeatures(tempo, shares / shares.sum(), genre)


def test_songs_of_the_wrong_tempo_and_scale_for_their_genre_are_told() -> None:
    pentatonic, chromatic = (0, 2, 4, 7, 9), (0, 1, 2, 3, 4, 5)
    corpus = {f"folk{n}": heard(90 + n, "folk", n, pentatonic) for n in range(6)}
    corpus |= {f"dub{n}": heard(70 + n, "dub", n, chromatic) for n in range(6)}
    right = {f"s{n}": heard(92 + n, "folk", 3 * n, pentatonic) for n in range(3)}
    wrong = {f"s{n}": heard(130, "folk", n, chromatic) for n in range(3)}
    good = {score.name: score.value for score in corpus_metrics(right, corpus)}
    bad = {score.name: score.value for score in corpus_metrics(wrong, corpus)}
    assert good["tempo_of_genre"] == 1 and bad["tempo_of_genre"] == 0
    assert good["scale_of_genre"] > 0.5 and bad["scale_of_genre"] < -0.5
    assert good["tempo_distance"] < bad["tempo_distance"]


def test_tempo_distance_of_shifted_sets_is_the_shift() -> None:
    tempi = np.array([80.0, 90, 100, 120])
    assert tempo_distance(tempi, tempi) == 0
    assert tempo_distance(2 * tempi, tempi) == pytest.approx(1)


LINES = "[00:00.00] night falls\n[00:02.00] day breaks here\n[00:04.00] night falls\n[00:06.00] day breaks here\n"
ONE, OTHER = [60, 64, 67, 72, 67, 64, 60, 64], [62, 66, 69, 62, 57, 61, 62, 66]


def sung(lrc: str, *phrases: list[int]) -> EvalSong:
    text, words = parse_lrc(lrc)
    return EvalSong(
        "song", np.concatenate([melody(phrase) for phrase in phrases]), RATE, {}, text, tuple(words)
    )


def test_lines_that_return_to_the_same_music_are_repetition() -> None:
    returning = repetition(sung(LINES, ONE, OTHER, ONE, OTHER))["repetition"]
    swapped = repetition(sung(LINES, ONE, OTHER, OTHER, ONE))["repetition"]
    same = repetition(sung(LINES, ONE, ONE, ONE, ONE))["repetition"]
    assert returning > 0.4 and swapped < 0.1 and same == pytest.approx(0, abs=0.05)


def test_marked_sections_are_used_where_there_are_any() -> None:
    marks = ("[Verse 1]", "la", "[Chorus]", "la la", "[Verse 2]", "[Chorus]")
    lrc = "".join(
        f"[00:0{time}] {mark}\n"
        for time, mark in zip(("0.0", "0.5", "2.0", "2.5", "4.0", "6.0"), marks)
    )
    song = sung(lrc, ONE, OTHER, ONE, OTHER)
    names = [(section.name, section.start, section.end) for section in sections_of(song)]
    assert names == [("verse", 0, 2), ("chorus", 2, 4), ("verse", 4, 6), ("chorus", 6, 8)]
    assert repetition(song)["repetition"] > 0.4


def test_without_times_or_returning_lines_there_is_no_figure() -> None:
    assert repetition(sung("la la la\nla la la", ONE)) == {}
    assert repetition(sung("[00:00.00] one line here\n[00:01.20] another one here\n", ONE)) == {}
