"""How the clips of one step are shared out: the number of processes may change during a run, the step may not."""

from collections.abc import Iterator

NUMBERS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def share_batch(ds_config: dict, readers: int, total: int = 0) -> dict:
    """A copy of `ds_config` whose three numbers multiply out over `readers` processes with data of their own.

    `total` clips a step are those of a run that goes on, or of the preset (0: neither). They stay: accumulation follows
    the number of processes, and the micro-batch gets smaller where it must. ValueError where nothing multiplies out.
    """
    micro = ds_config.get("train_micro_batch_size_per_gpu")
    if not micro:
        raise ValueError("the ds_config has no train_micro_batch_size_per_gpu")
    given, accumulation = (
        ds_config.get("train_batch_size"),
        ds_config.get("gradient_accumulation_steps"),
    )
    if not total and (given is None or accumulation is not None):
        total = _multiplied(micro, accumulation or 1, readers, given)
    micro, accumulation = _fitted(total or given or 0, micro, readers)
    return {
        **ds_config,
        **dict(zip(NUMBERS, (micro * accumulation * readers, micro, accumulation))),
    }


def _multiplied(micro: int, accumulation: int, readers: int, given: int | None) -> int:
    product = micro * accumulation * readers
    if given is not None and given != product:
        raise ValueError(
            f"train_batch_size {given} is not train_micro_batch_size_per_gpu {micro}"
            f" x gradient_accumulation_steps {accumulation} x {readers} processes;"
            f" set it to {product}, or leave it out"
        )
    return product


def _fitted(total: int, micro: int, readers: int) -> tuple[int, int]:
    """(micro-batch, accumulation): the largest micro-batch up to `micro` that shares `total` out evenly."""
    share, rest = divmod(total, readers)
    if rest:
        fits = [n for n in range(1, total + 1) if total % n == 0]
        raise ValueError(
            f"{readers} processes cannot share the {total} clips of a step evenly;"
            f" use one of {', '.join(map(str, fits))}"
        )
    micro = max(m for m in range(1, min(micro, share) + 1) if share % m == 0)
    return micro, share // micro


def batch_of_run(record: dict, ds_config: dict) -> int:
    """The clips a step that a run was started with, from its run.yaml; 0 if it had another batch in its ds_config."""
    before = record.get("ds_config", {})
    same = all(before.get(name) == ds_config.get(name) for name in NUMBERS)
    return int(record.get("global_batch", 0)) if same else 0


class NoClips:
    """The stream of a process that sees no data, between the ends of a pipeline: empty micro-batches, for ever."""

    def __init__(self, accumulation: int) -> None:
        self.accumulation = accumulation

    def __iter__(self) -> Iterator[list[dict]]:
        while True:
            yield [{} for _ in range(self.accumulation)]

    def bad_samples(self) -> dict[str, int]:
        return {}

    def report(self) -> dict[str, float]:
        return {}
