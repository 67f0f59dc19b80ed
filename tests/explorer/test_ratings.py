"""Ratings of several recordings at once: the intervals, the listeners' checks, what is hidden, and the page itself."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from fixtures import accessibility, browser
from fixtures.browser import Browser
from fixtures.explorer_samples import RATE, add_sample
from fixtures.explorer_server import ask, serving, sign_in, signed_in

from megajukebox.common.errors import UserError
from megajukebox.explorer.server.listening_tests import (
    ANCHOR_HERTZ,
    ListeningTests,
    clips_of,
    low_pass,
    shuffled,
)
from megajukebox.explorer.server.ratings import (
    ANCHOR,
    ORIGINAL,
    ClipRating,
    append_rating,
    mean_differences,
    mean_scores,
    read_ratings,
    refused_listeners,
    results,
)
from megajukebox.explorer.site_builder import write_samples

TRACKS = ("top", "middle", "bottom", "refined_bottom", "original")
T_95_OF_2 = 4.30265  # Student's t, two-sided 95 %, two degrees of freedom


def rating(listener: str, clip: int = 0, **scores: float) -> ClipRating:
    order = tuple(sorted(scores))
    return ClipRating(clip=f"clip-{clip}", listener=listener, scores=scores, order=order, time=1.0)


def add_reconstructions(folder: Path, songs: int, run: str = "runs/tiny") -> None:
    """What `megajukebox reconstruct` leaves: every level beside the original."""
    for song in range(songs):
        name = f"original-song_{song}"
        add_sample(folder, name, seconds=2.0, levels=TRACKS, runs=run)
        path = folder / f"{name}.json"
        record = json.loads(path.read_text())
        record["reconstruction"] = {"of": "shards/songs", "song": f"song-{song}"}
        path.write_text(json.dumps(record))


# ---- The sums -------------------------------------------------------------------------------------------------------


def test_every_listener_counts_once_and_the_interval_is_students() -> None:
    """Means of three listeners: 60, 70, 80, however many clips each of them rated."""
    ratings = [rating("a", 0, x=50), rating("a", 1, x=70), rating("b", x=70), rating("c", x=80)]
    (score,) = mean_scores(ratings)
    reach = T_95_OF_2 * 10 / math.sqrt(3)
    assert (score.mean, score.listeners, score.ratings) == (70, 3, 4)
    assert (score.low, score.high) == pytest.approx((70 - reach, 70 + reach), abs=1e-3)


def test_of_one_listener_the_interval_is_over_clips_and_of_one_rating_there_is_none() -> None:
    (score,) = mean_scores([rating("a", clip, x=x) for clip, x in enumerate((60, 70, 80))])
    reach = T_95_OF_2 * 10 / math.sqrt(3)
    assert (score.low, score.high) == pytest.approx((70 - reach, 70 + reach), abs=1e-3)
    (alone,) = mean_scores([rating("a", x=60)])
    assert (alone.mean, alone.low, alone.high) == (60, None, None)


def test_a_difference_that_all_share_is_sure_where_the_scores_are_not() -> None:
    ratings = [
        rating(n, refined=base + 10 + n_th, bottom=base)
        for n_th, (n, base) in enumerate((("a", 20), ("b", 50), ("c", 80)))
    ]
    (difference,) = mean_differences(ratings)
    assert difference.name == "bottom − refined" and difference.mean == -11
    assert difference.high is not None and difference.high < 0
    scores = {one.name: one for one in mean_scores(ratings)}
    assert scores["refined"].low < scores["bottom"].high  # type: ignore[operator]


@pytest.mark.parametrize(
    ("original", "anchor", "reason"),
    [
        ((100, 100, 95, 90), (10, 40, 90, 20), None),
        ((100, 100, 95, 89), (10, 40, 90, 20), "the original below 90 in 1 of 4 clips"),
        ((100, 100, 95, 90), (10, 40, 91, 20), "the anchor above 90 in 1 of 4 clips"),
    ],
)
def test_who_misses_the_original_or_the_anchor_is_reported_apart(
    original: tuple[float, ...], anchor: tuple[float, ...], reason: str | None
) -> None:
    theirs = [
        rating("a", clip, **{ORIGINAL: high, ANCHOR: low, "bottom": 5.0})
        for clip, (high, low) in enumerate(zip(original, anchor))
    ]
    sure = [rating("b", clip, **{ORIGINAL: 100, ANCHOR: 20, "bottom": 60.0}) for clip in range(4)]
    assert refused_listeners([*theirs, *sure]) == ({"a": reason} if reason else {})
    given = results([*theirs, *sure], 0)
    bottom = next(one for one in given["scores"] if one["name"] == "bottom")
    assert bottom["mean"] == (60 if reason else 32.5)
    assert given["listeners"] == (1 if reason else 2)
    assert [one["mean"] for one in given["apart"] if one["name"] == "bottom"] == [5.0] * bool(
        reason
    )


def test_one_miss_in_seven_clips_is_forgiven() -> None:
    """BS.1534-3 allows it in 15 % of the clips."""
    theirs = [rating("a", clip, **{ORIGINAL: 100 if clip else 50, ANCHOR: 10}) for clip in range(7)]
    assert refused_listeners(theirs) == {}
    assert refused_listeners(theirs[:6])


def test_the_last_ratings_of_a_clip_count_and_a_torn_line_costs_itself(tmp_path: Path) -> None:
    path = tmp_path / "votes.ratings.jsonl"
    append_rating(path, rating("a", x=10))
    with path.open("a") as file:
        file.write('{"clip": "clip-0", "sco')
    append_rating(path, rating("a", x=30))
    append_rating(path, rating("b", x=50))
    ratings, skipped = read_ratings(path)
    assert [(one.listener, one.scores["x"]) for one in ratings] == [("a", 30), ("b", 50)]
    assert skipped == 1


# ---- The anchor -----------------------------------------------------------------------------------------------------


def test_the_anchor_keeps_what_is_below_its_edge_and_nothing_beyond() -> None:
    rate = 44_100
    t = np.arange(rate) / rate
    low = np.sin(2 * np.pi * (ANCHOR_HERTZ - 100) * t)
    high = np.sin(2 * np.pi * (ANCHOR_HERTZ * 8 / 7 + 100) * t)
    both = np.stack([low + high, high], axis=1).astype(np.float32)
    cut = low_pass(both, rate)
    np.testing.assert_allclose(cut[:, 0], low, atol=1e-4)
    np.testing.assert_allclose(cut[:, 1], 0, atol=1e-4)


# ---- Tests of listeners ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ratings")
    add_reconstructions(root / "reconstructions", 3)
    return root


def test_the_order_is_the_listeners_own_and_nothing_names_what_is_hidden(
    house: Path, tmp_path: Path
) -> None:
    listed = write_samples([house / "reconstructions"], tmp_path / "site")
    samples = {sample.name: sample for sample in listed.samples}
    clips = clips_of(samples, listed.entries)
    assert len(clips) == 3
    assert list(clips[0].tracks) == ["refined bottom", "bottom", "middle", "top"]
    tests = ListeningTests(tmp_path / "votes.ratings.jsonl", tmp_path / "site")
    chosen = ["refined bottom", "bottom"]
    seen = set()
    for number in range(3):
        test = tests.next(samples, clips, chosen, "me")
        assert (test["clips"], test["rated"]) == (3, number)
        assert (
            list(test["audio"])
            == ["1", "2", "3", "4", "Reference"]
            == [*list(test["db"])[1:], "Reference"]
        )
        assert not any(word in json.dumps(test) for word in ("refined", "bottom", "anchor", "song"))
        paths = [tests.recording(samples, test["id"], str(n)) for n in range(5)]
        assert tests.recording(samples, test["id"], "5") is None
        names = tests.rate(test["id"], {"1": 1, "2": 2.5, "3": 3, "4": 100})
        assert sorted(names.values()) == sorted([*chosen, ORIGINAL, ANCHOR])
        heard = {name: paths[int(n)] for n, name in names.items()}
        assert heard[ORIGINAL] == paths[0]
        assert str(heard["refined bottom"]).count("refined_bottom") == 1
        anchor, _ = soundfile.read(heard[ANCHOR].path)  # type: ignore[union-attr]
        original, _ = soundfile.read(paths[0].path)  # type: ignore[union-attr]
        assert anchor.shape == original.shape
        seen.add(paths[0].name)  # type: ignore[union-attr]
        with pytest.raises(UserError, match="not open"):
            tests.rate(test["id"], {"1": 1, "2": 2, "3": 3, "4": 4})
    assert len(seen) == 3
    kept, _ = read_ratings(tests.ratings)
    assert {one.scores[one.order[3]] for one in kept} == {100}
    again = tests.next(samples, clips, chosen, "me")
    assert again["rated"] == 3
    orders = {tuple(shuffled(map(str, range(6)), f"listener-{n}", "clip")) for n in range(50)}
    assert len(orders) > 40 and shuffled("abc", "x") == shuffled("cba", "x")


@pytest.mark.parametrize(
    ("scores", "why"),
    [
        ({"1": 50}, "rate every recording, 1 to 3"),
        ({"1": 50, "2": 101, "3": 0}, "recording 2 has no score from 0 to 100"),
        ({"1": 50, "2": True, "3": 0}, "recording 2 has no score"),
        ({"1": 50, "2": float("nan"), "3": 0}, "recording 2 has no score"),
        ([50, 50, 50], "rate every recording"),
    ],
)
def test_ratings_that_are_none_are_refused_and_the_test_stays_open(
    house: Path, tmp_path: Path, scores: object, why: str
) -> None:
    listed = write_samples([house / "reconstructions"], tmp_path / "site")
    samples = {sample.name: sample for sample in listed.samples}
    tests = ListeningTests(tmp_path / "ratings.jsonl", tmp_path / "site")
    test = tests.next(samples, clips_of(samples, listed.entries), ["top"], "me")
    with pytest.raises(UserError, match=why):
        tests.rate(test["id"], scores)
    assert tests.rate(test["id"], {"1": 1, "2": 2, "3": 3})
    for conditions in ([], ["top"] * 8, ["none"]):
        with pytest.raises(UserError, match="choose"):
            tests.next(samples, clips_of(samples, listed.entries), conditions, "me")


def test_two_vqvaes_are_told_apart_by_their_runs(tmp_path: Path) -> None:
    for run in ("one", "two"):
        add_reconstructions(tmp_path / run, 1, run=f"runs/{run}")
    listed = write_samples([tmp_path / "one", tmp_path / "two"], tmp_path / "site")
    samples = {sample.name: sample for sample in listed.samples}
    (clip,) = clips_of(samples, listed.entries)
    assert "runs/one: bottom" in clip.tracks and "runs/two: refined bottom" in clip.tracks


# ---- The page -------------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(
    browser.binary() is None, reason="no chromium on this machine: apt install chromium"
)


@pytest.fixture(scope="module")
def served(house: Path) -> Iterator[str]:
    with serving(house / "reconstructions", "--out", house / "site") as address:
        yield signed_in(address)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


def resize(tab: Browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1}
    tab.call("Emulation.setDeviceMetricsOverride", **size, mobile=width < 500)


@needs_chromium
def test_a_clip_is_rated_with_keys_in_a_loop_and_summed(
    chromium: Browser, served: str, house: Path
) -> None:
    """Four levels, the original and the anchor: six sliders, none of which moves before its recording was heard."""
    resize(chromium, 1280)
    sign_in(chromium, served)
    chromium.open(f"{served}/site/rate.html")
    chromium.wait("test !== null && player.song !== null")
    wrong = accessibility.violations(chromium)
    rows = "[...document.querySelectorAll('.stimulus')].filter(one => !one.hidden)"
    assert chromium.run(f"{rows}.length") == 6
    assert chromium.run(
        "document.getElementById('done').disabled && row('1').querySelector('input').disabled"
    )
    chromium.press(" ")
    chromium.wait("player.playing && player.track === 'Reference'")
    chromium.run("setLoop(0.4, 1.0)")
    chromium.wait("player.moment >= 0.4 && player.moment < 1.0")
    before = chromium.run("test.id")
    for number in range(1, 7):
        chromium.press(str(number))
        chromium.wait(f"player.track === '{number}' && player.playing && heard.has('{number}')")
        chromium.press("ArrowUp")
    assert chromium.run(f"{rows}.map(one => one.querySelector('output').textContent)") == ["51"] * 6
    moments = chromium.run(
        "new Promise(done => { const seen = []; const watch = () => { seen.push(player.moment);"
        " if (seen.length > 40) done(seen); else setTimeout(watch, 50); }; watch(); })"
    )
    assert max(moments) < 1.3 and min(moments) > 0.2  # seconds: it ran through the loop's end
    assert "refined" not in chromium.run("player.audio.src")
    chromium.run("setScore('2', 90)")
    assert (
        chromium.run("row('2').querySelector('input').getAttribute('aria-valuetext')")
        == "90, excellent"
    )
    chromium.run("document.getElementById('done').click()")
    chromium.wait(f"test !== null && test.id !== {before!r}")
    shown = chromium.run("document.getElementById('results').textContent")
    assert "refined bottom" in shown and "1 listener" in shown
    assert "Apart: listeners who missed the original" in shown  # 51 or 90 for the original
    (kept,) = [
        json.loads(line) for line in (house / "votes.ratings.jsonl").read_text().splitlines()
    ]
    assert sorted(kept["scores"].values()) == [51, 51, 51, 51, 51, 90]
    assert kept["scores"][kept["order"][1]] == 90
    wrong += accessibility.violations(chromium)
    for width in (320, 390):
        resize(chromium, width)
        assert not accessibility.too_wide(chromium), width
    assert not wrong, wrong
    assert chromium.run("document.getElementById('error').textContent") == ""


def test_the_server_sends_every_recording_of_an_open_test_and_no_other(served: str) -> None:
    question = {"conditions": ["bottom", "top"], "listener": "a program"}
    status, _, body = ask(served, "/api/tests", question)
    test = json.loads(body)
    assert status == 200
    for address in test["audio"].values():
        status, headers, _ = ask(served, address)
        assert status == 200 and headers["content-type"] in ("audio/wav", "audio/flac")
    for path in (f"/api/stimuli/{test['id']}/5", "/api/stimuli/none/1"):
        assert ask(served, path)[0] == 404
    assert ask(served, "/api/ratings", {"test": test["id"], "scores": {"1": 3}})[0] == 400
    assert RATE == 11025  # whose anchor ends at 1.8 kHz
