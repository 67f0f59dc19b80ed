"""The corpus page: what is heard, what is found wrong, and how whole songs come out of the tars."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures import accessibility, browser
from fixtures.browser import Browser
from fixtures.explorer_samples import HOSTILE, read_data_script
from fixtures.explorer_server import ask, serving, signed_in

from megajukebox.conditioning.lrc import TimedWord
from megajukebox.data.audio import encode_flac
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSample, ShardSet, write_shard
from megajukebox.explorer.loaders import corpus_checks
from megajukebox.explorer.loaders.corpus import Excerpt, spread_rows
from megajukebox.explorer.site_builder import CorpusSettings, build_site

RATE = 11025
RANDOM = np.random.default_rng(7)
LRC = b"[00:01.00] <00:01.00> early <00:01.90>\n[00:04.00] <00:04.00> middle <00:05.00>"


def noise(seconds: float, channels: int = 2, loudness: float = 0.1) -> np.ndarray:
    return (
        (loudness * RANDOM.standard_normal((round(seconds * RATE), channels)))
        .clip(-1, 1)
        .astype(np.float32)
    )


def tone(seconds: float) -> np.ndarray:
    return (
        0.3
        * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE).astype(np.float32)[
            :, None
        ]
    )


SONGS = {
    "good": noise(10),
    "short": noise(1),
    "silent": np.concatenate([noise(4), np.zeros((6 * RATE, 2), np.float32)]),
    "clipped": noise(8, loudness=0.9),
    "dc": noise(8) + 0.05,
    "one-sided": noise(8) * np.float32([1, 0]),
    "dark": tone(8),
    "twin": noise(8),
    "damaged": noise(8),
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Songs with every fault that is looked for; "twin" is in it twice, "damaged" lost a byte on the disk."""
    folder = tmp_path_factory.mktemp("shards") / "songs"
    folder.mkdir()
    songs = {**SONGS, "twin-again": SONGS["twin"]}
    samples = [sample(name, wave) for name, wave in songs.items()]
    write_shard(folder / "songs-000000.tar", samples)
    write_index(
        folder, ["songs-000000.tar"], kind="songs", sample_rate=RATE, made_by={"version": "0"}
    )
    found = ShardSet(folder)
    place = int(found.songs[list(songs).index("damaged")]["audio_offset"]) + 5000
    with (folder / "songs-000000.tar").open("r+b") as tar:
        tar.seek(place)
        byte = tar.read(1)
        tar.seek(place)
        tar.write(bytes([byte[0] ^ 255]))
    return ShardSet(folder)


def sample(name: str, wave_TC: np.ndarray) -> ShardSample:
    known = {
        "version": 1,
        "key": name,
        "title": name,
        "artist": HOSTILE if name == "dark" else "Ada",
    }
    known |= {
        "sha256": "f" * 64 if name.startswith("twin") else name,
        "genres": ["waltz"],
        "frames": len(wave_TC),
    }
    lyrics = {
        "good": {"lrc": LRC},
        "short": {"txt": b"la " * 50},
        "dark": {"txt": HOSTILE.encode()},
    }.get(name, {})
    members = {"json": json.dumps(known).encode(), "flac": encode_flac(wave_TC, RATE), **lyrics}
    return ShardSample(name, len(wave_TC), members)


def levels(wave_T: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    """What a VQ-VAE would keep: here, ever quieter copies."""
    return {
        level: wave_T / quieter for level, quieter in (("bottom", 2), ("middle", 4), ("top", 8))
    }


@pytest.fixture(scope="module")
def site(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "site"
    build_site([], [], out, corpus=CorpusSettings(shards, Excerpt(6.0), 100, levels))
    return out


def test_every_fault_is_found_and_nothing_else(site: Path) -> None:
    found = {
        song["name"]: song.get("findings", []) for song in read_data_script(site / "corpus.js")
    }
    assert found == {
        "good": [],
        "short": ["short", "too many words"],
        "silent": ["silence"],
        "clipped": ["clipped"],
        "dc": ["DC offset"],
        "one-sided": ["one channel empty"],
        "dark": ["no high frequencies"],
        "twin": ["same sound twice"],
        "damaged": ["damaged"],
        "twin-again": ["same sound twice"],
    }
    assert "all songs" in (page := (site / "corpus.html").read_text()) and "9 look wrong" in page


def test_words_are_held_against_the_song() -> None:
    words = [TimedWord(0, 1, 1.0, 2.0), TimedWord(2, 3, 0.5, 0.7), TimedWord(4, 5, 99.0, 99.5)]
    assert corpus_checks.check_lyrics("a b c", words, 20.0) == [
        "words after the end",
        "words out of order",
    ]
    assert corpus_checks.check_lyrics("a b c", words[:1], 20.0) == []
    assert corpus_checks.silent_ratio(SONGS["silent"].mean(axis=1), RATE) == pytest.approx(
        0.6, abs=0.02
    )


def test_the_excerpt_is_the_middle_and_the_words_move_with_it(site: Path) -> None:
    song = next(one for one in read_data_script(site / "corpus.js") if one["name"] == "good")
    heard, rate = soundfile.read(site / song["audio"]["original"], dtype="float32")
    assert rate == RATE and len(heard) == 6 * RATE
    assert np.abs(heard - SONGS["good"][2 * RATE : 8 * RATE]).max() < 1e-4
    page = (site / song["page"]).read_text()
    assert 'data-start="2.0" data-end="3.0">middle<' in page and "<p>early</p>" in page
    quiet, _ = soundfile.read(site / song["audio"]["top"], dtype="float32")
    assert np.abs(quiet - heard / 8).max() < 1e-4


def test_a_large_set_is_shown_evenly() -> None:
    assert spread_rows(3, 5) == [0, 1, 2] and spread_rows(10, 5) == [0, 2, 4, 6, 8]
    assert len(set(spread_rows(1_000_000, 2000))) == 2000


def test_a_second_build_reads_no_song_again(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = CorpusSettings(shards, Excerpt(6.0), 3)
    build_site([], [], tmp_path, corpus=corpus)
    monkeypatch.setattr(
        "megajukebox.explorer.loaders.corpus.read_slice", lambda *_: pytest.fail("read again")
    )
    build_site([], [], tmp_path, corpus=corpus)


def test_whole_songs_come_out_of_the_tar_by_range(shards: ShardSet, tmp_path: Path) -> None:
    with serving(
        "--corpus", shards.folder, "--out", tmp_path / "site", "--max-songs", "4"
    ) as printed:
        address = signed_in(printed)
        song = read_data_script(tmp_path / "site" / "corpus.js")[0]
        root = ask(address, "/")[1]["location"].removesuffix("/index.html")
        url = f"{root}/{song['audio']['original']}"
        status, headers, body = ask(address, url)
        assert (status, headers["content-type"], headers["accept-ranges"]) == (
            200,
            "audio/flac",
            "bytes",
        )
        heard, _ = soundfile.read(io.BytesIO(body), dtype="float32")
        assert np.abs(heard - SONGS["good"]).max() < 1e-4 and not list(
            (tmp_path / "site").rglob("*.flac")
        )
        size = len(body)
        for asked, part in (
            ("bytes=10-19", body[10:20]),
            (f"bytes={size - 3}-", body[-3:]),
            ("bytes=-5", body[-5:]),
        ):
            status, headers, got = ask(address, url, Range=asked)
            assert (status, got) == (206, part) and headers["content-range"].endswith(f"/{size}")
        assert ask(address, url, Range=f"bytes={size}-")[0] == 416
        assert ask(address, url.replace("good", "nobody"))[0] == 404


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as tab:
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=1280,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        yield tab


@pytest.mark.skipif(
    browser.binary() is None, reason="no chromium on this machine: apt install chromium"
)
def test_bad_songs_are_filtered_opened_and_heard_at_every_level(
    chromium: Browser, site: Path
) -> None:
    chromium.open((site / "corpus.html").as_uri() + "#findings=no+high+frequencies")
    chromium.wait("shown.length === 1 && shown[0].name === 'dark'")
    assert chromium.run("document.querySelector('.flag').textContent") == "no high frequencies"
    chromium.run("document.querySelector('.card h2 a').click()")
    chromium.wait("typeof strips !== 'undefined' && strips.strips.every(strip => strip.wave)")
    assert chromium.run(
        "[...document.querySelectorAll('.strip')].map(strip => strip.dataset.track)"
    ) == ["top", "middle", "bottom", "original"]
    chromium.press(" ")
    chromium.wait("player.playing && player.track === 'original' && player.moment > 0.3")
    chromium.press("1")
    chromium.wait("player.track === 'top' && player.playing && player.audio.currentTime > 0.3")
    assert HOSTILE.split("\u2028")[0] in chromium.run(
        "document.querySelector('#lyrics').textContent"
    )
    assert chromium.run("typeof owned") == "undefined" and not chromium.run(
        "!!document.querySelector('img[src=x]')"
    )
    assert chromium.run("document.getElementById('error').textContent") == ""


@pytest.mark.skipif(
    browser.binary() is None, reason="no chromium on this machine: apt install chromium"
)
def test_the_corpus_breaks_no_wcag_in_either_theme(chromium: Browser, site: Path) -> None:
    for page in ("corpus.html", "corpus/dark.html"):
        chromium.open((site / page).as_uri())
        assert accessibility.violations(chromium) == [], page
