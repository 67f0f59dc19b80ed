"""How the clips of a step are shared among processes: their number may change during a run, the step may not."""

from collections.abc import Iterator
from dataclasses import dataclass

from megajukebox.common.errors import UserError

TOTAL = "train_batch_size"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATION = "gradient_accumulation_steps"
NUMBERS = (TOTAL, MICRO, ACCUMULATION)
MAX_CLIPS = 10_000_000  # of a step, over all processes


def share_batch(ds_config: dict, readers: int, total: int = 0) -> dict:
    """A copy of `ds_config` whose three numbers multiply out over `readers` processes with data of their own.

    `total` clips a step are those of a run that is resumed, or of the preset (0: neither). They stay: accumulation
    follows the number of processes, and the micro-batch gets smaller where it must.

    Raises:
        UserError: nothing multiplies out; names numbers that do.
    """
    micro = int(ds_config.get(MICRO, 0))
    if not micro:
        raise UserError(
            f"the ds_config has no {MICRO}; write how many clips a process holds at once"
        )
    given = ds_config.get(TOTAL)
    accumulation = ds_config.get(ACCUMULATION)
    if not total and (given is None or accumulation is not None):
        product = micro * (accumulation or 1) * readers
        if given is not None and given != product:
            raise UserError(
                f"{TOTAL} {given} is not {MICRO} {micro} x {ACCUMULATION} {accumulation or 1} x {readers} processes;"
                f" set it to {product}, or leave it out"
            )
        total = product
    total = int(total or given or 0)  # JSON may write it 8.0
    micro, accumulation = fit_micro_batch(total, micro, readers)
    numbers = {TOTAL: micro * accumulation * readers, MICRO: micro, ACCUMULATION: accumulation}
    return {**ds_config, **numbers}


def fit_micro_batch(total: int, max_micro: int, readers: int) -> tuple[int, int]:
    """(micro-batch, accumulation): the largest micro-batch up to `max_micro` that shares `total` out evenly.

    Raises:
        UserError: `readers` do not divide `total`; names the numbers of processes that do.
    """
    share, remainder = divmod(total, readers)
    if remainder:
        divisors = [str(count) for count in range(1, total + 1) if total % count == 0]
        raise UserError(
            f"{readers} processes cannot share the {total} clips of a step evenly;"
            f" use one of {', '.join(divisors)}"
        )
    micro = max(size for size in range(1, min(max_micro, share) + 1) if share % size == 0)
    return micro, share // micro


def batch_of_run(record: dict, ds_config: dict) -> int:
    """The clips a step that a run was started with, from its run.yaml; 0 if it had another batch in its ds_config."""
    before = record.get("ds_config", {})
    is_same = all(before.get(name) == ds_config.get(name) for name in NUMBERS)
    return int(record.get("global_batch", 0)) if is_same else 0


@dataclass(frozen=True)
class NoClips:
    """The stream of a process that needs no data, between the ends of a pipeline: empty micro-batches, for ever."""

    accumulation: int

    def __iter__(self) -> Iterator[list[dict]]:
        while True:
            yield [{} for _ in range(self.accumulation)]

    def bad_samples(self) -> dict[str, int]:
        return {}

    def report(self) -> dict[str, float]:
        return {}
