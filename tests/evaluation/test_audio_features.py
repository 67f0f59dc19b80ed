"""Audio features find tempo, scale and timbre; classifiers recognise artists and genres on short, degraded clips."""

import numpy as np
import pytest

from megajukebox.data.demo.composition import compose
from megajukebox.data.demo.render import render
from megajukebox.data.demo.styles import GENRES
from megajukebox.evaluation.audio_features import (
    HIGHEST_HERTZ,
    chroma,
    fit,
    low_passed,
    onsets,
    rhythm,
    scale_match,
    spectral_centroid,
    spectrogram,
    tempo,
    timbre,
    with_white_noise,
)

RATE = 11025


@pytest.fixture(scope="module")
def songs():
    """27 songs, each (song, mono [T]): the first 18 to learn from, the last 9 held out; each nine have all pairs."""
    composed = [compose(number, seed=0, seconds=(10, 16)) for number in range(27)]
    return [(song, render(song, RATE).mean(axis=1)) for song in composed]


def clip(sound, start, seconds=5.0):
    return sound[int(start * RATE) : int((start + seconds) * RATE)]


def clips(songs, label_of, starts, seconds=5.0):
    return [
        (clip(sound, start, seconds), label_of(song)) for song, sound in songs for start in starts
    ]


def artist_of(song):
    return song.artist.name


def genre_of(song):
    return song.genre.name


def test_clicks_are_onsets_at_their_times():
    sound = 1e-3 * np.random.default_rng(0).standard_normal(4 * RATE)
    times = np.array([0.7, 1.5, 2.9])
    for time in times:
        sound[int(time * RATE) :][:200] += np.hanning(200) * np.sin(np.arange(200))
    envelope = onsets(*spectrogram(sound, RATE), low=30, high=HIGHEST_HERTZ)
    loudest = [np.argmax(envelope[int(100 * t) - 30 : int(100 * t) + 30]) - 30 for t in times]
    assert np.abs(loudest).max() < 6
    assert np.sum(envelope > 0.5 * envelope.max()) < 40


@pytest.mark.parametrize("beats", [72, 97, 140])
def test_tempo_of_a_click_track(beats):
    sound = 1e-3 * np.random.default_rng(0).standard_normal(6 * RATE)
    for start in (np.arange(0.1, 5.9, 60 / beats) * RATE).astype(int):
        sound[start : start + 300] += np.hanning(300) * np.random.default_rng(1).standard_normal(
            300
        )
    assert tempo(sound, RATE) == pytest.approx(beats, rel=0.02)


def test_tempo_of_every_demo_song_is_the_written_one(songs):
    for song, sound in songs:
        assert tempo(clip(sound, 2), RATE) == pytest.approx(song.tempo, rel=0.04), song.name


def test_chroma_of_a_chord_is_its_notes():
    time = np.arange(4 * RATE) / RATE
    sound = sum(np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time) for pitch in (60, 64, 67))
    shares = chroma(sound, RATE)
    assert set(np.argsort(shares)[-3:]) == {0, 4, 7} and shares[[0, 4, 7]].sum() > 0.9


def test_scale_match_knows_the_scale_in_any_key():
    scales = [genre.scale for genre in GENRES]
    for n, scale in enumerate(scales):
        shares = np.zeros(12)
        shares[[(step + 5) % 12 for step in scale]] = 1 / len(scale)
        matches = scale_match(shares, scales)
        assert np.argmax(matches) == n and matches[n] == pytest.approx(1)


def test_scales_of_demo_songs_are_mostly_found(songs):
    scales = [genre.scale for genre in GENRES]
    right = [
        GENRES[np.argmax(scale_match(chroma(sound, RATE), scales))] is song.genre
        for song, sound in songs
    ]
    assert np.mean(right) >= 0.8


def test_centroid_is_the_pitch_of_a_pure_tone_and_the_middle_of_noise():
    tone = np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)
    assert spectral_centroid(*spectrogram(tone, RATE)).mean() == pytest.approx(1000, rel=0.02)
    noise = np.random.default_rng(0).standard_normal(2 * RATE)
    assert spectral_centroid(*spectrogram(noise, RATE)).mean() == pytest.approx(
        HIGHEST_HERTZ / 2, rel=0.05
    )


@pytest.fixture(scope="module")
def classifiers(songs):
    """For "artist" and "genre": (a classifier fitted on the first 18 songs, the label of a song)."""
    ways = {"artist": (timbre, artist_of), "genre": (rhythm, genre_of)}
    return {
        name: (fit(clips(songs[:18], label_of, (0.5, 4.8)), RATE, features), label_of)
        for name, (features, label_of) in ways.items()
    }


@pytest.mark.parametrize("what", ["artist", "genre"])
@pytest.mark.parametrize(
    ("wear", "wanted"),
    [
        (lambda sound: sound, 0.9),
        (lambda sound: with_white_noise(sound, snr=6, seed=99), 0.75),
        (lambda sound: low_passed(sound, RATE, cutoff=2500), 0.75),
    ],
    ids=["clean", "noisy", "dull"],
)
def test_held_out_songs_are_recognised(songs, classifiers, what, wear, wanted):
    classifier, label_of = classifiers[what]
    test = clips(songs[18:], label_of, (0, 4.9))
    predicted = classifier.predict([wear(sound) for sound, _ in test])
    assert np.mean([a == b for a, (_, b) in zip(predicted, test)]) >= wanted


def test_four_seconds_are_enough(songs, classifiers):
    for classifier, label_of in classifiers.values():
        test = clips(songs[18:], label_of, (2, 5.5), seconds=4)
        predicted = classifier.predict([sound for sound, _ in test])
        assert np.mean([a == b for a, (_, b) in zip(predicted, test)]) >= 0.85


def test_shuffled_labels_teach_nothing(songs):
    names = np.random.default_rng(0).permutation([artist_of(song) for song, _ in songs[:18]])
    train = [(clip(sound, 2), name) for (_, sound), name in zip(songs[:18], names)]
    predicted = fit(train, RATE, timbre).predict([clip(sound, 2) for _, sound in songs[18:]])
    assert np.mean([a == artist_of(song) for a, (song, _) in zip(predicted, songs[18:])]) < 0.7


def test_loudness_does_not_change_the_features(songs):
    sound = clip(songs[4][1], 3)
    for features in (timbre, rhythm):
        # float32 rounding aside
        assert np.abs(features(sound, RATE) - features(0.1 * sound, RATE)).max() < 0.02


def test_one_label_and_stereo_are_refused_with_a_way_out(songs):
    sound = clip(songs[0][1], 0)
    with pytest.raises(ValueError, match="at least two"):
        fit([(sound, "one")], RATE)
    with pytest.raises(ValueError, match="average its channels"):
        spectrogram(np.stack([sound, sound], axis=1), RATE)
