"""Posts alerts, restarts and ends to a webhook: JSON, tried again, never with a secret in a log."""

import json
import logging
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from megajukebox.common.errors import UserError
from megajukebox.common.redaction import redact, redacted
from megajukebox.common.retry import RetriesExhausted, retry
from megajukebox.common.secret_files import read_secret
from megajukebox.monitoring.alerts import diagnose
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.monitoring.collect.unreadable import views_of
from megajukebox.records.events import (
    BadSampleSkipped,
    Diverged,
    Event,
    HangDetected,
    NodeExcluded,
    Rewound,
    RunFinished,
    RunResumed,
    RunStopped,
    SaveFailed,
    event_record,
)

PAUSES = (1.0, 4.0, 15.0)  # seconds before the second, third and fourth try
TIMEOUT = 10.0  # seconds of one try
POSTED = (
    RunResumed,
    RunFinished,
    RunStopped,
    Diverged,
    Rewound,
    HangDetected,
    SaveFailed,
    NodeExcluded,
)

log = logging.getLogger(__name__)

Message = dict[str, object]


def read_url(path: Path | None) -> str | None:
    """The URL in a file: it may hold a secret, so it is never an argument.

    Raises:
        UserError: it cannot be read, others may read it, or it is no http address.
    """
    if path is None:
        return None
    url = read_secret(path, "--webhook-file")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise UserError(f"--webhook-file {path} does not hold an http(s) address")
    return url


@dataclass
class Webhook:
    """Where to POST. `failures` counts messages that were given up."""

    url: str
    failures: int = 0
    sleep: Callable[[float], None] = time.sleep

    def post(self, message: Message) -> bool:
        """Whether the receiver took it; up to four tries."""
        body = json.dumps(redacted(message)).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "megajukebox"}

        def attempt() -> None:
            request = urllib.request.Request(self.url, body, headers)
            with urllib.request.urlopen(request, timeout=TIMEOUT):
                pass

        try:
            retry(attempt, PAUSES, errors=(OSError, ValueError), sleep=self.sleep)
            return True
        except RetriesExhausted as error:
            last = error.last_error
        self.failures += 1
        log.warning(
            "webhook at %s: %s of run %s was not taken (%s: %s)",
            urlsplit(self.url).hostname,
            message["event"],
            message["run"],
            type(last).__name__,
            redact(str(last)).replace(self.url, "[hidden]"),
        )
        return False


@dataclass
class News:
    """What changed in the runs since the last look: alerts that began or ended, and events worth a message."""

    firing: dict[tuple[str, str], Message] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)  # events of each run

    def of(self, runs: list[RunState]) -> list[Message]:
        """Messages, oldest first. The first look at a run reports its alerts, not its past."""
        messages: list[Message] = []
        firing: dict[tuple[str, str], Message] = {}
        for run, alerts in views_of(runs, diagnose):
            messages += self.event_messages(run)
            for alert in alerts:
                firing[alert.run, alert.alert] = {"event": "alert", **asdict(alert)}
        messages += [message for key, message in firing.items() if key not in self.firing]
        for key, message in self.firing.items():
            if key not in firing:
                messages.append({**message, "event": "resolved"})
        self.firing = firing
        return messages

    def event_messages(self, run: RunState) -> list[Message]:
        """Of the events since the last look; a resume is called a restart."""
        total = sum(run.counts.values()) - run.counts[BadSampleSkipped]
        before = self.seen.get(run.name)
        self.seen[run.name] = total
        if before is None or total <= before:
            return []
        new: list[Event] = run.events[-(total - before) :]
        messages = []
        for event in new:
            if isinstance(event, POSTED):
                name = "restart" if isinstance(event, RunResumed) else event.name
                messages.append({"run": run.name, **event_record(event), "event": name})
        return messages
