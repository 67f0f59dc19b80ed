"""A distillation run: the teacher samples windows, then a student learns each order of a curriculum from them."""

from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from megajukebox.common.device import choose_device
from megajukebox.common.errors import UserError
from megajukebox.common.files import make_folder, write_atomic
from megajukebox.common.model_files import WEIGHTS, StoredTensors, read_facts
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.common.world import World
from megajukebox.conditioning.section_conditions import MEMORY
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import ClipSource, held_out_batches
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.distillation.curriculum import (
    GATES,
    describe_row,
    order_folder,
    table_row,
    write_table,
)
from megajukebox.distillation.divergence_eval import DivergenceEvaluator
from megajukebox.distillation.task import TeacherRun, student_task
from megajukebox.distillation.teacher_sampling import (
    TeacherDataConfig,
    current_settings,
    shard_name,
    write_teacher_shard,
)
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import Prior
from megajukebox.models.student import StudentConfig
from megajukebox.resilience.exit_codes import ExitRecord
from megajukebox.training.config import Preset
from megajukebox.training.engines import collectives
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stage_runner import StageRun, run_task
from megajukebox.training.tasks import ReaderShare, Task

MAX_INDEX_BYTES = 1 << 28  # of index.json
EVALUATED_WINDOWS = 128  # held-out windows of the teacher, and as many of songs, of all ranks
EVALUATION_BATCH = 32
FIRST_SEED = 2**40  # of the students' samples: beyond the seeds of windows that the teacher samples
SEEDS_PER_RANK = 2**20


@dataclass
class DistillationRun:
    """One teacher, the windows that it samples, and the students of each order, in one process of possibly many."""

    teacher: TeacherRun
    codes: ShardSet
    teacher_data: TeacherDataConfig
    out: Path
    preset: Preset
    settings: TrainingSettings
    data_only: bool
    exit_record: ExitRecord
    world: World = field(init=False)
    songs: CodeWindows = field(init=False)
    prior: Prior = field(init=False)

    def __post_init__(self) -> None:
        """Join the other processes and load the teacher."""
        if MEMORY in self.teacher.config.aligned:
            raise UserError(
                f"the prior in {self.teacher.folder} remembers earlier sections, and a student samples all codes of a"
                " song at once: it cannot be distilled; distill the levels below"
            )
        self.world = collectives.start()
        self.songs = self.teacher.windows(self.codes)
        self.prior = self.teacher.load(choose_device(self.world.local_rank))
        make_folder(self.out)

    def run(
        self, orders: list[GridOrder], keep_going: bool, chain: bool, stop_after: int | None
    ) -> bool:
        """Train a student of each order in turn; resumes. Returns whether all that were to be trained are.

        Ends at the first order that fails the gate unless `keep_going`. With `chain` each student starts
        from the one before, else from the teacher.
        """
        # Before windows are sampled again that would no longer be those of a finished student.
        for order in orders:
            check_same_student(order_folder(self.out, order), self.config(order))
        windows = self.sample_windows()
        evaluator = DivergenceEvaluator(
            self.prior,
            self.teacher_data.sampling,
            self.held_out(windows),
            self.held_out(self.songs),
            FIRST_SEED + self.world.rank * SEEDS_PER_RANK,
        )
        gate = GATES[self.teacher.config.level]
        rows: list[dict[str, Any]] = []
        start = self.teacher.folder
        for order in orders:
            if not self.distill_order(order, start, windows, evaluator, stop_after):
                return False
            folder = order_folder(self.out, order)
            rows.append(table_row(folder, self.config(order), gate))
            if self.world.rank == 0:
                write_table(self.out, rows, gate)
                print(describe_row(rows[-1]))
            if not rows[-1]["passed"] and not keep_going:
                break
            if chain:
                start = folder
        if self.world.rank == 0:
            write_atomic(self.out / "DONE", f"{len(rows)} orders\n".encode())
            if not any(row["passed"] for row in rows):
                print(f"no order passes the gate {tuple(gate)}; the prior stays the better sampler")
        collectives.barrier()
        return True

    def config(self, order: GridOrder) -> StudentConfig:
        return StudentConfig(prior=self.teacher.config, order=order)

    def sample_windows(self) -> TeacherWindows:
        """Sample the teacher's windows, each process its share of the shards; finished shards are kept."""
        folder = self.out / "windows"
        folder.mkdir(exist_ok=True)
        shards = self.teacher_data.shards()
        names = list(map(shard_name, range(len(shards))))
        origin = self.windows_origin(folder)
        for number in range(self.world.rank, len(names), self.world.size):
            if write_teacher_shard(
                self.prior, self.songs, self.teacher_data, number, folder, origin
            ):
                print(f"{folder / names[number]}  {len(shards[number][1])} windows", flush=True)
        collectives.barrier()
        if self.world.rank == 0:
            write_index(
                folder,
                names,
                kind="windows",
                sample_rate=self.teacher.config.sample_rate,
                made_by=made_by(),
                extra={"origin": origin},
            )
        collectives.barrier()
        return TeacherWindows(ShardSet(str(folder)))

    def windows_origin(self, folder: Path) -> dict[str, Any]:
        """What the windows are sampled from; in the words of the version that indexed the same windows before.

        The index's fingerprint is of these words too, and a student in training refuses another one.
        """
        origin = {
            "teacher": self.teacher.facts["fingerprint"],
            "codes": self.songs.shards.fingerprint,
            "teacher_data": self.teacher_data.facts(),
        }
        index = folder / "index.json"
        if index.is_file():
            before = parse_json(read_inside(folder, index.name, MAX_INDEX_BYTES)).get("origin", {})
            if current_settings(before) == origin:
                return before
        return origin

    def held_out(self, source: ClipSource) -> list[dict]:
        """This rank's batches of EVALUATED_WINDOWS held-out windows."""
        share = max(1, EVALUATED_WINDOWS // self.world.size)
        size = min(EVALUATION_BATCH, share)
        batches = held_out_batches(
            source,
            micro_batch=size,
            rank=self.world.rank,
            world=self.world.size,
            limit=EVALUATED_WINDOWS,
        )
        return list(islice(batches, -(-share // size)))

    def distill_order(
        self,
        order: GridOrder,
        start: Path,
        windows: TeacherWindows,
        evaluator: DivergenceEvaluator,
        stop_after: int | None,
    ) -> bool:
        """Train the student of one order from the weights in `start`. Returns whether it reached its last step."""
        folder = order_folder(self.out, order)
        done = (folder / "DONE").exists() if self.world.rank == 0 else None
        if collectives.broadcast_from_rank_0(done):
            return True
        config = self.config(order)
        facts = {
            "teacher_sampling": asdict(self.teacher_data.sampling),
            "started_from": read_facts(start)["fingerprint"],
        }
        source: ClipSource = self.songs if self.data_only else windows

        def make(reading: ReaderShare) -> Task:
            return student_task(
                self.teacher, config, source, self.settings, reading, facts, evaluator
            )

        stage = f"{self.teacher.config.level}_student"
        stage_run = StageRun(self.preset, stage, self.settings, folder, stop_after)
        return run_task(stage_run, make, self.exit_record, StoredTensors(start / WEIGHTS))


def check_same_student(folder: Path, config: StudentConfig) -> None:
    """Raise UserError if a finished student in `folder` is of another configuration than is wanted now."""
    if not (folder / "DONE").exists():
        return
    finished = StudentConfig(**read_facts(folder)["config"])
    if finished != config:
        wanted = {name: value for name, value in config if getattr(finished, name) != value}
        raise UserError(
            f"{folder} holds a finished student that is not {wanted}; choose another --out, or remove it"
        )
