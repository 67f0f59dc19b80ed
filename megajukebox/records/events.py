"""What happens to a run: one class an event, one line of events.jsonl each. Writers and readers share them.

    {"schema": 2, "time": 1764500000.0, "event": "save", "step": 200, "seconds": 3.1, "stall_seconds": 0.4}

Old run folders hold version 1: other names (`VERSION_1`), no `kind` of an alert, a bad sample or a skipped step.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from megajukebox.records.jsonl_tail import read_lines
from megajukebox.records.metrics import phase_seconds, upgrade_row
from megajukebox.records.phases import upgrade_phase
from megajukebox.records.schema import from_record, is_current, renamed, to_record


@dataclass(frozen=True, kw_only=True)
class Event:
    """`time` and `rank` are filled in by the log. `reason` is for people: no program reads its words."""

    name: ClassVar[str]
    time: float = 0.0  # seconds since 1970
    step: int | None = None  # optimizer steps made by then
    rank: int | None = None  # of an event that any rank may write
    reason: str | None = None


# ---- An attempt: one start of the training processes ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event):
    """What both kinds of start have in common."""

    ranks: int | None = None
    generation: int | None = None  # number of the start, from 1: the fencing token
    job: str | None = None  # of SLURM
    nodes: str | None = None  # as SLURM lists them: node[01-64]
    restarts: str | None = None
    standby: str | None = None  # warm, or why this start was cold; None without a warm standby


@dataclass(frozen=True, kw_only=True)
class RunStarted(AttemptStarted):
    """Training starts from nothing."""

    name = "start"


@dataclass(frozen=True, kw_only=True)
class RunResumed(AttemptStarted):
    """Training resumes from a checkpoint."""

    name = "resume"
    checkpoint: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataOpened(Event):
    """Songs and clips that are trained on, held out, or too short; empty where the shards have no index."""

    name = "data"
    counts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunFinished(Event):
    """The last step is trained and saved."""

    name = "done"


@dataclass(frozen=True, kw_only=True)
class RunStopped(Event):
    """Training stopped on request, and saved."""

    name = "stop"
    signal: int | None = None
    stop_after: int | None = None


@dataclass(frozen=True, kw_only=True)
class Diverged(Event):
    """Too many steps were skipped and no rewind is left: a person must look."""

    name = "diverged"


# ---- Checkpoints ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SaveEnded(Event):
    """What a save that succeeded and one that failed have in common."""

    seconds: float | None = None  # from the start of the save until it is committed
    stall_seconds: float | None = None  # for which training stood still
    exported: int | None = None  # the step of the newest exported weights; -1: none


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(SaveEnded):
    name = "save"


@dataclass(frozen=True, kw_only=True)
class SaveFailed(SaveEnded):
    """Training continues without this checkpoint."""

    name = "save_failed"


@dataclass(frozen=True, kw_only=True)
class CheckpointRejected(Event):
    """A checkpoint was found damaged at a start."""

    name = "checkpoint_rejected"


@dataclass(frozen=True, kw_only=True)
class StepsRecomputed(Event):
    """Steps after the loaded checkpoint are trained again. Written just before the `resume`, about the attempt before."""

    name = "steps_recomputed"
    steps: int = 0
    seconds: float = 0.0  # of training that they had cost
    end_time: float | None = None  # of the last line that was logged
    phase_seconds: dict[str, float] = field(default_factory=dict)  # of that attempt, by phase


# ---- Steps ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StepSkipped(Event):
    """A step did not touch the weights."""

    name = "step_skipped"
    kind: str = "other"  # of SKIP_KINDS
    count: int | None = None  # steps of the whole run that were skipped
    sample_range: list[int] | None = None  # first and last + 1, in the global order of samples
    ranks: list[int] | None = None  # whose loss was no finite number
    losses: list[str] | None = None  # of all ranks


@dataclass(frozen=True, kw_only=True)
class Rewound(Event):
    """The run was set back to an earlier checkpoint. `step`: where the trouble began."""

    name = "rewind"
    to_step: int = 0
    skip_steps: int = 0  # steps of data that are left out from there on
    lr_factor: float | None = None  # of the learning rate from there on; None: as scheduled


@dataclass(frozen=True, kw_only=True)
class BadSampleSkipped(Event):
    """A sample could not be read and another was taken in its place."""

    name = "bad_sample"
    shard: str = ""
    key: str = ""
    kind: str = "other"  # of data.stream.bad_samples.ALL_KINDS


@dataclass(frozen=True, kw_only=True)
class PreviewWritten(Event):
    """Preview samples were written into `folder`; without one, `reason` says why not."""

    name = "preview"
    folder: str | None = None


# ---- Faults and who deals with them -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AlertRaised(Event):
    """Somebody should know, though the run may continue."""

    name = "alert"
    kind: str = "other"  # of ALERT_KINDS
    hosts: list[str] | None = None
    losses: list[list[str]] | None = None  # of each rank, computed twice, as hexadecimal floats


@dataclass(frozen=True, kw_only=True)
class HangDetected(Event):
    """A phase took too long and the watchdog ended the attempt."""

    name = "hang"
    phase: str = ""
    suspects: list[int] = field(default_factory=list)  # ranks
    hosts: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class CollectiveStuck(Event):
    """After a hang: the collective that ranks waited in, as torch's flight recorders have it."""

    name = "collective_stuck"
    group: str = ""  # of processes, as torch calls it
    collective: str = ""  # all_reduce, ...
    sequence: int | None = None  # its number in that group, from 1
    missing: list[int] = field(default_factory=list)  # ranks that did not come
    differing: list[int] = field(default_factory=list)  # ranks that called another in its place
    hosts: list[str] = field(default_factory=list)  # of both


@dataclass(frozen=True, kw_only=True)
class AttemptEnded(Event):
    """The supervisor's account of one attempt."""

    name = "attempt_end"
    attempt: int | None = None
    status: int | None = None  # exit status of the launcher
    seconds: float | None = None
    kind: str = "retry"  # of resilience.restart_policy: done, stopped, fenced, fatal or retry
    nodes: list[str] = field(default_factory=list)  # that brought it down


@dataclass(frozen=True, kw_only=True)
class PreflightFinished(Event):
    """What the doctor found on all ranks before they train."""

    name = "preflight"
    verdict: str = "good"  # or bad
    seconds: float | None = None
    nodes: list[str] = field(default_factory=list)  # that are unfit


@dataclass(frozen=True, kw_only=True)
class NodeExcluded(Event):
    name = "node_excluded"
    nodes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class SpareSwap(Event):
    """`nodes` train in place of `replaced`."""

    name = "spare_swap"
    nodes: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Requeued(Event):
    """The SLURM job put itself back into the queue."""

    name = "requeue"


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """Of a version that is not known here."""

    name = ""
    event: str = ""


EVENTS = (
    RunStarted,
    RunResumed,
    DataOpened,
    RunFinished,
    RunStopped,
    Diverged,
    CheckpointSaved,
    SaveFailed,
    CheckpointRejected,
    StepsRecomputed,
    StepSkipped,
    Rewound,
    BadSampleSkipped,
    PreviewWritten,
    AlertRaised,
    HangDetected,
    CollectiveStuck,
    AttemptEnded,
    PreflightFinished,
    NodeExcluded,
    SpareSwap,
    Requeued,
)
BY_NAME = {event.name: event for event in EVENTS}

SKIP_KINDS = ("nan", "spike", "overflow", "other")
SDC = "sdc"  # silent data corruption: ranks hold or compute something wrong
NONDETERMINISTIC = "nondeterministic"  # losses do not repeat, so no rank can be blamed
MIN_LOSS_SCALE = "min_loss_scale"  # fp16 overflowed at the lowest loss scale; the rate was reduced
LINES_LOST = "lines_lost"  # a full disk took metrics or events
NO_CHECKPOINT = "no_checkpoint"  # there are checkpoints and none is whole
NEEDS_OPERATOR = "needs_operator"  # the supervisor will not start the run again
ALERT_KINDS = (SDC, NONDETERMINISTIC, MIN_LOSS_SCALE, LINES_LOST, NO_CHECKPOINT, NEEDS_OPERATOR)


def event_record(event: Event) -> dict[str, Any]:
    """An event as a line of events.jsonl, its name behind its time."""
    fields = to_record(event)
    head = {"schema": fields.pop("schema"), "time": fields.pop("time"), "event": event.name}
    return head | fields


def parse_event(record: Mapping[str, Any]) -> Event:
    """The event that a line of events.jsonl holds, of version 1 or 2."""
    current = upgrade_event(record)
    cls = BY_NAME.get(str(current.get("event")), UnknownEvent)
    return from_record(cls, current)


# In the line of a bad sample, of either version, and in no other: a quote within a text has a backslash before it.
BAD_SAMPLE_LINES = (b'"event": "bad_sample"', b'"event": "skip"')


def read_events(run: Path, bad_samples: bool = True) -> list[Event]:
    """All events of a run; broken lines are left out.

    Without `bad_samples`, of which hundreds of ranks leave tens of thousands, those lines are not even parsed.
    """
    skipped = () if bad_samples else BAD_SAMPLE_LINES
    return list(map(parse_event, read_lines(run / "events.jsonl", skipped)))


# ---- Version 1 --------------------------------------------------------------------------------------------------------

VERSION_1 = {
    "reject": "checkpoint_rejected",
    "forget": "steps_recomputed",
    "skip": "bad_sample",
    "skip_step": "step_skipped",
    "exclude_node": "node_excluded",
    "spare": "spare_swap",
    "sample": "preview",
}
VERSION_1_FIELDS: dict[str, dict[str, str]] = {
    "forget": {"until": "end_time", "account": "phase_seconds"},
    "skip_step": {"positions": "sample_range"},
    "spare": {"instead_of": "replaced"},
    "rewind": {"to": "to_step", "jump": "skip_steps", "rate": "lr_factor"},
    "hang": {"section": "phase"},
}
VERSION_1_OUTCOMES = {"person": "fatal", "again": "retry"}


def upgrade_event(record: Mapping[str, Any]) -> dict[str, Any]:
    """A line of events.jsonl with the names of today; one of version 2 is as it was."""
    if is_current(record):
        return dict(record)
    name = str(record.get("event", ""))
    current = renamed(record, VERSION_1_FIELDS.get(name, {}))
    current["event"] = VERSION_1.get(name, name)
    reason = str(record.get("reason", ""))
    if name == "skip":
        current["kind"] = kind_by_words(reason, BAD_SAMPLE_WORDS)
    elif name == "skip_step":
        current["kind"] = kind_by_words(str(record.get("kind") or reason).lower(), SKIP_WORDS)
    elif name == "alert":
        person = record.get("person") is True
        current["kind"] = NEEDS_OPERATOR if person else kind_by_words(reason, ALERT_WORDS)
    elif name == "attempt_end":
        current["kind"] = VERSION_1_OUTCOMES.get(str(record.get("kind")), record.get("kind"))
    elif name == "forget":
        account = record.get("account")
        row = account if isinstance(account, dict) else {}
        current["phase_seconds"] = phase_seconds(upgrade_row(row))
    elif name == "hang":
        current["phase"] = upgrade_phase(str(record.get("section", "")))
    elif name == "data":
        counts = dict(record)
        for key in ("schema", "time", "event", "step", "rank", "reason"):
            counts.pop(key, None)
        current["counts"] = counts
    return current


def kind_by_words(text: str, words: Iterable[tuple[str, str]]) -> str:
    """The kind of the first words that are in `text`. Version 1 had no `kind`; nothing else may read words."""
    for phrase, kind in words:
        if phrase in text:
            return kind
    return "other"


SKIP_WORDS = (
    ("overflow", "overflow"),
    ("nan", "nan"),
    ("finite", "nan"),
    ("inf", "nan"),
    ("spike", "spike"),
    ("deviation", "spike"),
    ("σ", "spike"),
)
ALERT_WORDS = (
    ("silent corruption", SDC),
    ("another loss", NONDETERMINISTIC),
    ("lowest fp16 loss scale", MIN_LOSS_SCALE),
    ("could not be written", LINES_LOST),
    ("none is whole", NO_CHECKPOINT),
)
BAD_SAMPLE_WORDS = (
    ("unavailable:", "unavailable"),
    ("crashed:", "crashed"),
    ("the tar ends", "truncated"),
    ("is damaged", "damaged"),
    ("is too large", "too_large"),
    ("is nested too deeply", "json"),
    (" JSON", "json"),
    ("is not a name of", "bad_name"),
    ("is not the name of", "bad_name"),
    ("sample rate", "sample_rate"),
    ("not finite", "not_finite"),
    ("too loud", "too_loud"),
    ("frames at frame", "too_short"),
    ("codes", "bad_codes"),
    ("unreadable", "undecodable"),
    ("No such file", "missing"),
)
