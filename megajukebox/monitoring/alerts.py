"""What is wrong with a run, and what to do: the alerts of monitoring/rules.yml as plain functions of one moment.

The rules add what only a history tells (trends, "for ten minutes"); names and limits are the same, kept by a test.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from megajukebox.monitoring.collect.run_state import EXIT_FATAL, RunState
from megajukebox.records.events import (
    MIN_LOSS_SCALE,
    SDC,
    AlertRaised,
    AttemptStarted,
    CheckpointSaved,
    SaveFailed,
    StepSkipped,
)
from megajukebox.records.phases import STEP

SLOW = 1.15  # times the median rank
DATA_WAIT = 0.10
BAD_SHARE = 0.01
USAGE = 0.5
FOUND = 1000  # steps in which codebooks are still found; before, few codes in use are no news
SPIKE = 6.0
SCALE_FLOOR = 1.0
GOODPUT = 0.95
STORM = 5  # restarts within 30 minutes
RUNBOOK = "docs/RUNBOOK.md"


@dataclass(frozen=True)
class ActiveAlert:
    run: str
    alert: str
    severity: str  # page: now, at night too; ticket: in working hours
    what: str
    do: str


def stalled(run: RunState) -> str | None:
    if run.status != "stalled":
        return None
    waited = run.now - (run.last_step_time or run.now)
    sections = sorted({rank.phase for rank in run.ranks if rank.phase})
    where = f"; ranks are in {', '.join(sections)}" if sections else ""
    return (
        f"no step for {format_duration(waited)} (limit {format_duration(run.stall_after)}){where}"
    )


def silent(run: RunState) -> str | None:
    found = run.silent_ranks
    if not found:
        return None
    named = ", ".join(
        f"rank {r.rank} on {r.host} ({format_duration(run.now - r.time)}, in {r.phase})"
        for r in found[:4]
    )
    return f"no heartbeat from {named}" + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def down(run: RunState) -> str | None:
    if run.status != "down":
        return None
    return f"no process for {format_duration(run.now - (run.last_seen or run.now))}, and the run is not finished"


def needs_a_person(run: RunState) -> str | None:
    if run.status != "failed":
        return None
    reasons = [record.reason for record in run.exits]
    reasons += [event.reason or "" for event in run.events[-3:]]
    told = [reason for reason in reasons if reason]
    code = f"exit code {run.exit_code}" if run.exit_code == EXIT_FATAL else "training ended"
    return f"{code}: {told[-1] if told else 'see the end of its log'}"


def chain_short(run: RunState) -> str | None:
    lasts, needs = run.chain_seconds_left, run.eta_seconds
    if run.chain is None or lasts is None or needs is None or lasts >= needs:
        return None
    return f"this job and the {run.chain.queued} after it last {format_duration(lasts)}, training takes {format_duration(needs)} more"


def checkpoint_stale(run: RunState) -> str | None:
    whole, due = [c for c in run.checkpoints if c.whole], run.checkpoint_due
    if not run.alive or due is None or run.now < due:
        return None
    return f"the newest whole checkpoint (step {whole[-1].step}) is {format_duration(run.now - whole[-1].time)} old"


def no_valid_checkpoint(run: RunState) -> str | None:
    if run.checkpoints and not any(c.whole for c in run.checkpoints):
        return f"none of {len(run.checkpoints)} checkpoints has all its files"
    every = run.checkpoint_every
    if not run.checkpoints and every and run.step > 2 * every:
        return f"{run.step} steps and not one checkpoint (one is due every {every:.0f})"
    return None


def save_failed(run: RunState) -> str | None:
    save = run.last_event(CheckpointSaved, SaveFailed)
    if not isinstance(save, SaveFailed):
        return None
    return f"the last checkpoint could not be saved: {save.reason or 'no reason logged'}"


def disk_full(run: RunState) -> str | None:
    size, free = max((c.bytes for c in run.checkpoints), default=0), run.disk.free_bytes
    if run.status == "done" or free is None or not size or free > 2 * size:
        return None
    return f"{format_bytes(free)} free at {run.disk.mount}, a checkpoint takes {format_bytes(size)}"


def loss_nan(run: RunState) -> str | None:
    loss, step = run.last.get("loss"), run.last.get("step")
    skipped = any(isinstance(e, StepSkipped) and e.step == step for e in run.events)
    if isinstance(loss, float) and not math.isfinite(loss) and not skipped:
        return f"the loss is {loss} at step {step}"
    if run.ended == "diverged":
        return f"training stopped: {run.events[-1].reason or 'the loss is no longer a number'}"
    recent = run.lately_skipped("nan")
    return f"{recent} of the last 100 steps were left out as not finite" if recent > 10 else None


def loss_spike(run: RunState) -> str | None:
    score = run.spike_score
    if not run.alive or score is None or score <= SPIKE:
        return None
    return (
        f"the loss {run.value('loss'):.4g} is {score:.0f} standard deviations above those before it"
    )


def sdc(run: RunState) -> str | None:
    return alerted(run, SDC)


def rate_lowered(run: RunState) -> str | None:
    return alerted(run, MIN_LOSS_SCALE)


def alerted(run: RunState, kind: str) -> str | None:
    """The reason of the last event AlertRaised of a kind, until the run has saved a checkpoint after it."""
    for event in reversed(run.events):
        if isinstance(event, CheckpointSaved):
            return None
        if isinstance(event, AlertRaised) and event.kind == kind:
            return event.reason or kind
    return None


def data_loss(run: RunState) -> str | None:
    share = run.bad_sample_ratio
    if share is None or share <= BAD_SHARE:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in run.bad_samples.most_common(3))
    return f"{share:.1%} of the clips cannot be read ({kinds})"


def restart_storm(run: RunState) -> str | None:
    starts = [e.time for e in run.events if isinstance(e, AttemptStarted)]
    recent = sum(run.now - when < 1800 for when in starts[1:])
    return f"{recent} restarts in half an hour" if recent >= STORM else None


def goodput_low(run: RunState) -> str | None:
    day = run.account.goodput_since(run.now - 86400)
    if (
        day is None
        or run.account.wall < 6 * 3600
        or day >= GOODPUT
        or run.status in ("done", "stopped")
    ):
        return None
    bad = {phase: s for phase, s in run.account.seconds.items() if phase != STEP}
    worst = max(bad, key=lambda phase: bad[phase])
    return f"{day:.0%} of the last day was useful training; most of the rest, over the whole run, is {worst}"


def straggler(run: RunState) -> str | None:
    slow = {rank: ratio for rank, ratio in run.slowdowns.items() if ratio > SLOW}
    if not run.alive or not slow:
        return None
    hosts = {rank.rank: rank.host for rank in run.ranks}
    worst = max(slow, key=lambda rank: slow[rank])
    return f"rank {worst} on {hosts[worst]} takes {slow[worst]:.2f} times the median rank's time for a step"


def loss_scale_floor(run: RunState) -> str | None:
    scale = run.value("loss_scale")
    return (
        f"the loss scale is {scale:g}"
        if run.alive and scale is not None and scale <= SCALE_FLOOR
        else None
    )


def data_wait(run: RunState) -> str | None:
    share = run.data_wait_ratio
    if not run.alive or share is None or share <= DATA_WAIT:
        return None
    return f"{share:.0%} of the step is waiting for data"


def codebook_collapse(run: RunState) -> str | None:
    usage = {level: run.codebook_usage(level) for level in ("top", "middle", "bottom")}
    low = {level: share for level, share in usage.items() if share is not None and share < USAGE}
    if not low or not run.alive or run.step < FOUND:
        return None
    return "codebook " + ", ".join(
        f"{level} uses {share:.0%} of its codes" for level, share in low.items()
    )


# alert -> (severity, what tells of it, what to do first; the rest is in the runbook)
CHECKS: dict[str, tuple[str, Callable[[RunState], str | None], str]] = {
    "JukeboxLossNaN": (
        "page",
        loss_nan,
        "start it again with a lower lr_scale; at the same step again it is the data",
    ),
    "JukeboxNoRestart": (
        "page",
        needs_a_person,
        "read the reason; mend it, then start the same command again",
    ),
    "JukeboxRankSilent": (
        "page",
        silent,
        "look at that node; kill the process there and the run starts again",
    ),
    "JukeboxStalled": (
        "page",
        stalled,
        "see which rank is in another section; py-spy dump it, then restart the run",
    ),
    "JukeboxDown": (
        "page",
        down,
        "look at the queue and the end of the log; start the same command again",
    ),
    "JukeboxNoValidCheckpoint": (
        "page",
        no_valid_checkpoint,
        "do not stop the run; touch SAVE, look at the disk",
    ),
    "JukeboxSaveFailed": (
        "page",
        save_failed,
        "free space or mend the storage, then touch SAVE in the run folder",
    ),
    "JukeboxDiskFull": (
        "page",
        disk_full,
        "delete old runs' checkpoints; the run goes on and saves again by itself",
    ),
    "JukeboxCheckpointStale": (
        "page",
        checkpoint_stale,
        "touch SAVE in the run folder; if none comes, see the log",
    ),
    "JukeboxSdc": (
        "page",
        sdc,
        "exclude the node that is named; resume from the checkpoint before",
    ),
    "JukeboxRateLowered": (
        "page",
        rate_lowered,
        "start it again if nothing does; see whether the loss comes back",
    ),
    "JukeboxDataLoss": (
        "page",
        data_loss,
        "megajukebox shards check on the data; look at the mount",
    ),
    "JukeboxLossSpike": (
        "ticket",
        loss_spike,
        "watch whether it comes back down; the events tell what was skipped",
    ),
    "JukeboxRestartStorm": (
        "ticket",
        restart_storm,
        "compare how the attempts ended: exits/ and events.jsonl",
    ),
    "JukeboxChainShort": (
        "ticket",
        chain_short,
        "queue more jobs behind it: sbatch --dependency=afterany:ARRAY",
    ),
    "JukeboxStraggler": (
        "ticket",
        straggler,
        "megajukebox doctor on that node; exclude it if it stays slow",
    ),
    "JukeboxDataWait": (
        "ticket",
        data_wait,
        "more workers or prefetch; megajukebox doctor tells the disk's speed",
    ),
    "JukeboxGoodputLow": ("ticket", goodput_low, "see where the time went on the run's page"),
    "JukeboxLossScaleFloor": (
        "ticket",
        loss_scale_floor,
        "lower the learning rate or train in bf16 or fp32",
    ),
    "JukeboxCodebookCollapse": (
        "ticket",
        codebook_collapse,
        "see codebook_threshold, and whether clips are silent",
    ),
}


def diagnose(run: RunState) -> list[ActiveAlert]:
    """All that is wrong, what should wake somebody first."""
    found = [(alert, severity, tell(run), do) for alert, (severity, tell, do) in CHECKS.items()]
    problems = [
        ActiveAlert(run.name, alert, severity, what, do)
        for alert, severity, what, do in found
        if what
    ]
    return sorted(problems, key=lambda problem: problem.severity != "page")


def format_duration(seconds: float) -> str:
    """4000 -> 1 h 6 min"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def format_bytes(size: float) -> str:
    """1500000 -> 1.5 MB"""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
