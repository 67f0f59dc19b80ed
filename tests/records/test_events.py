"""Records of version 1 and 2 are the same to a reader; broken ones cost themselves and nothing else."""

import json
from pathlib import Path

import pytest

from megajukebox.records.events import (
    ALERT_KINDS,
    EVENTS,
    MIN_LOSS_SCALE,
    NEEDS_OPERATOR,
    SDC,
    SKIP_KINDS,
    AlertRaised,
    AttemptEnded,
    BadSampleSkipped,
    CheckpointRejected,
    Event,
    HangDetected,
    NodeExcluded,
    PreviewWritten,
    Rewound,
    RunStarted,
    SpareSwap,
    StepSkipped,
    StepsRecomputed,
    UnknownEvent,
    event_record,
    parse_event,
    read_events,
)
from megajukebox.records.exits import parse_exit
from megajukebox.records.heartbeat import Heartbeat, parse_heartbeat
from megajukebox.records.job_chain import read_chain
from megajukebox.records.metrics import upgrade_row
from megajukebox.records.rewinds import Rewind, read_rewinds, write_rewinds
from megajukebox.records.run_log import RunLog
from megajukebox.records.schema import from_record, to_record

# A line as version 1 wrote it, and the event that it is now.
VERSION_1 = [
    (
        {"event": "skip", "shard": "a.tar", "key": "x", "reason": "a.tar: audio of x is damaged"},
        BadSampleSkipped(
            shard="a.tar", key="x", kind="damaged", reason="a.tar: audio of x is damaged"
        ),
    ),
    (
        {"event": "skip_step", "step": 7, "reason": "loss is nan", "positions": [6, 8], "count": 1},
        StepSkipped(step=7, kind="nan", reason="loss is nan", sample_range=[6, 8], count=1),
    ),
    (
        {
            "event": "alert",
            "reason": "weights of ranks [1] differ (silent corruption)",
            "hosts": ["n1"],
        },
        AlertRaised(
            kind=SDC, reason="weights of ranks [1] differ (silent corruption)", hosts=["n1"]
        ),
    ),
    (
        {"event": "alert", "reason": "gradients overflow at the lowest fp16 loss scale"},
        AlertRaised(kind=MIN_LOSS_SCALE, reason="gradients overflow at the lowest fp16 loss scale"),
    ),
    (
        {"event": "alert", "reason": "3 attempts saved nothing", "person": True},
        AlertRaised(kind=NEEDS_OPERATOR, reason="3 attempts saved nothing"),
    ),
    (
        {"event": "attempt_end", "kind": "again", "nodes": ["n1"]},
        AttemptEnded(kind="retry", nodes=["n1"]),
    ),
    ({"event": "attempt_end", "kind": "person"}, AttemptEnded(kind="fatal")),
    ({"event": "reject", "reason": "x"}, CheckpointRejected(reason="x")),
    ({"event": "exclude_node", "nodes": ["n1"]}, NodeExcluded(nodes=["n1"])),
    (
        {"event": "spare", "nodes": ["n2"], "instead_of": ["n1"]},
        SpareSwap(nodes=["n2"], replaced=["n1"]),
    ),
    (
        {"event": "sample", "step": 4, "folder": "samples/4"},
        PreviewWritten(step=4, folder="samples/4"),
    ),
    (
        {"event": "rewind", "to": 3, "jump": 9, "rate": 0.5},
        Rewound(to_step=3, skip_steps=9, lr_factor=0.5),
    ),
    (
        {"event": "hang", "section": "save", "suspects": [1]},
        HangDetected(phase="checkpoint_save", suspects=[1]),
    ),
    (
        {
            "event": "forget",
            "steps": 2,
            "seconds": 3.0,
            "until": 8.0,
            "account": {"time_productive_seconds": 5.0},
        },
        StepsRecomputed(steps=2, seconds=3.0, end_time=8.0, phase_seconds={"step": 5.0}),
    ),
    ({"event": "start", "step": 0, "ranks": 2, "job": "7"}, RunStarted(step=0, ranks=2, job="7")),
]


@pytest.mark.parametrize(("record", "event"), VERSION_1, ids=str)
def test_an_event_of_version_1_is_read_as_the_event_of_today(record: dict, event: Event) -> None:
    assert parse_event(record) == event


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_is_read_as_it_was_written(kind: type[Event]) -> None:
    written = kind(time=5.0, step=3, reason="silent corruption, spike, nan: words mean nothing")
    line = json.loads(json.dumps(event_record(written)))
    assert line["schema"] == 2 and list(line)[:3] == ["schema", "time", "event"]
    assert parse_event(line) == written


def test_every_event_has_a_name_of_its_own() -> None:
    assert len({event.name for event in EVENTS}) == len(EVENTS)


def test_rewording_a_reason_changes_no_kind() -> None:
    for kind in ALERT_KINDS:
        assert parse_event(event_record(AlertRaised(kind=kind, reason="x"))) == AlertRaised(
            kind=kind, reason="x"
        )
    for kind in SKIP_KINDS:
        read = parse_event(event_record(StepSkipped(kind=kind, reason="silent corruption")))
        assert isinstance(read, StepSkipped) and read.kind == kind


BROKEN = [
    {},
    {"event": 3},
    {"event": "save", "schema": 2, "seconds": "long", "time": None, "step": [1]},
    {"event": "step_skipped", "schema": "x", "kind": None, "losses": 4},
    {"event": "forget", "account": 7, "until": {}},
    {"event": "hang", "section": ["save"], "hosts": "n1"},
    {"event": "attempt_end", "nodes": None, "kind": {}},
    {"event": "alert", "reason": None, "schema": 10**400},
]


@pytest.mark.parametrize("record", BROKEN, ids=str)
def test_fields_of_another_type_are_left_out(record: dict) -> None:
    event = parse_event(json.loads(json.dumps(record)))
    assert isinstance(event, Event) and event.time == 0.0


def test_a_field_or_an_event_of_a_later_version_is_left_out() -> None:
    later = {"schema": 3, "event": "save", "step": 4, "compression": "zstd"}
    assert parse_event(later).step == 4
    unknown = parse_event({"schema": 3, "event": "teleported", "step": 4})
    assert isinstance(unknown, UnknownEvent) and unknown.event == "teleported" and unknown.step == 4


def test_both_versions_in_one_file_are_read_in_order(tmp_path: Path) -> None:
    """A run that the version before began and this one resumes."""
    old = {"time": 1.0, "event": "skip_step", "step": 3, "reason": "loss 9 spiked"}
    (tmp_path / "events.jsonl").write_text(json.dumps(old) + "\nnot a record\n")
    RunLog(tmp_path, writes=True).event(StepSkipped(step=4, kind="nan"))
    steps = [(e.step, e.kind) for e in read_events(tmp_path) if isinstance(e, StepSkipped)]
    assert steps == [(3, "spike"), (4, "nan")]


def test_a_heartbeat_of_version_1_has_its_phase() -> None:
    beat = {
        "rank": 1,
        "host": "n1",
        "time": 5.0,
        "step": 3,
        "section": "data",
        "section_since": 4.0,
    }
    now = Heartbeat(rank=1, host="n1", time=5.0, step=3, phase="data_wait", phase_since=4.0)
    assert parse_heartbeat(beat) == now == parse_heartbeat(to_record(now))
    assert parse_heartbeat({"host": "n1"}) is None


@pytest.mark.parametrize(
    ("before", "now"),
    [("peer", "peer_failure"), ("memory", "out_of_memory"), ("code", "bug"), ("hang", "hang")],
)
def test_an_exit_record_of_version_1_has_its_class(before: str, now: str) -> None:
    record = parse_exit({"rank": 2, "class": before, "code": 75, "reason": "x", "generation": 4})
    assert (record.rank, record.exit_class, record.code, record.generation) == (2, now, 75, 4)


def test_metrics_of_version_1_have_the_names_of_today() -> None:
    old = {"step": 1, "gradient_norm": 2.0, "stall_share": 0.1, "buffer_fill": 1.0, "skipped": 3}
    old |= {"skipped_json": 3, "time_productive_seconds": 4.0, "time_ckpt_save_seconds": 5.0}
    assert upgrade_row(old) == {
        "step": 1,
        "grad_norm": 2.0,
        "data_wait_ratio": 0.1,
        "prefetch_fill_ratio": 1.0,
        "bad_samples": 3,
        "bad_samples_json": 3,
        "time_step_seconds": 4.0,
        "time_checkpoint_save_seconds": 5.0,
    }
    new = {"schema": 2, "step": 1, "skipped": 1.0}
    assert upgrade_row(new) == new


def test_rewinds_and_a_chain_of_version_1_are_read(tmp_path: Path) -> None:
    (tmp_path / "jumps.json").write_text('[{"step": 100, "steps": 250, "rate": 1.0}]')
    assert read_rewinds(tmp_path) == [Rewind(100, 250)]
    write_rewinds(tmp_path, [Rewind(100, 250), Rewind(50, 0, 0.5)])
    assert read_rewinds(tmp_path) == [Rewind(100, 250), Rewind(50, 0, 0.5)]
    chain = {"time": 5.0, "job": "7", "array": "1", "queued": 2, "ends": 9.0, "queued_seconds": 4.0}
    (tmp_path / "chain.json").write_text(json.dumps(chain))
    read = read_chain(tmp_path, 6.0)
    assert read is not None and (read.queued, read.seconds_left(6.0)) == (2, 7.0)


def test_a_record_says_its_version_and_only_what_is_known() -> None:
    assert to_record(Heartbeat(rank=1))["schema"] == 2
    assert "pid" not in to_record(Heartbeat(rank=1))
    assert from_record(Heartbeat, {"rank": 1, "pid": "x"}) == Heartbeat(rank=1)
