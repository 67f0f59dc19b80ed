"""The doctor on all ranks before they train: which nodes are unfit, and what no other node would mend.

Each rank leaves its findings in <run>/preflight/ before it meets the others, so that a node which does not answer, or
does not see the folder, is known by its silence.
"""

import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from megajukebox.common.files import read_record

FOLDER = "preflight"
MEETING = 60.0  # seconds that ranks wait for one another
LONGEST = 90.0  # seconds for all of it
ENTRIES = ("train.py", "distill.py")
STRICT = (
    "--kill-on-bad-exit",
    "-K",
)  # an srun option under which one sick rank would silence the healthy ones


class PreflightResult(NamedTuple):
    """`unfit`: nodes and what is wrong with each. `everywhere`: what is wrong with all alike, or empty."""

    unfit: dict[str, str]
    everywhere: str
    told: str  # all of it, with what is only worth a look

    @property
    def verdict(self) -> str:
        return "bad" if self.unfit or self.everywhere else "good"


def doctors(command: list[str], run: Path) -> list[str]:
    """The doctor under the launcher of `command`. Raises ValueError where no entry of ours is in it."""
    told = ["--run", str(run), "--leave", str(run / FOLDER), "--seconds", f"{MEETING:.0f}"]
    for place, word in enumerate(command):
        launcher = [part for part in command[:place] if not part.startswith(STRICT)]
        if Path(word).name in ENTRIES:
            return [*launcher, str(Path(word).with_name("doctor.py")), *told]
        if Path(word).name == "megajukebox":
            return [*launcher, word, "doctor", *told]
    raise ValueError(
        f"{' '.join(command)!r} starts neither megajukebox nor {' nor '.join(ENTRIES)}: no --preflight"
    )


def examine(run: Path, nodes: list[str], start: Callable[[float], int]) -> PreflightResult:
    """Let `start` run the doctor for so many seconds, and read what its ranks left. `nodes`: empty outside SLURM."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)
    status = start(LONGEST)
    told = [read_record(path) for path in sorted((run / FOLDER).glob("rank-*.json"))]
    return judged(
        [record for record in told if record],
        read_record(run / FOLDER / "together.json"),
        nodes,
        status,
    )


def judged(told: list[dict], together: dict, nodes: list[str], status: int) -> PreflightResult:
    """What each rank's report, and the one of all together (empty if they did not get so far), say of `nodes`."""
    heard = {record["host"] for record in told}
    silent = [node for node in nodes if node not in heard]
    if nodes and len(silent) > max(1, len(nodes) // 10):
        # So many nodes do not fail at once: the doctor itself could not be run, and training will tell why.
        return PreflightResult(
            {},
            "",
            f"{len(silent)} of {len(nodes)} nodes told nothing (status {status}): not believed",
        )
    findings = [finding for record in (*told, together) for finding in record.get("findings", [])]
    ill: dict[str, dict[str, str]] = defaultdict(dict)  # by what it is about, by host
    for finding in findings:
        if finding["verdict"] == "bad":
            ill[finding["about"].partition(" (")[0]] |= dict.fromkeys(
                finding["hosts"], sentence(finding)
            )
    common = [found for found in ill.values() if len(nodes) != 1 and heard <= set(found)]
    unfit = {
        host: text for found in ill.values() if found not in common for host, text in found.items()
    }
    unfit |= {node: f"told nothing within {LONGEST:.0f} s" for node in silent}
    wrong = [sentence(f) for f in findings if f["verdict"] == "bad" and f["about"] == "all-reduce"]
    everywhere = "; ".join([*wrong, *(next(iter(found.values())) for found in common)])
    worth = [sentence(f) for f in findings if f["verdict"] != "good" or f["about"] == "all-reduce"]
    worth += [f"{node}: {unfit[node]}" for node in silent]
    worth += [] if together else [f"the ranks could not be compared (status {status})"]
    return PreflightResult(unfit, everywhere, "; ".join(dict.fromkeys(worth)))


def sentence(finding: dict) -> str:
    where = f" on {', '.join(finding['hosts'])}" if finding["hosts"] else ""
    return f"{finding['about'].partition(' (')[0]}{where}: {finding['what']}"
