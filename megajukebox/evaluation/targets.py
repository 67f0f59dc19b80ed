"""What is scored and against what: finds out from folders, loads each model for as long as it is judged."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megajukebox.common.levels import PRIOR_FOLDERS, RUN_FOLDERS, STUDENT_TABLE
from megajukebox.common.model_files import FACTS, WEIGHTS, check_fingerprint, load_into, read_facts
from megajukebox.common.provenance import made_by
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.transports import is_url
from megajukebox.data.stream.batches import held_out_batches
from megajukebox.data.stream.song_dataset import held_out_share, split
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.distillation.divergence import SamplingSettings
from megajukebox.evaluation.evaluate import (
    EvalBudget,
    RealCodes,
    RealSongs,
    evaluate_paired,
    evaluate_prior,
    evaluate_samples,
    evaluate_student,
    evaluate_vqvae,
)
from megajukebox.evaluation.evaluators.adherence import LabelClassifier, fit_label_classifier
from megajukebox.evaluation.evaluators.embedding import Embedder
from megajukebox.evaluation.evaluators.likelihood import windows_of
from megajukebox.evaluation.inputs import (
    EvalSample,
    EvalSongs,
    Say,
    labels_of,
    rows_of,
    samples_in,
    silent,
    spread,
)
from megajukebox.evaluation.metrics import MetricValue
from megajukebox.evaluation.reference_set import fit_reference
from megajukebox.evaluation.reporting.report import report_of
from megajukebox.models.student import Student, StudentConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.sampling.jukebox import PriorRun
from megajukebox.sampling.students.student_runs import student_folder

EARS_SECONDS = 5.0  # of the clips by which reconstructions are recognised


@dataclass(frozen=True)
class EvalTarget:
    """One run, or one folder of samples."""

    kind: str  # vqvae, prior, student or samples
    path: Path
    weights: str  # fingerprint
    level: str | None = None
    step: int | None = None

    @property
    def run(self) -> Path | None:
        """The run folder that keeps the scores."""
        return None if self.kind == "samples" else self.path


def targets_in(folder: Path) -> list[EvalTarget]:
    """The run, the runs of a jukebox, or the samples in `folder`. ValueError if it holds none of them."""
    if (folder / FACTS).is_file():
        return [run_subject(folder)]
    if (folder / STUDENT_TABLE).is_file():
        return [run_subject(student_folder(folder, None))]
    runs = [folder / name for name in RUN_FOLDERS.values() if (folder / name / FACTS).is_file()]
    if runs:
        return [run_subject(run) for run in runs]
    if not folder.is_dir():
        raise ValueError(
            f"{str(folder)!r} does not exist; give a run, a folder of runs, or a folder of samples"
        )
    samples = samples_in(folder)
    return [EvalTarget("samples", folder, fingerprint_of(samples))]


def run_subject(run: Path) -> EvalTarget:
    facts = read_facts(run)
    if facts["kind"] not in ("vqvae", "prior", "student"):
        raise ValueError(
            f"{run} holds a {facts['kind']}; what is scored is a vqvae, a prior, a student, or samples"
        )
    return EvalTarget(facts["kind"], run, facts["fingerprint"], facts.get("level"), facts["step"])


def fingerprint_of(samples: list[EvalSample]) -> str:
    """Of the samples' names and records: the same samples have the same fingerprint wherever they lie."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update((sample.folder / f"{sample.key}.json").read_bytes())
    return digest.hexdigest()


# ---- Sources


@dataclass(frozen=True)
class EvalInputs:
    """What subjects are judged against."""

    songs: ShardSet | None = None
    codes: ShardSet | None = None
    samples: list[EvalSample] = field(default_factory=list)

    def told(self) -> list[dict[str, Any]]:
        """For the report: what they are, where they came from, and their fingerprints."""
        shards = [s for s in (self.songs, self.codes) if s]
        found = [
            {"kind": s.index["kind"], "source": s.source, "fingerprint": s.fingerprint}
            for s in shards
        ]
        if self.samples:
            where = str(self.samples[0].folder)
            found.append(
                {"kind": "samples", "source": where, "fingerprint": fingerprint_of(self.samples)}
            )
        return found

    def need_songs(self, what: str) -> ShardSet:
        if self.songs is None:
            raise ValueError(f"{what} is scored against song shards; give --against shards/songs")
        return self.songs

    def need_codes(self, what: str) -> ShardSet:
        if self.codes is None:
            raise ValueError(f"{what} is scored against code shards; give --against shards/codes")
        return self.codes


def open_sources(against: Iterable[str]) -> EvalInputs:
    """One set of song shards, one of code shards, one folder of samples. ValueError for two of a kind."""
    found: dict[str, Any] = {}
    for source in against:
        shards = is_url(source) or (Path(source) / "index.json").is_file()
        thing = ShardSet(source) if shards else samples_in(Path(source))
        kind = thing.index["kind"] if isinstance(thing, ShardSet) else "samples"
        if kind in found:
            raise ValueError(f"--against {source} is a second set of {kind}; give one of each")
        found[kind] = thing
    return EvalInputs(**found)


# ---- Judging


@dataclass
class Evaluator:
    """Judges subjects against sources, with a given effort. What it could not do is said in `notes`."""

    sources: EvalInputs
    effort: EvalBudget
    held_out: float | None  # share; None: what the run says
    embedder: Embedder
    device: torch.device
    say: Say = silent
    notes: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    asked: dict[str, dict[str, str]] = field(default_factory=dict)  # labels of samples

    def scores(self, subject: EvalTarget) -> list[MetricValue]:
        """Every figure of one subject."""
        self.say(f"scoring {subject.path}")
        judges = {
            "vqvae": self._vqvae,
            "prior": self._prior,
            "student": self._student,
            "samples": self._samples,
        }
        return list(judges[subject.kind](subject))

    def report(self, subjects: list[EvalTarget], scores: Iterable[MetricValue]) -> dict[str, Any]:
        """The report of one subject, or of the runs of a jukebox."""
        one = subjects[0] if len(subjects) == 1 else None
        subject = {
            "kind": one.kind if one else "jukebox",
            "level": one.level if one else None,
            "path": str(one.path if one else subjects[0].path.parent),
            "step": one.step if one else None,
            "weights": one.weights if one else [s.weights for s in subjects],
        }
        facts = {
            "subject": subject, "against": self.sources.told(), "settings": self.settings(), "time": time.time(),
            "made_by": made_by(), "notes": self.notes, "refused": self.refused,
        }  # fmt: skip
        found = list(scores)
        return report_of(
            found, self._labels({key for score in found for key in score.items}), facts
        )

    def settings(self) -> dict[str, Any]:
        """What changes figures beside the subject and the sources."""
        return {**asdict(self.effort), "held_out": self.held_out, "embedder": self.embedder.name}

    def fingerprints(self) -> list[str]:
        return [source["fingerprint"] for source in self.sources.told()]

    def _vqvae(self, subject: EvalTarget) -> Iterator[MetricValue]:
        shards, share = self.sources.need_songs(str(subject.path)), self._share(subject)
        with frozen(subject.path) as weights:
            model = load_vqvae(weights, shards, self.device)
        songs = self._songs(shards, self._held_out(shards, share, str(subject.path)))
        yield from evaluate_vqvae(model, songs, self._ears(shards, share), self.embedder)
        self.refused |= songs.refused

    def _prior(self, subject: EvalTarget) -> Iterator[MetricValue]:
        codes, share = self.sources.need_codes(str(subject.path)), self._share(subject)
        rows = self._held_out(codes, share, str(subject.path))
        with frozen(subject.path) as weights:
            run = PriorRun(weights, {"fingerprint": codes.index["vqvae"]["fingerprint"]})
            if run.tokenizer and run.alignment is None:
                self.notes.append(
                    f"{subject.path}: no head is chosen that tells when words are sung; run align first"
                )
            with run.loaded(self.device, torch.float32) as prior:
                yield from evaluate_prior(prior, run, codes, rows, self.effort.windows, self.say)

    def _student(self, subject: EvalTarget) -> Iterator[MetricValue]:
        """A student is judged beside its teacher, the prior of its level in the same folder of runs."""
        codes, facts = self.sources.need_codes(str(subject.path)), read_facts(subject.path)
        runs, level = subject.path.parent.parent, facts["level"]
        teacher = PriorRun(
            runs / PRIOR_FOLDERS[level], {"fingerprint": codes.index["vqvae"]["fingerprint"]}
        )
        if teacher.facts["fingerprint"] != facts["teacher"]:
            raise ValueError(
                f"{teacher.folder} is not the prior that {subject.path} was taught by; distill it again"
            )
        student = Student(StudentConfig(**facts["config"]))
        load_into(student, subject.path, device=self.device)
        rows = self._held_out(codes, self._share(run_subject(teacher.folder)), str(subject.path))
        with teacher.loaded(self.device, torch.float32) as prior:
            manner, windows = SamplingSettings(**facts["manner"]), windows_of(teacher, codes)
            taught = self._taught(subject.path.parent / "windows")
            student.to(self.device).eval()
            yield from evaluate_student(
                student, prior, manner, windows, rows, self.effort.windows, taught
            )

    def _taught(self, folder: Path) -> list[dict]:
        """The held-out windows that the teacher sampled for `distill`, at most 128; none is noted."""
        if not (folder / "index.json").is_file():
            self.notes.append(f"{folder} holds no windows of the teacher: no forward divergence")
            return []
        return list(held_out_batches(TeacherWindows(ShardSet(folder)), micro_batch=8, limit=128))

    def _samples(self, subject: EvalTarget) -> Iterator[MetricValue]:
        samples, share = samples_in(subject.path), self._share(subject)
        self.asked = {sample.key: labels_of(sample.record["request"]) for sample in samples}
        if self.sources.samples:
            yield from evaluate_paired(samples, self.sources.samples, self.embedder)
        seconds = float(np.median([sample.seconds or EARS_SECONDS for sample in samples]))
        real = self._real(self.sources.songs, share, seconds) if self.sources.songs else None
        codes = self._real_codes(self.sources.codes, share) if self.sources.codes else None
        yield from evaluate_samples(samples, real, codes, seconds)

    def _real(self, shards: ShardSet, share: float, seconds: float) -> RealSongs:
        self.say("listening to the training songs")
        corpus = self._songs(shards, rows_of(shards, False, share, self.effort.corpus))
        held_out = self._songs(shards, rows_of(shards, True, share, self.effort.songs))
        return RealSongs(held_out, fit_reference(corpus, seconds, self.embedder))

    def _real_codes(self, shards: ShardSet, share: float) -> RealCodes:
        training = rows_of(shards, False, share, self.effort.corpus)
        return RealCodes(shards, training, rows_of(shards, True, share, self.effort.songs))

    def _ears(self, shards: ShardSet, share: float) -> LabelClassifier | None:
        """Ears taught by training songs; None if there are none, or no labels to tell apart."""
        rows = rows_of(shards, False, share, self.effort.corpus)
        found = fit_label_classifier(self._songs(shards, rows), EARS_SECONDS) if rows else None
        return found if found and found.ears else None

    def _songs(self, shards: ShardSet, rows: list[int]) -> EvalSongs:
        return EvalSongs(shards, rows, self.effort.seconds, say=self.say)

    def _held_out(self, shards: ShardSet, share: float, who: str) -> list[int]:
        """The songs that are judged: held-out ones, or all where none is held out, which is noted."""
        if not split(shards.songs["key"], share).any():
            self.notes.append(
                f"{who}: none of {len(shards)} songs is held out; all were judged, trained on or not"
            )
            return spread(np.arange(len(shards)), self.effort.songs).tolist()
        return rows_of(shards, True, share, self.effort.songs)

    def _share(self, subject: EvalTarget) -> float:
        """The share of songs that was held out in training."""
        if self.held_out is not None:
            return self.held_out
        return held_out_share(subject.path)

    def _labels(self, keys: set[str]) -> dict[str, dict[str, str]]:
        """Labels of the songs that were judged; those of samples are what they were asked to be."""
        found: dict[str, dict[str, str]] = {}
        for shards in (s for s in (self.sources.songs, self.sources.codes) if s):
            wanted = np.array(sorted(keys - found.keys()), dtype=shards.songs["key"].dtype)
            for row in np.flatnonzero(np.isin(shards.songs["key"], wanted)).tolist():
                found[shards.key(row)] = labels_of(shards.read_facts(row))
        return found | {key: labels for key, labels in self.asked.items() if key in keys}


# ---- Models


def load_vqvae(run: Path, songs: ShardSet, device: torch.device) -> VQVAE:
    """ValueError if the songs are of another sample rate."""
    model = VQVAE(VQVAEConfig(**read_facts(run)["config"]))
    rate = songs.index["sample_rate"]
    if rate != model.config.sample_rate:
        raise ValueError(
            f"{songs.source} holds songs at {rate} Hz, {run} hears {model.config.sample_rate} Hz"
        )
    load_into(model, run, device=device)
    return model.to(device).eval()


@contextmanager
def frozen(run: Path, tries: int = 5) -> Iterator[Path]:
    """The run's weights and what is read with them, as they are now: a run in training writes new ones meanwhile.

    Weights are replaced by renaming, so a second name (a hard link; else a copy) keeps the ones that were there.
    """
    with tempfile.TemporaryDirectory(prefix="scoring-", dir=run.parent) as name:
        kept = Path(name)
        for attempt in range(tries):
            try:
                for path in [
                    run / WEIGHTS,
                    *(p for p in run.iterdir() if p.suffix in (".json", ".yaml", ".model")),
                ]:
                    link(path, kept / path.name)
                check_fingerprint(kept)
                break
            except (ValueError, FileNotFoundError):
                if attempt == tries - 1:
                    raise
                time.sleep(2)  # between the new weights and what model.json says of them
        yield kept


def link(path: Path, name: Path) -> None:
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, name)
