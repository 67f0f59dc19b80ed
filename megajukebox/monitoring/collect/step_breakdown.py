"""Where the time of a step goes: data, communication, computing, and its share of the saves."""

from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.records.productive_time import number

MEASURED = {"data_wait": "data_seconds", "communication": "communication_seconds"}
LABELS = {
    "data_wait": "data wait",
    "communication": "communication",
    "forward_backward": "forward and backward",
    "save": "saves",
}


def step_parts(run: RunState) -> dict[str, float]:
    """Seconds of the last logged step on rank 0; the parts but `save` add up to it. Empty before the first."""
    seconds = run.value("step_seconds")
    if seconds is None:
        return {}
    parts: dict[str, float] = {}
    for part, key in MEASURED.items():
        spent = run.value(key)
        if spent is not None:
            parts[part] = spent
    parts["forward_backward"] = max(0.0, seconds - sum(parts.values()))
    save = save_seconds(run)
    if save is not None:
        parts["save"] = save
    return parts


def save_seconds(run: RunState) -> float | None:
    """A step's share of the time that saves took over the last logged lines of this attempt."""
    known: list[tuple[float, float]] = []
    for line in run.recent:
        step = number(line.get("step"))
        seconds = number(line.get("time_checkpoint_save_seconds"))
        of_attempt = (number(line.get("time")) or 0.0) >= (run.attempt_start or 0.0)
        if of_attempt and step is not None and seconds is not None:
            known.append((step, seconds))
    if not known or known[-1][0] <= known[0][0]:
        return None
    return max(0.0, known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0])


def describe_step(run: RunState) -> str | None:
    """`0.53 s: forward and backward 80%, communication 15%, data wait 5%`, the largest part first."""
    parts = step_parts(run)
    total = sum(parts.values())
    if not total:
        return None
    largest_first = sorted(parts.items(), key=lambda part: -part[1])
    shares = [f"{LABELS[part]} {spent / total:.0%}" for part, spent in largest_first]
    return f"{total:.3g} s: {', '.join(shares)}"
