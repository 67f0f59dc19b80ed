"""Tells other programs of alerts, restarts and ends: a POST of JSON, tried again, never with a secret in a log."""

import json
import logging
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from megajukebox.common.redaction import redact, redacted
from megajukebox.monitoring.alerts import diagnose
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.records.events import BadSampleSkipped, Event, RunResumed, event_record

WAITS = (1.0, 4.0, 15.0)  # seconds before the second, third and fourth try
TOLD = ("resume", "done", "stop", "diverged", "rewind", "hang", "save_failed", "node_excluded")
log = logging.getLogger(__name__)


def read_url(path: Path | None) -> str | None:
    """The URL in a file: it may hold a secret, so it is never an argument. ValueError if it is no http address."""
    if path is None:
        return None
    try:
        url = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--webhook-file {path} cannot be read: {error}") from None
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"--webhook-file {path} does not hold an http(s) address")
    return url


@dataclass
class Webhook:
    """Where to POST. `failures` counts messages that were given up."""

    url: str
    failures: int = 0
    wait: Callable[[float], None] = time.sleep

    def post(self, message: dict[str, object]) -> bool:
        """Whether somebody took it; up to four tries."""
        body = json.dumps(redacted(message)).encode()
        for pause in (0.0, *WAITS):
            self.wait(pause)
            try:
                headers = {"Content-Type": "application/json", "User-Agent": "megajukebox"}
                with urllib.request.urlopen(
                    urllib.request.Request(self.url, body, headers), timeout=10
                ):
                    return True
            except (OSError, ValueError) as error:
                why = f"{type(error).__name__}: {redact(str(error)).replace(self.url, '[hidden]')}"
        self.failures += 1
        host = urlsplit(self.url).hostname
        log.warning(
            "webhook at %s: %s of run %s was not taken (%s)",
            host,
            message["event"],
            message["run"],
            why,
        )
        return False


@dataclass
class News:
    """What changed in the runs since the last look: alerts that began or ended, and events worth a message."""

    firing: dict[tuple[str, str], dict[str, object]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)

    def of(self, runs: list[RunState]) -> list[dict[str, object]]:
        """Messages, oldest first. The first look at a run tells its alerts, not its past."""
        messages = [message for run in runs for message in self.events(run)]
        now = {
            (p.run, p.alert): {"event": "alert", **asdict(p)} for run in runs for p in diagnose(run)
        }
        messages += [message for key, message in now.items() if key not in self.firing]
        messages += [{**m, "event": "resolved"} for key, m in self.firing.items() if key not in now]
        self.firing = now
        return messages

    def events(self, run: RunState) -> list[dict[str, object]]:
        happened = sum(run.counts.values()) - run.counts[BadSampleSkipped]
        before = self.seen.get(run.name)
        self.seen[run.name] = happened
        fresh = (
            run.events[-(happened - before) :] if before is not None and happened > before else []
        )
        return [
            {"run": run.name, **event_record(e), "event": webhook_name(e)}
            for e in fresh
            if e.name in TOLD
        ]


def webhook_name(event: Event) -> str:
    """A resume is a restart to the person whom it wakes."""
    return "restart" if isinstance(event, RunResumed) else event.name
