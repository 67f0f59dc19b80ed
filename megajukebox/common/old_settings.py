"""Settings that were renamed: presets, run.yaml and `key.sub=value` of an older version are read by this table."""

from collections.abc import Iterator, Mapping
from typing import Any

from megajukebox.common.errors import UserError

STAGE = "training.*."
RENAMED_OF_LEVEL = {
    "labels": "conditions",
    "label_tables": "condition_tables",
    "labels_everywhere": "conditions_at_every_position",
    "upper": "upsampler_conditioner",
    "condition_tables.*.slots": "condition_tables.*.max_values",
    "condition_tables.*.size": "condition_tables.*.table_size",
    "transformer.rows": "transformer.blocks",
    "lyrics.encoder.rows": "lyrics.encoder.blocks",
}
# Old path -> present path. `*` is any one name. Of two that overlap, the outer one comes first.
RENAMED_SETTINGS = {
    "vqvae.codes": "vqvae.codebook_size",
    "conditions.*.slots": "conditions.*.max_values",
    "conditions.*.size": "conditions.*.table_size",
}
for _level in ("top", "middle", "bottom"):
    for _old, _new in RENAMED_OF_LEVEL.items():
        RENAMED_SETTINGS[f"{_level}.{_old}"] = f"{_level}.{_new}"
RENAMED_SETTINGS |= {
    STAGE + "warmup": STAGE + "schedule.warmup",
    STAGE + "decay": STAGE + "schedule.decay",
    STAGE + "decay_floor": STAGE + "schedule.decay_floor",
    STAGE + "decay_start": STAGE + "schedule.decay_start",
    STAGE + "decay_steps": STAGE + "schedule.decay_steps",
    STAGE + "lr_scale": STAGE + "schedule.lr_scale",
    STAGE + "spike_sigmas": STAGE + "spikes.threshold_std",
    STAGE + "spike_window": STAGE + "spikes.window",
    STAGE + "bad_steps": STAGE + "spikes.max_skipped_steps",
    STAGE + "bad_within": STAGE + "spikes.skip_window",
    STAGE + "rewinds": STAGE + "spikes.max_rewinds",
    STAGE + "rewind_steps": STAGE + "spikes.rewind_steps",
    STAGE + "rewind_jump": STAGE + "spikes.rewind_skip_steps",
    STAGE + "floor_rewinds": STAGE + "spikes.min_scale_rewinds",
    STAGE + "floor_lr": STAGE + "spikes.min_scale_lr_factor",
    STAGE + "check_every": STAGE + "checks.replica_check_every",
    STAGE + "recompute_every": STAGE + "checks.recompute_check_every",
    STAGE + "held_out": STAGE + "evaluation.held_out",
    STAGE + "held_out_batches": STAGE + "evaluation.batches",
    STAGE + "evaluate_every": STAGE + "evaluation.every",
    STAGE + "sample_every": STAGE + "previews.every",
    STAGE + "sample_seconds": STAGE + "previews.seconds",
    STAGE + "sample_runs": STAGE + "previews.runs",
    STAGE + "save_every": STAGE + "checkpointing.every",
    STAGE + "save_in_background": STAGE + "checkpointing.in_background",
    STAGE + "export_every": STAGE + "checkpointing.export_every",
    STAGE + "keep": STAGE + "checkpointing.keep_last",
    STAGE + "keep_every": STAGE + "checkpointing.keep_every",
    STAGE + "hang_seconds": STAGE + "watchdog.step_timeout_seconds",
    STAGE + "hang_slow_seconds": STAGE + "watchdog.phase_timeout_seconds",
    STAGE + "workers": STAGE + "loader.workers",
    STAGE + "prefetch": STAGE + "loader.prefetch",
    STAGE + "data_timeout": STAGE + "loader.timeout_seconds",
    STAGE + "worker_gb": STAGE + "loader.worker_memory_gb",
    STAGE + "mode": STAGE + "loader.data_mode",
    STAGE + "block": STAGE + "loader.shuffle_shards",
    STAGE + "clips_per_visit": STAGE + "loader.clips_per_song_visit",
    STAGE + "bad_share": STAGE + "loader.max_bad_sample_ratio",
    STAGE + "volume_db": STAGE + "loader.volume_db",
    STAGE + "eq_db": STAGE + "loader.eq_db",
}
RENAMED_VALUES = {STAGE + "loader.data_mode": {"stream": "unindexed"}}
MAX_HINTS = 4  # renamed settings that one line of the log names


def upgrade_settings(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A copy of a preset's `settings` in the present keys, and which were renamed: old path -> present path.

    Raises:
        UserError: a setting is there under its old key and under its present one.
    """
    upgraded = _copy(settings)
    renamed: dict[str, str] = {}
    for old in RENAMED_SETTINGS:
        for names in list(_matches(upgraded, old.split("."), ())):
            path = ".".join(names)
            renamed[path] = present_path(path)
            _move(upgraded, names, renamed[path])
    for pattern, values in RENAMED_VALUES.items():
        for names in list(_matches(upgraded, pattern.split("."), ())):
            parent = _parent(upgraded, names)
            if isinstance(parent[names[-1]], str):
                parent[names[-1]] = values.get(parent[names[-1]], parent[names[-1]])
    return upgraded, renamed


def upgrade_stage(settings: Any) -> dict[str, Any]:
    """The settings of one stage, as run.yaml keeps them, in the present keys; {} for what is no settings at all."""
    if not isinstance(settings, Mapping):
        return {}
    return dict(upgrade_settings({"training": {"stage": settings}})[0]["training"]["stage"])


def present_path(path: str) -> str:
    """Where the setting at `path` is now: `training.vqvae.keep` -> `training.vqvae.checkpointing.keep_last`."""
    names = path.split(".")
    for old, new in RENAMED_SETTINGS.items():
        pattern = old.split(".")
        head = names[: len(pattern)]
        if len(head) == len(pattern) and all(p in ("*", n) for p, n in zip(pattern, head)):
            present = new
            for name, part in zip(head, pattern):
                if part == "*":
                    present = present.replace("*", name, 1)
            names = [*present.split("."), *names[len(pattern) :]]
    return ".".join(names)


def describe_renamed(renamed: Mapping[str, str]) -> str:
    """`a is now b, c is now d and 7 more`, for the log."""
    pairs = [f"{old} is now {new}" for old, new in renamed.items()]
    more = f" and {len(pairs) - MAX_HINTS} more" if len(pairs) > MAX_HINTS else ""
    return ", ".join(pairs[:MAX_HINTS]) + more


def _copy(value: Any) -> Any:
    """A copy in which what a YAML anchor shares is no longer shared: one place can change without the other."""
    if isinstance(value, Mapping):
        return {name: _copy(inner) for name, inner in value.items()}
    return value


def _matches(tree: Any, pattern: list[str], names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths in `tree` that `pattern` stands for."""
    if not pattern:
        yield names
        return
    if not isinstance(tree, dict):
        return
    for name in tree if pattern[0] == "*" else [pattern[0]]:
        if name in tree:
            yield from _matches(tree[name], pattern[1:], (*names, name))


def _parent(tree: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for name in names[:-1]:
        tree = tree[name]
    return tree


def _move(tree: dict[str, Any], old: tuple[str, ...], present: str) -> None:
    value = _parent(tree, old).pop(old[-1])
    *groups, name = present.split(".")
    for group in groups:
        tree = tree.setdefault(group, {})
        if not isinstance(tree, dict):
            raise UserError(
                f"{'.'.join(old)} is now {present}, but {group} holds no further settings"
            )
    if name in tree:
        raise UserError(
            f"{'.'.join(old)} is now {present}, and both are given; leave out the former"
        )
    tree[name] = value
