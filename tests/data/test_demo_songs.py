"""The demo songs are the same every time, sing what they say when they say it, and differ where they claim to."""

import json
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.data import audio
from megajukebox.data.demo.composition import compose
from megajukebox.data.demo.lyric_text import ENDINGS, LANGUAGES, OPENINGS, words_of
from megajukebox.data.demo.render import (
    LICENCE,
    lrc,
    metadata_of,
    render,
    render_section,
    write_demo_songs,
)
from megajukebox.data.demo.styles import ARTISTS, GENRES
from megajukebox.data.demo.synth import SOUNDS, drum_kit, frequency, sing
from megajukebox.data.ingest.discover import find_songs
from megajukebox.data.ingest.source_song import SongMetadata

RATE = 11025
SECONDS = (10.0, 20.0)


@pytest.fixture(scope="module")
def songs():
    return [compose(number, seed=0, seconds=SECONDS) for number in range(48)]


@pytest.fixture(scope="module")
def sounds(songs):
    """The first nine songs, one of each artist and genre, as [T, 2]."""
    return [render(song, RATE) for song in songs[:9]]


def loudness(clip):
    return 10 * np.log10(np.mean(clip**2) + 1e-12)


def test_same_seed_gives_the_same_bytes_with_one_process_or_two(tmp_path):
    one = write_demo_songs(
        tmp_path / "one", 3, seed=7, seconds=(7, 9), sample_rate=RATE, processes=1
    )
    two = write_demo_songs(
        tmp_path / "two", 4, seed=7, seconds=(7, 9), sample_rate=RATE, processes=2
    )
    other = write_demo_songs(
        tmp_path / "other", 3, seed=8, seconds=(7, 9), sample_rate=RATE, processes=1
    )
    assert [path.name for path in one] == [path.name for path in two[:3]]
    for a, b, c in zip(one, two, other):
        for suffix in (".wav", ".json", ".lrc"):
            assert a.with_suffix(suffix).read_bytes() == b.with_suffix(suffix).read_bytes()
        assert a.read_bytes() != c.read_bytes()


def test_only_missing_and_changed_songs_are_made_again(tmp_path):
    paths = write_demo_songs(tmp_path, 3, seconds=(7, 9), sample_rate=RATE, processes=1)
    before = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].with_suffix(".lrc").write_text("half a li")
    untouched = paths[2].stat().st_mtime_ns
    write_demo_songs(tmp_path, 3, seconds=(7, 9), sample_rate=RATE, processes=1)
    assert [path.read_bytes() for path in paths] == before
    assert paths[2].stat().st_mtime_ns == untouched
    write_demo_songs(tmp_path, 1, seconds=(7, 9), sample_rate=8000, processes=1)
    assert audio.facts(paths[0]).sample_rate == 8000
    assert not list(tmp_path.glob("*.partial"))


def test_written_songs_are_16_bit_stereo_and_found_with_all_their_metadata(tmp_path, songs):
    paths = write_demo_songs(tmp_path, 2, processes=1)
    facts = [audio.facts(path) for path in paths]
    assert [(f.container, f.subtype, f.sample_rate, f.channels) for f in facts] == [
        ("WAV", "PCM_16", 44100, 2)
    ] * 2
    found = {song.path: song for song in find_songs(tmp_path)}
    for path, song in zip(paths, songs):
        assert found[path].refusal is None and found[path].lyrics_kind == "lrc"
        assert json.loads(path.with_suffix(".json").read_text(encoding="utf-8")) == metadata_of(
            song
        )


def test_every_pair_of_artist_and_genre_comes_equally_often(songs):
    pairs = Counter((song.artist.name, song.genre.name) for song in songs[:45])
    assert pairs == {(artist.name, genre.name): 5 for artist in ARTISTS for genre in GENRES}
    assert Counter(song.language for song in songs) == {language: 12 for language in LANGUAGES}
    triples = Counter((song.artist.name, song.genre.name, song.language) for song in songs[:36])
    assert set(triples.values()) == {1} and len(triples) == 36


def test_metadata_is_complete_and_free(songs):
    for song in songs:
        metadata = metadata_of(song)
        assert all(metadata.values()) and metadata["licence"] == LICENCE
        assert set(metadata) == set(SongMetadata.model_fields)
        assert len(song.name) <= 48 and song.name.replace("-", "").isalnum() and song.name.isascii()


def test_songs_keep_to_the_asked_length(songs):
    assert all(SECONDS[0] <= song.seconds <= SECONDS[1] for song in songs)
    assert len({len(song.sections) for song in songs}) > 1
    long = compose(0, seed=0, seconds=(60, 70))
    assert 60 <= long.seconds <= 70 and len(set(lrc(long).split("\n"))) > 8


def test_too_short_a_length_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match=r"seconds \(1, 3\).*from 6.5 up"):
        compose(0, seed=0, seconds=(1, 3))


def test_songs_are_loud_unclipped_and_without_dc(sounds):
    for sound in sounds:
        assert np.abs(sound).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
        assert np.abs(sound.mean(axis=0)).max() < 1e-4
        assert np.mean(np.abs(sound) > 0.88) < 1e-3
        assert -26 < loudness(sound) < -12


def test_left_and_right_differ_yet_belong_together(sounds):
    for left, right in (sound.T for sound in sounds):
        assert -20 < loudness(left - right) - loudness(left + right) < -3


def test_lyrics_are_timed_inside_the_song_one_word_after_another(songs):
    for song in songs:
        text, words = parse_lrc(lrc(song))
        assert text.split() == [word for line in song.words() for word, _, _ in line]
        assert len(words) == len(text.split()) >= 6
        assert all(0 <= word.t0 < word.t1 <= song.seconds for word in words)
        assert all(before.t1 <= after.t0 + 0.011 for before, after in pairwise(words))


def test_each_language_has_a_script_of_its_own():
    scripts = {"en": "LATIN", "ru": "CYRILLIC", "el": "GREEK", "hi": "DEVANAGARI"}
    assert set(LANGUAGES) == set(scripts)
    for language, script in scripts.items():
        letters = "".join(
            word.text
            for phrase in OPENINGS[language] + ENDINGS[language]
            for word in words_of(phrase)
        )
        assert all(unicodedata.name(letter).startswith(script) for letter in letters)


def test_every_syllable_has_a_vowel_and_known_sounds():
    phrases = [
        phrase for language in LANGUAGES for phrase in OPENINGS[language] + ENDINGS[language]
    ]
    for syllable in (
        syllable for phrase in phrases for word in words_of(phrase) for syllable in word.syllables
    ):
        assert set(syllable) <= set(SOUNDS) and any(SOUNDS[sound].vowel for sound in syllable)


def test_the_chorus_returns_with_its_words_and_verses_bring_new_ones(songs):
    for song in songs:
        lines = {
            kind: [s.words for s in song.sections if s.kind == kind] for kind in ("verse", "chorus")
        }
        assert len(set(lines["chorus"])) == 1 <= len(lines["verse"])
        assert len(set(lines["verse"])) == len(lines["verse"])
        assert lines["chorus"][0] not in lines["verse"]


def test_a_returning_chorus_sounds_alike_and_a_verse_does_not(songs, sounds):
    for song, sound in zip(songs, sounds):
        length = int(song.sections[1].seconds * RATE)
        at = {kind: [] for kind in ("verse", "chorus")}
        for section, start in zip(song.sections[1:], song.starts()[1:]):
            at[section.kind].append(sound[int(start * RATE) :][:length, 0])
        same, other = (
            np.corrcoef(at["chorus"][0], clip)[0, 1] for clip in (at["chorus"][1], at["verse"][0])
        )
        assert same > 0.8 > 0.5 > other


def test_the_voice_is_heard_when_words_are_sung_and_silent_otherwise(songs):
    kit = drum_kit(RATE)
    for song in songs[:9]:
        section = song.sections[1]
        alone = replace(section, strums=(), picks=(), bass=(), drums=())
        band = replace(section, syllables=())
        voice, music = (render_section(part, song, kit, RATE).sum(axis=0) for part in (alone, band))
        for word, start, end in section.words:
            sung = slice(int(start * RATE), int(end * RATE))
            assert loudness(voice[sung]) > loudness(music[sung]) - 5, (song.name, word)
        assert not voice[int(section.words[-1][2] * RATE) + 1 :].any()


def test_the_mix_gains_a_voice_at_the_first_word(songs, sounds):
    for song, sound in zip(songs, sounds):
        first = song.words()[0][0][1]
        # The lead-in is the first half of a verse without its voice; compare over the same drums.
        before, after = (
            sound[int(t * RATE) : int((t + first) * RATE)].mean(axis=1) for t in (0, first)
        )
        assert loudness(after) > loudness(before) + 1


def test_vowels_are_told_apart_by_their_formants():
    def brightness(voice, vowel):
        """dB between the second formants of i and of a."""
        power = np.abs(np.fft.rfft(sing(voice, vowel, voice.centre, voice.centre, 0.5, RATE))) ** 2
        hertz = np.fft.rfftfreq(2 * len(power) - 1, 1 / RATE) / voice.formants
        return 10 * np.log10(
            power[(hertz > 2000) & (hertz < 2600)].sum()
            / power[(hertz > 650) & (hertz < 1450)].sum()
        )

    for voice in (artist.voice for artist in ARTISTS):
        i, e, a, u = (brightness(voice, vowel) for vowel in "ieau")
        assert min(i, e) > a + 15
        assert i > u + 15


def test_the_voice_sings_the_written_pitch():
    for voice in (artist.voice for artist in ARTISTS):
        wave = sing(replace(voice, vibrato=0.0), "o", voice.centre, voice.centre, 1.0, RATE)
        power = np.abs(np.fft.rfft(wave)) ** 2
        hertz = np.fft.rfftfreq(len(wave), 1 / RATE)
        off = hertz / frequency(voice.centre) - np.round(hertz / frequency(voice.centre))
        assert power[np.abs(off) < 0.05].sum() > 0.95 * power.sum()


def test_a_song_at_a_low_rate_is_the_same_song(songs):
    high, low = render(songs[1], 44100)[:, 0], render(songs[1], RATE)[:, 0]
    spectra = [np.abs(np.fft.rfft(sound))[: int(4000 * songs[1].seconds)] for sound in (high, low)]
    bands = [
        20 * np.log10([part.mean() for part in np.array_split(spectrum, 16)])
        for spectrum in spectra
    ]
    difference = bands[0] - bands[1]
    assert np.abs(difference - np.median(difference)).max() < 4
