"""Distil a prior into a student that emits many codes at a time: sampled several times faster than it plays.

    megajukebox distill bottom --teacher runs/tiny/bottom_upsampler --data shards/codes --out runs/tiny/bottom_student
    megajukebox distill middle --teacher runs/tiny/middle_upsampler --data shards/codes --order 0,1 --windows 1000 \\
        --out runs/tiny/middle_student training.middle_student.steps=100            # one order, less of everything
    deepspeed --num_gpus 2 megajukebox/distill.py top --teacher runs/tiny/top_prior --data shards/codes \\
        --out runs/tiny/top_student

First the teacher samples windows into <out>/windows (ordinary shards); then a student learns each order of a curriculum
from them, from most steps per window to fewest, each in a run folder of its own (<out>/order-0-1, ...) and each usable;
it ends where a student is further from the teacher than the gate allows. <out>/student.json is the table. Killed? Run
the same command again. Exit codes are those of train (resilience/exit_codes.py). docs/distillation.md tells how and why.
"""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.model_files import load_into, read_facts
from megajukebox.common.provenance import made_by
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.remote import DEFAULT_CACHE, RemoteConfig
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import ClipSource, held_out_batches
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.distillation.divergence import SamplingSettings
from megajukebox.distillation.divergence_eval import DivergenceEvaluator
from megajukebox.distillation.task import (
    GATES,
    TeacherRun,
    curriculum,
    first_weights,
    folder_of,
    settings_of,
    student_task,
    verdict,
    write_table,
)
from megajukebox.distillation.teacher_sampling import (
    TeacherDataConfig,
    shard_name,
    write_lesson_shard,
)
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import Prior
from megajukebox.models.student import StudentConfig
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.resilience.exit_codes import ExitRecord, exit_guard
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.engines import collectives
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stage_runner import StageRun, run_task
from megajukebox.training.tasks import ReaderShare, Task

JUDGED = 128  # held-out windows of the teacher, and as many of songs, that students are judged on


def main(
    level: Annotated[str, typer.Argument(help="top, middle or bottom.")],
    teacher: Annotated[Path, typer.Option(help="The run of the prior.")],
    data: Annotated[str, typer.Option(help="The code shards it was trained on, a folder or URL.")],
    out: Annotated[Path, typer.Option(help="The student's folder.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Changes to the preset: key.sub=value ...")
    ] = None,
    preset: Annotated[str, typer.Option(help="Whose training settings hold.")] = "tiny",
    ds_config: Annotated[
        str | None, typer.Option(help="Another JSON, from ds_configs/ or a path.")
    ] = None,
    order: Annotated[
        list[str] | None, typer.Option(help="a,b or a,b,k; several times: your own curriculum.")
    ] = None,
    windows: Annotated[
        int, typer.Option(min=1, help="Windows that the teacher samples for training.")
    ] = 2048,
    temperature: Annotated[float, typer.Option(min=0.01, help="At which it samples them.")] = 0.99,
    guidance: Annotated[
        float, typer.Option(min=0, help="Their guidance; the student needs none then. 1: off.")
    ] = 1.0,
    real_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of them that are songs' own codes.")
    ] = 0.2,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Train on songs' codes alone.")
    ] = False,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Train orders after one that fails.")
    ] = False,
    chain: Annotated[
        bool, typer.Option("--chain", help="Start from the order before, not from the teacher.")
    ] = False,
    stop_after: Annotated[
        int | None, typer.Option(min=1, help="Save and leave after this many steps.")
    ] = None,
    cache: Annotated[
        Path, typer.Option(help="Where shards behind a URL are kept.")
    ] = DEFAULT_CACHE,
    cache_gb: Annotated[
        float, typer.Option(min=0, help="How much of that disk they may fill.")
    ] = 64,
    local_rank: Annotated[
        int, typer.Option("--local_rank", hidden=True, help="The deepspeed launcher gives it.")
    ] = 0,
) -> None:
    """Teach a student every order of a curriculum; the same command goes on where it stopped."""
    with exit_guard(out, "distill") as end:
        if level not in GATES:
            raise UserError(f"level {level!r} is unknown; choose one of {', '.join(GATES)}")
        chosen = load_preset(preset, settings)
        source = TeacherRun.open(teacher, level)
        shape = source.config.transformer
        orders = [GridOrder.parse(o) for o in order or []] or curriculum(
            level, source.config.window, shape.blocks
        )
        lesson = TeacherDataConfig(
            windows, JUDGED, SamplingSettings(temperature, guidance), real_share
        )
        codes = ShardSet(data, RemoteConfig(cache, int(cache_gb * 2**30)))
        how = settings_of(chosen, level, ds_config)
        course = DistillationRun(source, codes, lesson, out, chosen, how, data_only, end)
        finished = course.run(orders, keep_going, chain, stop_after)
        collectives.stop()
        if not finished:
            end.exit_class = "done" if stop_after else "stopped"
            print(f"stopped before the last step; the same command goes on from {out}")


class DistillationRun:
    """One teacher, its lesson, and the students of each order, in this process of possibly many."""

    def __init__(
        self, teacher: TeacherRun, codes: ShardSet, lesson: TeacherDataConfig, out: Path, preset: Preset,
        settings: TrainingSettings, data_only: bool, end: ExitRecord,
    ) -> None:  # fmt: skip
        self.teacher, self.lesson, self.out, self.preset, self.settings = (
            teacher,
            lesson,
            out,
            preset,
            settings,
        )
        self.data_only, self.end = data_only, end
        self.place = collectives.start()
        self.songs = teacher.windows(codes)
        self.prior = self._frozen()
        make_folder(out)

    def _frozen(self) -> Prior:
        device = (
            torch.device("cuda", self.place.local_rank)
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        with torch.device("meta"):
            prior = Prior(self.teacher.config)
        load_into(prior, self.teacher.folder, device=device)
        return prior.eval().requires_grad_(False)

    def run(
        self, orders: list[GridOrder], keep_going: bool, chain: bool, stop_after: int | None
    ) -> bool:
        """Teach `orders` one after another. Returns whether all that were to be trained are."""
        for order in (
            orders
        ):  # before windows are made anew that would no longer be those of a finished student
            check_taught_so(folder_of(self.out, order), self.config(order))
        taught = self.windows()
        judge = self.evaluate_order(taught)
        gate, stages = GATES[self.teacher.config.level], []
        before = self.teacher.folder
        for order in orders:
            folder = folder_of(self.out, order)
            if not self.distill_order(order, before, taught, judge, stop_after):
                return False
            stages.append(stage_of(folder, order, self.teacher, gate))
            if self.place.rank == 0:
                write_table(self.out, stages, gate)
                print(told_of(stages[-1]))
            if not (stages[-1]["passed"] or keep_going):
                break
            before = folder if chain else before
        if self.place.rank == 0:
            write_atomic(self.out / "DONE", f"{len(stages)} orders\n".encode())
            if not any(stage["passed"] for stage in stages):
                print(
                    f"none of these orders passes the gate {gate}: the prior itself stays the better sampler"
                )
        collectives.barrier()
        return True

    def config(self, order: GridOrder) -> StudentConfig:
        return StudentConfig(prior=self.teacher.config, order=order)

    def windows(self) -> TeacherWindows:
        """What the teacher samples, each process its share of the shards; those that are there are kept."""
        folder, names = (
            self.out / "windows",
            [shard_name(n) for n in range(len(self.lesson.shards()))],
        )
        folder.mkdir(exist_ok=True)
        lesson = {k: v for k, v in asdict(self.lesson).items() if k != "batch"}
        origin = {
            "teacher": self.teacher.facts["fingerprint"],
            "codes": self.songs.shards.fingerprint,
            "lesson": lesson,
        }
        for number in range(self.place.rank, len(names), self.place.size):
            if write_lesson_shard(self.prior, self.songs, self.lesson, number, folder, origin):
                print(
                    f"{folder / names[number]}  {len(self.lesson.shards()[number][1])} windows",
                    flush=True,
                )
        collectives.barrier()
        if self.place.rank == 0:
            rate = self.teacher.config.sample_rate
            write_index(
                folder,
                names,
                kind="windows",
                sample_rate=rate,
                made_by=made_by(),
                extra={"origin": origin},
            )
        collectives.barrier()
        return TeacherWindows(ShardSet(str(folder)))

    def evaluate_order(self, taught: TeacherWindows) -> DivergenceEvaluator:
        seed = 2**40 + self.place.rank * 2**20  # none of a window that the teacher sampled
        return DivergenceEvaluator(
            self.prior, self.lesson.manner, self.held_out(taught), self.held_out(self.songs), seed
        )

    def held_out(self, windows: ClipSource) -> list[dict]:
        share = max(1, JUDGED // self.place.size)
        some = held_out_batches(
            windows, micro_batch=min(32, share), rank=self.place.rank, world=self.place.size, limit=JUDGED
        )  # fmt: skip
        return list(islice(some, -(-share // min(32, share))))

    def distill_order(
        self,
        order: GridOrder,
        before: Path,
        taught: TeacherWindows,
        judge: DivergenceEvaluator,
        stop_after: int | None,
    ) -> bool:
        """Train the student of one order to its end, from the weights in `before`. Whether the end was reached."""
        folder = folder_of(self.out, order)
        if collectives.broadcast_from_rank_0(
            (folder / "DONE").exists() if self.place.rank == 0 else None
        ):
            return True
        config = self.config(order)
        facts = {
            "manner": asdict(self.lesson.manner),
            "started_from": read_facts(before)["fingerprint"],
        }
        source: ClipSource = self.songs if self.data_only else taught

        def make(reading: ReaderShare) -> Task:
            return student_task(self.teacher, config, source, self.settings, reading, facts, judge)

        stage = f"{self.teacher.config.level}_student"
        stage_run = StageRun(self.preset, stage, self.settings, folder, stop_after)
        return run_task(stage_run, make, self.end, first_weights(before))


def check_taught_so(folder: Path, config: StudentConfig) -> None:
    """ValueError if a student that is finished in `folder` is another one than is asked for now."""
    if not (folder / "DONE").exists():
        return
    there = StudentConfig(**read_facts(folder)["config"])
    if there != config:
        asked = {name: value for name, value in config if getattr(there, name) != value}
        raise UserError(
            f"{folder} holds a finished student that is not {asked}; choose another --out, or remove it"
        )


def stage_of(
    folder: Path, order: GridOrder, teacher: TeacherRun, gate: tuple[float, float]
) -> dict[str, Any]:
    """One row of the table: what the last judgement of a finished order said."""
    judged = next(
        m for m in reversed(read_lines(folder / "metrics.jsonl")) if m["split"] == "held_out"
    )
    steps = order.steps(teacher.config.window, teacher.config.transformer.blocks)
    numbers = {
        n: v for n, v in judged.items() if n.startswith(("kl_", "bits_per_code", "teacher_bits"))
    }
    row = {"order": str(order), "folder": folder.name, "steps_per_window": steps}
    return {**row, "passed": verdict(judged, gate), **numbers}


def told_of(stage: dict[str, Any]) -> str:
    forward, reverse = (
        f"{stage[n]:.4f} +- {stage[n + '_ci']:.4f}" for n in ("kl_forward", "kl_reverse")
    )
    passed = "passes" if stage["passed"] else "does not pass"
    return (
        f"order {stage['order']}: {stage['steps_per_window']} steps a window, KL forward {forward}, reverse {reverse}"
        f" bits per code; {passed} the gate"
    )


if __name__ == "__main__":
    run_command(main, "distill")
