"""Metrics under the names that version 1 gave them, for dashboards that were not changed yet: `exporter --legacy-names`.

Kept for one version. Label values that changed are not kept: phases (`productive`, `ckpt_save`, `ckpt_restore` of
`time_seconds_total` are `step`, `checkpoint_save`, `checkpoint_load`) and the alerts of `problem` (LEGACY_ALERTS).
"""

from typing import NamedTuple


class LegacyMetric(NamedTuple):
    """`labels`: None where they are those of the new name."""

    name: str
    now: str
    kind: str = "gauge"
    labels: tuple[str, ...] | None = None


LEGACY_METRICS = (
    LegacyMetric("steps", "step", "counter"),
    LegacyMetric("prefetch_depth", "prefetch_fill_ratio"),
    LegacyMetric("checkpoint_valid_count", "checkpoints_valid"),
    LegacyMetric("hang_detected", "hangs", "counter", ("section",)),
    LegacyMetric("node_excluded", "nodes_excluded", "counter"),
    LegacyMetric("sdc_mismatch", "sdc_mismatches", "counter"),
    LegacyMetric("generation", "attempt"),
    LegacyMetric("needs_person", "needs_operator"),
    LegacyMetric("problem", "alert_active"),
    LegacyMetric("chain_queued", "slurm_chain_jobs_queued"),
    LegacyMetric("chain_seconds", "slurm_chain_seconds_left"),
    LegacyMetric("job_time_left_seconds", "slurm_job_seconds_left"),
    LegacyMetric("wasted_steps", "recomputed_steps", "counter"),
    LegacyMetric("metric", "other"),
    LegacyMetric("bits_per_code", "cross_entropy_per_code"),
    LegacyMetric("bits_per_lyric", "cross_entropy_per_lyric"),
    LegacyMetric("codebook_entropy_bits", "codebook_entropy"),
)
LEGACY_ALERTS = {
    "JukeboxRestartStorm": "JukeboxCrashLooping",
    "JukeboxNoRestart": "JukeboxNeedsOperator",
    "JukeboxSdc": "JukeboxSilentDataCorruption",
    "JukeboxDataWait": "JukeboxInputBound",
    "JukeboxRateLowered": "JukeboxLearningRateReduced",
    "JukeboxChainShort": "JukeboxSlurmChainTooShort",
    "JukeboxLossScaleFloor": "JukeboxLossScaleAtMinimum",
}
