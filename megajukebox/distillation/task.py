"""What a student is trained on, how long, and when a student is good enough: the parts of `distill` that train."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from megajukebox.common.files import write_atomic
from megajukebox.common.model_files import WEIGHTS, StoredTensors, read_facts
from megajukebox.common.provenance import made_by
from megajukebox.conditioning.tokenizers import (
    JukeboxCharacters,
    LyricsTokenizer,
    SentencePieceTokenizer,
)
from megajukebox.conditioning.vocabulary import VOCABULARIES, read_vocabularies
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import ClipSource
from megajukebox.data.stream.code_dataset import CodeWindows, ConditionColumn, LyricsColumn
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import PriorConfig
from megajukebox.models.student import Student, StudentConfig
from megajukebox.training.config import Preset, TrainingSettings
from megajukebox.training.tasks import ReaderShare, Task

TEACHERS = {"top": "top_prior", "middle": "middle_upsampler", "bottom": "bottom_upsampler"}
TABLE = "student.json"  # of a student's folder: every order that was trained, what it is worth, and which one is used
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
            raise ValueError(
                f"{folder} holds a {kind}, not a {level} prior; give the run of one as --teacher"
            )
        return cls(
            folder, facts, PriorConfig(**facts["config"]), held_out_of(folder, TEACHERS[level])
        )

    def windows(self, codes: ShardSet, dropout: float = 0.0) -> CodeWindows:
        """The windows of `codes`, told as this prior is told. ValueError if they are another VQ-VAE's codes."""
        theirs, trained_on = (
            codes.index.get("vqvae", {}).get("fingerprint"),
            self.facts.get("vqvae"),
        )
        if codes.index["kind"] != "codes" or (trained_on and theirs != trained_on):
            raise ValueError(
                f"{codes.folder} does not hold the codes that {self.folder} was trained on"
                f" (VQ-VAE {str(theirs)[:12]}, not {str(trained_on)[:12]}); give those as --data"
            )
        names, labels = read_vocabularies(self.folder), self.config.labels
        conditions = {
            n: ConditionColumn(names[n], label.slots, dropout) for n, label in labels.items()
        }
        lyrics = (
            LyricsColumn(self._tokenizer(), self.config.lyrics.tokens, dropout)
            if self.config.lyrics
            else None
        )
        return CodeWindows(
            codes, self.config.level, self.config.window, self.held_out, conditions, lyrics
        )

    def _tokenizer(self) -> LyricsTokenizer:
        kind = self.facts.get("tokenizer")
        if kind in ("jukebox_v2", "jukebox_v3"):
            return JukeboxCharacters(kind[-2:])
        return SentencePieceTokenizer(self.folder / (kind or "lyrics.model"))

    def files(self) -> dict[str, bytes]:
        """What a student's folder keeps of its teacher's, so that it can be sampled without it."""
        return {
            n: (self.folder / n).read_bytes()
            for n in (VOCABULARIES, "lyrics.model")
            if (self.folder / n).is_file()
        }


def held_out_of(run: Path, stage: str) -> float:
    """The share of held-out songs of a run; what is usual where the run does not say (imported weights)."""
    path = run / "run.yaml"
    preset = yaml.safe_load(path.read_text())["preset"] if path.is_file() else {}
    return (
        preset.get("training", {})
        .get(stage, {})
        .get("held_out", TrainingSettings.model_fields["held_out"].default)
    )


def settings_of(preset: Preset, level: str, ds_config: str | None) -> TrainingSettings:
    """`training.<level>_student` of the preset; where it has none, half the steps of the teacher."""
    given = preset.training.get(f"{level}_student")
    if given is None:
        teacher = preset.stage(TEACHERS[level])
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
        reading=reading, files=teacher.files(), judge=judge,
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
    write_atomic(out / TABLE, (json.dumps(table, indent=1) + "\n").encode())
