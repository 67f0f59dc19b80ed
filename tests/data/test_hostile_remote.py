"""Servers, neighbours and caches that mean harm: nothing goes where the user did not send it, and nothing waits for ever."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from fixtures.shard_server import serving
from fixtures.tiny_shards import CLIP, batches, same, steps, write_songs

from megajukebox.common.errors import UserError
from megajukebox.data.shards import index, local_cache
from megajukebox.data.shards.remote import LostShard, RemoteConfig, ShardSource
from megajukebox.data.shards.remote_options import remote_config
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.source_url import TOKEN_VARIABLE, SourceUrl, has_secret, move_secrets
from megajukebox.data.shards.transports import CheckedRedirects, RedirectRefused
from megajukebox.data.stream.song_dataset import SongClips

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


def remote(tmp_path: Path, **changed: Any) -> RemoteConfig:
    defaults = {"cache": tmp_path / "cache", "backoff": 0.001, "stall": 1.0, "tries": 2}
    return RemoteConfig(**{**defaults, **changed})


@contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server on loopback that answers every GET so; its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def redirecting_to(target: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", target + request.path)
        request.send_header("Content-Length", "0")
        request.end_headers()

    return answer


# ---- Redirects and tokens


@pytest.mark.parametrize(
    ("old", "new", "goes"),
    [
        ("https://host/a", "https://host/b", True),
        ("http://host/a", "https://host/a", True),
        ("http://host:80/a", "http://HOST/a", True),
        ("https://host/a", "http://host/a", False),
        ("https://host/a", "https://other/a", False),
        ("https://host/a", "https://host:8443/a", False),
        ("http://host/a", "http://169.254.169.254/latest", False),
        ("http://host:8080/a", "http://host:6379/a", False),
        ("http://host/a", "ftp://host/a", False),
        ("https://host/a", "https://cdn.host/a", True),
        ("https://host/a", "http://cdn.host/a", False),
        ("https://host/a", "https://port.host:444/a", True),
        ("https://host/a", "https://port.host/a", False),
        ("https://host/a", "https://cdn.host@evil/a", False),
    ],
)
def test_a_redirect_stays_on_its_host_and_on_https(old: str, new: str, goes: bool) -> None:
    redirects = CheckedRedirects(("cdn.host", "port.host:444"))
    if goes:
        redirects._check(old, new)
    else:
        with pytest.raises(RedirectRefused):
            redirects._check(old, new)


def test_a_redirect_is_followed_where_the_user_says_so_and_takes_no_token_along(
    songs: Path, tmp_path: Path
) -> None:
    heard: list[str | None] = []
    with serving(songs) as server:
        target = f"http://localhost:{server.server_port}"
        server.RequestHandlerClass.parse_request = overheard(server.RequestHandlerClass, heard)  # type: ignore[method-assign]
        try:
            with answering(redirecting_to(target)) as url:
                with pytest.raises(UserError, match="give --redirect-host localhost if the data"):
                    ShardSet(url, remote(tmp_path))
                assert not server.asked
                allowed = remote(tmp_path, redirect_hosts=("localhost",), token="hush")
                far = ShardSet(url, allowed)
                assert far.read_member(0, "json") == ShardSet(songs).read_member(0, "json")
                assert server.asked and not any(heard)
            ShardSet(server.url, remote(tmp_path, token="hush"))
            assert heard[-1] == "Bearer hush"
        finally:
            del server.RequestHandlerClass.parse_request


def overheard(handler: Any, heard: list[str | None]) -> Any:
    """The handler's parse_request, which also writes down the Authorization that came."""
    original = BaseHTTPRequestHandler.parse_request

    def parse_request(self: Any) -> bool:
        parsed = original(self)
        heard.append(self.headers.get("Authorization"))
        return parsed

    return parse_request


def test_a_token_is_sent_as_what_it_is_and_never_shown() -> None:
    url = "https://host/songs"
    assert SourceUrl.parse(url, "abc").authorization == "Bearer abc"
    assert SourceUrl.parse(url, "Basic dXNlcg==").authorization == "Basic dXNlcg=="
    assert SourceUrl.parse(url, "?sig=a&se=1").with_query(f"{url}/x") == f"{url}/x?sig=a&se=1"
    assert SourceUrl.parse("https://me:p%20w@host/s").authorization == "Basic bWU6cCB3"
    assert SourceUrl.parse("s3://bucket/songs", "abc").authorization is None
    shown = repr([SourceUrl.parse(f"{url}?sig=hush", "hush"), RemoteConfig(token="hush")])
    assert "hush" not in shown and url in shown


def test_a_token_comes_from_a_file_of_the_users_own_or_a_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text("abc\n")
    file.chmod(0o644)
    with pytest.raises(UserError, match="can be read by others; chmod 600"):
        remote_config("https://host/songs", file, None)
    file.chmod(0o600)
    assert remote_config("https://host/songs", file, ["cdn"]).token == "abc"
    monkeypatch.setenv(TOKEN_VARIABLE, "def")
    assert remote_config("https://host/songs", None, None).token == "def"


@pytest.mark.parametrize(
    ("url", "secret"),
    [
        ("https://host/songs?token=abc", True),
        ("https://x.blob.core.windows.net/c?sv=1&sig=abc", True),
        ("https://me:pw@host/songs", True),
        ("https://host/songs?version=3", False),
        ("https://host/songs-{000000..000127}.tar", False),
        ("s3://bucket/songs", False),
        ("runs/token=abc", False),
    ],
)
def test_a_secret_in_a_url_is_told(
    url: str, secret: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert has_secret(url) == secret
    remote_config(url, None, None)
    assert ("--data-token-file" in caplog.text) == secret and "abc" not in caplog.text


def test_no_launcher_is_given_a_secret() -> None:
    command = [
        "deepspeed",
        "train.py",
        "vqvae",
        "--data",
        "https://host/s?token=abc#sha256=" + "0" * 64,
    ]
    environment: dict[str, str] = {}
    moved = move_secrets(command, environment)
    assert moved[:4] == command[:4] and moved[4] == "https://host/s#sha256=" + "0" * 64
    assert environment == {TOKEN_VARIABLE: "?token=abc"}
    original, again = (
        SourceUrl.parse(command[4]),
        SourceUrl.parse(moved[4], environment[TOKEN_VARIABLE]),
    )
    assert original == again
    assert move_secrets(["--data=https://me:pw@host/s"], other := {}) == ["--data=https://host/s"]
    assert other == {TOKEN_VARIABLE: "Basic bWU6cHc="}


# ---- Slowness and size


def slowly(data: bytes, pause: float) -> Callable[[Any], None]:
    def send(file: Any) -> None:
        for byte in data:
            file.write(bytes([byte]))
            file.flush()
            time.sleep(pause)

    return send


@pytest.mark.parametrize("part", ["header", "body"])
def test_a_byte_now_and_then_is_a_stall(tmp_path: Path, part: str) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if part == "header":
            slowly(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: y\r\n" * 1000, 0.1)(request.wfile)
            return
        request.send_response(200)
        request.send_header("Content-Length", "1000")
        request.end_headers()
        slowly(b" " * 1000, 0.1)(request.wfile)

    with answering(answer) as url:
        started = time.monotonic()
        with pytest.raises(UserError, match=r"bytes came in \d+ seconds"):
            ShardSet(url, remote(tmp_path, stall=0.5))
    assert time.monotonic() - started < 30  # the whole would take 100


def test_a_command_that_prints_too_slowly_is_a_stall(tmp_path: Path) -> None:
    slow = "pipe:for i in $(seq 1000); do printf {name}; sleep 0.1; done"
    started = time.monotonic()
    with pytest.raises(UserError, match="could not be fetched in 2 tries"):
        ShardSet(slow, remote(tmp_path, stall=0.5, allow_pipe=True))
    assert time.monotonic() - started < 30


def test_a_reader_that_pauses_is_no_stall(songs: Path, tmp_path: Path) -> None:
    with serving(songs) as server:
        source = ShardSource(server.url, remote(tmp_path, stall=0.3))
        with source.transport.blocks(source.file_url("songs-000000.tar")) as blocks:
            time.sleep(0.5)
            assert sum(map(len, blocks)) == (songs / "songs-000000.tar").stat().st_size


def test_an_index_without_end_or_of_a_million_lists_is_refused(
    songs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert index.MAX_INDEX_BYTES == 256 << 20
    monkeypatch.setattr(local_cache, "MAX_INDEX_BYTES", 100)
    with (
        serving(songs) as server,
        pytest.raises(UserError, match="is longer than the 100 bytes"),
    ):
        ShardSet(server.url, remote(tmp_path))
    with pytest.raises(UserError, match="at most 8000000 are read"):
        index.read_index(b"[" + b"[]," * 5_000_000 + b"0]", "here")


# ---- Fingerprints


def test_a_pinned_set_is_read_only_with_its_index_and_in_whole_shards(
    songs: Path, tmp_path: Path
) -> None:
    fingerprint = ShardSet(songs).fingerprint
    with serving(songs) as server:
        far = ShardSet(f"{server.url}#sha256={fingerprint}", remote(tmp_path))
        far.prefetch = lambda shards: None  # type: ignore[method-assign]
        read = steps(batches(SongClips(far, CLIP)), 2)
        assert same(read, steps(batches(SongClips(ShardSet(songs), CLIP)), 2))
        assert not any(span for _, span in server.asked) and far.source == server.url
        with pytest.raises(UserError, match=f"has an index of fingerprint {fingerprint}"):
            ShardSet(f"{server.url}#sha256={'0' * 64}", remote(tmp_path))
        for wrong in ("", "abc", "x" * 64):
            with pytest.raises(UserError, match="a fingerprint has 64 hex digits"):
                ShardSet(f"{server.url}#sha256={wrong}", remote(tmp_path))


# ---- The machine's cache


def test_the_cache_is_private_to_its_user(songs: Path, tmp_path: Path) -> None:
    with serving(songs) as server:
        far = ShardSet(server.url, remote(tmp_path))
        own = tmp_path / "cache" / str(os.getuid())
        assert far.folder.parent == own and own.stat().st_mode & 0o777 == 0o700
        own.chmod(0o777)
        with pytest.raises(UserError, match="others may write to it"):
            ShardSet(server.url, remote(tmp_path))
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared" / str(os.getuid())).symlink_to(tmp_path / "elsewhere")
        with pytest.raises(UserError, match="is not a folder of yours"):
            ShardSet(server.url, remote(tmp_path, cache=tmp_path / "shared"))


def test_a_lock_that_is_a_link_destroys_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "thesis.tex"
    victim.write_text("years of work")
    (tmp_path / "index.json.lock").symlink_to(victim)
    with pytest.raises(OSError), local_cache.locked(tmp_path / "index.json"):
        raise AssertionError("the lock was taken")
    assert victim.read_text() == "years of work"


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with (
        local_cache.locked(tmp_path / "a") as first,
        local_cache.locked(tmp_path / "a", False) as second,
    ):
        assert first and not second
    with local_cache.locked(tmp_path / "a", wait=False) as third:
        assert third


@pytest.mark.parametrize("kind", ["codes of another", "link", "record of another", "no record"])
def test_a_tar_that_nobody_compared_is_not_read(
    songs: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "songs-000000.tar"
    good = (songs / name).read_bytes()
    poisoned = bytearray(good)
    poisoned[2000:3000] = bytes(1000)
    with serving(songs) as server:
        far = ShardSet(server.url, remote(tmp_path))
        far.cache.bring(0)
        tar, record = far.folder / name, far.folder / f"{name}.verified"
        if kind == "link":
            tar.unlink()
            (tmp_path / "poison").write_bytes(poisoned)
            tar.symlink_to(tmp_path / "poison")
        elif kind != "no record":
            tar.unlink()
            tar.write_bytes(poisoned)
        if kind in ("codes of another", "no record"):
            record.unlink()
        again = ShardSet(server.url, remote(tmp_path))
        assert again.read_member(0, "json") == ShardSet(songs).read_member(0, "json")
        again.cache.bring(0)
        assert tar.read_bytes() == good and json.loads(record.read_text())["size"] == len(good)
        # What was compared once is not compared again.
        monkeypatch.setattr(local_cache, "sha256_of_open", lambda file: "compared again")
        last = ShardSet(server.url, remote(tmp_path))
        with last.cache.open(0, 0, 100) as window:
            assert window.read() == good[:100] and isinstance(window, local_cache.OffsetReader)


def test_a_small_file_of_the_cache_that_was_exchanged_is_fetched_again(
    songs: Path, tmp_path: Path
) -> None:
    with serving(songs) as server:
        far = ShardSet(server.url, remote(tmp_path))
        for name in ("songs.npy", "index.json"):
            (far.folder / name).write_bytes(b"poison")
        again = ShardSet(server.url, remote(tmp_path))
        assert (again.folder / "songs.npy").read_bytes() == (songs / "songs.npy").read_bytes()
        assert (again.folder / "index.json").read_bytes() == (songs / "index.json").read_bytes()


def test_a_small_file_without_end_is_given_up(songs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(local_cache, "MAX_SONGS_BYTES", 100)
    with serving(songs) as server, pytest.raises(LostShard, match="longer than the 100 bytes"):
        ShardSet(server.url, remote(tmp_path))
