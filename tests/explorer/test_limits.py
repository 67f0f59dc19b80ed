"""How much the pages' server can be asked, how often and how slowly, and who may ask at all."""

import io
import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from fixtures.asgi import ask_app, served_in_a_thread
from fixtures.explorer_samples import add_sample

from megajukebox.explorer.server import (
    api,
    json_handlers,
    request_limits,
    serve,
    studio_jobs,
    uploads,
)
from megajukebox.explorer.server.access import AccessRules
from megajukebox.explorer.server.request_limits import RateLimit, RequestRefused
from megajukebox.explorer.server.static_files import Library
from megajukebox.explorer.server.studio_form import StudioOptions
from megajukebox.explorer.server.studio_jobs import Studio
from megajukebox.explorer.server.uploads import UploadStore

SLOW = "import sys, time; time.sleep(600)"  # stands in for a process that samples


@pytest.fixture
def library(tmp_path: Path) -> Library:
    for run in ("old", "new"):
        add_sample(tmp_path / run, "song", runs=f"runs/{run}", levels=("bottom",))
    library = Library([tmp_path / "old", tmp_path / "new"], tmp_path / "site")
    library.refresh()
    return library


def pages(library: Library, token: str | None = None, services: Any = None) -> Any:
    return api.application(
        library, library.out.parent / "votes.jsonl", services, AccessRules(token, 80)
    )


# ---- Who may ask.


def test_an_origin_that_is_no_address_is_refused_like_any_other(library: Library) -> None:
    for origin in ("http://[::1", "http://", "null", "", "127.0.0.1:80", "https://evil.example"):
        assert ask_app(pages(library), "/api/votes", {}, Origin=origin)[0] == 403
    assert ask_app(pages(library), "/api/votes", {}, Origin="http://127.0.0.1:80")[0] == 400


def test_on_loopback_only_its_names_are_answered(library: Library) -> None:
    app = pages(library)
    ours = ("127.0.0.1:8377", "localhost", "LOCALHOST:9", "[::1]:8377", "127.9.9.9:80")
    assert [ask_app(app, "/", Host=host)[0] for host in ours] == [303] * len(ours)
    evil = ("127.0.0.1.evil.example", "localhost.evil.example:80", "evil.example:127.0.0.1", "")
    assert [ask_app(app, "/", Host=host)[0] for host in evil] == [403] * len(evil)


def test_text_that_no_utf8_can_hold_is_answered_like_any_other(library: Library) -> None:
    question = b'{"field": "run", "a": "\\ud800", "b": "x", "voter": "\\udfff"}'
    status, _, said = ask_app(pages(library), "/api/trials", question)
    assert status == 400 and "no request in common" in json.loads(said)["error"]


def test_the_page_without_a_token_says_where_it_is_and_loads_nothing(library: Library) -> None:
    status, headers, page = ask_app(pages(library, "secret-token"), "/site/index.html")
    assert status == 401 and headers["connection"] == "close"
    assert b"megajukebox explore serve" in page and b"not the server's" not in page
    assert b"<script" not in page and b"src=" not in page
    assert "script-src" not in headers["content-security-policy"]
    _, _, page = ask_app(pages(library, "secret-token"), "/?token=wrong")
    assert b"not the server's" in page and b"secret-token" not in page
    status, _, body = ask_app(pages(library, "secret-token"), "/api/votes")
    assert status == 401 and "explore serve" in json.loads(body)["error"]


# ---- How slowly, and how many at once.


def half_sent(port: int, begun: bytes = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(begun)
    return connection


def answer(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def test_half_sent_requests_keep_nobody_out(library: Library) -> None:
    """128 of them stopped the server for as long as they stayed."""
    with served_in_a_thread(pages(library, "token")) as port:
        held = [half_sent(port) for _ in range(300)]
        request = b"GET /api/votes HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer token\r\nConnection: close\r\n\r\n"
        for _ in range(3):
            assert answer(half_sent(port, request)).startswith(b"HTTP/1.1 200")
        for connection in held:
            connection.close()


def test_slow_headers_and_bodies_get_a_sentence_and_an_end(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "HEADER_SECONDS", 1.0)
    monkeypatch.setattr(serve, "BODY_SECONDS", 1.5)
    monkeypatch.setattr(serve, "REFUSED_SECONDS", 0.1)
    monkeypatch.setattr(json_handlers, "JSON_SECONDS", 0.5)
    with served_in_a_thread(pages(library)) as port:
        slow = half_sent(port)
        dripping = half_sent(port, b"G")
        threading.Thread(target=drip, args=(dripping,), daemon=True).start()
        body = half_sent(
            port, b"POST /api/votes HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n{"
        )
        unread = half_sent(
            port, b"GET /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n"
        )
        threading.Thread(target=drip, args=(unread, 5), daemon=True).start()
        assert b" 408 " in (said := answer(slow)) and b"not whole in time" in said
        assert b" 408 " in answer(dripping)
        said = answer(body)
        assert b" 408 " in said and b"not whole after 0.5 seconds" in said
        assert answer(unread).startswith(b"HTTP/1.1 404")  # and an end


def drip(connection: socket.socket, times: int = 600) -> None:
    """Send a byte now and then."""
    for _ in range(times):
        time.sleep(0.1)
        try:
            connection.sendall(b"x")
        except OSError:
            return


def test_one_address_cannot_take_all_connections(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "MAX_PER_ADDRESS", 8)
    with served_in_a_thread(pages(library)) as port:
        kept = []
        for _ in range(8):  # each with a request that was answered, so that none makes room
            connection = half_sent(port, b"GET /api/votes HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
            kept.append(connection)
        said = answer(half_sent(port))
        assert said.startswith(b"HTTP/1.1 429") and b"too many connections" in said
        for connection in kept:
            connection.close()


# ---- How often.


def test_a_limit_counts_a_minute_in_all_and_for_each() -> None:
    limit = RateLimit("votes", per_minute=5, per_name=3)
    for moment in range(3):
        limit.take("a", now=moment)
    with pytest.raises(RequestRefused, match="more than 3 votes within a minute"):
        limit.take("a", now=3)
    limit.take("b", now=3)
    limit.take("c", now=3)
    with pytest.raises(RequestRefused):
        limit.take("d", now=3)
    limit.take("a", now=request_limits.MINUTE + 0.5)
    assert set(limit.times) == {"a", "b", "c"}


def test_votes_are_limited_for_each_voter_and_say_whose_they_are(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "VOTES_PER_VOTER", 3)
    app = pages(library)
    question = {"field": "run", "a": "runs/old", "b": "runs/new"}
    statuses = []
    for voter in ("ada", "ada", "ada", "ada", "bob"):
        trial = json.loads(ask_app(app, "/api/trials", question | {"voter": voter})[2])
        status = ask_app(app, "/api/votes", {"trial": trial["id"], "vote": "a"})[0]
        statuses.append(status)
    assert statuses == [200, 200, 200, 429, 200]
    kept = (library.out.parent / "votes.jsonl").read_text().splitlines()
    assert [json.loads(line)["voter"] for line in kept] == ["ada", "ada", "ada", "bob"]
    monkeypatch.setattr(api, "TRIALS_PER_VOTER", 2)
    app = pages(library)
    assert [ask_app(app, "/api/trials", question)[0] for _ in range(3)] == [200, 200, 429]


def test_votes_are_not_written_through_a_link(library: Library) -> None:
    votes = library.out.parent / "votes.jsonl"
    (library.out.parent / "victim.tex").write_text("mine")
    votes.symlink_to(library.out.parent / "victim.tex")
    app = pages(library)
    question = {"field": "run", "a": "runs/old", "b": "runs/new"}
    status, _, said = ask_app(app, "/api/trials", question)
    assert status == 400 and "link" in json.loads(said)["error"]
    assert (library.out.parent / "victim.tex").read_text() == "mine"


@pytest.fixture
def studio(tmp_path: Path) -> Any:
    command = lambda run, samplers: [sys.executable, "-c", SLOW]  # noqa: E731
    made = Studio(
        tmp_path,
        tmp_path / "samples",
        tmp_path / "work",
        lambda: None,
        command=command,
        stop_seconds=0.1,
    )
    yield made
    made.close()


def test_songs_that_are_asked_for_and_cancelled_leave_nothing(studio: Studio) -> None:
    studio.enqueue({"seconds": 1})
    for _ in range(400):
        studio.cancel(studio.enqueue({"seconds": 1}).id)
    folders = [path for path in studio.work.iterdir() if path.is_dir()]
    assert len(folders) <= 1 and len(studio.jobs) <= studio_jobs.MAX_ENDED + 2
    assert not studio.waiting and studio.work.stat().st_mode & 0o077 == 0


def test_songs_are_limited_within_a_minute(
    library: Library, studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "SONGS_PER_MINUTE", 4)
    options = StudioOptions(tmp_path, ("autoregressive",), 10)
    services = api.StudioServices(studio, UploadStore(tmp_path / "uploads"), options, lambda _: [])
    app = pages(library, services=services)
    answers = [ask_app(app, "/api/songs", {"seconds": 1}) for _ in range(6)]
    assert [status for status, _, _ in answers] == [200] * 4 + [429] * 2
    assert "more than 4 songs within a minute" in json.loads(answers[-1][2])["error"]


# ---- Uploads.


def flac(seconds: float, channels: int, rate: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((round(seconds * rate), channels)), rate, format="FLAC")
    return file.getvalue()


def test_what_is_too_much_by_its_header_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """60 s of silence, 8 channels at 192 kHz: 120 kB that took 0.7 GB."""
    store = UploadStore(tmp_path / "uploads")
    source = tmp_path / "bomb.flac"
    source.write_bytes(flac(60, 8, 192_000))
    with pytest.raises(ValueError, match=r"too large: 60 s x 8 channels x 192000 Hz"):
        store.decode(source)
    source.write_bytes(flac(200, 1, 8000))
    with pytest.raises(ValueError, match="too long: it lasts over 180 seconds"):
        store.decode(source)


def test_no_more_than_two_decoders_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most = 0, 0
    lock = threading.Lock()

    def decoding(source: Path, target: Path) -> dict[str, Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        target.write_bytes(b"x")
        return {"seconds": 1.0}

    monkeypatch.setattr(uploads, "decode_in_process", decoding)
    store = UploadStore(tmp_path / "uploads")
    threads = [threading.Thread(target=store.decode, args=(tmp_path / "x",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == uploads.MAX_DECODERS == 2 and len(store.uploads) == 8


def test_uploads_are_private_and_go_with_the_server(tmp_path: Path) -> None:
    store = UploadStore(tmp_path / "work" / "uploads")
    with store.incoming() as (path, file):
        file.write(flac(0.1, 1, 8000))
        file.close()
        assert path.stat().st_mode & 0o777 == 0o600
        kept = store.decode(path).path
    assert not path.exists() and kept.stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700
    store.close()
    assert not kept.exists() and not store.folder.exists()


def test_an_uploads_folder_of_somebody_else_or_behind_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "uploads").symlink_to(tmp_path / "elsewhere")
    with (
        pytest.raises(ValueError, match="not a folder of yours"),
        UploadStore(tmp_path / "uploads").incoming(),
    ):
        pass


def test_decoders_and_samplers_get_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "HF_TOKEN": "hf_abcdefghijkl",
        "AWS_SECRET_ACCESS_KEY": "x",
        "WANDB_API_KEY": "x",
        "DATABASE_URL": "postgres://me:password@host/db",
        "GIT_PASSWORD": "x",
    }
    for name, value in (secrets | {"MY_SETTING": "x", "CUDA_VISIBLE_DEVICES": "0"}).items():
        monkeypatch.setenv(name, value)
    sampler = uploads.child_environment()
    decoder = uploads.decoder_environment()
    assert not secrets.keys() & sampler.keys() and not secrets.keys() & decoder.keys()
    assert sampler["CUDA_VISIBLE_DEVICES"] == "0" and "MY_SETTING" not in decoder
    assert sampler["PYTHONSAFEPATH"] == decoder["PYTHONSAFEPATH"] == "1"
    assert decoder["PATH"] == os.environ["PATH"]
