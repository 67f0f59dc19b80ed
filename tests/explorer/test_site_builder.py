"""The explorer: pages over made-up samples and runs. What a browser makes of them is in tests/explorer/test_browser.py."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from conftest import environment
from fixtures.explorer_samples import HOSTILE, RATE, add_run, add_sample, metrics, read_data_script
from fixtures.paths import ROOT

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.explorer.loaders.runs import read_run
from megajukebox.explorer.loaders.samples import read_samples
from megajukebox.explorer.loaders.search_index import pairs, request_key
from megajukebox.explorer.loaders.spectrograms import (
    CEILING_DB,
    FLOOR_DB,
    ROWS,
    loudness,
    mel_spectrogram,
    peaks,
)
from megajukebox.explorer.loaders.timed_lyrics import LyricPiece
from megajukebox.explorer.pages.sample import command
from megajukebox.explorer.pages.svg_plots import figure
from megajukebox.explorer.site_builder import build_site
from megajukebox.explorer.site_files import safe_name

ENTRY = ROOT / "megajukebox" / "commands" / "explore.py"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """samples/ with three songs of two artists, runs/ with one run."""
    samples = tmp_path / "samples"
    add_sample(samples, "one", seconds=4.0)
    add_sample(samples, "two", genres=["march", "live"], levels=("top", "bottom"), lyrics="")
    add_sample(samples, "three", artist="Чайка", genres=["march"])
    (samples / "one.lrc").write_text("[00:01.00] <00:01.00> hello <00:02.00> world <00:03.00>\n")
    add_run(
        tmp_path / "runs" / "vqvae",
        metrics(40),
        [{"time": 1e9, "event": "save", "step": 20, "reason": "every 20"}],
    )
    return tmp_path


class Tags(HTMLParser):
    """All elements of a page, with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attributes)))


def listed(site: Path) -> list[dict[str, Any]]:
    return read_data_script(site / "entries.js")


def pages(site: Path) -> list[Path]:
    return sorted(site.rglob("*.html"))


def test_the_entry_writes_a_site_beside_the_samples_and_prints_its_path(demo: Path) -> None:
    done = subprocess.run(
        [sys.executable, ENTRY, "build", "samples", "runs"],
        cwd=demo,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(demo / "site" / "index.html")
    assert [str(path.relative_to(demo / "site")) for path in pages(demo / "site")] == [
        "blind.html",
        "compare.html",
        "corpus.html",
        "draw.html",
        "index.html",
        "rate.html",
        "run/vqvae.html",
        "runs.html",
        "sample/one.html",
        "sample/three.html",
        "sample/two.html",
        "studio.html",
    ]


def test_the_entry_refuses_a_missing_folder_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ENTRY, "build", "nowhere"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == EXIT_FATAL and re.fullmatch(
        r"explore build: .*nowhere.* is not a folder.*\n", done.stderr
    )


def test_the_form_and_option_of_version_0_1_still_build(demo: Path) -> None:
    old = ["explore", "samples", "runs", "--most-songs", "5", "--out", "old"]
    done = subprocess.run(
        [sys.executable, "-m", "megajukebox.cli", *old],
        cwd=demo,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(demo / "old" / "index.html")
    assert "now explore build" in done.stderr and "--most-songs is now --max-songs" in done.stderr


def test_the_explorer_needs_no_torch() -> None:
    code = "import sys, megajukebox.commands.explore; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("copy", [False, True])
def test_every_url_is_relative_and_leads_to_a_file(demo: Path, copy: bool) -> None:
    site = demo / "elsewhere" / "site"
    build_site([demo / "samples"], [demo / "runs"], site, copy_audio=copy)
    for page in pages(site):
        urls = [
            attributes.get(name)
            for _, attributes in Tags(page.read_text()).found
            for name in ("src", "href")
        ]
        for entry in listed(site) if page.name == "index.html" else []:
            maps = [entry[name] for name in ("audio", "peaks", "spectrogram")]
            urls += [
                entry["page"],
                entry["picture"],
                *(url for links in maps for url in links.values()),
            ]
        for url in filter(None, urls):
            assert url == "data:," or not (
                urlsplit(url).scheme or urlsplit(url).netloc or url.startswith("/")
            ), url
            target = page.parent / unquote(urlsplit(url).path)
            assert url == "data:," or target.exists(), (page, url)
            assert (
                not copy
                or url == "data:,"
                or site.resolve() in [target.resolve(), *target.resolve().parents]
            )


def test_pages_name_no_place_outside_themselves(demo: Path) -> None:
    site = build_site([demo / "samples"], [demo / "runs"], demo / "site").parent
    texts = [path for path in site.rglob("*") if path.suffix in (".html", ".js", ".css")]
    assert len(texts) > 20
    for path in texts:
        text = path.read_text().replace(
            "http://www.w3.org/1999/xhtml", ""
        )  # the name of HTML, no address
        assert not re.search(r"https?://|@import|\burl\(", text), path
        assert str(demo) not in text, path


def test_whatever_is_written_in_a_sample_stays_text(tmp_path: Path) -> None:
    name = "<img src=x onerror=alert(1)> #?%"
    add_sample(
        tmp_path / "samples",
        name,
        artist=HOSTILE,
        genres=[HOSTILE],
        lyrics=HOSTILE,
        seed=2**63,
        language='"><mark>',
    )
    (tmp_path / "samples" / "broken <b>.json").write_text("{")
    add_run(
        tmp_path / "runs" / name,
        [{"step": 1, "loss": 1.0, HOSTILE: 2.0, "split": HOSTILE}],
        [{"event": HOSTILE, HOSTILE: 1}],
    )
    site = build_site([tmp_path / "samples"], [tmp_path / "runs"], tmp_path / "site").parent
    for page in pages(site):
        tags = Tags(page.read_text()).found
        assert "mark" not in [tag for tag, _ in tags]
        assert not [
            attributes for _, attributes in tags if any(key.startswith("on") for key in attributes)
        ]
        assert not [
            attributes for tag, attributes in tags if tag == "img" and attributes.get("src") == "x"
        ]
    (entry,) = listed(site)
    assert entry["artist"] == HOSTILE and entry["seed"] == str(2**63)
    assert (site / entry["page"]).exists() and (site / unquote(entry["audio"]["bottom"])).exists()


def test_a_sample_cannot_lead_out_of_its_folder(tmp_path: Path) -> None:
    add_sample(tmp_path / "samples", "one")
    (tmp_path / "secret.wav").write_bytes(b"x")
    path = tmp_path / "samples" / "one.json"
    for audio in (
        "../secret.wav",
        str(tmp_path / "secret.wav"),
        "javascript:alert(1)",
        "..",
        "a\0b",
    ):
        sample = json.loads(path.read_text())
        sample["levels"]["top"]["audio"] = audio
        path.write_text(json.dumps(sample))
        (read,), problems = read_samples([tmp_path / "samples"])
        assert set(read.audio) == {"middle", "bottom"} and not problems


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "line 1"),
        ("[]", "not an object"),
        ("{}", "request"),
        ('{"request": {"artist": 3}}', "request.artist"),
        ('{"request": {}, "seconds": NaN}', "seconds"),
        ("\udcff", "utf-8"),
        ("[" * 100_000, "deeper than 64"),
    ],
)
def test_a_broken_sample_is_skipped_and_said(tmp_path: Path, text: str, why: str) -> None:
    add_sample(tmp_path / "samples", "good")
    (tmp_path / "samples" / "bad.json").write_bytes(text.encode("utf-8", errors="surrogateescape"))
    page = build_site([tmp_path / "samples"], [], tmp_path / "site")
    assert [entry["name"] for entry in listed(page.parent)] == ["good"]
    assert re.search(f"1 file could not be read.*bad.json.*{why}", page.read_text(), re.DOTALL)


def test_a_recording_that_is_no_recording_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    add_sample(tmp_path / "samples", "one")
    (tmp_path / "samples" / "one.middle.wav").write_bytes(b"this is not a wav")
    page = build_site([tmp_path / "samples"], [], tmp_path / "site")
    assert "one.middle.wav" in page.read_text()
    assert sorted(path.name for path in (tmp_path / "site" / "pictures").glob("*.png")) == [
        "one.bottom.png",
        "one.top.png",
    ]


def test_an_empty_folder_says_how_to_make_samples_and_a_missing_one_is_refused(
    tmp_path: Path,
) -> None:
    (tmp_path / "samples").mkdir()
    page = build_site([tmp_path / "samples"], [], tmp_path / "site")
    assert (
        "megajukebox sample" in page.read_text()
        and "megajukebox train" in (tmp_path / "site" / "runs.html").read_text()
    )
    with pytest.raises(ValueError, match=r"samples .*nowhere.* is not a folder"):
        build_site([tmp_path / "nowhere"], [], tmp_path / "site")
    with pytest.raises(ValueError, match=r"runs .*nowhere.* is not a folder"):
        build_site([tmp_path / "samples"], [tmp_path / "nowhere"], tmp_path / "site")


def test_pictures_are_made_again_only_when_their_recording_changes(demo: Path) -> None:
    def inodes() -> dict[str, int]:
        build_site([demo / "samples"], [], demo / "site", copy_audio=True)
        made = [
            path
            for name in ("pictures", "peaks", "audio")
            for path in (demo / "site" / name).iterdir()
        ]
        return {path.name: path.stat().st_ino for path in made}

    before = inodes()
    assert inodes() == before
    os.utime(
        demo / "samples" / "two.wav", (1e9, 1e9)
    )  # older than its picture: as put back from a backup
    changed = {name for name, inode in inodes().items() if inode != before[name]}
    assert changed <= {"two.bottom.png", "two.bottom.js", "two.bottom.wav"} and changed


def test_a_tone_of_full_scale_is_white_at_its_height_and_silence_is_black() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE).astype(np.float32)
    decibels = mel_spectrogram(tone, RATE)
    mels = np.log10(1 + np.array([30, 1000, RATE / 2]) / 700)
    assert abs(decibels[:, 450].argmax() - ROWS * (mels[1] - mels[0]) / (mels[2] - mels[0])) < 2
    assert -1.5 < decibels.max() < 0.5 and decibels.max() > CEILING_DB
    assert mel_spectrogram(np.zeros(0, np.float32), RATE).max() < FLOOR_DB


def test_peaks_and_loudness_are_those_of_the_wave() -> None:
    wave = np.concatenate([np.zeros(900), np.tile([0.5, -0.25], 450)]).astype(np.float32)
    high, low = peaks(wave)
    assert (max(high), min(low), high[0], low[0]) == (50, -25, 0, 0) and len(high) == len(
        low
    ) == 900
    assert loudness(np.full(8, 0.1, np.float32)) == pytest.approx(-20, abs=0.01)
    assert loudness(np.zeros(0)) == -120 and peaks(np.zeros(0, np.float32)) == [[0], [0]]


def test_samples_of_several_folders_keep_apart(tmp_path: Path) -> None:
    for folder in ("a/samples", "b/samples", "b/samples/step-100"):
        (tmp_path / folder).mkdir(parents=True)
        add_sample(tmp_path / folder, "one")
    samples, problems = read_samples([tmp_path / "a" / "samples", tmp_path / "b" / "samples"])
    assert not problems
    assert sorted(sample.name for sample in samples) == [
        "a/samples/one",
        "b/samples/one",
        "b/samples/step-100/one",
    ]


def test_words_are_timed_by_the_alignment_with_how_sure_it_is(tmp_path: Path) -> None:
    add_sample(tmp_path, "one", lyrics="moon light\nagain")
    (tmp_path / "one.lrc").write_text("[00:03.00] <00:03.00> other <00:04.00>")
    document = json.loads((tmp_path / "one.json").read_text())
    word = {
        "text": "light",
        "start_char": 5,
        "end_char": 10,
        "t0": 1.0,
        "t1": 1.5,
        "confidence": 0.75,
    }
    document["alignment"] = {"words": [word]}
    (tmp_path / "one.json").write_text(json.dumps(document))
    ((sample,), _) = read_samples([tmp_path])
    assert sample.lyrics == [
        [LyricPiece("moon "), LyricPiece("light", 1.0, 1.5, 0.75)],
        [LyricPiece("again")],
    ]
    document["request"]["lyrics"] = "[ar:nobody]\nmoon light\nagain"  # a header is not sung
    (tmp_path / "one.json").write_text(json.dumps(document))
    ((headed,), _) = read_samples([tmp_path])
    assert headed.lyrics == sample.lyrics
    for wrong in ({"end_char": 99}, {"t1": 0.5}, {"start_char": "x"}, {"t0": None}):
        document["alignment"] = {"words": [word | wrong]}
        (tmp_path / "one.json").write_text(json.dumps(document))
        ((sample,), _) = read_samples([tmp_path])
        assert sample.lyrics == [[LyricPiece("other", 3.0, 4.0)]]


def test_pairs_are_of_one_request_and_of_one_seed_where_there_is_one() -> None:
    def made(name: str, run: str, request_key: str, seed: int) -> dict[str, Any]:
        return {
            "name": name,
            "run": run,
            "request_key": request_key,
            "seed": str(seed),
            "audio": {"bottom": "x"},
        }

    old = [made("a1", "old", "x", 1), made("a2", "old", "x", 2), made("a3", "old", "y", 1)]
    new = [made("b1", "new", "x", 3), made("b2", "new", "x", 1), made("b3", "new", "z", 1)]
    found = pairs([*old, *new, made("c", "third", "x", 1)], "run", "old", "new")
    assert [(left["name"], right["name"]) for left, right in found] == [("a1", "b2"), ("a2", "b1")]


def test_the_same_song_is_asked_for_whatever_is_to_make_it() -> None:
    song = {"id": "a", "artist": "Ada", "genres": ["waltz"], "seconds": 4.0, "seed": 1}
    assert request_key(song) == request_key(
        song | {"id": "b", "seed": 2, "sampler": "student", "temperature": {"top": 0.5}}
    )
    assert request_key(song) != request_key(song | {"artist": "Eve"}) and request_key(
        song
    ) != request_key(song | {"prompt": "a.wav"})


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ("autoregressive", "new")),
        ({"weights": {"top": "0", "bottom_student": "1"}}, ("student", "new")),
        ({"request": {"prompt": "a.wav", "seed": 1}}, ("autoregressive", "prompt")),
        (
            {"levels": {"top": {"way": "sequential"}, "bottom": {"way": "windows"}}},
            ("autoregressive parallel_windows", "new"),
        ),
        (
            {"levels": {"top": {"decoding": "jacobi"}, "bottom": {"decoding": "sequential"}}},
            ("autoregressive jacobi", "new"),
        ),
    ],
)
def test_the_list_tells_what_drew_a_song_and_from_what(
    tmp_path: Path, changed: dict, expected: tuple[str, str]
) -> None:
    add_sample(tmp_path / "samples", "one")
    path = tmp_path / "samples" / "one.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    build_site([tmp_path / "samples"], [], tmp_path / "site")
    (entry,) = listed(tmp_path / "site")
    assert (entry["sampler"], entry["mode"]) == expected


def test_the_command_gives_the_request_back_whatever_is_in_it(tmp_path: Path) -> None:
    lyrics = f"REQUEST\n$(touch owned) `touch owned` {HOSTILE}"
    add_sample(tmp_path / "samples", "one", lyrics=lyrics)
    (sample,), _ = read_samples([tmp_path / "samples"])
    shell = "megajukebox() { :; }\n" + command(sample)
    subprocess.run(["bash", "-c", shell], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "request.json").read_text())[0]["lyrics"] == lyrics
    assert not (tmp_path / "owned").exists() and "\u202e" not in shell


def test_curves_take_the_last_value_of_a_step_and_skip_broken_lines(tmp_path: Path) -> None:
    add_run(
        tmp_path / "run",
        [*metrics(3), {"step": 2, "split": "train", "loss": 9.0, "note": "x", "ok": True}],
        [],
    )
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run = read_run(tmp_path / "run", "run")
    assert run.curves["loss"] == {"train": [(1, 3.0), (2, 9.0), (3, 1.0)], "held_out": [(3, 3.5)]}
    assert list(run.curves) == ["loss", "bits_per_code"] and run.curves["loss"]["train"][-1][0] == 3
    assert "1 of 6 lines" in run.problems[0].reason


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [0.0, 0.0],
        [float("nan")],
        [1.0, float("inf"), 2.0],
        [1e300, -1e300],
        [5e-324, 1.0],
        [5e-324, 0],
        [1e-9, 1e9],
    ],
)
def test_any_numbers_can_be_drawn(values: list[float]) -> None:
    drawn = figure("loss", {"train": list(enumerate(values))})
    assert drawn.startswith("<figure") and not re.search(r'd="[^"]*(nan|inf)', drawn)


def test_file_names_that_are_not_plain_become_so_without_meeting() -> None:
    names = ["a-b_1", "a b", "a_b", "..", "é", "x" * 300, "con/../", "\udcff"]
    assert safe_name("a-b_1") == "a-b_1"
    assert len({safe_name(name) for name in names}) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,48}", safe_name(name)) for name in names)
