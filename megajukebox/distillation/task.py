"""What a student is trained on, how long, and when a student is good enough: the parts of `distill` that train."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.common.files import write_atomic
from megajukebox.common.levels import PRIOR_FOLDERS, STUDENT_TABLE
from megajukebox.common.model_files import WEIGHTS, StoredTensors, read_facts
from megajukebox.common.provenance import made_by
from megajukebox.conditioning.schema import ConditionResources, conditions_of
from megajukebox.conditioning.tokenizers import LYRICS_MODEL, run_tokenizer
from megajukebox.conditioning.vocabulary import VOCABULARIES, read_vocabularies
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import ClipSource
from megajukebox.data.stream.code_dataset import (
    CodeWindows,
    check_codes,
)
from megajukebox.data.stream.song_dataset import held_out_share
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import PriorConfig
from megajukebox.models.student import Student, StudentConfig
from megajukebox.training.config import Preset
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.tasks import ReaderShare, Task

Judge = Callable[[nn.Module], dict[str, Tensor]]


@dataclass(frozen=True)
class TeacherRun:
    """The run of a prior that is to be taught from."""

    folder: Path
    facts: dict[str, Any]
    config: PriorConfig
    held_out: float  # share of the songs that it was not trained on

    @classmethod
    def open(cls, folder: Path, level: str) -> "TeacherRun":
        """ValueError if the run is not a finished prior of `level`."""
        facts = read_facts(folder)
        if facts["kind"] != "prior" or facts["config"]["level"] != level:
            kind = f"{facts['config'].get('level', '')} {facts['kind']}".strip()
            raise UserError(
                f"{folder} holds a {kind}, not a {level} prior; give the run of one as --teacher"
            )
        return cls(folder, facts, PriorConfig(**facts["config"]), held_out_share(folder))

    def windows(self, codes: ShardSet, dropout: float = 0.0) -> CodeWindows:
        """The windows of `codes`, told as this prior is told. ValueError if they are another VQ-VAE's codes."""
        check_codes(codes, self.folder, self.facts)
        config = self.config
        tokenizer = run_tokenizer(self.folder, self.facts) if config.lyrics else None
        resources = ConditionResources(
            read_vocabularies(self.folder),
            tokenizer,
            dict.fromkeys(config.condition_names, dropout),
        )
        conditions = conditions_of(config, resources)
        return CodeWindows(codes, config.level, config.window, self.held_out, conditions)

    def files(self) -> dict[str, bytes]:
        """What a student's folder keeps of its teacher's, so that it can be sampled without it."""
        return {
            n: (self.folder / n).read_bytes()
            for n in (VOCABULARIES, LYRICS_MODEL)
            if (self.folder / n).is_file()
        }


def settings_of(preset: Preset, level: str, ds_config: str | None) -> TrainingSettings:
    """`training.<level>_student` of the preset; where it has none, half the steps of the teacher."""
    given = preset.training.get(f"{level}_student")
    if given is None:
        teacher = preset.stage(PRIOR_FOLDERS[level])
        kind = teacher.ds_config.removesuffix(".json").rpartition("_")[2]
        given = teacher.model_copy(
            update={"steps": max(1, teacher.steps // 2), "ds_config": f"student_{kind}.json"}
        )
    return given if ds_config is None else given.model_copy(update={"ds_config": ds_config})


def student_task(
    teacher: TeacherRun, config: StudentConfig, windows: ClipSource, settings: TrainingSettings, reading: ReaderShare,
    facts: dict[str, Any], judge: Judge,
) -> Task:  # fmt: skip
    """A student on windows that its teacher sampled (TaughtWindows), or on songs' own alone (CodeWindows)."""
    prior, rate = config.prior, config.prior.sample_rate
    taught: dict[str, Any] = (
        {"windows": windows.shards.fingerprint}
        if isinstance(windows, TeacherWindows)
        else {"data_only": True}
    )
    kept: dict[str, Any] = {
        n: v for n, v in teacher.facts.items() if n in ("vqvae", "codes", "tokenizer", "names")
    }
    return Task(
        kind="student", config=config, build=lambda: Student(config), source=windows, settings=settings,
        reading=reading, files=teacher.files(), evaluator=judge,
        units_per_step=reading.global_batch * prior.window, speed_name="tokens_per_second",
        audio_seconds=reading.global_batch * prior.window * prior.hop / rate,
        facts={
            "level": prior.level, "sample_rate": rate, "made_by": made_by(), **kept,
            "teacher": teacher.facts["fingerprint"], "order": list(config.order), "steps_per_window": config.steps,
            **taught, **facts,
        },
    )  # fmt: skip


def first_weights(folder: Path) -> Mapping[str, Tensor]:
    """Of the teacher, or of the student before: read one by one when asked for."""
    return StoredTensors(folder / WEIGHTS)


# ---- the curriculum -------------------------------------------------------------------------------------------------

# Bits per code that a student may be off, on the teacher's windows and on its own (docs/distillation.md).
GATES = {"top": (0.02, 0.03), "middle": (0.05, 0.08), "bottom": (0.05, 0.08)}


def curriculum(level: str, length: int, rows: int) -> list[GridOrder]:
    """Orders of fewer and fewer steps, each one usable: shorter and shorter lines, all of them drawn at once.

    The top starts with half a window a line and ends where one row a line would take no fewer steps; there each line
    follows the one before by one slot: what column by column would emit at once stands too near to each other. An
    upsampler is told the codes above, so its lines need not be long; it ends with whole columns.
    """
    longest, down = (rows // 2, 1) if level == "top" else (rows // 8, 0)
    halved = (max(longest, 1) >> n for n in range(max(longest, 1).bit_length()))
    orders: list[GridOrder] = []
    for order in (GridOrder(down, 1, fold) for fold in halved if rows % fold == 0):
        if not orders or order.steps(length, rows) < orders[-1].steps(length, rows):
            orders.append(order)
    return orders


def folder_of(out: Path, order: GridOrder) -> Path:
    return out / f"order-{str(order).replace(',', '-')}"


def verdict(judged: Mapping[str, float], gate: tuple[float, float]) -> bool:
    """Whether a student passes: both divergences within the gate, as measured (their intervals stand beside them)."""
    return judged["kl_forward"] <= gate[0] and judged["kl_reverse"] <= gate[1]


def write_table(out: Path, stages: list[dict[str, Any]], gate: tuple[float, float]) -> None:
    """What every order of the curriculum is worth; `use` is the one of fewest steps that passed, else of most."""
    passed = [stage for stage in stages if stage["passed"]]
    chosen = min(passed, key=lambda s: s["steps_per_window"]) if passed else max(
        stages, key=lambda s: s["steps_per_window"]
    )  # fmt: skip
    table = {
        "use": chosen["folder"],
        "gate": {"kl_forward": gate[0], "kl_reverse": gate[1]},
        "orders": stages,
    }
    write_atomic(out / STUDENT_TABLE, (json.dumps(table, indent=1) + "\n").encode())
