"""The explorer's server: what it serves, what it refuses, votes and songs made through real pages."""

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import environment
from fixtures import accessibility, browser
from fixtures.browser import Browser
from fixtures.explorer_samples import RATE, add_run, add_sample, metrics
from fixtures.explorer_server import ask, ask_json, serving, sign_in, signed_in
from fixtures.tiny_jukebox import write_runs

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.explorer.server.studio_jobs import Studio
from megajukebox.explorer.server.uploads import MAX_SECONDS, UploadStore

needs_chromium = pytest.mark.skipif(
    browser.binary() is None, reason="no chromium on this machine: apt install chromium"
)
HOSTILE = "</script><img src=x onerror=\"window.owned='yes'\"> & 'q'"


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """old/ and new/ with samples of the same requests by two runs, jukebox/ with a tiny one, and a secret."""
    root = tmp_path_factory.mktemp("house")
    for run in ("old", "new"):
        for seed in range(2):
            add_sample(root / run, f"song-{seed}", seconds=2.0, runs=f"runs/{run}", seed=seed)
    add_sample(root / "old", "hostile <b>", artist=HOSTILE, lyrics=HOSTILE, runs="runs/old", seed=9)
    write_runs(root / "jukebox")
    add_run(root / "jukebox" / "trained", metrics(40), [{"time": 1e9, "event": "save", "step": 20}])
    (root / "secret.txt").write_text("secret")
    (root / "old" / "notes.txt").write_text("secret")
    (root / "old" / "unlisted.wav").write_bytes(b"secret")
    return root


@pytest.fixture(scope="module")
def served(house: Path) -> Iterator[str]:
    with serving(
        house / "old", house / "new", "--run", house / "jukebox", "--out", house / "site"
    ) as address:
        (house / "site" / "way-out.txt").symlink_to(house / "secret.txt")
        yield signed_in(address)


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


def test_it_serves_the_site_and_its_recordings_by_range(served: str) -> None:
    status, headers, _ = ask(served, "/")
    assert status == 303 and headers["location"] == "/site/index.html"
    status, headers, body = ask(served, "/site/index.html")
    assert (
        status == 200
        and b"<!doctype html>" in body
        and "script-src 'self'" in headers["content-security-policy"]
    )
    status, headers, body = ask(served, "/old/song-0.wav", Range="bytes=4-11")
    assert (status, len(body), headers["content-type"]) == (206, 8, "audio/wav") and body[
        4:
    ] == b"WAVE"
    assert b"const served = {" in ask(served, "/site/static/served.js")[2]


@pytest.mark.parametrize(
    "path",
    [
        "/secret.txt",
        "/site/../secret.txt",
        "/site/%2e%2e/secret.txt",
        "/site/..%2fsecret.txt",
        "/../../../etc/passwd",
        "//etc/passwd",
        "/site/way-out.txt",
        "/old/notes.txt",
        "/old/unlisted.wav",
        "/old/",
        "/site",
        "/site/",
        "/old/../site/%00",
        "/old/song-0.json",
        "/jukebox/vqvae/model.json",
        "/site/static",
        "/api/nothing",
        "/votes.jsonl",
        "/old/.studio",
        "/%ff%fe",
    ],
)
def test_nothing_else_of_the_disk_can_be_had(served: str, path: str) -> None:
    status, _, body = ask(served, path)
    assert status == 404 and b"secret" not in body and b"root:" not in body


def test_the_form_and_options_of_version_0_1_still_serve(house: Path) -> None:
    verb = ("megajukebox.cli", "explore", "--serve")
    options = ("--most-seconds", "100", "--most-songs", "4", "--run", house / "jukebox")
    with serving(
        house / "new", *options, "--out", house / "old-form" / "site", verb=verb
    ) as address:
        assert ask_json(signed_in(address), "/api/studio")["seconds"] == 100


def test_only_loopback_names_and_its_own_pages_are_answered(served: str) -> None:
    question = {"field": "run", "a": "runs/old", "b": "runs/new"}
    assert ask(served, "/site/index.html", Host="evil.example:80")[0] == 403
    assert ask(served, "/api/trials", question, Origin="http://evil.example")[0] == 403
    assert ask(served, "/api/trials", question, Origin=served)[0] == 200
    assert ask(served, "/api/trials", question)[0] == 200  # a program, not a page


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
def test_every_request_needs_the_token_on_loopback_too(house: Path, host: str) -> None:
    with serving(house / "new", "--out", house / "elsewhere" / "site", host=host) as printed:
        address, _, token = printed.partition("/?token=")
        assert len(token) > 30
        assert [ask(address, path)[0] for path in ("/", "/api/votes", "/?token=wrong")] == [
            401,
            401,
            401,
        ]
        status, headers, _ = ask(address, f"/elsewhere/site/index.html?token={token}")
        assert status == 303 and headers["location"] == "/elsewhere/site/index.html"
        assert "HttpOnly" in headers["set-cookie"] and "SameSite=strict" in headers["set-cookie"]
        cookie = headers["set-cookie"].split(";")[0]
        assert cookie.startswith(f"megajukebox-{address.rpartition(':')[2]}=")
        assert ask(address, "/elsewhere/site/index.html", Cookie=cookie)[0] == 200
        for away in ("//evil.example/x", "/%5cevil.example", "/\\evil.example"):
            status, headers, _ = ask(address, f"{away}?token={token}")
            assert status == 303 and re.match(r"/(?![/\\])", headers["location"])
        _, headers, page = ask(address, "/elsewhere/site/index.html")
        assert b"megajukebox explore serve" in page and headers["content-type"].startswith(
            "text/html"
        )
        assert "token" in json.loads(ask(address, "/api/votes")[2])["error"]
        assert ask(address, "/api/votes", Authorization=f"Bearer {token}")[0] == 200


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("/api/trials", b"{", "Expecting"),
        ("/api/trials", [], "no JSON object"),
        ("/api/trials", b"[" * 100_000, "deeper than 64"),
        ("/api/trials", {"field": "run", "a": "x", "b": "y"}, "no request in common"),
        ("/api/votes", {"trial": "x", "vote": "a"}, "not open"),
        ("/api/songs", {"seconds": -1}, "seconds"),
        ("/api/songs", {"seconds": 1e9}, "seconds"),
        ("/api/songs", {"seconds": 300}, "at most 240"),
        ("/api/songs", {"sampler": "magic"}, "none of autoregressive"),
        ("/api/songs", {"prompt": "/etc/passwd"}, "prompt"),
        ("/api/songs", {"id": "../x"}, "id"),
        ("/api/songs", {"upload": "../../x"}, "not here any more"),
        ("/api/songs", {"lyrics": "x" * 300_000}, "larger than 256 kB"),
        ("/api/songs/none/cancel", {}, "no such song"),
        ("/api/uploads", b"this is no recording", "no sound is in it"),
    ],
)
def test_what_cannot_be_meant_so_is_refused_in_words(
    served: str, path: str, body: Any, why: str
) -> None:
    status, _, answer = ask(served, path, body)
    assert status == (413 if "larger" in why else 400) and why in json.loads(answer)["error"]


def recording(seconds: float, rate: int = RATE, channels: int = 1) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(1).uniform(-0.1, 0.1, (round(seconds * rate), channels))
    soundfile.write(file, noise, rate, format="FLAC")
    return file.getvalue()


def test_uploads_are_bounded_and_become_plain_recordings_of_ours(
    served: str, tmp_path: Path
) -> None:
    kept = ask_json(served, "/api/uploads", recording(1.5, channels=2))
    assert kept["seconds"] == pytest.approx(1.5, abs=0.001) and len(kept["id"]) == 16
    assert (
        "too long"
        in ask_json(served, "/api/uploads", recording(MAX_SECONDS + 1, rate=8000))["error"]
    )
    uploads = UploadStore(tmp_path / "uploads")
    for name, content in (
        ("empty", b""),
        ("cut", recording(4)[:9000]),
        ("lying", b"fLaC" + bytes(range(256)) * 20),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="cannot be used"):
            uploads.decode(tmp_path / name)
    assert list((tmp_path / "uploads").iterdir()) == []


def test_uploads_go_when_the_server_ends(house: Path) -> None:
    options = ("--run", house / "jukebox", "--out", house / "short" / "site")
    with serving(house / "new", *options) as printed:
        address = signed_in(printed)
        assert ask_json(address, "/api/uploads", recording(0.2))["id"]
        (kept,) = (house / "new" / ".studio" / "uploads").iterdir()
        assert kept.stat().st_mode & 0o077 == 0 == kept.parent.stat().st_mode & 0o077
    assert not kept.exists()


def test_an_upload_larger_than_allowed_is_stopped_on_the_way(served: str) -> None:
    status, _, answer = ask(served, "/api/uploads", bytes(65 << 20))
    assert status == 413 and "larger than 64 MB" in json.loads(answer)["error"]


def finished(address: str, identity: str, seconds: float = 120) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        job = next(
            song for song in ask_json(address, "/api/songs")["songs"] if song["id"] == identity
        )
        if job["state"] not in ("queued", "generating"):
            return job
        time.sleep(0.2)
    raise AssertionError(f"{identity} did not end")


@needs_chromium
def test_a_song_is_made_in_the_studio_and_heard_in_the_list(
    chromium: Browser, served: str, house: Path
) -> None:
    sign_in(chromium, served)
    chromium.open(f"{served}/site/studio.html")
    chromium.wait("limits !== null")
    assert chromium.run("[limits.artists, limits.samplers]") == [
        ["ilune", "orrin"],
        ["autoregressive"],
    ]
    song = {"artist": HOSTILE, "genres": "waltz, dub", "lyrics": "la la", "seconds": 0.5, "seed": 5}
    for name, value in song.items():
        chromium.run(f"form[{name!r}].value = {json.dumps(value)}")
    chromium.run("form.requestSubmit()")
    job = (
        "[...document.querySelectorAll('.job')].find(job => job.querySelector('strong').textContent === "
        + (
            f"{json.dumps(HOSTILE)})"  # others may have made songs before
        )
    )
    chromium.wait(
        f"{job}?.querySelector('audio') || document.querySelector('#trouble').textContent", 240
    )
    assert chromium.run("document.querySelector('#trouble').textContent") == ""
    assert chromium.run("typeof owned") == "undefined"
    chromium.run(f"{job}.querySelector('a').click()")
    chromium.wait(
        "typeof strips !== 'undefined' && player.song && document.readyState === 'complete'"
    )
    assert chromium.run("document.querySelector('h1').textContent") == HOSTILE
    song = chromium.run("player.audio.src").removeprefix(
        served
    )  # at 1 kHz: Chromium plays none so low
    assert soundfile.info(io.BytesIO(ask(served, song)[2])).duration == pytest.approx(0.5, abs=0.1)
    chromium.open(f"{served}/site/index.html#run={house / 'jukebox'}")
    ours = "shown.find(song => song.seed === '5')"
    chromium.wait(f"shown.length < 20 && {ours}")
    assert chromium.run(f"[{ours}.checkpoint, {ours}.genres.join()]") == ["step 5", "waltz,dub"]


def test_a_song_goes_on_from_an_upload(served: str, house: Path) -> None:
    upload = ask_json(served, "/api/uploads", recording(1.0))
    asked = {"seconds": 0.5, "upload": upload["id"], "prime_seconds": 0.25, "seed": 3}
    assert (
        "leave nothing" in ask_json(served, "/api/songs", asked | {"prime_seconds": 0.9})["error"]
    )
    job = finished(served, ask_json(served, "/api/songs", asked)["id"])
    assert (job["state"], job["reason"]) == ("done", "")
    made = json.loads((house / "old" / f"{job['id']}.json").read_text())["request"]
    assert (
        made["keep_seconds"] == 0.25
        and Path(made["prompt"]).parent == house / "old" / ".studio" / "uploads"
    )


def test_a_song_that_fails_says_why_and_the_next_is_made(served: str, house: Path) -> None:
    top = house / "jukebox" / "top_prior" / "model.safetensors"
    os.rename(top, top.with_suffix(".away"))
    try:
        job = ask_json(served, "/api/songs", {"seconds": 0.3})
        ended = finished(served, job["id"])
    finally:
        os.rename(top.with_suffix(".away"), top)
    assert ended["state"] == "failed" and ended["reason"]
    again = finished(served, ask_json(served, "/api/songs", {"seconds": 0.3, "seed": 2})["id"])
    assert (
        again["state"] == "done"
        and ask(served, again["audio"])[0] == 200
        and ask(served, again["page"])[0] == 200
    )


def test_the_model_stays_loaded_between_songs_and_is_read_again_when_it_changed(
    served: str, house: Path
) -> None:
    made = [
        finished(served, ask_json(served, "/api/songs", {"seconds": 0.3, "seed": seed})["id"])
        for seed in (7, 8)
    ]
    before = ask_json(served, "/api/songs")["model"]
    assert [job["state"] for job in made] == ["done", "done"]
    assert (
        before["loaded"]
        and before["songs"] >= 2
        and before["memory"] > 1e7
        and before["idle_minutes"] == 10
    )
    write_runs(house / "jukebox", lyrics="prefix")
    again = finished(served, ask_json(served, "/api/songs", {"seconds": 0.3, "seed": 8})["id"])
    assert (
        ask_json(served, "/api/songs")["model"]["songs"] == before["songs"] + 1
    )  # by the same process
    old, new = (
        json.loads((house / "old" / f"{job['id']}.json").read_text())["weights"]
        for job in (made[1], again)
    )
    assert old["top"] != new["top"]


# What stands in for the process with the model: it says when it began, and a song of so many seconds is its fate.
PRETENDER = """
import json, os, sys, time
from pathlib import Path
open(sys.argv[1], "a").write("began" + os.linesep)
for line in sys.stdin:
    order = json.loads(line)
    seconds = order["request"]["seconds"]
    while seconds == 8 and not Path(order["stop"]).exists():
        time.sleep(0.01)
    if seconds == 9:
        time.sleep(600)
    if seconds == 7:
        os.kill(os.getpid(), 9)
    state = "stopped" if Path(order["stop"]).exists() else "done"
    print(json.dumps({"state": state, "reason": "", "memory": 5, "gpu_memory": 0}), flush=True)
"""


@pytest.fixture
def pretending(tmp_path: Path) -> Iterator[Any]:
    """Makes a Studio whose songs are made by the pretender; `began` counts its processes."""
    studios = []

    def make(**settings: Any) -> Studio:
        command = lambda run, samplers: [sys.executable, "-c", PRETENDER, str(tmp_path / "began")]  # noqa: E731
        settings = {"command": command, "stop_seconds": 5.0} | settings
        studios.append(
            Studio(tmp_path, tmp_path / "samples", tmp_path / "work", lambda: None, **settings)
        )
        return studios[-1]

    yield make
    for studio in studios:
        studio.close()


def began(folder: Path) -> int:
    return len((folder / "began").read_text().splitlines())


def test_a_cancelled_song_keeps_the_model_unless_it_does_not_stop(
    tmp_path: Path, pretending: Any
) -> None:
    studio = pretending()
    first, waiting, quick = (studio.enqueue({"seconds": seconds}) for seconds in (8, 8, 1))
    wait_for(lambda: first.state == "generating" and studio.sampler.alive)
    studio.cancel(waiting.id)
    studio.cancel(first.id)
    wait_for(lambda: quick.state == "done")
    assert (first.state, waiting.state, began(tmp_path)) == ("cancelled", "cancelled", 1)
    deaf, after = studio.enqueue({"seconds": 9}), studio.enqueue({"seconds": 1})
    wait_for(lambda: deaf.state == "generating")
    studio.cancel(deaf.id)
    wait_for(lambda: after.state == "done")
    assert (deaf.state, began(tmp_path)) == ("cancelled", 2)


def test_a_process_that_dies_loses_its_song_alone(tmp_path: Path, pretending: Any) -> None:
    studio = pretending()
    before, lost, after = (studio.enqueue({"seconds": seconds}) for seconds in (1, 7, 1))
    wait_for(lambda: after.state == "done")
    assert (before.state, lost.state, began(tmp_path)) == ("done", "failed", 2)
    assert "SIGKILL" in lost.reason and "memory" in lost.reason


def test_an_idle_model_is_let_go_and_comes_back(tmp_path: Path, pretending: Any) -> None:
    studio = pretending(idle_minutes=0.5 / 60)
    first = studio.enqueue({"seconds": 1})
    wait_for(lambda: first.state == "done")
    wait_for(lambda: not studio.sampler.alive)
    assert studio.model_status() == {
        "loaded": False,
        "songs": 1,
        "memory": 0,
        "gpu_memory": 0,
        "idle_minutes": 0.5 / 60,
    }
    second = studio.enqueue({"seconds": 1})
    wait_for(lambda: second.state == "done")
    assert began(tmp_path) == 2


def test_a_studio_that_closes_takes_its_process_along(pretending: Any) -> None:
    studio = pretending()
    song = studio.enqueue({"seconds": 9})
    wait_for(lambda: song.state == "generating" and studio.sampler.alive)
    studio.close()
    assert song.state == "cancelled" and not studio.sampler.alive


def wait_for(condition: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@needs_chromium
def test_a_blind_vote_is_cast_with_keys_kept_and_summed(
    chromium: Browser, served: str, house: Path
) -> None:
    sign_in(chromium, served)
    chromium.open(f"{served}/site/blind.html")
    chromium.wait("trial !== null && player.song !== null")
    assert chromium.run(
        "document.getElementById('unserved').hidden && !document.getElementById('trial').hidden"
    )
    chromium.press(" ")
    chromium.wait("player.playing && player.moment > 0.2")
    chromium.press("2")
    chromium.wait("player.track === 'B' && player.playing && player.audio.currentTime > 0.2")
    assert "old" not in chromium.run("player.audio.src") and "new" not in chromium.run(
        "player.audio.src"
    )
    before = chromium.run("trial.id")
    chromium.press("b")
    chromium.wait(
        f"trial !== null && trial.id !== {before!r} && document.getElementById('reveal').textContent !== ''"
    )
    assert (
        "1 of 1 for" in (tally := chromium.run("document.getElementById('tally').textContent"))
        or "0 of 1 for" in tally
    )
    (kept,) = [json.loads(line) for line in (house / "votes.jsonl").read_text().splitlines()]
    assert kept["field"] == "run" and {kept["a"], kept["b"]} == {"runs/old", "runs/new"}
    assert chromium.run("document.getElementById('error').textContent") == ""


@needs_chromium
def test_no_page_breaks_under_the_servers_policy(
    chromium: Browser, served: str, house: Path
) -> None:
    sign_in(chromium, served)
    noting = "addEventListener('securitypolicyviolation', event => { window.violation = event.violatedDirective })"
    chromium.call("Page.enable")
    source = f"window.violation = null; {noting}"
    assert (
        "bar-of-time" in (house / "site" / "run" / "trained.html").read_text()
    )  # what a style attribute once drew
    script = chromium.call("Page.addScriptToEvaluateOnNewDocument", source=source)
    for page in sorted((house / "site").rglob("*.html")):
        chromium.open(f"{served}/site/{page.relative_to(house / 'site')}")
        assert chromium.run("[window.violation, document.getElementById('error').textContent]") == [
            None,
            "",
        ], page
        assert chromium.run("typeof owned") == "undefined"
    chromium.call("Page.removeScriptToEvaluateOnNewDocument", **script)
    chromium.call("Page.disable")


@needs_chromium
def test_served_pages_break_no_wcag_in_either_theme(chromium: Browser, served: str) -> None:
    sign_in(chromium, served)
    wrong, _ = {}, finished(served, ask_json(served, "/api/songs", {"seconds": 0.3})["id"])
    ready = {
        "studio": "limits !== null && document.querySelector('.job')",
        "blind": "trial !== null",
    }
    for page in ("studio", "blind", "compare"):
        chromium.open(f"{served}/site/{page}.html")
        chromium.wait(ready.get(page, "player.song !== null"))
        wrong[page] = accessibility.violations(chromium)
    assert not any(wrong.values()), wrong


def test_a_taken_port_and_a_missing_run_are_said_in_one_line(house: Path, served: str) -> None:
    port = served.rpartition(":")[2]
    taken, missing = (house / "old", "--port", port), ("--run", house)
    for arguments, why in ((taken, "choose another --port"), (missing, "vqvae/model.json")):
        command = [
            sys.executable,
            "-m",
            "megajukebox.commands.explore",
            "serve",
            *map(str, arguments),
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=120
        )
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == EXIT_FATAL and last.startswith("explore serve: ") and why in last
