"""All that a GPU alone can tell, in nine minutes of one: is the product right there, how fast is it, and what bounds it.

    python benchmarks/gpu_day.py --out gpu_day                      # on a GPU
    python benchmarks/gpu_day.py --out gpu_day --small              # every part at a few thousand weights; a CPU will do
    python benchmarks/gpu_day.py --out again --only sampler,codec
    python benchmarks/gpu_day.py --out again --skip-done gpu_day/gpu_day.json

Parts go in the order of what they are worth. Each is a process of its own with a time limit, and killed with all that
it started; one that fails, hangs or runs out of memory leaves its last lines, and the next begins. A part that usually
takes longer than what is left of `--deadline` is skipped. In the folder lie gpu_day.json (every figure, written as it
is measured), gpu_day.log, gpu_day.txt (the table printed at the end) and traces for https://ui.perfetto.dev.
"""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated

import typer

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
# Of this package, of the benchmarks and of the tests' little models: nothing need be installed but what they import.
IMPORTED_FROM = (ROOT, BENCHMARKS, ROOT / "tests")
sys.path[:0] = map(str, IMPORTED_FROM)

from gpu_parts.results import (  # noqa: E402
    DONE,
    FAILED,
    FAILURES,
    RUNNING,
    SKIPPED,
    TIMED_OUT,
    DayResults,
    PartResult,
)
from gpu_parts.table import table  # noqa: E402

from megajukebox.common.provenance import made_by  # noqa: E402

LIMIT_PER_USUAL = 2.0  # a part may take this many times what it usually takes
SMALL_LIMIT_SECONDS = 240.0  # of any part with --small: on a loaded machine
RESERVE_SECONDS = 5.0  # of the deadline, for the last table
LAST_LINES = 20
LARGEST_LOG = 15 * 2**20  # bytes; of a longer one the end is kept


@dataclass(frozen=True)
class Part:
    """A subject of the day."""

    name: str
    work: str  # module:function, called with gpu_parts.figures.Figures
    seconds: float  # that it usually takes on an H200


# In the order of their worth. The seconds are estimates until a GPU has run them.
PARTS = (
    Part("ceilings", "gpu_parts.ceilings:ceilings", 20),
    Part("tests", "gpu_parts.gpu_tests:gpu_tests", 60),
    Part("products", "gpu_parts.products:products", 20),
    Part("sampler", "gpu_parts.sampler:sampler", 105),
    Part("exactness", "gpu_parts.sampler:exactness", 30),
    Part("training", "gpu_parts.training:training", 50),
    Part("training_5b", "gpu_parts.training:training_5b", 45),
    Part("training_v100", "gpu_parts.training:training_v100", 30),
    Part("codec", "gpu_parts.codec:codec", 25),
    Part("students", "gpu_parts.students:students", 25),
    Part("profiles", "gpu_parts.profiles:profiles", 35),
    Part("extras", "gpu_parts.extras:extras", 60),
)


def main(
    out: Annotated[Path, typer.Option(help="Folder for the results.")],
    deadline: Annotated[float, typer.Option(min=1, help="Seconds for all of it.")] = 530.0,
    only: Annotated[str | None, typer.Option(help="Parts, separated by commas.")] = None,
    skip_done: Annotated[
        Path | None, typer.Option(help="A gpu_day.json whose finished parts are not repeated.")
    ] = None,
    small: Annotated[bool, typer.Option("--small", help="Tiny sizes, on a CPU too.")] = False,
) -> None:
    """Measure what a GPU does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    known = {part.name: part for part in PARTS}
    names = only.split(",") if only else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)} is none of {', '.join(known)}", None, None)
    before = DayResults.load(skip_done) if skip_done else None
    results = run_day([known[name] for name in names], out, deadline, small, before)
    raise SystemExit(any(row.status in FAILURES for row in results.parts.values()))


def run_day(
    parts: list[Part], out: Path, deadline: float, small: bool, before: DayResults | None = None
) -> DayResults:
    """Run the parts one after another, print the table, and return all rows.

    Args:
        deadline: seconds from now on.
        before: results of an earlier run; what it finished is taken from there.
    """
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "gpu_day.json"
    date = datetime.now(timezone.utc).isoformat(timespec="minutes")
    results = DayResults({"date": date, "small": small, "made_by": made_by()})
    results.save(path)
    for part in parts:
        earlier = before.parts.get(part.name) if before else None
        left = deadline - (time.monotonic() - began) - RESERVE_SECONDS
        if earlier and earlier.status == DONE:
            row = earlier
        elif part.seconds > left and not small:
            reason = f"usually takes {part.seconds:.0f} s, {left:.0f} s are left"
            row = PartResult(SKIPPED, reason=reason)
        else:
            limit = SMALL_LIMIT_SECONDS if small else min(left, LIMIT_PER_USUAL * part.seconds)
            row = run_part(part, path, small, limit)
        results = DayResults.load(path)
        results.parts[part.name] = row
        results.save(path)
        print(
            f"== {part.name}: {row.status}, {row.seconds:.1f} s (CPU {row.cpu_seconds:.1f} s) {row.reason}",
            flush=True,
        )
        print("\n".join(row.last_lines), end="\n" * bool(row.last_lines), flush=True)
    shorten(out / "gpu_day.log")
    lines = table(results)
    (out / "gpu_day.txt").write_text(lines)
    print(lines)
    return results


def run_part(part: Part, path: Path, small: bool, limit: float) -> PartResult:
    """The row of a part that ran in its own process group for `limit` seconds at most."""
    results = DayResults.load(path)
    results.parts[part.name] = PartResult(RUNNING)
    results.save(path)
    command = [sys.executable, "-m", "gpu_parts", part.work, part.name, str(path)]
    command += ["--small"] * small
    log_path = path.with_suffix(".log")
    began = time.monotonic()
    cpu_before = children_cpu_seconds()
    with log_path.open("ab") as log:
        start = log.tell()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment(), cwd=ROOT, start_new_session=True
        )
        try:
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill_group(process)
    row = DayResults.load(path).parts[part.name]
    row.seconds = time.monotonic() - began
    row.cpu_seconds = children_cpu_seconds() - cpu_before
    row.status = DONE
    if code is None:
        row.status = TIMED_OUT
        row.reason = f"over its limit of {limit:.0f} s"
    elif code != 0:
        row.status = FAILED
        row.reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    if row.status != DONE:
        row.last_lines = last_lines(log_path, start)
    return row


def children_cpu_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def kill_group(process: subprocess.Popen) -> None:
    """End a part with all that it started."""
    with suppress(ProcessLookupError):  # it has ended, and has left nobody
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def environment() -> dict[str, str]:
    """Of a part: it finds our modules, and prints at once."""
    folders = [str(folder) for folder in IMPORTED_FROM]
    if "PYTHONPATH" in os.environ:
        folders.append(os.environ["PYTHONPATH"])
    return os.environ | {"PYTHONPATH": os.pathsep.join(folders), "PYTHONUNBUFFERED": "1"}


def last_lines(log: Path, start: int) -> list[str]:
    """Of what was written to `log` from byte `start` on."""
    with log.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-LAST_LINES:]


def shorten(log: Path) -> None:
    """Keep the end of a log that has grown too long to be carried home."""
    if not log.exists() or log.stat().st_size <= LARGEST_LOG:
        return
    with log.open("rb") as file:
        file.seek(-LARGEST_LOG, os.SEEK_END)
        end = file.read()
    log.write_bytes(end)


if __name__ == "__main__":
    typer.run(main)
