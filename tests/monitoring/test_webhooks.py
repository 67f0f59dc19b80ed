"""Messages to other programs: each piece of news once, tried again when nobody takes it, never with a secret."""

import json
import logging
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from fixtures.fake_runs import PretendRun

from megajukebox.common.errors import UserError
from megajukebox.monitoring.collect.run_reader import Runs
from megajukebox.monitoring.exporters.webhooks import News, Webhook, read_url


class Receiver(HTTPServer):
    """Takes messages on loopback; the first `refused` of them it refuses."""

    def __init__(self, refused: int = 0) -> None:
        self.refused, self.heard = refused, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hooks/s3cr3t-part"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.refused -= 1
        if self.server.refused < 0:
            self.server.heard.append(message)
        self.send_response(503 if self.server.refused >= 0 else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def test_alerts_restarts_and_ends_are_news_and_the_past_is_not(tmp_path: Path) -> None:
    run, runs, news = PretendRun(tmp_path / "run"), Runs([tmp_path]), News()
    run.start().train(150).die().start().train(20).beat()
    assert news.of(runs.read(run.now)) == []
    run.train(10, loss=float("nan")).beat()
    (alert,) = news.of(runs.read(run.now))
    assert (alert["event"], alert["alert"], alert["severity"]) == (
        "alert",
        "JukeboxLossNaN",
        "page",
    )
    assert news.of(runs.read(run.now)) == []
    run.die().start().train(100).beat()
    told = news.of(runs.read(run.now))
    assert [message["event"] for message in told] == ["restart", "resolved"] and told[0][
        "run"
    ] == "run"
    run.end("done")
    assert [message["event"] for message in news.of(runs.read(run.now))] == ["done"]


def test_a_message_is_tried_again_until_it_is_taken() -> None:
    receiver, waits = Receiver(refused=2), []
    hook = Webhook(receiver.url, sleep=waits.append)
    assert hook.post({"event": "alert", "run": "r"}) and hook.failures == 0
    assert receiver.heard == [{"event": "alert", "run": "r"}] and waits == [1.0, 4.0]
    receiver.shutdown()


def test_a_message_that_nobody_takes_is_counted_and_the_log_keeps_the_secret(caplog) -> None:
    hook = Webhook("http://user:hunter2@127.0.0.1:9/hooks/s3cr3t-part", sleep=lambda seconds: None)
    with caplog.at_level(logging.WARNING):
        assert not hook.post({"event": "alert", "run": "r"})
    assert hook.failures == 1 and "was not taken" in caplog.text
    assert "s3cr3t" not in caplog.text and "hunter2" not in caplog.text


def test_no_secret_leaves_in_a_message() -> None:
    receiver = Receiver()
    Webhook(receiver.url).post(
        {
            "event": "stop",
            "run": "r",
            "reason": "https://u:hunter2@h/x?token=abcdef",
            "api_key": "k",
        }
    )
    assert "hunter2" not in str(receiver.heard) and "abcdef" not in str(receiver.heard)
    assert receiver.heard[0]["api_key"] == "[hidden]"
    receiver.shutdown()


@pytest.mark.parametrize("text", ["file:///etc/passwd", "ftp://h/x", "hello", "http://"])
def test_only_a_web_address_is_a_webhook(tmp_path: Path, text: str) -> None:
    (tmp_path / "url").write_text(text)
    (tmp_path / "url").chmod(0o600)
    with pytest.raises(ValueError, match="does not hold an http"):
        read_url(tmp_path / "url")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_an_address_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "url").write_text("https://host/hooks/x")
    (tmp_path / "url").chmod(mode)
    with pytest.raises(UserError, match="can be read by others; chmod 600"):
        read_url(tmp_path / "url")


def test_the_exporter_tells_a_webhook_and_shows_its_address_nowhere(tmp_path: Path) -> None:
    receiver = Receiver()
    (tmp_path / "url").write_text(receiver.url)
    (tmp_path / "url").chmod(0o600)
    PretendRun(tmp_path / "runs" / "run", now=time.time() - 60).start().train(20, loss=float("nan"))
    arguments = ["--textfile", str(tmp_path), "--once", "--webhook-file", str(tmp_path / "url")]
    command = [
        sys.executable,
        "-m",
        "megajukebox.commands.exporter",
        str(tmp_path / "runs"),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and [m["alert"] for m in receiver.heard] == ["JukeboxLossNaN"]
    written = done.stdout + done.stderr + (tmp_path / "megajukebox.prom").read_text()
    assert "s3cr3t" not in written
    receiver.shutdown()
