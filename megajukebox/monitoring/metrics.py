"""The table of metrics: what Prometheus gets of a run, and where the dashboard draws it.

A metric that a run logs takes one row here: its log key as `source`. The exporter, the dashboard and the list in the
docs follow (`make monitoring`). What a run logs and no row has is `megajukebox_other{name=...}`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain

from megajukebox.monitoring.alerts import diagnose
from megajukebox.monitoring.collect.run_state import UNREADABLE, RunState
from megajukebox.monitoring.collect.step_breakdown import step_parts
from megajukebox.records.events import (
    SKIP_KINDS,
    CheckpointRejected,
    CheckpointSaved,
    NodeExcluded,
    Rewound,
    RunResumed,
    RunStarted,
    SaveFailed,
)
from megajukebox.records.metrics import HELD_OUT, NOT_METRICS, TRAIN
from megajukebox.records.productive_time import number

PREFIX = "megajukebox_"
RUN = 'run=~"$run"'  # the dashboard's choice of runs
LEVELS = ("top", "middle", "bottom")
STATUSES = (
    UNREADABLE,
    "new",
    "starting",
    "training",
    "stalled",
    "waiting",
    "down",
    "stopped",
    "failed",
    "done",
)
DAY = 86400

# Rows of the dashboard, in the order of the questions that an engineer on call asks.
MOVING = "Is it moving?"
HEALTHY = "Is it healthy?"
TIME = "Where did time go?"
SAFE = "Can we lose the machine now?"
RANKS = "Who is slow, who is silent?"
DATA = "Data and disk"
DASHBOARD_ROWS = (MOVING, HEALTHY, TIME, SAFE, RANKS, DATA)

Labels = tuple[str, ...]  # values of a metric's labels, without `run`
Values = Mapping[Labels, float | None]


@dataclass(frozen=True)
class Panel:
    """Where the dashboard draws a metric. `query`: PromQL in which {metric} is the metric of the chosen runs."""

    row: str
    title: str
    unit: str = "none"  # of Grafana
    query: str = "{metric}"
    legend: str | None = None  # None: the run and all labels


@dataclass(frozen=True)
class MetricRow:
    """A metric. `source`: a key of metrics.jsonl, or what reads it from a run; of a histogram, the histogram's name."""

    name: str  # without PREFIX, and without the _total of a counter
    kind: str  # gauge, counter or histogram
    help: str
    source: str | Callable[[RunState], float | Values | None]
    labels: Labels = ()  # beside `run`
    panel: Panel | None = None
    log_keys: Labels = ()  # that a `source` which is a function reads

    def values(self, run: RunState) -> Values:
        """By the values of the labels; not those that are unknown."""
        read = run.value(self.source) if isinstance(self.source, str) else self.source(run)
        by_labels = read if isinstance(read, Mapping) else {(): read}
        return {labels: value for labels, value in by_labels.items() if value is not None}


# ---- Readers: what a row cannot say with a log key alone --------------------------------------------------------------


def run_info(run: RunState) -> Values:
    """What trains, as labels: stage, preset, commit and version of the code, digest of the settings."""
    made_by = run.settings.get("made_by")
    facts = made_by if isinstance(made_by, dict) else {}
    preset = run.settings.get("preset")
    name = preset.get("name", "") if isinstance(preset, dict) else ""
    commit = str(facts.get("commit") or "")
    version = str(facts.get("version") or "")
    return {(run.stage, str(name), commit, version, run.config_digest): 1}


def losses(run: RunState) -> Values:
    """The loss of both splits, and each level's reconstruction of a VQ-VAE."""
    values: dict[Labels, float | None] = {}
    for split, row in ((TRAIN, run.last), (HELD_OUT, run.held_out)):
        loss = row.get("loss")
        if isinstance(loss, float) and not math.isfinite(loss):
            values[split, "all"] = math.nan  # as it is: an alert asks for it
        else:
            values[split, "all"] = number(loss)
        for level in LEVELS:
            values[split, level] = number(row.get(f"{level}/reconstruction"))
    return values


def by_split(key: str) -> Callable[[RunState], Values]:
    """The last value of a log key in the train rows and in the held-out ones."""
    return lambda run: {
        (TRAIN,): number(run.last.get(key)),
        (HELD_OUT,): number(run.held_out.get(key)),
    }


def other(run: RunState) -> Values:
    """What the run logs and no row has."""
    values: dict[Labels, float | None] = {}
    for split, row in ((TRAIN, run.last), (HELD_OUT, run.held_out)):
        for name, value in row.items():
            if name not in LOGGED_ELSEWHERE and not name.startswith("time_"):
                values[split, str(name)[:100]] = number(value)
    return values


def rate(key: str) -> Callable[[RunState], float | None]:
    """A speed: 0 for a run that does not live."""
    return lambda run: run.value(key) if run.alive or run.value(key) is None else 0.0


def amount(rate_key: str) -> Callable[[RunState], float | None]:
    """What has been trained on, by the last speed."""

    def read(run: RunState) -> float | None:
        speed = run.value(rate_key)
        seconds = run.value("step_seconds")
        step = number(run.last.get("step"))
        if speed is None or seconds is None or step is None:
            return None
        return step * speed * seconds

    return read


def dead_codes(run: RunState) -> Values:
    """The size of the codebook less the codes that its running average counts as alive, by level."""
    values: dict[Labels, float | None] = {}
    for level in LEVELS:
        alive = run.value(f"{level}/usage")
        size = run.codebook_size(level)
        if alive is not None and size:
            values[(level,)] = size - alive
    return values


def codebook_entropy(run: RunState) -> Values:
    """In bits; it is logged in nats."""
    values: dict[Labels, float | None] = {}
    for level in LEVELS:
        nats = run.value(f"{level}/entropy")
        values[(level,)] = None if nats is None else nats / math.log(2)
    return values


def of_ranks(
    values_of: Callable[[RunState], Mapping[int, float | None]],
) -> Callable[[RunState], Values]:
    """Values by rank, labelled with its number and host. They are asked for once a run, not once for each rank of it."""

    def read(run: RunState) -> Values:
        values = values_of(run)
        return {(str(beat.rank), beat.host): values.get(beat.rank) for beat in run.ranks}

    return read


def silence(run: RunState) -> Mapping[int, float]:
    """1 for a rank that is silent, 0 for the others."""
    silent = {beat.rank for beat in run.silent_ranks}
    return {beat.rank: float(beat.rank in silent) for beat in run.ranks}


def restarts(run: RunState) -> Values:
    """By how the attempt before ended; the usual ways always, so that a first one shows as a rise from 0."""
    reasons = dict.fromkeys(("crash", "stop", "hang", *run.restarts))
    return {(reason,): run.restarts[reason] for reason in reasons}


def last_checkpoint(field: str) -> Callable[[RunState], float | None]:
    return lambda run: getattr(run.whole_checkpoints[-1], field) if run.whole_checkpoints else None


AGE = "time() - {metric}"

METRICS = (
    # ---- Is it moving? ------------------------------------------------------------------------------------------------
    MetricRow(
        "run_info",
        "gauge",
        "What trains; the value is 1.",
        run_info,
        ("stage", "preset", "commit", "version", "config_digest"),
    ),
    MetricRow(
        "status",
        "gauge",
        "1 for the status that the run is in, 0 for the others.",
        lambda run: {(status,): float(status == run.status) for status in STATUSES},
        ("status",),
        Panel(MOVING, "Status", "short", "{metric} == 1"),
    ),
    MetricRow(
        "running",
        "gauge",
        "Whether some process of the run gave a sign of life lately.",
        lambda run: float(run.alive),
    ),
    MetricRow(
        "finished",
        "gauge",
        "Whether the last step was reached, or the run was stopped on request.",
        lambda run: float(run.status in ("done", "stopped")),
    ),
    MetricRow(
        "needs_operator",
        "gauge",
        "Whether training must not be started again as it is (exit code 93).",
        lambda run: float(run.status == "failed"),
    ),
    MetricRow("step", "gauge", "Optimizer steps made.", lambda run: run.step),
    MetricRow(
        "target_steps",
        "gauge",
        "Optimizer steps of the whole run.",
        lambda run: run.target,
        panel=Panel(MOVING, "Progress", "percentunit", f"{PREFIX}step{{{RUN}}} / {{metric}}"),
    ),
    MetricRow(
        "last_step_timestamp_seconds",
        "gauge",
        "When the last step was made.",
        lambda run: run.last_step_time,
        panel=Panel(MOVING, "Age of the last step", "s", AGE),
    ),
    MetricRow(
        "stall_after_seconds",
        "gauge",
        "Time without a step that is too long for this run.",
        lambda run: run.stall_after,
    ),
    MetricRow(
        "heartbeat_timestamp_seconds",
        "gauge",
        "The newest sign of life of any rank.",
        lambda run: run.heartbeat or run.last_seen,
    ),
    MetricRow(
        "eta_seconds",
        "gauge",
        "Time left at the present speed.",
        lambda run: run.eta_seconds,
        panel=Panel(MOVING, "Time left", "s"),
    ),
    MetricRow(
        "slurm_job_seconds_left",
        "gauge",
        "Time until the present SLURM job reaches its limit.",
        lambda run: run.chain.job_seconds_left(run.now) if run.chain and run.alive else None,
        panel=Panel(MOVING, "Time left of the job", "s"),
    ),
    MetricRow(
        "slurm_chain_jobs_queued",
        "gauge",
        "Jobs in the queue that follow the present one.",
        lambda run: run.chain.queued if run.chain and run.alive else None,
        panel=Panel(MOVING, "Jobs queued after it", "short"),
    ),
    MetricRow(
        "slurm_chain_seconds_left",
        "gauge",
        "Time that the present job and those queued after it may still take.",
        lambda run: run.chain_seconds_left,
    ),
    MetricRow(
        "alert_active",
        "gauge",
        "1 while `megajukebox watch` shows this alert.",
        lambda run: {(alert.alert, alert.severity): 1 for alert in diagnose(run)},
        ("alert", "severity"),
        Panel(MOVING, "Active alerts", "short"),
    ),
    MetricRow(
        "attempt",
        "gauge",
        "Number of the present attempt, from 1.",
        lambda run: run.counts[RunStarted] + run.counts[RunResumed],
    ),
    # ---- Is it healthy? -----------------------------------------------------------------------------------------------
    MetricRow(
        "loss",
        "gauge",
        "Loss; level is all, or a level's reconstruction of a VQ-VAE.",
        losses,
        ("split", "level"),
        Panel(HEALTHY, "Loss"),
        log_keys=("loss",),
    ),
    MetricRow(
        # Not `bits_per_code`, as it is logged: `promtool check metrics` takes bits for a data size.
        "cross_entropy_per_code",
        "gauge",
        "Cross entropy of a prior in bits per code.",
        by_split("bits_per_code"),
        ("split",),
        Panel(HEALTHY, "Bits per code"),
        log_keys=("bits_per_code",),
    ),
    MetricRow(
        "cross_entropy_per_lyric",
        "gauge",
        "Cross entropy of a prior's lyrics in bits per token.",
        by_split("bits_per_lyric"),
        ("split",),
        log_keys=("bits_per_lyric",),
    ),
    MetricRow(
        "grad_norm",
        "gauge",
        "Norm of the gradient before clipping.",
        "grad_norm",
        panel=Panel(HEALTHY, "Gradient norm"),
    ),
    MetricRow(
        "learning_rate",
        "gauge",
        "Learning rate of the last step.",
        "learning_rate",
        panel=Panel(HEALTHY, "Learning rate"),
    ),
    MetricRow(
        "spike_score",
        "gauge",
        "Standard deviations of the last loss above the losses before it.",
        lambda run: run.spike_score,
        panel=Panel(HEALTHY, "Spike score"),
    ),
    MetricRow(
        "loss_scale",
        "gauge",
        "fp16 loss scale.",
        "loss_scale",
        panel=Panel(HEALTHY, "Loss scale (fp16)"),
    ),
    MetricRow(
        "overflows",
        "counter",
        "Steps skipped because a gradient overflowed fp16.",
        "overflows",
    ),
    MetricRow(
        "steps_skipped",
        "counter",
        "Steps skipped (nan, spike, overflow).",
        lambda run: {(kind,): run.skipped_steps[kind] for kind in SKIP_KINDS},
        ("reason",),
        Panel(HEALTHY, "Skipped steps", "short"),
    ),
    MetricRow(
        "rewinds",
        "counter",
        "Returns to an earlier checkpoint because the loss diverged or fp16 overflowed.",
        lambda run: run.counts[Rewound],
    ),
    MetricRow(
        "sdc_mismatches",
        "counter",
        "Silent data corruptions: ranks hold or compute something wrong.",
        lambda run: run.sdc_mismatches,
    ),
    MetricRow(
        "codebook_usage_ratio",
        "gauge",
        "Codes chosen in a batch, over those that even use would choose.",
        lambda run: {(level,): run.codebook_usage(level) for level in LEVELS},
        ("level",),
        Panel(HEALTHY, "Codebook usage", "percentunit"),
    ),
    MetricRow(
        "codebook_entropy",
        "gauge",
        "Entropy of the codes of the last batch in bits.",
        codebook_entropy,
        ("level",),
        Panel(HEALTHY, "Codebook entropy", "bits"),
    ),
    MetricRow(
        "codebook_dead_codes",
        "gauge",
        "Codes that hardly any vector chose lately.",
        dead_codes,
        ("level",),
        Panel(HEALTHY, "Dead codes", "short"),
    ),
    MetricRow(
        "other",
        "gauge",
        "Every other number that the run logs, by its own name.",
        other,
        ("split", "name"),
        Panel(HEALTHY, "Other logged metrics"),
    ),
    # ---- Where did time go? -------------------------------------------------------------------------------------------
    MetricRow(
        "goodput_ratio",
        "gauge",
        "Share of the wall clock spent on steps that were kept.",
        lambda run: {
            ("total",): run.account.goodput,
            ("24h",): run.account.goodput_since(run.now - DAY),
        },
        ("window",),
        Panel(TIME, "Goodput", "percentunit"),
    ),
    MetricRow(
        "time_seconds",
        "counter",
        "The run's wall clock since its first start, by phase.",
        lambda run: {(phase,): seconds for phase, seconds in run.account.seconds.items()},
        ("phase",),
        Panel(TIME, "Wall clock since the first start", "s"),
    ),
    MetricRow(
        "step_part_seconds",
        "gauge",
        "Where the last logged step went on rank 0, and its share of the saves.",
        lambda run: {(part,): seconds for part, seconds in step_parts(run).items()},
        ("part",),
        Panel(TIME, "A step", "s"),
        log_keys=("communication_seconds",),
    ),
    MetricRow(
        "step_seconds",
        "histogram",
        "Time of the logged steps.",
        "step_seconds",
        panel=Panel(
            TIME,
            "Slow steps (95 %)",
            "s",
            f"histogram_quantile(0.95, sum by (run, le) ({PREFIX}step_seconds_bucket{{{RUN}}}))",
        ),
    ),
    MetricRow(
        "audio_seconds_per_second",
        "gauge",
        "Audio trained on, per second of wall clock.",
        rate("audio_seconds_per_second"),
        panel=Panel(TIME, "Audio seconds per second"),
        log_keys=("audio_seconds_per_second",),
    ),
    MetricRow(
        "tokens_per_second",
        "gauge",
        "Codes trained on, per second of wall clock.",
        rate("tokens_per_second"),
        panel=Panel(TIME, "Codes per second"),
        log_keys=("tokens_per_second",),
    ),
    MetricRow(
        "audio_seconds",
        "counter",
        "Audio trained on.",
        amount("audio_seconds_per_second"),
    ),
    MetricRow("tokens", "counter", "Codes trained on.", amount("tokens_per_second")),
    MetricRow(
        "model_flops_utilization_ratio",
        "gauge",
        "Floating point operations of the model over the peak.",
        "mfu",
        panel=Panel(TIME, "Model FLOPs utilization (MFU)", "percentunit"),
    ),
    # ---- Can we lose the machine now? ---------------------------------------------------------------------------------
    MetricRow(
        "last_checkpoint_timestamp_seconds",
        "gauge",
        "When the newest whole checkpoint was written.",
        last_checkpoint("time"),
        panel=Panel(SAFE, "Age of the newest checkpoint", "s", AGE),
    ),
    MetricRow(
        "last_checkpoint_bytes",
        "gauge",
        "Size of the newest whole checkpoint.",
        last_checkpoint("bytes"),
        panel=Panel(SAFE, "Size of a checkpoint", "bytes"),
    ),
    MetricRow(
        "last_checkpoint_step",
        "gauge",
        "Step of the newest whole checkpoint.",
        last_checkpoint("step"),
    ),
    MetricRow(
        "checkpoints_valid",
        "gauge",
        "Checkpoints whose files are all there with the right sizes.",
        lambda run: len(run.whole_checkpoints),
        panel=Panel(SAFE, "Whole checkpoints", "short"),
    ),
    MetricRow(
        "checkpoint_interval_seconds",
        "gauge",
        "Time between checkpoints at the present speed.",
        lambda run: run.save_interval,
    ),
    MetricRow(
        "checkpoint_due_timestamp_seconds",
        "gauge",
        "When the newest whole checkpoint becomes, or became, stale.",
        lambda run: run.checkpoint_due,
    ),
    MetricRow(
        "checkpoint_save_seconds",
        "histogram",
        "Time of a checkpoint.",
        "save",
        panel=Panel(
            SAFE,
            "Time of a save (mean)",
            "s",
            f"{PREFIX}checkpoint_save_seconds_sum{{{RUN}}}"
            f" / {PREFIX}checkpoint_save_seconds_count{{{RUN}}}",
        ),
    ),
    MetricRow(
        "checkpoints",
        "counter",
        "Checkpoints saved, and saves that failed.",
        lambda run: {
            ("saved",): run.counts[CheckpointSaved],
            ("failed",): run.counts[SaveFailed],
        },
        ("result",),
        Panel(SAFE, "Saves", "short"),
    ),
    MetricRow(
        "checkpoint_rejects",
        "counter",
        "Checkpoints found damaged at a start.",
        lambda run: run.counts[CheckpointRejected],
    ),
    MetricRow(
        "restarts",
        "counter",
        "Starts after the first, by how the attempt before ended.",
        restarts,
        ("reason",),
        Panel(SAFE, "Restarts", "short"),
    ),
    MetricRow(
        "recomputed_steps",
        "counter",
        "Steps that were trained again after a restart.",
        lambda run: run.recomputed_steps,
        panel=Panel(SAFE, "Recomputed steps", "short"),
    ),
    # ---- Who is slow, who is silent? ----------------------------------------------------------------------------------
    MetricRow(
        "rank_slowdown_ratio",
        "gauge",
        "A step over one with the median rank in its place.",
        of_ranks(lambda run: run.slowdowns),
        ("rank", "host"),
        Panel(RANKS, "Slowdown of each rank"),
    ),
    MetricRow(
        "rank_communication_seconds",
        "gauge",
        "Time in collectives in a step, waits included.",
        of_ranks(lambda run: {beat.rank: beat.communication_seconds for beat in run.ranks}),
        ("rank", "host"),
        Panel(RANKS, "Communication of each rank, waits included", "s"),
    ),
    MetricRow(
        "rank_heartbeat_timestamp_seconds",
        "gauge",
        "The last sign of life of a rank.",
        of_ranks(lambda run: {beat.rank: beat.time for beat in run.ranks}),
        ("rank", "host"),
        Panel(RANKS, "Age of each rank's heartbeat", "s", AGE),
    ),
    MetricRow(
        "rank_silent",
        "gauge",
        "1 for a rank whose heartbeat stopped while others beat.",
        of_ranks(silence),
        ("rank", "host"),
    ),
    MetricRow(
        "ranks",
        "gauge",
        "Processes of the present attempt.",
        lambda run: len(run.ranks) or None,
    ),
    MetricRow(
        "hangs",
        "counter",
        "Hangs that the watchdog ended.",
        lambda run: {(phase[:40] or "step",): count for phase, count in run.hangs.items()},
        ("phase",),
    ),
    MetricRow(
        "nodes_excluded",
        "counter",
        "Exclusions of nodes from the run.",
        lambda run: run.counts[NodeExcluded],
    ),
    MetricRow(
        "memory_bytes",
        "gauge",
        "Memory of rank 0 as it logs it.",
        lambda run: {
            ("gpu_peak",): run.value("memory_gpu_bytes"),
            ("host",): run.value("memory_host_bytes"),
        },
        ("kind",),
        Panel(RANKS, "Memory of rank 0", "bytes"),
        log_keys=("memory_gpu_bytes", "memory_host_bytes"),
    ),
    # ---- Data and disk ------------------------------------------------------------------------------------------------
    MetricRow(
        "data_wait_ratio",
        "gauge",
        "Share of the last logged steps spent waiting for data.",
        lambda run: run.data_wait_ratio,
        panel=Panel(DATA, "Waiting for data", "percentunit"),
        log_keys=("data_wait_ratio",),
    ),
    MetricRow(
        "data_wait_seconds",
        "histogram",
        "Wait for data in the logged steps.",
        "data_seconds",
    ),
    MetricRow(
        "prefetch_fill_ratio",
        "gauge",
        "How full the buffer of prefetched steps is, 0 to 1.",
        "prefetch_fill_ratio",
    ),
    MetricRow(
        "bad_samples_ratio",
        "gauge",
        "Share of the samples of this attempt that could not be read.",
        lambda run: run.bad_sample_ratio,
        panel=Panel(DATA, "Bad samples", "percentunit"),
    ),
    MetricRow(
        "bad_samples",
        "counter",
        "Samples that could not be read and were replaced.",
        lambda run: {(kind,): count for kind, count in run.bad_samples.items()},
        ("reason",),
        Panel(DATA, "Bad samples by reason", "short"),
        log_keys=("bad_samples",),
    ),
    MetricRow(
        "fs_free_bytes",
        "gauge",
        "Free space of the file system that holds the run.",
        lambda run: {(run.disk.mount,): run.disk.free_bytes},
        ("mount",),
        Panel(DATA, "Free space", "bytes", "max by (mount) ({metric})", "{{mount}}"),
    ),
    MetricRow(
        "fs_free_inodes",
        "gauge",
        "Free inodes of the file system that holds the run.",
        lambda run: {(run.disk.mount,): run.disk.free_inodes},
        ("mount",),
    ),
    MetricRow(
        "run_unreadable",
        "gauge",
        "Whether files of the run cannot be read: 1 for a run of which not all is known.",
        lambda run: float(bool(run.problem)),
    ),
    MetricRow(
        "unreadable_lines",
        "gauge",
        "Lines of the run's files that are no records.",
        lambda run: run.unreadable,
    ),
)

LOGGED_ELSEWHERE = {
    *NOT_METRICS,
    *(row.source for row in METRICS if isinstance(row.source, str)),
    *chain.from_iterable(row.log_keys for row in METRICS),
}
