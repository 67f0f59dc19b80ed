"""The doctor on all ranks before they train: which nodes are unfit, and what no other node would mend.

Each rank leaves its findings in <run>/preflight/ before it meets the others, so that a node which does not answer, or
does not see the folder, is known by its silence.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.records.jsonl_tail import read_object

FOLDER = "preflight"
MEETING_SECONDS = 60.0  # that ranks wait for one another
MAX_SECONDS = 90.0  # for all of it
ENDING_SECONDS = (
    10.0  # of them, that the doctor has to end once its time is up, before it is killed
)
ENTRIES = ("train.py", "distill.py")
# Options of srun under which one sick rank would silence the healthy ones.
KILL_ON_BAD_EXIT = ("--kill-on-bad-exit", "-K")


class PreflightResult(NamedTuple):
    """`unfit`: nodes and what is wrong with each. `everywhere`: what is wrong with all alike, or empty."""

    unfit: dict[str, str]
    everywhere: str
    summary: str  # all of it, with warnings

    @property
    def verdict(self) -> str:
        return "bad" if self.unfit or self.everywhere else "good"


def doctor_command(command: list[str], run: Path) -> list[str]:
    """The doctor under the launcher of `command`.

    Raises:
        UserError: no entry of ours is in the command.
    """
    options = ["--run", str(run), "--report-dir", str(run / FOLDER), "--seconds"]
    options.append(f"{MEETING_SECONDS:.0f}")
    for index, word in enumerate(command):
        launcher = [part for part in command[:index] if not part.startswith(KILL_ON_BAD_EXIT)]
        if Path(word).name in ENTRIES:
            return [*launcher, str(Path(word).with_name("doctor.py")), *options]
        if Path(word).name == "megajukebox":
            return [*launcher, word, "doctor", *options]
    entries = " nor ".join(ENTRIES)
    raise UserError(
        f"{' '.join(command)!r} starts neither megajukebox nor {entries}: no --preflight"
    )


def examine(run: Path, nodes: list[str], start: Callable[[float], int]) -> PreflightResult:
    """Let `start` run the doctor for so many seconds, and read what its ranks left. `nodes`: empty outside SLURM."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    status = start(MAX_SECONDS - ENDING_SECONDS)
    reports = list(filter(None, map(read_object, sorted((run / FOLDER).glob("rank-*.json")))))
    return evaluate_reports(reports, read_object(run / FOLDER / "together.json"), nodes, status)


def evaluate_reports(
    reports: list[dict], together: dict, nodes: list[str], status: int
) -> PreflightResult:
    """What each rank's report, and the one of all together (empty if they did not meet), find of `nodes`."""
    hosts = {report["host"] for report in reports}
    silent = [node for node in nodes if node not in hosts]
    if nodes and len(silent) > max(1, len(nodes) // 10):
        # So many nodes do not fail at once: the doctor itself could not be run, and training will report why.
        reason = f"{len(silent)} of {len(nodes)} nodes reported nothing (status {status})"
        return PreflightResult({}, "", f"{reason}: ignored")
    findings: list[dict] = []
    for report in (*reports, together):
        findings += report.get("findings", [])
    by_subject = bad_hosts(findings)
    common = [bad for bad in by_subject if len(nodes) != 1 and hosts <= set(bad)]
    unfit: dict[str, str] = {}
    for bad in by_subject:
        if bad not in common:
            unfit |= bad
    unfit |= {node: f"reported nothing within {MAX_SECONDS:.0f} s" for node in silent}
    everywhere = []
    notable = []
    for finding in findings:
        of_all = finding["about"] == "all-reduce"
        if of_all and finding["verdict"] == "bad":
            everywhere.append(describe(finding))
        if of_all or finding["verdict"] != "good":
            notable.append(describe(finding))
    everywhere += [next(iter(bad.values())) for bad in common]
    notable += [f"{node}: {unfit[node]}" for node in silent]
    if not together:
        notable.append(f"the ranks could not be compared (status {status})")
    return PreflightResult(unfit, "; ".join(everywhere), "; ".join(dict.fromkeys(notable)))


def bad_hosts(findings: list[dict]) -> list[dict[str, str]]:
    """For each subject of a bad finding: its hosts, and what is wrong there."""
    by_subject: dict[str, dict[str, str]] = defaultdict(dict)
    for finding in findings:
        if finding["verdict"] == "bad":
            subject = finding["about"].partition(" (")[0]
            by_subject[subject] |= dict.fromkeys(finding["hosts"], describe(finding))
    return list(by_subject.values())


def describe(finding: dict) -> str:
    where = f" on {', '.join(finding['hosts'])}" if finding["hosts"] else ""
    return f"{finding['about'].partition(' (')[0]}{where}: {finding['what']}"
