"""A run over the wall clock: its attempts, what happened between and in them, and what the seconds went into."""

from dataclasses import dataclass

from markupsafe import Markup

from megajukebox.explorer.pages.html import render
from megajukebox.monitoring.alerts import format_duration
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.records.events import CheckpointSaved

# Of the picture, in its own units.
WIDTH = 1000
HEIGHT = 46
MIN_BOX_WIDTH = 1.0
MAX_MARKS = 200
MAX_MARK_TEXT = 300  # characters
MIN_LISTED_SHARE = 0.001  # of the wall clock; smaller shares are drawn but not listed
PHASE_LABELS = {
    "step": "training steps that were kept",
    "data_wait": "waiting for data",
    "checkpoint_save": "saving",
    "checkpoint_load": "loading checkpoints",
    "init": "starting",
    "eval": "evaluating",
    "recompute": "steps trained again",
    "other": "other",
    "down": "no process",
}


@dataclass(frozen=True)
class AttemptBox:
    x: float
    width: float
    text: str


@dataclass(frozen=True)
class EventMark:
    x: float
    top: int
    kind: str
    text: str


@dataclass(frozen=True)
class PhaseShare:
    """A phase's share of the wall clock; `start` and `width` in percent of the picture."""

    phase: str
    start: str
    width: str
    text: str
    is_listed: bool


def timeline(run: RunState) -> Markup:
    """Attempts and events over time, and the shares of the phases."""
    account = run.account
    if not account.attempts or account.wall <= 0:
        return Markup('<p class="small">Nothing yet.</p>')
    boxes = []
    for attempt, (start, end) in enumerate(account.attempts, start=1):
        x = position(run, start)
        width = max(MIN_BOX_WIDTH, position(run, end) - x)
        boxes.append(AttemptBox(x, width, f"attempt {attempt}: {format_duration(end - start)}"))
    return render(
        "timeline.html",
        width=WIDTH,
        height=HEIGHT,
        duration=format_duration(account.wall),
        attempts=boxes,
        marks=event_marks(run),
        shares=phase_shares(run),
    )


def position(run: RunState, unix_seconds: float) -> float:
    """Where on the picture a time stands."""
    share = (unix_seconds - run.account.attempts[0][0]) / run.account.wall
    return round(min(1.0, max(0.0, share)) * WIDTH, 1)


def event_marks(run: RunState) -> list[EventMark]:
    """A line for each event, the latest ones; those of checkpoints are short."""
    marks = []
    for event in run.events:
        if event.time:
            step = "?" if event.step is None else event.step
            text = f"{event.name} at step {step}: {event.reason or ''}"
            top = 24 if isinstance(event, CheckpointSaved) else 12
            x = position(run, event.time)
            marks.append(EventMark(x, top, event.name, text[:MAX_MARK_TEXT]))
    return marks[-MAX_MARKS:]


def phase_shares(run: RunState) -> list[PhaseShare]:
    """Shares of the wall clock, the useful one first."""
    shares = []
    start = 0.0
    for phase, seconds in run.account.seconds.items():
        share = seconds / run.account.wall
        if share > 0:
            text = f"{PHASE_LABELS.get(phase, phase)} {share:.1%}"
            is_listed = share >= MIN_LISTED_SHARE
            shares.append(PhaseShare(phase, f"{start:.3%}", f"{share:.3%}", text, is_listed))
            start += share
    return shares
