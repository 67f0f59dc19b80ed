"""Folders of samples and sites that somebody else may write to: what is read, copied and served of them, and how."""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fixtures import accessibility, browser
from fixtures.asgi import ask_app, served_in_a_thread
from fixtures.browser import Browser
from fixtures.explorer_samples import add_sample, read_data_script

from megajukebox.commands.explore import split_folders
from megajukebox.common.errors import UserError
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders import spectrograms
from megajukebox.explorer.loaders.samples import read_samples
from megajukebox.explorer.server import static_files
from megajukebox.explorer.server.access import AccessRules
from megajukebox.explorer.server.api import application
from megajukebox.explorer.server.static_files import Library
from megajukebox.explorer.site_builder import build_site
from megajukebox.explorer.site_files import own_folder

SCRIPT = b"<script>document.title = 'PWNED'</script>"


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """samples/ with one good sample, which an insider then adds to, and a secret outside."""
    add_sample(tmp_path / "samples", "good")
    (tmp_path / "private").mkdir()
    soundfile.write(tmp_path / "private" / "mine.wav", np.zeros(1000), 8000)
    (tmp_path / "secret.txt").write_text("the secret")
    return tmp_path


def application_over(root: Path) -> tuple[Any, Library]:
    library = Library([root / "samples"], root / "site")
    library.refresh()
    return application(library, root / "votes.jsonl", None, AccessRules(None, 80)), library


def add_hostile(samples: Path, audio: str, name: str = "evil") -> None:
    """A sample whose finished song is the file `audio` beside it."""
    add_sample(samples, name, levels=("bottom",))
    document = samples / f"{name}.json"
    document.write_text(document.read_text().replace(f'"{name}.wav"', f'"{audio}"'))


def test_a_recording_that_is_a_link_is_not_listed_served_or_copied(shared: Path) -> None:
    samples = shared / "samples"
    for name, target in (("a", shared / "secret.txt"), ("b", shared / "private" / "mine.wav")):
        add_hostile(samples, f"{name}-link.wav", name)
        (samples / f"{name}-link.wav").symlink_to(target)
    listed, _ = read_samples([samples])
    assert {sample.name: set(sample.audio) for sample in listed}["b"] == set()
    app, _ = application_over(shared)
    for name in ("a", "b"):
        assert ask_app(app, f"/samples/{name}-link.wav")[0] == 404
    build_site([samples], [], shared / "copied", copy_audio=True)
    copies = [path.name for path in (shared / "copied" / "audio").iterdir()]
    assert sorted(copies) == ["good.bottom.wav", "good.middle.wav", "good.top.wav"]
    assert all("secret" not in path.read_text(errors="replace") for path in files(shared))


def files(root: Path) -> list[Path]:
    return [
        path for site in ("site", "copied") for path in (root / site).rglob("*.*") if path.is_file()
    ]


def test_a_recording_that_becomes_a_link_after_it_was_listed_is_not_served(shared: Path) -> None:
    app, library = application_over(shared)
    recording = shared / "samples" / "good.wav"
    assert ask_app(app, "/samples/good.wav")[0] == 200
    recording.unlink()
    recording.symlink_to(shared / "secret.txt")
    assert ask_app(app, "/samples/good.wav")[0] == 404
    recording.unlink()
    os.mkfifo(recording)
    assert ask_app(app, "/samples/good.wav")[0] == 404
    assert str(recording) in library.recordings


def test_lyrics_documents_and_folders_behind_links_are_left_out(shared: Path) -> None:
    samples = shared / "samples"
    add_sample(samples, "sung", lyrics="la la")
    for extension in (".lrc", ".txt"):
        (samples / f"sung{extension}").symlink_to(shared / "secret.txt")
    add_sample(shared / "private", "hidden")
    (samples / "linked.json").symlink_to(shared / "private" / "hidden.json")
    (samples / "folder").symlink_to(shared / "private")
    listed, problems = read_samples([samples])
    assert {sample.name for sample in listed} == {"good", "sung"}
    assert [(one.name, "link" in one.reason) for one in problems] == [("linked.json", True)]
    build_site([samples], [], shared / "site")
    assert b"the secret" not in (shared / "site" / "sample" / "sung.html").read_bytes()


def test_a_link_to_the_folder_that_is_given_is_followed(shared: Path) -> None:
    (shared / "scratch").symlink_to(shared / "samples")
    listed, _ = read_samples([shared / "scratch"])
    assert [sorted(sample.audio) for sample in listed] == [["bottom", "middle", "top"]]
    add_sample(shared / "outside", "theirs")
    (shared / "runs" / "a").mkdir(parents=True)
    (shared / "runs" / "a" / "run.yaml").write_text("stage: vqvae\n")
    (shared / "runs" / "a" / "samples").symlink_to(shared / "outside")
    assert split_folders([shared / "runs"], needed=True) == ([], [shared / "runs"])


def test_pipes_and_locked_folders_stop_nobody(shared: Path) -> None:
    samples = shared / "samples"
    os.mkfifo(samples / "pipe.json")
    add_hostile(samples, "pipe.wav")
    os.mkfifo(samples / "pipe.wav")
    (samples / "deep" / "er").mkdir(parents=True)
    os.mkfifo(samples / "deep" / "er" / "x.json")
    listed, problems = read_samples([samples])
    assert {sample.name: len(sample.audio) for sample in listed} == {"evil": 0, "good": 3}
    assert {one.name for one in problems} == {"pipe.json", "deep/er/x.json"}


@pytest.mark.parametrize("name", ["evil.html", "evil.js", "evil.svg", "evil.wav.html", "evil"])
def test_only_what_ends_like_audio_is_a_recording(shared: Path, name: str) -> None:
    add_hostile(shared / "samples", name)
    (shared / "samples" / name).write_bytes(SCRIPT)
    app, library = application_over(shared)
    assert not library.by_name["evil"].audio
    assert ask_app(app, f"/samples/{name}")[0] == 404


def test_a_recording_is_audio_to_a_browser_whatever_it_holds(shared: Path) -> None:
    add_hostile(shared / "samples", "evil.wav")
    (shared / "samples" / "evil.wav").write_bytes(SCRIPT)
    app, _ = application_over(shared)
    status, headers, body = ask_app(app, "/samples/evil.wav")
    assert (status, headers["content-type"], body) == (200, "audio/wav", SCRIPT)
    assert headers["content-security-policy"].startswith("sandbox")
    assert headers["x-content-type-options"] == "nosniff"


def test_pages_are_served_from_the_site_alone_even_when_it_holds_the_samples(shared: Path) -> None:
    (shared / "samples" / "page.html").write_bytes(SCRIPT)
    library = Library([shared / "samples"], shared)
    library.refresh()
    app = application(library, shared / "votes.jsonl", None, AccessRules(None, 80))
    assert ask_app(app, "/samples/page.html")[0] == 404
    status, headers, _ = ask_app(app, "/index.html")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src 'self'" in headers["content-security-policy"]
    for name in ("notes.md", ".samples.json", "x.xhtml", "x.svg"):
        (shared / name).write_text("the secret")
        assert ask_app(app, f"/{name}")[0] == 404


def test_a_site_that_others_may_write_to_is_not_served(tmp_path: Path) -> None:
    own_folder(tmp_path / "site")
    (tmp_path / "site").chmod(0o775)
    with pytest.raises(UserError, match="chmod go-w"):
        own_folder(tmp_path / "site")


def test_a_page_that_somebody_else_wrote_is_not_served(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library([shared / "samples"], shared / "site")
    library.refresh()
    app = application(library, shared / "votes.jsonl", None, AccessRules(None, 80))
    assert ask_app(app, "/site/index.html")[0] == 200
    others = os.getuid() + 1
    monkeypatch.setattr(static_files.os, "getuid", lambda: others)  # as if the site was exchanged
    assert ask_app(app, "/site/blind.html")[0] == 404


def test_pages_are_for_their_owner_to_write_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        site_files.write(tmp_path / "index.html", b"page")
    finally:
        os.umask(before)
    assert (tmp_path / "index.html").stat().st_mode & 0o777 == 0o644


def test_a_file_of_the_site_is_never_written_through_a_link(shared: Path) -> None:
    (shared / "site").mkdir()
    for name in ("index.html", "index.html.partial"):
        (shared / "site" / name).symlink_to(shared / "secret.txt")
    build_site([shared / "samples"], [], shared / "site")
    assert (shared / "secret.txt").read_text() == "the secret"
    assert not (shared / "site" / "index.html").is_symlink()


def test_a_recording_that_is_too_much_is_listed_without_pictures(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spectrograms, "MAX_FRAMES", 5000)
    add_hostile(shared / "samples", "rate.wav", "rate")
    soundfile.write(shared / "samples" / "rate.wav", np.zeros(100), 2_000_000_000 // 4)
    build_site([shared / "samples"], [], shared / "site")
    page = (shared / "site" / "index.html").read_text()
    assert "too long to be drawn" in page and "is outside 100..192000" in page
    assert len(read_data_script(shared / "site" / "entries.js")) == 2


def test_one_sample_that_cannot_be_shown_hides_no_other(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_sample(shared / "samples", "odd")
    from megajukebox.explorer import site_builder

    entry = site_builder.entry

    def fails(sample: Any, links: Any) -> Any:
        assert sample.name != "odd"
        return entry(sample, links)

    monkeypatch.setattr(site_builder, "entry", fails)
    build_site([shared / "samples"], [], shared / "site")
    assert [one["name"] for one in read_data_script(shared / "site" / "entries.js")] == ["good"]
    assert "odd.json" in (shared / "site" / "index.html").read_text()


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-3", 206, slice(0, 4)),
        ("bytes=-4", 206, slice(-4, None)),
        ("bytes=5-2", 200, slice(None)),
        ("bytes=0-3,5-6", 200, slice(None)),
        ("bytes=-0", 416, slice(0)),
        (f"bytes={'9' * 5000}-", 200, slice(None)),
        ("bytes=٣-", 200, slice(None)),
        ("bytes=999999999-", 416, slice(0)),
    ],
)
def test_ranges_are_what_they_say_or_nothing(
    shared: Path, asked: str, status: int, part: slice
) -> None:
    app, _ = application_over(shared)
    whole = (shared / "samples" / "good.wav").read_bytes()
    asked = asked.encode().decode("latin-1")
    answered, headers, body = ask_app(app, "/samples/good.wav", Range=asked)
    assert answered == status and int(headers["content-length"]) == len(body)
    if status != 416:
        assert body == whole[part]
        assert ask_app(app, "/samples/good.wav", method="HEAD", Range=asked)[2] == b""
    etag = ask_app(app, "/samples/good.wav")[1]["etag"]
    assert ask_app(app, "/samples/good.wav", Range="bytes=0-3", If_Range=etag)[0] == 206
    assert ask_app(app, "/samples/good.wav", Range="bytes=0-3", If_Range='"old"')[0] == 200


def test_readers_that_wait_for_pipes_would_take_all_threads(shared: Path) -> None:
    """45 requests at once, as many as stopped the server before, all answered."""
    os.mkfifo(shared / "samples" / "x.json")
    app, _ = application_over(shared)
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(ask_app(app, "/site/index.html")[0]))
        for _ in range(45)
    ]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == [200] * 45 and time.monotonic() - begun < 60


needs_chromium = pytest.mark.skipif(
    browser.binary() is None, reason="no chromium on this machine: apt install chromium"
)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@needs_chromium
def test_chromium_runs_nothing_of_a_recording(shared: Path, tab: Browser) -> None:
    """A page and its script, named as levels of a sample, ran in the server's origin and read its API."""
    samples = shared / "samples"
    add_hostile(samples, "evil-page.html")
    add_hostile(samples, "page.wav", "wave")
    add_hostile(samples, "script.wav", "script")
    page = b"<script src='evil.js'></script><script>document.title = 'PWNED'</script>"
    for name in ("evil-page.html", "page.wav"):
        (samples / name).write_bytes(page)
    for name in ("evil.js", "script.wav"):
        (samples / name).write_bytes(b"document.title = 'PWNED'")
    app, _ = application_over(shared)
    load = """new Promise(done => { const script = document.createElement('script');
        script.src = '/samples/script.wav'; script.onload = () => done('ran');
        script.onerror = () => done('refused'); document.head.append(script) })"""
    with served_in_a_thread(app) as port:
        for path in ("samples/page.wav", "samples/evil-page.html", "samples/evil.js"):
            tab.open(f"http://127.0.0.1:{port}/{path}")
            assert tab.run("document.title") != "PWNED"
        tab.open(f"http://127.0.0.1:{port}/site/sample/evil.html")
        assert "evil-page" not in tab.run("document.querySelector('main').innerHTML")
        assert tab.run(load) == "refused" and tab.run("document.title") != "PWNED"


@needs_chromium
def test_the_token_can_be_pasted_into_the_page_that_asks_for_it(shared: Path, tab: Browser) -> None:
    library = Library([shared / "samples"], shared / "site")
    library.refresh()
    app = application(library, shared / "votes.jsonl", None, AccessRules("a-token", 80))
    with served_in_a_thread(app) as port:
        tab.open(f"http://127.0.0.1:{port}/site/index.html")
        assert tab.run("document.querySelector('h1').textContent") == "A token is needed"
        assert accessibility.violations(tab) == []
        tab.run(
            "document.querySelector('input').value = ' a-token ', document.forms[0].requestSubmit()"
        )
        tab.wait("location.pathname === '/site/index.html' && document.querySelector('nav')")
        assert tab.run("location.search") == ""
