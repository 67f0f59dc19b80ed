"""An alert on its whole way: run folder, exporter, Prometheus, Alertmanager, and whoever is woken, until it is over."""

import json
import os
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from fixtures.fake_runs import PretendRun
from fixtures.monitoring_stack import Rig
from fixtures.paths import ROOT

from megajukebox.common.world import free_port
from megajukebox.records.events import SaveFailed

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("prometheus")]
SECRET = "s3cr3t-0f-the-pager"


@dataclass(frozen=True)
class Post:
    path: str
    secret: str
    message: dict


class Receiver(ThreadingHTTPServer):
    """Takes what Alertmanager sends; the first message on each path it refuses, as a pager that is down would."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.posts: list[Post] = []
        self.refused: set[str] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def heard(self, path: str, alert: str, status: str) -> list[dict]:
        messages = [post.message for post in self.posts if post.path == path]
        found = [a for message in messages for a in message["alerts"]]
        return [a for a in found if a["labels"]["alertname"] == alert and a["status"] == status]


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        late = self.path in self.server.refused
        self.server.refused.add(self.path)
        if late:
            self.server.posts.append(
                Post(self.path, self.headers.get("Authorization", ""), message)
            )
        self.send_response(200 if late else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def example(receiver: Receiver, credentials: Path) -> dict:
    """monitoring/alertmanager.yml with this receiver, 60 times as fast; the secret is in a file."""
    text = (ROOT / "monitoring" / "alertmanager.yml").read_text()
    text = text.replace("127.0.0.1:9100", f"127.0.0.1:{receiver.server_address[1]}")
    for shipped, fast in (
        ("group_wait: 10s", "group_wait: 200ms"),
        ("group_interval: 1m", "group_interval: 1s"),
    ):
        assert shipped in text
        text = text.replace(shipped, fast)
    config = yaml.safe_load(text)
    for one in config["receivers"]:
        for webhook in one["webhook_configs"]:
            webhook["http_config"] = {"authorization": {"credentials_file": str(credentials)}}
    return config


@dataclass
class Watched:
    rig: Rig
    run: PretendRun
    receiver: Receiver
    port: int


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    lacking = [
        name for name in ("prometheus", "prometheus-alertmanager") if shutil.which(name) is None
    ]
    if lacking:
        assert "CI" not in os.environ, f"continuous integration must have {lacking}"
        pytest.skip(
            f"{', '.join(lacking)} not installed (apt-get install prometheus prometheus-alertmanager)"
        )
    receiver, port = Receiver(), free_port()
    rig = Rig(tmp_path / "rig", tmp_path, alertmanager=port)
    try:
        credentials, config = rig.folder / "credentials", rig.folder / "alertmanager.yml"
        credentials.write_text(SECRET)
        credentials.chmod(0o600)
        config.write_text(yaml.safe_dump(example(receiver, credentials)))
        rig.start(
            "prometheus-alertmanager",
            f"--config.file={config}",
            f"--storage.path={rig.folder}/alerts",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            "--log.level=debug",
            log="alertmanager",
        )
        run = PretendRun(rig.runs / "prior", now=time.time() - 120).start().train(100)
        run.now = time.time()
        yield Watched(rig, run, receiver, port)
    finally:
        rig.end_all()
        receiver.shutdown()


def test_whoever_is_on_call_hears_of_an_alert_and_of_its_end_and_no_log_holds_the_secret(
    watched: Watched,
) -> None:
    rig, run, receiver = watched.rig, watched.run, watched.receiver
    run.log.event(SaveFailed(step=run.step, reason="no space left on device"))
    rig.wait(lambda: receiver.heard("/page", "JukeboxSaveFailed", "firing"), 120)
    told = receiver.heard("/page", "JukeboxSaveFailed", "firing")[0]
    assert told["labels"]["run"] == "prior" and told["labels"]["severity"] == "page"
    assert told["annotations"]["runbook"] == "docs/RUNBOOK.md#jukeboxsavefailed"
    assert not receiver.heard("/page", "JukeboxSaveFailed", "resolved")
    run.save()
    rig.wait(lambda: receiver.heard("/page", "JukeboxSaveFailed", "resolved"), 120)
    rig.wait(lambda: receiver.heard("/alive", "JukeboxWatchdog", "firing"), 120)
    assert not receiver.heard("/ticket", "JukeboxSaveFailed", "firing"), "a page is no ticket"
    assert {post.secret for post in receiver.posts} == {f"Bearer {SECRET}"}
    with urllib.request.urlopen(
        f"http://127.0.0.1:{watched.port}/api/v2/status", timeout=30
    ) as answer:
        status = answer.read().decode()
    logs = {path.name: path.read_text() for path in rig.folder.glob("*.log")}
    assert "unexpected status code 503" in logs["alertmanager.log"], (
        "a refused message is in its log"
    )
    assert SECRET not in status + "".join(logs.values())
