"""Where the time of a step goes: data, communication, computing, and its share of the saves."""

from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.records.productive_time import number

MEASURED = {"data_wait": "data_seconds", "communication": "communication_seconds"}
SPOKEN = {
    "data_wait": "data wait",
    "communication": "communication",
    "forward_backward": "forward and backward",
}
SPOKEN |= {"save": "saves"}


def step_parts(run: RunState) -> dict[str, float]:
    """Seconds of the last logged step on rank 0; the parts but `save` add up to it. Empty before the first."""
    seconds = run.value("step_seconds")
    if seconds is None:
        return {}
    found = {part: run.value(name) for part, name in MEASURED.items()}
    parts = {part: value for part, value in found.items() if value is not None}
    parts["forward_backward"] = max(0.0, seconds - sum(parts.values()))
    save = save_seconds(run)
    return parts | ({} if save is None else {"save": save})


def save_seconds(run: RunState) -> float | None:
    """A step's share of the time that saves took over the last logged lines of this attempt."""
    lines = [line for line in run.recent if (number(line.get("time")) or 0.0) >= (run.began or 0.0)]
    told = [
        (number(line.get("step")), number(line.get("time_ckpt_save_seconds"))) for line in lines
    ]
    known = [(step, seconds) for step, seconds in told if step is not None and seconds is not None]
    if not known or known[-1][0] <= known[0][0]:
        return None
    return max(0.0, known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])


def told(run: RunState) -> str | None:
    """`0.53 s: forward and backward 80%, communication 15%, data wait 5%`, the largest part first."""
    parts = step_parts(run)
    whole = sum(parts.values())
    if not whole:
        return None
    shares = sorted(parts.items(), key=lambda part: -part[1])
    return f"{whole:.3g} s: " + ", ".join(
        f"{SPOKEN[part]} {spent / whole:.0%}" for part, spent in shares
    )
