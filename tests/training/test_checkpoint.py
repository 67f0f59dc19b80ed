"""Checkpoints: whole or not there, and a run never starts again from zero by accident."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.training.checkpoint import (
    MANIFEST,
    RetentionPolicy,
    StoredFile,
    commit,
    folder_of,
    newest,
    partial,
    read_state,
    verify,
)

FILES = {"state/rank-0.pt": b"first" * 100, "state/rank-1.pt": b"second" * 100, "empty.txt": b""}


def write(run: Path, step: int) -> Path:
    """What the ranks leave before `commit`."""
    for name, content in FILES.items():
        path = partial(run, step) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content + b"%d" % step if content else b"")
    return partial(run, step)


def saved(run: Path, *steps: int, keep: int = 10) -> Path:
    for step in steps:
        write(run, step)
        commit(
            partial(run, step), step, {"step": step, "stream": {"seed": 3}}, RetentionPolicy(keep)
        )
    return folder_of(run, steps[-1])


def steps_of(run: Path) -> list[int]:
    return sorted(
        int(path.name.split("-")[1]) for path in (run / "checkpoints").glob("step-????????")
    )


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_a_sealed_checkpoint_is_the_newest_and_holds_what_was_written(tmp_path: Path) -> None:
    folder = saved(tmp_path, 10, 20)
    assert newest(tmp_path) == (folder, []) and verify(folder) is None
    assert read_state(folder) == {"step": 20, "stream": {"seed": 3}}
    assert (folder / "state/rank-1.pt").read_bytes() == FILES["state/rank-1.pt"] + b"20"
    assert (tmp_path / "checkpoints/latest").read_text() == "step-00000020"
    assert not partial(tmp_path, 20).exists()


def test_a_run_that_never_saved_starts_from_zero(tmp_path: Path) -> None:
    assert newest(tmp_path) == (None, [])
    write(tmp_path, 10)
    assert newest(tmp_path) == (None, []), "what was written but not sealed is no checkpoint"


def test_a_save_that_was_killed_before_its_end_leaves_the_one_before(tmp_path: Path) -> None:
    before = saved(tmp_path, 10)
    write(tmp_path, 20)
    assert newest(tmp_path) == (before, [])
    after = saved(tmp_path, 30)
    assert newest(tmp_path) == (after, []) and not partial(tmp_path, 20).exists(), (
        "and is swept away by the next"
    )


SAVE = """
import sys
from pathlib import Path
from megajukebox.training.checkpoint import RetentionPolicy, commit, partial
run = Path(sys.argv[1])
for step in range(int(sys.argv[2]), 10**6):
    written = partial(run, step)
    written.mkdir(parents=True, exist_ok=True)
    for rank in range(3):
        (written / f"rank-{rank}.pt").write_bytes(b"%d" % step * 20000)
    commit(written, step, {"step": step}, RetentionPolicy(2))
    print(step, flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path: Path) -> None:
    first = 1
    for number in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVE, str(tmp_path), str(first)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline(), "it ended before its first checkpoint"
        time.sleep(0.003 + 0.011 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        folder, rejected = newest(tmp_path)
        assert folder is not None and rejected == []
        assert steps_of(tmp_path)[-1] == read_state(folder)["step"] >= first
        first = read_state(folder)["step"] + 1


def test_a_start_killed_between_manifest_and_rename_spoils_no_later_one(tmp_path: Path) -> None:
    def killed() -> None:
        raise KeyboardInterrupt

    written = partial(tmp_path, 7)
    written.mkdir(parents=True)
    (written / "rank-0.pt").write_bytes(b"7")
    with pytest.raises(KeyboardInterrupt):
        commit(written, 7, {"step": 7}, RetentionPolicy(2), check=killed)
    assert (written / MANIFEST).exists()
    commit(written, 7, {"step": 7}, RetentionPolicy(2))
    assert newest(tmp_path) == (folder_of(tmp_path, 7), [])


@pytest.mark.parametrize("name", ["state/rank-0.pt", "state/rank-1.pt", "state.json"])
def test_a_flipped_bit_is_found_and_the_checkpoint_before_it_used(
    tmp_path: Path, name: str
) -> None:
    before, broken = saved(tmp_path, 10), saved(tmp_path, 20)
    for place in (0, len((broken / name).read_bytes()) - 1):
        flip(broken / name, place)
        assert newest(tmp_path) == (before, [f"step-00000020: {name} has another checksum"])
        flip(broken / name, place)
    assert newest(tmp_path) == (broken, [])


def test_a_flipped_bit_anywhere_in_the_manifest_is_found_or_harmless(tmp_path: Path) -> None:
    """The list of checksums has none itself: every bit of it that matters must be noticed by what it says."""
    folder = saved(tmp_path, 20)
    path = folder / MANIFEST
    whole, harmless = json.loads(path.read_text())["files"], 0
    for place in range(path.stat().st_size):
        flip(path, place)
        if verify(folder) is None:
            assert json.loads(path.read_text())["files"] == whole, path.read_bytes()[
                place - 20 : place + 20
            ]
            harmless += 1
        flip(path, place)
    assert harmless < 20, "only the step and blanks may change unseen"


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"files": []}', '{"files": {}}', '{"files": {"a": 5}}', '{"step": 2}'],
)
def test_a_manifest_of_another_form_is_a_flaw(tmp_path: Path, content: str) -> None:
    folder = saved(tmp_path, 20)
    (folder / MANIFEST).write_text(content)
    assert "manifest" in (verify(folder) or "")


@pytest.mark.parametrize("name", ["state/rank-0.pt", "state.json", "empty.txt", MANIFEST])
def test_a_missing_or_cut_file_is_found(tmp_path: Path, name: str) -> None:
    before, broken = saved(tmp_path, 10), saved(tmp_path, 20)
    (broken / name).unlink()
    folder, rejected = newest(tmp_path)
    assert folder == before and len(rejected) == 1 and rejected[0].startswith("step-00000020: ")
    shutil.rmtree(broken)
    broken = saved(tmp_path, 20)
    if name != "empty.txt":
        os.truncate(broken / name, 5)
        assert newest(tmp_path)[0] == before


def test_with_no_whole_checkpoint_a_run_refuses_to_start_from_zero(tmp_path: Path) -> None:
    for folder in (saved(tmp_path, 10), saved(tmp_path, 20)):
        flip(folder / "state/rank-0.pt", 3)
    with pytest.raises(
        ValueError,
        match=r"none is whole .*step-00000020: .*step-00000010: .*restore one, or start in another",
    ):
        newest(tmp_path)
    for folder in (folder_of(tmp_path, 10), folder_of(tmp_path, 20)):
        shutil.rmtree(folder)
    with pytest.raises(ValueError, match=r"none is whole .all are missing"):
        newest(tmp_path)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_checkpoints_as_asked_are_kept(tmp_path: Path, keep: int) -> None:
    saved(tmp_path, 10, 20, 30, 40, keep=keep)
    assert steps_of(tmp_path) == [10, 20, 30, 40][-keep:]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_rejected_later_checkpoint_never_costs_the_one_just_saved(
    tmp_path: Path, keep: int
) -> None:
    """Step 30 was damaged, the run went on from 20 and saves 25: 25 must be there to go on from."""
    saved(tmp_path, 20, 30)
    flip(folder_of(tmp_path, 30) / "state/rank-0.pt", 0)
    folder = saved(tmp_path, 25, keep=keep)
    assert newest(tmp_path)[0] == folder
    assert steps_of(tmp_path) == ([25, 30] if keep == 1 else [20, 25, 30])
    folder = saved(tmp_path, 30, keep=keep)
    assert newest(tmp_path) == (folder, []) and len(steps_of(tmp_path)) == keep


def test_a_step_saved_again_replaces_what_was_there(tmp_path: Path) -> None:
    flip(saved(tmp_path, 10) / "state/rank-0.pt", 0)
    assert verify(folder_of(tmp_path, 10)) is not None
    assert verify(saved(tmp_path, 10)) is None


def test_every_nth_checkpoint_stays_for_good(tmp_path: Path) -> None:
    for step in range(5, 45, 5):
        write(tmp_path, step)
        commit(partial(tmp_path, step), step, {"step": step}, RetentionPolicy(2, every=15))
    assert steps_of(tmp_path) == [15, 30, 35, 40]


def test_while_no_step_can_be_taken_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    for step in range(5, 45, 5):
        write(tmp_path, step)
        commit(
            partial(tmp_path, step),
            step,
            {"step": step},
            RetentionPolicy(2, stuck=15 if step in range(20, 40) else None),
        )
        if step == 35:
            assert steps_of(tmp_path) == [10, 30, 35], (
                "the weights of 15 are those that could not take the next step"
            )
    assert steps_of(tmp_path) == [35, 40]


def test_processes_share_the_reading_of_a_checkpoint_and_between_them_find_every_flaw(
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path, 10)
    for name in ("state/rank-0.pt", "state/rank-1.pt", "state.json"):
        flip(folder / name, 0)
        found = [verify(folder, (rank, 3)) for rank in range(3)]
        assert [flaw for flaw in found if flaw] == [f"{name} has another checksum"]
        flip(folder / name, 0)
    assert [verify(folder, (rank, 7)) for rank in range(7)] == [None] * 7


def test_a_save_that_may_not_be_made_final_leaves_no_checkpoint(tmp_path: Path) -> None:
    before = saved(tmp_path, 10)

    def replaced() -> None:
        raise RuntimeError("another start has taken the run")

    written = write(tmp_path, 20)
    with pytest.raises(RuntimeError, match="another start"):
        commit(written, 20, {"step": 20}, RetentionPolicy(2), check=replaced)
    assert (
        newest(tmp_path) == (before, [])
        and (tmp_path / "checkpoints/latest").read_text() == "step-00000010"
    )


def test_sums_told_by_the_writer_are_believed_so_a_file_that_reached_the_disk_otherwise_is_found(
    tmp_path: Path,
) -> None:
    written = write(tmp_path, 20)
    told = {
        str(written / "state/rank-0.pt"): StoredFile(len(FILES["state/rank-0.pt"]) + 2, "0" * 64)
    }
    folder = commit(written, 20, {"step": 20}, RetentionPolicy(2), told)
    assert verify(folder) == "state/rank-0.pt has another checksum"


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from(["save", "killed", "damaged"])), max_size=25
    ),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_saved_killed_and_damaged_the_newest_whole_one_is_never_lost(
    steps, keep
) -> None:
    """The run goes on from the newest whole checkpoint after each fault, as it does in life."""
    with tempfile.TemporaryDirectory() as folder:
        run, whole = Path(folder), 0
        for more, what in steps:
            write(run, whole + more)
            if what == "killed":
                continue
            last = commit(
                partial(run, whole + more),
                whole + more,
                {"step": whole + more},
                RetentionPolicy(keep),
            )
            if what == "damaged" and whole and folder_of(run, whole).exists():
                flip(last / "state/rank-0.pt", 1)
                assert newest(run)[0] == folder_of(run, whole)
            else:
                whole += more
                assert newest(run)[0] == last
