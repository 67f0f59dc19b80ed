"""The table of alerts: what is wrong with a run, and what to do. One row an alert.

`watch`, the webhook and the run pages apply `predicate` to one moment; Prometheus evaluates `promql`, which adds what
only a history shows (trends, "for ten minutes"). `make monitoring` writes monitoring/rules.yml and the runbook's index
from this table. Each alert has a paragraph of the same name in docs/RUNBOOK.md.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from megajukebox.common.errors import EXIT_FATAL
from megajukebox.monitoring.collect.run_state import RunState
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

SLOWDOWN = 1.15  # times the median rank
DATA_WAIT = 0.10  # of a step
BAD_SAMPLES = 0.01  # of the samples read
CODEBOOK_USAGE = 0.5
CODEBOOK_STEPS = 1000  # in which codebooks are still found; before, few codes in use are no news
SPIKE_SCORE = 6.0
MIN_SCALE = 1.0
GOODPUT = 0.95
GOODPUT_SECONDS = 6 * 3600  # of a run before goodput is judged
CRASH_LOOP = 5  # restarts within CRASH_LOOP_SECONDS
CRASH_LOOP_SECONDS = 1800
SKIPPED_STEPS = 10  # of the last hundred, because of numbers that are not finite
RUNBOOK = "docs/RUNBOOK.md"

PAGE = "page"  # now, at night too
TICKET = "ticket"  # in working hours

# Groups of rules, in the order of the questions that an engineer on call asks.
MOVING = "is it moving"
LEARNING = "does it learn"
SAFE = "can we lose the machine now"
FAST = "is it fast"
MACHINES = "machines"
WATCHERS = "who watches"

Predicate = Callable[[RunState], str | None]


@dataclass(frozen=True)
class AlertRow:
    """An alert. `predicate` returns what is wrong, or None; None for an alert that only Prometheus can know."""

    name: str
    group: str
    severity: str  # PAGE or TICKET
    predicate: Predicate | None
    promql: str
    summary: str  # a template of Prometheus
    action: str  # what to do first; the rest is in the runbook
    for_: str | None = None  # how long `promql` must hold
    comment: str | None = None  # why `promql` is as it is


@dataclass(frozen=True)
class ActiveAlert:
    run: str
    alert: str
    severity: str
    what: str
    do: str


def diagnose(run: RunState) -> list[ActiveAlert]:
    """All that is wrong, the pages first."""
    active = []
    for row in ALERTS:
        what = row.predicate(run) if row.predicate else None
        if what:
            active.append(ActiveAlert(run.name, row.name, row.severity, what, row.action))
    return sorted(active, key=lambda alert: alert.severity != PAGE)


# ---- Predicates -------------------------------------------------------------------------------------------------------


def unreadable(run: RunState) -> str | None:
    return f"cannot be read: {run.problem}" if run.problem else None


def stalled(run: RunState) -> str | None:
    if run.status != "stalled":
        return None
    waited = format_duration(run.now - (run.last_step_time or run.now))
    phases = sorted({beat.phase for beat in run.ranks if beat.phase})
    where = f"; ranks are in {', '.join(phases)}" if phases else ""
    return f"no step for {waited} (limit {format_duration(run.stall_after)}){where}"


def rank_silent(run: RunState) -> str | None:
    silent = run.silent_ranks
    if not silent:
        return None
    names = []
    for beat in silent[:4]:
        age = format_duration(run.now - beat.time)
        names.append(f"rank {beat.rank} on {beat.host} ({age}, in {beat.phase})")
    more = f" and {len(silent) - 4} more" if len(silent) > 4 else ""
    return f"no heartbeat from {', '.join(names)}{more}"


def down(run: RunState) -> str | None:
    if run.status != "down":
        return None
    away = format_duration(run.now - (run.last_seen or run.now))
    return f"no process for {away}, and the run is not finished"


def needs_operator(run: RunState) -> str | None:
    if run.status != "failed":
        return None
    reasons = [record.reason for record in run.exits]
    reasons += [event.reason or "" for event in run.events[-3:]]
    known = list(filter(None, reasons))
    code = f"exit code {run.exit_code}" if run.exit_code == EXIT_FATAL else "training ended"
    return f"{code}: {known[-1] if known else 'see the end of its log'}"


def slurm_chain_too_short(run: RunState) -> str | None:
    available = run.chain_seconds_left
    needed = run.eta_seconds
    if run.chain is None or available is None or needed is None or available >= needed:
        return None
    jobs = f"this job and the {run.chain.queued} after it last {format_duration(available)}"
    return f"{jobs}, training takes {format_duration(needed)} more"


def crash_looping(run: RunState) -> str | None:
    starts = [event.time for event in run.events if isinstance(event, AttemptStarted)]
    recent = sum(run.now - start < CRASH_LOOP_SECONDS for start in starts[1:])
    return f"{recent} restarts in half an hour" if recent >= CRASH_LOOP else None


def loss_nan(run: RunState) -> str | None:
    loss = run.last.get("loss")
    step = run.last.get("step")
    skipped = any(isinstance(event, StepSkipped) and event.step == step for event in run.events)
    if isinstance(loss, float) and not math.isfinite(loss) and not skipped:
        return f"the loss is {loss} at step {step}"
    if run.ended == "diverged":
        return f"training stopped: {run.events[-1].reason or 'the loss is no longer a number'}"
    first = run.step - 100
    recent = 0
    for event in run.events:
        if isinstance(event, StepSkipped) and event.kind == "nan":
            recent += (event.step or 0) > first
    if recent > SKIPPED_STEPS:
        return f"{recent} of the last 100 steps were skipped as not finite"
    return None


def loss_spike(run: RunState) -> str | None:
    score = run.spike_score
    if not run.alive or score is None or score <= SPIKE_SCORE:
        return None
    loss = run.value("loss")
    return f"the loss {loss:.4g} is {score:.0f} standard deviations above those before it"


def raised(kind: str) -> Predicate:
    """The reason of the last event AlertRaised of a kind, until the run has saved a checkpoint after it."""

    def predicate(run: RunState) -> str | None:
        for event in reversed(run.events):
            if isinstance(event, CheckpointSaved):
                return None
            if isinstance(event, AlertRaised) and event.kind == kind:
                return event.reason or kind
        return None

    return predicate


def loss_scale_at_minimum(run: RunState) -> str | None:
    scale = run.value("loss_scale")
    if not run.alive or scale is None or scale > MIN_SCALE:
        return None
    return f"the loss scale is {scale:g}"


def codebook_collapse(run: RunState) -> str | None:
    if not run.alive or run.step < CODEBOOK_STEPS:
        return None
    low = []
    for level in ("top", "middle", "bottom"):
        share = run.codebook_usage(level)
        if share is not None and share < CODEBOOK_USAGE:
            low.append(f"{level} uses {share:.0%} of its codes")
    return f"codebook {', '.join(low)}" if low else None


def checkpoint_stale(run: RunState) -> str | None:
    due = run.checkpoint_due
    if not run.alive or due is None or run.now < due:
        return None
    newest = run.whole_checkpoints[-1]
    age = format_duration(run.now - newest.time)
    return f"the newest whole checkpoint (step {newest.step}) is {age} old"


def no_valid_checkpoint(run: RunState) -> str | None:
    if run.checkpoints and not run.whole_checkpoints:
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
    size = max((checkpoint.bytes for checkpoint in run.checkpoints), default=0)
    free = run.disk.free_bytes
    if run.status == "done" or free is None or not size or free > 2 * size:
        return None
    space = f"{format_bytes(free)} free at {run.disk.mount}"
    return f"{space}, a checkpoint takes {format_bytes(size)}"


def straggler(run: RunState) -> str | None:
    slow = {rank: ratio for rank, ratio in run.slowdowns.items() if ratio > SLOWDOWN}
    if not run.alive or not slow:
        return None
    hosts = {beat.rank: beat.host for beat in run.ranks}
    worst = max(slow, key=lambda rank: slow[rank])
    times = f"{slow[worst]:.2f} times the median rank's time for a step"
    return f"rank {worst} on {hosts[worst]} takes {times}"


def input_bound(run: RunState) -> str | None:
    share = run.data_wait_ratio
    if not run.alive or share is None or share <= DATA_WAIT:
        return None
    return f"{share:.0%} of the step is waiting for data"


def data_loss(run: RunState) -> str | None:
    share = run.bad_sample_ratio
    if share is None or share <= BAD_SAMPLES:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in run.bad_samples.most_common(3))
    return f"{share:.1%} of the clips cannot be read ({kinds})"


def goodput_low(run: RunState) -> str | None:
    day = run.account.goodput_since(run.now - 86400)
    over = run.status in ("done", "stopped")
    if over or day is None or run.account.wall < GOODPUT_SECONDS or day >= GOODPUT:
        return None
    lost = {phase: s for phase, s in run.account.seconds.items() if phase != STEP}
    worst = max(lost, key=lambda phase: lost[phase])
    useful = f"{day:.0%} of the last day was useful training"
    return f"{useful}; most of the rest, over the whole run, is {worst}"


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


# ---- The table --------------------------------------------------------------------------------------------------------

RUNNING = "and on(run) megajukebox_running == 1"
UNFINISHED = "and on(run) megajukebox_finished == 0"


def active(alert: str) -> str:
    """PromQL for an alert that `watch` alone can tell."""
    return f'(sum by (run) (megajukebox_alert_active{{alert="{alert}"}}) == 1)'


ALERTS = (
    AlertRow(
        "JukeboxStalled",
        MOVING,
        PAGE,
        stalled,
        "time() - megajukebox_last_step_timestamp_seconds > megajukebox_stall_after_seconds\n"
        f"  {RUNNING}",
        "{{ $labels.run }}: no step for {{ $value | humanizeDuration }}",
        "find the rank in another phase; py-spy dump it, then restart the run",
    ),
    AlertRow(
        "JukeboxRankSilent",
        MOVING,
        PAGE,
        rank_silent,
        "megajukebox_rank_silent == 1",
        "{{ $labels.run }}: rank {{ $labels.rank }} on {{ $labels.host }} is silent, the others are not",
        "check that node; kill the process there and the run restarts",
    ),
    AlertRow(
        "JukeboxDown",
        MOVING,
        PAGE,
        down,
        'megajukebox_status{status="down"} == 1',
        "{{ $labels.run }}: not finished, and no process for 15 minutes",
        "check the queue and the end of the log; run the same command again",
        comment="No process for 15 minutes: --down of the exporter.",
    ),
    AlertRow(
        "JukeboxNeedsOperator",
        MOVING,
        PAGE,
        needs_operator,
        "megajukebox_needs_operator == 1",
        "{{ $labels.run }}: ended in a way that a restart does not fix",
        "read the reason; fix it, then run the same command again",
    ),
    AlertRow(
        "JukeboxCrashLooping",
        MOVING,
        TICKET,
        crash_looping,
        "sum by (run) (increase(megajukebox_restarts_total[30m])) > 4.5",
        "{{ $labels.run }}: {{ $value | humanize }} restarts in 30 minutes",
        "compare how the attempts ended: exits/ and events.jsonl",
    ),
    AlertRow(
        "JukeboxSlurmChainTooShort",
        MOVING,
        TICKET,
        slurm_chain_too_short,
        f"megajukebox_slurm_chain_seconds_left < on(run) megajukebox_eta_seconds\n  {RUNNING}",
        "{{ $labels.run }}: the jobs that are queued last {{ $value | humanizeDuration }}, training longer",
        "queue more jobs behind it: sbatch --dependency=afterany:ARRAY",
        "15m",
        "The supervisor writes the figures: slurm_chain.json.",
    ),
    AlertRow(
        "JukeboxLossNaN",
        LEARNING,
        PAGE,
        loss_nan,
        f"{active('JukeboxLossNaN')}\n"
        '  or on(run) (increase(megajukebox_steps_skipped_total{reason="nan"}[10m]) > 10)',
        "{{ $labels.run }}: the loss or a gradient is not a number",
        "restart it with a lower lr_scale; at the same step again it is the data",
    ),
    AlertRow(
        "JukeboxLossSpike",
        LEARNING,
        TICKET,
        loss_spike,
        f"megajukebox_spike_score > {SPIKE_SCORE:g} {RUNNING}",
        "{{ $labels.run }}: loss {{ $value | humanize }} standard deviations above those before",
        "watch whether it comes back down; the events list the skipped steps",
    ),
    AlertRow(
        "JukeboxLossDiverging",
        LEARNING,
        PAGE,
        None,
        'megajukebox_loss{split="train", level="all"}\n'
        '  > quantile_over_time(0.5, megajukebox_loss{split="train", level="all"}[24h])\n'
        '    + 6 * stddev_over_time(megajukebox_loss{split="train", level="all"}[24h] offset 15m)\n'
        f"{RUNNING}",
        "{{ $labels.run }}: the loss has been far above the last day's for ten minutes",
        "stop it; resume from a checkpoint before the spike",
        "10m",
    ),
    AlertRow(
        "JukeboxLossScaleAtMinimum",
        LEARNING,
        TICKET,
        loss_scale_at_minimum,
        f"megajukebox_loss_scale <= {MIN_SCALE:g} {RUNNING}",
        "{{ $labels.run }}: the fp16 loss scale is at its minimum",
        "lower the learning rate or train in bf16 or fp32",
        "2m",
    ),
    AlertRow(
        "JukeboxLearningRateReduced",
        LEARNING,
        PAGE,
        raised(MIN_LOSS_SCALE),
        active("JukeboxLearningRateReduced"),
        "{{ $labels.run }}: fp16 overflowed at the minimum loss scale; the run was rewound to a lower rate",
        "restart it if nothing else does; check whether the loss recovers",
    ),
    AlertRow(
        "JukeboxCodebookCollapse",
        LEARNING,
        TICKET,
        codebook_collapse,
        f"megajukebox_codebook_usage_ratio < {CODEBOOK_USAGE} {RUNNING}"
        f" and on(run) megajukebox_step >= {CODEBOOK_STEPS}",
        "{{ $labels.run }}: the {{ $labels.level }} codebook uses {{ $value | humanizePercentage }} of its codes",
        "check codebook_threshold, and whether clips are silent",
        "10m",
        "Before step 1000 codebooks are still being found.",
    ),
    AlertRow(
        "JukeboxSilentDataCorruption",
        LEARNING,
        PAGE,
        raised(SDC),
        "increase(megajukebox_sdc_mismatches_total[1h]) > 0"
        f" or on(run) {active('JukeboxSilentDataCorruption')}",
        "{{ $labels.run }}: ranks hold or compute wrong values: a machine fails without an error",
        "exclude the node that is named; resume from the checkpoint before",
    ),
    AlertRow(
        "JukeboxCheckpointStale",
        SAFE,
        PAGE,
        checkpoint_stale,
        f"time() - megajukebox_checkpoint_due_timestamp_seconds > 0\n  {RUNNING}",
        "{{ $labels.run }}: a checkpoint is overdue by {{ $value | humanizeDuration }}",
        "touch SAVE in the run folder; if no checkpoint comes, see the log",
    ),
    AlertRow(
        "JukeboxNoValidCheckpoint",
        SAFE,
        PAGE,
        no_valid_checkpoint,
        active("JukeboxNoValidCheckpoint"),
        "{{ $labels.run }}: no checkpoint is whole; a crash now loses everything",
        "do not stop the run; touch SAVE, check the disk",
    ),
    AlertRow(
        "JukeboxSaveFailed",
        SAFE,
        PAGE,
        save_failed,
        'increase(megajukebox_checkpoints_total{result="failed"}[10m]) > 0\n'
        f"  or on(run) {active('JukeboxSaveFailed')}",
        "{{ $labels.run }}: a checkpoint could not be saved",
        "free space or fix the storage, then touch SAVE in the run folder",
    ),
    AlertRow(
        "JukeboxDiskFull",
        SAFE,
        PAGE,
        disk_full,
        "megajukebox_fs_free_bytes < on(run) group_left() 2 * megajukebox_last_checkpoint_bytes\n"
        f"  {UNFINISHED}",
        "{{ $labels.run }}: {{ $value | humanize1024 }}B free at {{ $labels.mount }}, less than two checkpoints",
        "delete old runs' checkpoints; the run continues and saves again by itself",
    ),
    AlertRow(
        "JukeboxDiskFullSoon",
        SAFE,
        PAGE,
        None,
        "predict_linear(megajukebox_fs_free_bytes[6h], 86400) < 0"
        " and megajukebox_fs_free_bytes offset 3h",
        "{{ $labels.mount }} will be full within a day",
        "free space before it is full",
        "30m",
        "Not before there is a history of three hours: a line through two points may go anywhere.",
    ),
    AlertRow(
        "JukeboxStraggler",
        FAST,
        TICKET,
        straggler,
        f"megajukebox_rank_slowdown_ratio > {SLOWDOWN} {RUNNING}",
        "{{ $labels.run }}: rank {{ $labels.rank }} on {{ $labels.host }} takes {{ $value | humanize }} times as long",
        "run megajukebox doctor on that node; exclude it if it stays slow",
        "30m",
    ),
    AlertRow(
        "JukeboxThroughputDrop",
        FAST,
        TICKET,
        None,
        "avg_over_time(megajukebox_audio_seconds_per_second[10m])\n"
        "  < 0.95 * quantile_over_time(0.5, megajukebox_audio_seconds_per_second[24h])\n"
        f"{RUNNING}",
        "{{ $labels.run }}: {{ $value | humanize }} audio seconds a second, 5 % below the last day's",
        "find the part of the step that grew",
        "10m",
    ),
    AlertRow(
        "JukeboxInputBound",
        FAST,
        TICKET,
        input_bound,
        f"megajukebox_data_wait_ratio > {DATA_WAIT} {RUNNING}",
        "{{ $labels.run }}: {{ $value | humanizePercentage }} of each step is waiting for data",
        "use more workers or prefetch; megajukebox doctor measures the disk",
        "10m",
    ),
    AlertRow(
        "JukeboxDataLoss",
        FAST,
        PAGE,
        data_loss,
        f"megajukebox_bad_samples_ratio > {BAD_SAMPLES} {UNFINISHED}",
        "{{ $labels.run }}: {{ $value | humanizePercentage }} of the clips cannot be read",
        "run megajukebox shards check on the data; check the mount",
    ),
    AlertRow(
        "JukeboxGoodputLow",
        FAST,
        TICKET,
        goodput_low,
        f'megajukebox_goodput_ratio{{window="24h"}} < {GOODPUT}\n'
        f"  and on(run) sum by (run) (megajukebox_time_seconds_total) > {GOODPUT_SECONDS}\n"
        f"  {UNFINISHED}",
        "{{ $labels.run }}: {{ $value | humanizePercentage }} of the last day was useful training",
        "see where the time went on the run's page",
        "1h",
    ),
    AlertRow(
        "JukeboxXid",
        MACHINES,
        TICKET,
        None,
        "changes(DCGM_FI_DEV_XID_ERRORS[10m]) > 0 or DCGM_FI_DEV_ROW_REMAP_FAILURE > 0",
        "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} reports an error to its driver",
        "look up the Xid; exclude the node if it is hardware",
        comment="From NVIDIA's DCGM exporter.",
    ),
    AlertRow(
        "JukeboxGpuMemoryErrors",
        MACHINES,
        TICKET,
        None,
        "increase(megajukebox_gpu_ecc_uncorrected_errors[1h]) > 0",
        "GPU {{ $labels.gpu }} of {{ $labels.node }}: memory errors that could not be corrected",
        "exclude the node at the next restart",
    ),
    AlertRow(
        "JukeboxHostMemoryLeak",
        MACHINES,
        TICKET,
        None,
        "predict_linear(megajukebox_host_memory_available_bytes[1h], 4 * 3600) < 0\n"
        "  and megajukebox_host_memory_available_bytes offset 30m",
        "{{ $labels.node }} will be out of memory within four hours",
        "find the process that grows; save and restart the run",
        "30m",
    ),
    AlertRow(
        "JukeboxWatcherBlind",
        WATCHERS,
        PAGE,
        None,
        'up{job="megajukebox"} == 0 or absent(up{job="megajukebox"})',
        "the exporter does not answer: no other alert on runs can come",
        "start megajukebox exporter again",
        "2m",
    ),
    AlertRow(
        "JukeboxRunUnreadable",
        WATCHERS,
        TICKET,
        unreadable,
        "megajukebox_run_unreadable == 1",
        "{{ $labels.run }}: files of the run cannot be read; its other alerts may be missing",
        "see which file, and who wrote it; other runs are not concerned",
        "5m",
    ),
    AlertRow(
        "JukeboxWebhookFailing",
        WATCHERS,
        TICKET,
        None,
        "increase(megajukebox_alert_webhook_failures_total[30m]) > 0",
        "messages to the webhook are not delivered",
        "read the exporter's log; fix the receiver",
    ),
    AlertRow(
        "JukeboxWatchdog",
        WATCHERS,
        "none",
        None,
        "vector(1)",
        "alerts can reach you",
        "nothing; act when it stops",
        comment="Fires always: when a dead man's switch no longer receives it, Prometheus is gone.",
    ),
)
