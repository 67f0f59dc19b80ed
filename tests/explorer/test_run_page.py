"""The pages of runs: what is wrong, where time went, what happened when, samples along training, differences."""

import json
import re
import time
from html import unescape
from pathlib import Path

import pytest
import yaml
from fixtures.browser import Browser, binary, chromium
from fixtures.explorer_samples import add_sample
from fixtures.fake_runs import PretendRun

from megajukebox.commands.explore import build as explore
from megajukebox.explorer.loaders.runs import find_previews, flat_settings
from megajukebox.explorer.site_builder import write_runs, write_static
from megajukebox.records.events import BadSampleSkipped, HangDetected

HOSTILE = '"><img src=x onerror="window.owned=1"></script><script>window.owned=1</script>'


def write(folder: Path) -> Path:
    write_static(folder / "site")
    write_runs([folder / "runs"], folder / "site")
    return folder / "site"


def page(folder: Path, name: str = "run") -> str:
    return (write(folder) / "run" / f"{name}.html").read_text()


@pytest.fixture
def run(tmp_path: Path) -> PretendRun:
    """Restarted once after a hang, and alive."""
    run = PretendRun(tmp_path / "runs" / "run", now=time.time() - 372).start(init=20).train(150)
    run.log.event(HangDetected(step=run.step, reason="rank 1 was in step for 320 s"))
    return run.die(away=60).start(init=20).train(110).beat()


def test_the_page_says_where_the_run_stands_and_where_its_time_went(
    run: PretendRun, tmp_path: Path
) -> None:
    text = page(tmp_path)
    assert (
        "training steps that were kept" in text
        and "steps trained again" in text
        and "no process" in text
    )
    assert text.count('class="attempt"') == 2
    assert "hang at step 150: rank 1 was in step for 320 s" in text
    assert 'class="mark hang"' in text and 'class="mark resume"' in text


def test_the_page_says_where_a_step_goes_and_what_is_queued(
    run: PretendRun, tmp_path: Path
) -> None:
    run.train(10, communication_seconds=0.25).beat()
    queue = {
        "time": time.time(),
        "array": "1",
        "queued": 3,
        "schema": 2,
        "end_time": time.time() + 7228,
        "queued_seconds": 1e6,
    }
    (run.folder / "slurm_chain.json").write_text(json.dumps(queue))
    text = page(tmp_path)
    assert "forward and backward 74%, communication 25%, saves 2%, data wait 0%" in text
    assert "2 h 0 min +3 queued" in text


def test_what_is_wrong_stands_on_top_with_what_to_do(run: PretendRun, tmp_path: Path) -> None:
    run.train(10, loss=float("nan")).beat()
    text = page(tmp_path)
    assert text.index("LossNaN") < text.index("Curves") and "docs/RUNBOOK.md#jukeboxlossnan" in text
    assert "LossNaN" in (tmp_path / "site" / "runs.html").read_text()


def test_a_living_run_reloads_and_a_finished_one_does_not(run: PretendRun, tmp_path: Path) -> None:
    assert "data-live" in page(tmp_path)
    run.end("done")
    assert "data-live" not in page(tmp_path)


def test_samples_along_training_are_there_newest_first(run: PretendRun, tmp_path: Path) -> None:
    for step in (100, 200):
        folder = run.folder / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "top.wav").write_bytes(b"RIFF")
        (folder / "notes.txt").write_text("no recording")
    text = page(tmp_path)
    assert text.index("step 200") < text.index("step 100") and "notes" not in text
    assert "../../runs/run/samples/step-00000200/top.wav" in text


def test_previews_of_a_prior_are_listed_by_step(run: PretendRun, tmp_path: Path) -> None:
    """The folders as `megajukebox preview` leaves them: recordings by level, their records, its log."""
    for step in (450, 900):
        folder = run.folder / "samples" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        for number in (0, 1):
            add_sample(folder, f"sample-{number}", levels=("top", "bottom"), lyrics="la la")
        (folder / "listen.log").write_text("sample-0.json")
    found = [(sample.step, sample.path.name) for sample in find_previews(run.folder)]
    names = ["sample-0.top.wav", "sample-0.wav", "sample-1.top.wav", "sample-1.wav"]
    assert found == [(step, name) for step in (900, 450) for name in names]
    explore(
        [tmp_path / "runs"], out=tmp_path / "site"
    )  # also takes a run's samples as a folder of samples
    text = (tmp_path / "site" / "run" / "run.html").read_text()
    assert (
        all(f"samples/step-{step:08d}/{name}" in text for step, name in found)
        and "listen.log" not in text
    )


def test_no_file_outside_the_run_is_ever_linked_or_copied(run: PretendRun, tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(b"secret")
    folder = run.folder / "samples" / "step-00000100"
    folder.mkdir(parents=True)
    (folder / "link.wav").symlink_to(tmp_path / "secret.wav")
    (run.folder / "samples" / "step-00000200").symlink_to(tmp_path)
    assert find_previews(run.folder) == []
    write_runs([tmp_path / "runs"], tmp_path / "site", copy_audio=True)
    assert not [
        path
        for path in (tmp_path / "site").rglob("*")
        if path.is_file() and b"secret" in path.read_bytes()
    ]


def test_secrets_of_a_config_are_on_no_page(run: PretendRun, tmp_path: Path) -> None:
    with (run.folder / "run.yaml").open("a") as file:
        file.write("extra: {api_key: hunter2-hunter2, data: 'https://me:sesame@host/songs'}\n")
    site = write(tmp_path)
    written = b"".join(path.read_bytes() for path in site.rglob("*") if path.is_file())
    assert b"hunter2" not in written and b"sesame" not in written


def test_settings_are_flat_and_broken_ones_are_none() -> None:
    assert flat_settings("a: {b: [1, 2], c: {}}\nd: x") == {
        "a.b": "[1, 2]",
        "a.c": "{}",
        "d": '"x"',
    }
    assert flat_settings("a: [") == {} and flat_settings("- 1") == {}


# --- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory):
    if binary() is None:
        pytest.skip("chromium is not installed")
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def test_two_runs_are_compared_setting_by_setting(
    browser: Browser, run: PretendRun, tmp_path: Path
) -> None:
    PretendRun(tmp_path / "runs" / "other", steps=77).start()
    browser.open((write(tmp_path) / "run" / "run.html").as_uri())
    browser.run("other.value = 'other'; other.dispatchEvent(new Event('change')); true")
    browser.wait("document.querySelector('#differences table')")
    text = browser.run("document.querySelector('#differences').innerText")
    assert re.search(r"preset\.training\.top_prior\.steps\s+1000\s+77", text) and "seed" not in text


def test_hostile_names_reasons_and_settings_are_shown_and_never_run(
    browser: Browser, tmp_path: Path
) -> None:
    name = HOSTILE.replace("/", "_")
    for number in (name, "other"):
        run = PretendRun(tmp_path / "runs" / number).start().train(20, **{HOSTILE: 1.0})
        event = {"event": "hang", "time": run.now, "step": 10, "reason": HOSTILE, HOSTILE: HOSTILE}
        with (run.folder / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")
        (run.folder / "run.yaml").write_text(
            json.dumps({HOSTILE: HOSTILE, "stage": HOSTILE, "n": number})
        )
        folder = run.folder / "samples" / "step-00000010"
        folder.mkdir(parents=True)
        (folder / f"{name}.wav").write_bytes(b"RIFF")
    site = write(tmp_path)
    for path in [site / "runs.html", *(site / "run").glob("*.html")]:
        browser.open(path.as_uri())
        if path.parent.name == "run":
            browser.run("other.selectedIndex = 1; other.dispatchEvent(new Event('change')); true")
            browser.wait("document.querySelector('#differences table')")
        assert browser.run("typeof owned") == "undefined", path
        assert not browser.run("!!document.querySelector('img')") and "onerror=" in browser.run(
            "document.body.innerText"
        )


def test_hostile_lyrics_are_shown_as_they_are_and_never_run(
    browser: Browser, tmp_path: Path
) -> None:
    """Lyrics reach a run's page by its settings, by an event that quotes them, and by its previews."""
    run = PretendRun(tmp_path / "runs" / "run").start().train(20)
    run.log.note(
        BadSampleSkipped(
            shard="songs-000000.tar",
            key="song",
            reason=f"lyrics {HOSTILE} are longer than the song",
        )
    )
    with (run.folder / "run.yaml").open("a") as file:
        file.write(yaml.safe_dump({"lyrics": HOSTILE}))
    folder = run.folder / "samples" / "step-00000020"
    folder.mkdir(parents=True)
    add_sample(folder, "sample-0", lyrics=HOSTILE, artist=HOSTILE)
    (folder / "sample-0.txt").write_text(HOSTILE)
    explore([tmp_path / "runs"], out=tmp_path / "site")
    for path in (tmp_path / "site").rglob("*.html"):
        browser.open(path.as_uri())
        assert browser.run("typeof owned") == "undefined", path
        assert not browser.run("!!document.querySelector('img[src=x]')"), path
    browser.open((tmp_path / "site" / "run" / "run.html").as_uri())
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true); true")
    assert browser.run("document.body.innerText").count("window.owned=1") >= 2, (
        "the event's, and the settings'"
    )


def test_scores_of_checkpoints_are_drawn_over_steps_and_the_newest_listed_in_full(
    run: PretendRun, tmp_path: Path
) -> None:
    lines = [
        {
            "step": step,
            "scores": {
                "bits/top/bits_per_code": {
                    "value": 7 - step / 100,
                    "low": 5.5,
                    "high": 6.5,
                    "count": 6,
                    "better": -1,
                },
                "bits/top/entropy_bits": {
                    "value": 7.4,
                    "low": None,
                    "high": None,
                    "count": 6,
                    "better": 0,
                },
            },
        }
        for step in (100, 50)
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 150, "sco'
    assert "<h2>Scores" not in page(tmp_path)
    (run.folder / "scores.jsonl").write_text(text)
    html = page(tmp_path)
    assert "top bits per code" in html and "[[50, 6.5], [100, 6.0]]" in unescape(html)
    assert "bits/top/entropy_bits" in html and "5.5 to 6.5" in html
    assert (
        "scores.jsonl" in html and "1 of 3 lines" in html
    )  # the line that a crash cut is reported
