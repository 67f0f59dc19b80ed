"""A hang is explained by torch's own records: which collective, who did not come, who called another one."""

import json
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.paths import FILES

from megajukebox.records.events import CollectiveStuck, HangDetected, read_events
from megajukebox.records.run_log import RunLog
from megajukebox.resilience.exit_codes import ExitRecord
from megajukebox.resilience.fencing import FILE, FencingToken
from megajukebox.resilience.flight_recorder import (
    RankDump,
    StuckCollective,
    dump_path,
    parse_dump,
    read_dumps,
    stuck_collectives,
)
from megajukebox.resilience.restart_policy import blamed_nodes
from megajukebox.resilience.watchdog import HangTimeouts, Watchdog

GLOO = (
    FILES / "flight_recorder"
)  # written by two ranks of torch 2.13; rank 1 never came to the last all-reduce


def recorded(
    sequence: int, name: str = "all_reduce", done: bool = True, group: tuple = ("0", "default_pg")
) -> dict[str, Any]:
    """A collective as NCCL's recorder writes it."""
    return {
        "collective_seq_id": sequence,
        "p2p_seq_id": 0,
        "is_p2p": False,
        "process_group": list(group),
        "profiling_name": f"nccl:{name}",
        "input_sizes": [[8, 8]],
        "input_dtypes": ["Float"],
        "state": "completed" if done else "started",
        "retired": done,
    }


def dump_of(*entries: dict[str, Any], members: str = "[0, 1, 2, 3]") -> dict[str, Any]:
    groups = {"0": {"name": "0", "desc": "default_pg", "ranks": members}}
    return {"version": "2.10", "pg_config": groups, "entries": list(entries)}


def dumps(*ranks: list[dict[str, Any]] | None) -> list[RankDump]:
    """The dumps of ranks 0, 1, ...; None: that rank left none."""
    found = []
    for rank, entries in enumerate(ranks):
        if entries is not None:
            found.append(parse_dump(json.dumps(dump_of(*entries)).encode(), rank))
    return found


def the_one(found: list[StuckCollective]) -> StuckCollective:
    (stuck,) = found
    return stuck


def test_the_rank_that_did_not_come_is_named_from_what_gloo_recorded() -> None:
    stored = [parse_dump((GLOO / f"gloo-rank-{rank}.json").read_bytes(), rank) for rank in (0, 1)]
    stuck = the_one(stuck_collectives(stored, 2))
    assert (stuck.collective, stuck.sequence, stuck.group) == ("all_reduce", 7, "default_pg")
    assert stuck.came == [0] and stuck.missing == [1] and not stuck.differing
    assert "[8, 8] Float" in str(stuck) and "1 of 2 ranks did not come: 1" in str(stuck)


def test_a_rank_that_is_behind_has_not_come() -> None:
    waiting = [recorded(1), recorded(2), recorded(3, done=False)]
    stuck = the_one(
        stuck_collectives(dumps(waiting, waiting, [recorded(1), recorded(2)], waiting), 4)
    )
    assert stuck.missing == [2] and stuck.came == [0, 1, 3] and stuck.sequence == 3


def test_a_rank_that_left_no_dump_has_not_come() -> None:
    waiting = [recorded(1), recorded(2, done=False)]
    stuck = the_one(stuck_collectives(dumps(waiting, None, waiting, waiting), 4))
    assert stuck.missing == [1]


def test_a_rank_that_called_another_collective_is_named_with_it() -> None:
    waiting = [recorded(1), recorded(2, done=False)]
    other = [recorded(1), recorded(2, name="all_gather", done=False)]
    stuck = the_one(stuck_collectives(dumps(waiting, waiting, waiting, other), 4))
    assert not stuck.missing and list(stuck.differing) == [3]
    assert "rank 3 called all_gather of [8, 8] Float instead" in str(stuck)


def test_all_ranks_in_the_same_collective_are_not_to_blame() -> None:
    waiting = [recorded(1), recorded(2, done=False)]
    stuck = the_one(stuck_collectives(dumps(waiting, waiting, waiting, waiting), 4))
    assert not stuck.missing and not stuck.differing and "look at the network" in str(stuck)


def test_nobody_waits_in_collectives_that_are_done() -> None:
    done = [recorded(1), recorded(2)]
    assert stuck_collectives(dumps(done, done, done, done), 4) == []


def test_the_group_that_most_ranks_wait_in_comes_first() -> None:
    pair = recorded(5, "send_recv", done=False, group=("3", "pipeline"))
    waiting = [recorded(2, done=False)]
    found = stuck_collectives(dumps([pair], waiting, waiting, waiting), 4)
    assert [stuck.group for stuck in found] == ["default_pg", "pipeline"]
    assert found[0].missing == [0] and found[1].came == [0]


def test_a_rank_whose_ring_is_past_the_collective_has_come() -> None:
    waiting = [recorded(2, done=False)]
    stuck = the_one(stuck_collectives(dumps(waiting, [recorded(9)], waiting, waiting), 4))
    assert stuck.missing == [] and stuck.came == [0, 1, 2, 3]


# ---- Files --------------------------------------------------------------------------------------


class Runs:
    """What a dump must not do: run a function when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_torchs_own_pickle_is_read_and_runs_nothing(tmp_path: Path) -> None:
    plain = dump_of(recorded(1), recorded(2, done=False))
    assert parse_dump(pickle.dumps(plain, protocol=2), 0) == parse_dump(
        json.dumps(plain).encode(), 0
    )
    mark = tmp_path / "ran"
    with pytest.raises(ValueError, match="no dump of a flight recorder"):
        parse_dump(pickle.dumps({"entries": [Runs(mark)]}), 0)
    assert not mark.exists()


ENDLESS = {**recorded(1), "collective_seq_id": float("inf")}
BOMBS = [
    b'{"a":' + b"[" * 100_000,
    json.dumps({"entries": [ENDLESS]}).encode(),
    b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo of 2**31 places
    b"\x80\x05\x96\0\0\0\0\0\1\0\0.",  # a bytearray of a terabyte
]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"{}x", b"[1]", b'{"entries": [{}]}', b"\x80\x02.", *BOMBS]
)
def test_what_is_no_dump_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no dump of a flight recorder"):
        parse_dump(data, 0)


def test_hostile_names_and_times_among_dumps_end_no_watchdog(tmp_path: Path) -> None:
    (tmp_path / "hangs").mkdir()
    (tmp_path / "hangs/nccl-rank-0").symlink_to(tmp_path / "nowhere")
    (tmp_path / "hangs/nccl-rank-1").symlink_to("nccl-rank-1")
    os.mkfifo(tmp_path / "hangs/nccl-rank-2")
    (tmp_path / "hangs/nccl-rank-3").write_bytes(pickle.dumps(dump_of(recorded(1))))
    (tmp_path / FILE).write_text('{"time": "never"}')
    assert [dump.rank for dump in read_dumps(tmp_path, 1)] == [3]


def test_nccls_own_dumps_count_if_they_are_of_this_start(tmp_path: Path) -> None:
    (tmp_path / "hangs").mkdir()
    old = tmp_path / "hangs/nccl-rank-1"
    old.write_bytes(pickle.dumps(dump_of(recorded(1))))
    token = FencingToken.acquire(tmp_path)
    stamp = time.time() - 3600
    os.utime(old, (stamp, stamp))
    (tmp_path / "hangs/nccl-rank-2").write_bytes(pickle.dumps(dump_of(recorded(1))))
    dump_path(tmp_path, token.number, 0).write_text(json.dumps(dump_of(recorded(2))))
    dump_path(tmp_path, token.number, 3).write_text("half a fi")
    assert [dump.rank for dump in read_dumps(tmp_path, token.number)] == [0, 2]


# ---- The watchdog -------------------------------------------------------------------------------


def test_a_hang_is_recorded_with_its_collective_and_the_absent_rank_is_blamed(
    tmp_path: Path, monkeypatch
) -> None:
    """Two watchdogs of one run: rank 0 waits in the collective, rank 1 stands elsewhere and did not come."""
    monkeypatch.setattr("megajukebox.resilience.watchdog.STACKS_GRACE", 0.5)
    monkeypatch.setattr("megajukebox.resilience.watchdog.OTHERS_GRACE", 0.5)
    token = FencingToken.acquire(tmp_path)
    left: dict[int, str] = {}
    watchdogs = []
    for rank in (0, 1):
        record = (GLOO / f"gloo-rank-{rank}.json").read_bytes()
        watchdog = Watchdog(
            RunLog(tmp_path, writes=rank == 0, rank=rank),
            token,
            HangTimeouts(step=600, slow=600),
            ExitRecord(tmp_path, rank=rank),
            interval=0.1,
            flight_record=lambda record=record: record,
        )
        watchdog._leave = lambda kind, reason, rank=rank: left.update({rank: kind})  # type: ignore
        watchdog.enter_phase("step" if rank == 0 else "data_wait")
        watchdog._stacks = (tmp_path / f"stacks-{rank}.txt").open("w")
        watchdog.write_heartbeat()
        watchdogs.append(watchdog)
    (tmp_path / "hangs").mkdir()
    ends = [threading.Thread(target=watchdog._end_hang) for watchdog in watchdogs]
    for end in ends:
        end.start()
    for end in ends:
        end.join(30)
    assert left == {0: "hang", 1: "hang"}
    events = read_events(tmp_path)
    assert len([event for event in events if isinstance(event, HangDetected)]) == 1
    (stuck,) = [event for event in events if isinstance(event, CollectiveStuck)]
    assert (stuck.collective, stuck.sequence, stuck.missing) == ("all_reduce", 7, [1])
    assert stuck.hosts == blamed_nodes(tmp_path, token.number, [])


def test_a_rank_that_finds_another_ones_hang_leaves_its_stacks_too(tmp_path: Path) -> None:
    watchdog = Watchdog(
        RunLog(tmp_path, writes=True),
        FencingToken.acquire(tmp_path),
        HangTimeouts(step=600, slow=600),
        ExitRecord(tmp_path),
        interval=0.1,
    )
    ended = threading.Event()
    watchdog._end_hang = lambda: (ended.set(), watchdog.stop())  # type: ignore[method-assign]
    watchdog.start()
    assert not ended.wait(0.3) and not watchdog.is_hung()
    watchdog._hang_claim().touch()
    assert ended.wait(10)


def test_a_flight_recorder_that_hangs_too_delays_the_end_by_seconds_only(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("megajukebox.resilience.watchdog.STACKS_GRACE", 0.2)
    watchdog = Watchdog(
        RunLog(tmp_path, writes=True),
        FencingToken.acquire(tmp_path),
        HangTimeouts(),
        ExitRecord(tmp_path),
        flight_record=lambda: threading.Event().wait(3600) and None,
    )
    watchdog._dump_collectives()
    assert not dump_path(tmp_path, 1, 0).exists()
