"""What the parallel students are worth: divergence from their teachers, likelihood, seams, sound, and speed, by order.

    python benchmarks/student.py demo/runs --codes demo/shards/codes --songs demo/shards/songs     # all parts, then:
    python benchmarks/student.py demo/runs --show      # the tables again, and the plot docs/student.svg

`demo/runs` is the folder of a demo's runs with the students that distill made in it (top_student, ...). Parts can be
run alone (--part worth|songs|speed); benchmarks/results/student.json keeps those that were run before.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from datetime import date
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from student_table import plot, show
from torch import Tensor

from megajukebox.common.files import write_atomic
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import load_into
from megajukebox.common.provenance import made_by
from megajukebox.data.audio import downmix, read_slice
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import held_out_batches
from megajukebox.data.stream.song_dataset import split
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.distillation.curriculum import order_folder
from megajukebox.distillation.divergence import (
    SamplingSettings,
    bits_of,
    forward_gaps,
    sampled,
    student_bits,
    teacher_log_p,
    with_interval,
)
from megajukebox.distillation.divergence_eval import join_windows, teacher_bits
from megajukebox.distillation.task import TeacherRun
from megajukebox.evaluation.audio_features import fit, rhythm, timbre
from megajukebox.models.chunked_codec import decode_long
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student, StudentConfig, from_teacher
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.decoding.window_sampler import SamplingWindow
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.level_jobs import token_sampler_for
from megajukebox.sampling.levels.autoregressive import Autoregressive, JacobiDecoding
from megajukebox.sampling.levels.level_sampler import DEFAULT_HOP_FRACTIONS, LevelJob, new_job
from megajukebox.sampling.levels.level_windows import conditioning_batch, window_spans
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.students.student_sampler import StudentSampler, VerifiedStudent, phases

RESULT = Path(__file__).parent / "results" / "student.json"
LINES = {
    "top": ("1,1,16", "1,1,8", "1,1,4", "1,1,2"),
    "middle": ("0,1,8", "0,1,4", "0,1,2"),
    "bottom": ("0,1,4", "0,1,2"),
}
WAITS = {"top": ("14,1", "12,1", "8,1", "4,1"), "middle": ("8,1", "4,1"), "bottom": ("8,1", "4,1")}
ORDERS = {  # (1,3) is (1,2), slower: tests/models/test_student.py
    level: ("teacher", *WAITS[level], "1,2", "1,1", *LINES[level], "0,1") for level in LINES
}
SAMPLING = SamplingSettings(0.99)
WINDOWS = 64  # held-out windows that orders are compared on
SECONDS, SONGS = 6.0, 18


def main() -> None:
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("runs", type=Path)
    words.add_argument("--codes", type=Path)
    words.add_argument("--songs", type=Path)
    words.add_argument("--part", choices=("worth", "songs", "speed"), action="append")
    words.add_argument("--levels", default="top,middle,bottom")
    words.add_argument("--show", action="store_true")
    asked = words.parse_args()
    torch.set_num_threads(1)
    for part in [] if asked.show else asked.part or ("worth", "songs", "speed"):
        if part == "worth":
            for level in asked.levels.split(","):
                keep(part, {level: worth(asked.runs, asked.codes, level)})
        elif part == "songs":
            keep(part, songs(asked.runs, asked.songs))
        else:
            keep(part, {"rows": speed(asked.runs)})
    found = json.loads(RESULT.read_text())
    show(found)
    plot(found)


def keep(part: str, measured: dict[str, Any]) -> None:
    """Add to what RESULT holds by now."""
    found = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    found.setdefault(part, {}).update(measured)
    made = {"date": date.today().isoformat(), "commit": made_by()["commit"], "machine": machine()}
    found.setdefault("made", {})[part] = made
    write_atomic(RESULT, (json.dumps(found, indent=1) + "\n").encode())


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, 1 thread"


def load_prior(runs: Path, level: str) -> Prior:
    run = TeacherRun.open(runs / PRIOR_FOLDERS[level], level)
    prior = Prior(run.config)
    load_into(prior, run.folder)
    return prior.eval().requires_grad_(False)


def students(runs: Path, level: str, teacher: Prior) -> Iterator[tuple[str, str, Student]]:
    """(order, how it was taught, the student) of every order: with the teacher's weights, distilled, on data alone."""
    for name in ORDERS[level]:
        shape = teacher.config.transformer
        order = (
            GridOrder.of_teacher(teacher.config.window, shape.blocks)
            if name == "teacher"
            else GridOrder.parse(name)
        )
        untaught = from_teacher(Student(StudentConfig(prior=teacher.config, order=order)), teacher)
        yield name, "not at all", untaught.eval()
        for how, folder in (
            ("distilled", f"{level}_student"),
            ("data only", f"{level}_student_data"),
        ):
            run = order_folder(runs / folder, order)
            if (run / "DONE").exists():
                student = Student(StudentConfig(prior=teacher.config, order=order))
                load_into(student, run)
                yield name, how, student.eval()


# ---- worth: windows -------------------------------------------------------------------------------------------------


def worth(runs: Path, codes: Path, level: str) -> list[dict[str, Any]]:
    """One row for each order and way of teaching, over held-out windows."""
    teacher, run = load_prior(runs, level), TeacherRun.open(runs / PRIOR_FOLDERS[level], level)
    taught = TeacherWindows(ShardSet(str(runs / f"{level}_student" / "windows")))
    told, real = (
        list(held_out_batches(w, micro_batch=32, limit=WINDOWS))
        for w in (taught, run.windows(ShardSet(str(codes))))
    )
    own = with_interval(join_windows(b["teacher_bits"].mean(1) for b in told).numpy())
    songs_bits = join_windows(teacher_bits(teacher, batch) for batch in real)
    rows = []
    for order, how, student in students(runs, level, teacher):
        gaps = join_windows(forward_gaps(student, batch) for batch in told)
        values = {
            "kl_forward": gaps.mean(1),
            "bits_per_code_of_songs": join_windows(
                student_bits(student, batch).mean(1) for batch in real
            ),
            "teacher_bits_per_code_of_songs": songs_bits,
            **(
                of_samples(student, teacher, told)
                if how != "not at all" or order == "teacher"
                else {}
            ),
        }
        rows.append(
            {
                "order": order,
                "taught": how,
                "steps_per_window": student.how.steps,
                "windows": WINDOWS,
                "teacher_bits_of_own_samples": own,
                **{name: with_interval(x.numpy()) for name, x in values.items()},
                **by_place(gaps, teacher.config.transformer.blocks),
            }
        )
        print(
            level,
            order,
            how,
            {name: round(float(x.mean()), 4) for name, x in values.items()},
            flush=True,
        )
    return rows


def by_place(gaps_BT: Tensor, rows: int) -> dict[str, list[float]]:
    """Where the divergence is lost: its mean in every column, and in every row, of the window's grid."""
    gaps_BRL = gaps_BT.unflatten(1, (rows, -1))
    means = {
        "kl_forward_by_column": gaps_BRL.mean((0, 1)),
        "kl_forward_by_row": gaps_BRL.mean((0, 2)),
    }
    return {name: [round(x, 4) for x in mean.tolist()] for name, mean in means.items()}


def of_samples(student: Student, teacher: Prior, told: list[dict]) -> dict[str, Tensor]:
    """Of the student's samples, a value [windows] each: the teacher's bits per code, and by how many more than its own
    they are: the divergence from student to teacher.
    """
    theirs, own = [], []
    for number, batch in enumerate(told):
        seeds = [2**42 + number * 1000 + n for n in range(len(batch["codes"]))]
        drawn = {**batch, "codes": sampled(student, batch, seeds)}
        theirs.append(bits_of(teacher_log_p(teacher, drawn, SAMPLING), drawn["codes"]).mean(1))
        own.append(student_bits(student, drawn).mean(1))
    return {
        "teacher_bits_of_samples": torch.cat(theirs),
        "kl_reverse": torch.cat(theirs) - torch.cat(own),
    }


# ---- songs ----------------------------------------------------------------------------------------------------------


def job_of(
    jukebox: Jukebox, level: str, requests: list[SongRequest], above: Tensor | None
) -> LevelJob:
    told = [jukebox.levels[level].conditioning(request) for request in requests]
    samples = round(requests[0].seconds * jukebox.vqvae.config.sample_rate)
    total = jukebox.num_codes(requests[0], level)
    return new_job(
        told,
        total,
        samples,
        token_sampler_for(level, requests, jukebox.device),
        DEFAULT_HOP_FRACTIONS[level],
        above,
    )


def best_student(runs: Path, level: str, teacher: Prior, order: str) -> Student:
    """The distilled student of an order, or the teacher's weights where none was trained."""
    return [
        s for name, how, s in students(runs, level, teacher) if name == order and how != "data only"
    ][-1]


CHAINS = {
    "teacher": {},
    "exact top, (0,1) upsamplers": {"middle": "0,1", "bottom": "0,1"},
    "(1,1,16) top, (0,1) upsamplers": {"top": "1,1,16", "middle": "0,1", "bottom": "0,1"},
    "(1,1,8) top, (0,1) upsamplers": {"top": "1,1,8", "middle": "0,1", "bottom": "0,1"},
}


def songs(runs: Path, song_shards: Path) -> dict[str, Any]:
    """Whole songs by each chain: seams, likelihood, sound against the teacher's, and who and what is heard in them."""
    jukebox = Jukebox(runs, "cpu")
    pairs = named_pairs(jukebox)
    ears = learnt(ShardSet(str(song_shards)))
    found: dict[str, Any] = {}
    first_audio: dict[str, np.ndarray] = {}
    for name, chain in {"teacher, other seeds": {}, **CHAINS}.items():
        seed = 1000 if name == "teacher, other seeds" else 0
        who = [pairs[n % len(pairs)] for n in range(SONGS)]
        requests = [
            SongRequest(id=f"s{n}", artist=artist, genres=(genre,), seconds=SECONDS, seed=seed + n)
            for n, (artist, genre) in enumerate(who)
        ]
        row, audio = chain_of(jukebox, runs, requests, chain)
        first_audio.setdefault("reference", audio)
        row["spectral_distance_to_teacher"] = frechet(bands(first_audio["reference"]), bands(audio))
        row["heard"] = heard(ears, requests, audio, jukebox.vqvae.config.sample_rate)
        found[name] = row
        print(name, {k: v for k, v in row.items() if k != "levels"}, flush=True)
    return found


def named_pairs(jukebox: Jukebox) -> list[tuple[str, str]]:
    names = jukebox.levels["bottom"].vocabularies
    return list(product(names["artist"].names[1:], names["genres"].names[1:]))


def chain_of(
    jukebox: Jukebox, runs: Path, requests: list[SongRequest], chain: dict[str, str]
) -> tuple[dict, np.ndarray]:
    above: Tensor | None = None
    levels = {}
    for level in ("top", "middle", "bottom"):
        teacher, job = load_prior(runs, level), job_of(jukebox, level, requests, above)
        sampler = (
            Autoregressive(teacher)
            if level not in chain
            else StudentSampler(
                best_student(runs, level, teacher, chain[level]), SAMPLING.temperature
            )
        )
        sampler.sample(job, lambda count: None)
        levels[level] = seams(teacher, job) if level != "top" else {}
        above = job.codes_BT
    assert above is not None
    audio = np.stack(
        [decode_long(jukebox.vqvae, row, "bottom").clamp(-1, 1).numpy() for row in above]
    )
    return {"levels": levels}, audio


@torch.inference_mode()
def seams(teacher: Prior, job: LevelJob) -> dict[str, float]:
    """The teacher's bits per code given at least half a window before: in the 64 codes after a first window's start,
    which were sampled without knowing what is before them, and everywhere else. A teacher's own song is the control.
    """
    config, bits = teacher.config, torch.zeros_like(job.codes_BT, dtype=torch.float32)
    for span in window_spans(job.total, config.window, config.window // 2):
        told = conditioning_batch(
            config,
            job.conditioning,
            job.upper_BU,
            [span.start] * len(job.conditioning),
            job.samples,
            bits.device,
        )
        told["codes"] = torch.nn.functional.pad(
            job.codes_BT[:, span.start : span.end], (0, config.window - (span.end - span.start))
        )
        found = bits_of(teacher_log_p(teacher, told, SAMPLING), told["codes"])
        bits[:, span.new : span.end] = found[:, span.new - span.start : span.end - span.start]
    at_seam = torch.zeros(job.total, dtype=torch.bool)
    for span in next(iter(phases(config, job.total)))[1:]:
        at_seam[span.start : span.start + 64] = True
    return {
        "bits_at_seams": float(bits[:, at_seam].mean()),
        "bits_elsewhere": float(bits[:, ~at_seam].mean()),
    }


def bands(audio_NT: np.ndarray) -> np.ndarray:
    """Log energies [frames of all, 24] of bands, for clips of equal length."""
    frames = np.lib.stride_tricks.sliding_window_view(audio_NT, 1024, axis=1)[:, ::512].reshape(
        -1, 1024
    )
    power = np.abs(np.fft.rfft(frames * np.hanning(1024))) ** 2
    edges = np.unique(np.geomspace(2, power.shape[1] - 1, 25).astype(int))
    return np.log(np.stack([power[:, a:b].mean(1) for a, b in pairwise(edges)], 1) + 1e-6)


def frechet(one: np.ndarray, other: np.ndarray) -> float:
    """Distance between two clouds as if they were normal: of means, and of covariances."""
    covariances = [np.cov(x.T) for x in (one, other)]
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(0)).sum()
    gap = one.mean(0) - other.mean(0)
    return float(gap @ gap + sum(np.trace(c) for c in covariances) - 2 * cross)


def learnt(shards: ShardSet) -> dict[str, Any]:
    """Ears for artists and genres, from the songs that were trained on."""
    rate, known = shards.index["sample_rate"], []
    for row in np.flatnonzero(~split(shards.songs["key"], 0.1)):
        facts = json.loads(shards.read_member(row, "json"))
        with shards.open_member(row, "audio") as file:
            wave = downmix(read_slice(file, 0, int(shards.songs["frames"][row])))
        known.append((wave, facts["artist"], facts["genres"][0]))
    return {
        "artist": fit([(wave, artist) for wave, artist, _ in known], rate, timbre),
        "genre": fit([(wave, genre) for wave, _, genre in known], rate, rhythm),
    }


def heard(
    ears: dict[str, Any], requests: list[SongRequest], audio: np.ndarray, rate: int
) -> dict[str, str]:
    asked = {"artist": [r.artist for r in requests], "genre": [r.genres[0] for r in requests]}
    named = {what: ears[what].predict(list(audio)) for what in ears}
    lower = {
        what: sum(a.casefold() == str(b).casefold() for a, b in zip(named[what], asked[what]))
        for what in ears
    }
    return {what: f"{right} of {len(requests)}" for what, right in lower.items()}


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed(runs: Path, seconds: float = 12.0) -> list[dict[str, Any]]:
    """CPU-seconds (of one thread, so that others' load matters less) per second of audio of one song, level by level,
    each way given the same codes above; a level's first use, with whatever it prepares, is not counted.
    """
    jukebox, rows = Jukebox(runs, "cpu"), []
    request, above = [SongRequest(id="one", seconds=seconds, seed=5)], None
    for level in ("top", "middle", "bottom"):
        teacher, codes = load_prior(runs, level), None
        for name, sampler in ways(runs, level, teacher):
            job, walls, started = (
                job_of(jukebox, level, request, above),
                time.perf_counter(),
                time.process_time(),
            )
            sampler.sample(job, lambda count: None)
            cpu, wall = time.process_time() - started, time.perf_counter() - walls
            rows.append(
                {
                    "level": level,
                    "way": name,
                    "cpu_per_second": cpu / seconds,
                    "wall_per_second": wall / seconds,
                }
            )
            print(rows[-1], flush=True)
            codes = job.codes_BT if codes is None else codes
        above = codes
    return rows


class LikeJukebox(Autoregressive):
    """As the released sampler does it: caches that grow, checks for every code, windows one after another."""

    def window_sampler(self) -> Callable:
        from sampling import sample_growing  # benchmarks/sampling.py

        def sample(
            packed: PackedPrior, window: SamplingWindow, progress: Callable[[int], None]
        ) -> None:
            sample_growing(window)
            progress(window.unknown_span()[1])

        return sample


def ways(runs: Path, level: str, teacher: Prior) -> Iterator[tuple[str, Any]]:
    yield "teacher, code by code", Autoregressive(teacher)
    if (
        "lyrics" not in teacher.config.transformer.patterns
    ):  # benchmarks/sampling.py has no such layers
        yield "teacher, as Jukebox does it", LikeJukebox(teacher)
    for order in ORDERS[level][1:]:
        yield (
            f"student {order}",
            StudentSampler(best_student(runs, level, teacher, order), SAMPLING.temperature),
        )
    quick = StudentSampler(
        best_student(runs, level, teacher, "1,1,8" if level == "top" else "0,1"),
        SAMPLING.temperature,
    )
    yield "teacher, fixed point", JacobiDecoding(teacher)
    yield "student, polished to exact", VerifiedStudent(quick, teacher)


if __name__ == "__main__":
    main()
