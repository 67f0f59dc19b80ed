"""What a teacher samples for its student: the same windows however the work is split, and all that is said of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.tiny_models import little_prior, prior_batch
from fixtures.tiny_shards import write_codes
from fixtures.tiny_students import student_of
from fixtures.tiny_teacher import little_teacher, write_teacher

from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.teacher_dataset import TeacherWindows
from megajukebox.distillation.curriculum import GATES, curriculum, passes_gate, write_table
from megajukebox.distillation.divergence import (
    SamplingSettings,
    bits_of,
    forward_gap,
    null_conditioned_batch,
    reverse_gap,
    teacher_log_p,
    with_interval,
)
from megajukebox.distillation.task import TeacherRun
from megajukebox.distillation.teacher_sampling import (
    TeacherDataConfig,
    current_settings,
    shard_name,
    teacher_codes,
    write_teacher_shard,
)
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.student import Student, StudentConfig, from_teacher
from megajukebox.sampling.students.student_runs import student_entry

TEACHER_DATA = TeacherDataConfig(
    windows=20,
    held_out=6,
    sampling=SamplingSettings(0.9),
    real_fraction=0.3,
    top_k=8,
    batch_size=4,
    windows_per_shard=8,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> CodeWindows:
    folder = tmp_path_factory.mktemp("teacher")
    return TeacherRun.open(write_teacher(folder / "run"), "middle").windows(
        ShardSet(str(write_codes(folder / "codes")))
    )


def taught(source: CodeWindows, lesson: TeacherDataConfig, folder: Path) -> TeacherWindows:
    folder.mkdir()
    names = [shard_name(number) for number in range(len(lesson.shards()))]
    for number in range(len(names)):
        assert write_teacher_shard(
            little_teacher(), source, lesson, number, folder, {"of": "this test"}
        )
    write_index(folder, names, kind="windows", sample_rate=11025, made_by={})
    return TeacherWindows(ShardSet(str(folder)))


@pytest.fixture(scope="module")
def windows(source, tmp_path_factory) -> TeacherWindows:
    return taught(source, TEACHER_DATA, tmp_path_factory.mktemp("lesson") / "windows")


def all_of(windows: TeacherWindows, part: str) -> dict:
    return tensors(
        stack([windows.read(int(n), 0, None) for n in np.flatnonzero(windows.clips(part))])
    )


def test_a_lesson_gives_the_same_windows_however_it_is_cut(source, windows, tmp_path) -> None:
    again = taught(
        source, replace(TEACHER_DATA, batch_size=7, windows_per_shard=5), tmp_path / "windows"
    )
    for part in ("train", "held_out"):
        one, other = all_of(windows, part), all_of(again, part)
        assert one.keys() == other.keys() and torch.equal(one["codes"], other["codes"])
        torch.testing.assert_close(one["teacher_bits"], other["teacher_bits"], atol=1e-4, rtol=1e-4)


def test_a_finished_shard_is_kept_and_one_of_another_origin_is_made_again(source, tmp_path) -> None:
    def write(origin: str) -> bool:
        return write_teacher_shard(
            little_teacher(), source, TEACHER_DATA, 0, tmp_path, {"of": origin}
        )

    assert [write("a"), write("a"), write("b")] == [True, False, True]


def test_shards_of_version_1_are_of_the_same_origin_as_new_ones() -> None:
    before = {
        "teacher": "t",
        "codes": "c",
        "lesson": {
            "windows": 20,
            "held_out": 6,
            "manner": {"temperature": 0.9, "guidance": 1.0},
            "real_share": 0.3,
            "likeliest": 8,
            "seed": 0,
            "per_shard": 8,
        },
    }
    now = {"teacher": "t", "codes": "c", "teacher_data": TEACHER_DATA.facts()}
    assert current_settings(before) == now == current_settings(now)


def test_what_is_stored_is_what_the_teacher_says(windows) -> None:
    batch = all_of(windows, "train")
    log_p = teacher_log_p(little_teacher(), batch, TEACHER_DATA.sampling)
    surprise = -log_p.gather(2, batch["codes"][..., None])[..., 0] / np.log(2)
    torch.testing.assert_close(batch["teacher_bits"], surprise, atol=1e-3, rtol=1e-3)
    likeliest = log_p.topk(8, dim=2)
    torch.testing.assert_close(batch["soft_log_p"], likeliest.values, atol=1e-2, rtol=1e-2)
    assert torch.equal(
        log_p.gather(2, batch["soft_ids"]).argmax(2), torch.zeros_like(batch["codes"])
    )


def test_some_windows_are_a_songs_own_and_none_of_the_held_out(windows, source) -> None:
    train, held = all_of(windows, "train"), all_of(windows, "held_out")
    assert 0 < (~train["taught"]).sum() < 15 and held["taught"].all() and len(held["taught"]) == 6
    real = train["codes"][~train["taught"]]
    assert (real // 80 == real[:, :1] // 80).all(), "the codes of little_sets tell their song"


def deviations(said_BTV: torch.Tensor, log_p_BTV: torch.Tensor, codes_BT: torch.Tensor) -> float:
    """By how many standard deviations what is `said` of the codes is off its mean, were they drawn from `log_p`."""
    p, said = log_p_BTV.double().exp(), said_BTV.double()
    mean = (p * said).sum(2)
    variance = (p * said.square()).sum(2) - mean.square()
    return float((said.gather(2, codes_BT[..., None])[..., 0] - mean).sum() / variance.sum().sqrt())


def test_a_teachers_windows_surprise_it_as_much_as_it_says(windows) -> None:
    held = all_of(windows, "held_out")
    log_p = teacher_log_p(little_teacher(), held, TEACHER_DATA.sampling)
    assert abs(deviations(log_p, log_p, held["codes"])) < 3.5


def test_a_guided_teachers_lessons_are_of_the_guided_distribution(source, tmp_path) -> None:
    lesson = replace(
        TEACHER_DATA,
        sampling=SamplingSettings(0.9, 4.0),
        windows=40,
        held_out=1,
        real_fraction=0,
        top_k=2048,
    )
    batch = all_of(
        taught(source, lesson, tmp_path / "windows"), "train"
    )  # held-out songs' artists have no name
    guided, plain = (
        teacher_log_p(little_teacher(), batch, m) for m in (lesson.sampling, TEACHER_DATA.sampling)
    )
    torch.testing.assert_close(
        batch["teacher_bits"], bits_of(guided, batch["codes"]), atol=1e-3, rtol=1e-3
    )
    stored = torch.zeros_like(guided).scatter(2, batch["soft_ids"], batch["soft_log_p"])
    torch.testing.assert_close(stored, guided, atol=1e-2, rtol=1e-2)
    from_guided, from_plain = (
        abs(deviations(guided - plain, p, batch["codes"])) for p in (guided, plain)
    )
    assert from_guided < 3.5 < from_plain


def test_both_divergences_are_nothing_at_the_teachers_order_and_grow_with_it() -> None:
    teacher, seeds = little_prior(timing=None, upsampler_conditioner=None), list(range(100))
    batch = prior_batch(teacher.config, songs=100)
    batch["codes"] = teacher_codes(teacher, batch, seeds, SamplingSettings(1.0))
    batch["teacher_bits"] = bits_of(teacher_log_p(teacher, batch), batch["codes"])
    gaps = {}
    for order in (GridOrder(4, 1), GridOrder(0, 1)):
        student = student_of(teacher, order, awake=False)
        reverse = reverse_gap(student, teacher, batch, seeds, SamplingSettings(1.0))
        gaps[order.down] = (
            with_interval(forward_gap(student, batch).numpy()),
            with_interval(reverse.numpy()),
        )
    assert all(abs(mean) < 1e-4 for mean, _ in gaps[4])
    assert all(mean > 3 * half for mean, half in gaps[0])


def test_guidance_is_baked_into_the_teachers_distribution() -> None:
    teacher = little_prior()
    batch = prior_batch(teacher.config)
    told, guided = (teacher_log_p(teacher, batch, SamplingSettings(1.0, g)) for g in (1.0, 3.0))
    untold = teacher_log_p(teacher, null_conditioned_batch(batch), SamplingSettings(1.0))
    torch.testing.assert_close(guided, (3 * told - 2 * untold).log_softmax(2), atol=1e-4, rtol=1e-4)


def test_an_interval_holds_the_mean_that_often() -> None:
    rng = np.random.default_rng(0)
    found = [with_interval(rng.normal(3, 2, 50)) for _ in range(400)]
    assert 0.9 < np.mean([abs(mean - 3) < half for mean, half in found]) < 0.98


def test_a_teacher_of_another_level_or_other_codes_is_refused(tmp_path) -> None:
    run = write_teacher(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a middle prior, not a top prior"):
        TeacherRun.open(run, "top")
    codes = write_codes(tmp_path / "codes")
    text = (codes / "index.json").read_text()
    (codes / "index.json").write_text(text.replace("0" * 64, "1" * 64))
    with pytest.raises(ValueError, match="codes of another VQ-VAE"):
        TeacherRun.open(run, "middle").windows(ShardSet(str(codes)))


def test_the_curriculum_takes_fewer_steps_each_time_and_the_top_never_whole_columns() -> None:
    for level in ("top", "bottom"):
        orders = curriculum(level, 8192, 128)
        steps = [order.steps(8192, 128) for order in orders]
        assert steps == sorted(steps, reverse=True) and steps[0] < 8192
        assert (GridOrder(0, 1) in orders) == (level != "top")
    assert [order.fold for order in curriculum("top", 512, 32)] == [16, 8, 4, 2]
    assert [order.fold for order in curriculum("middle", 512, 32)] == [4, 2, 1]
    assert [order.fold for order in curriculum("middle", 96, 6)] == [1], "lines must fill a window"


def test_the_student_in_use_is_the_one_of_fewest_steps_that_passed(tmp_path) -> None:
    gate = GATES["middle"]

    def row(steps: int, kl: float) -> dict:
        judged = {"kl_forward": kl, "kl_reverse": kl}
        return {
            "folder": f"order-{steps}",
            "steps_per_window": steps,
            "passed": passes_gate(judged, gate),
        }

    stages = [row(264, 0.01), row(47, 0.04), row(16, 0.06)]
    write_table(tmp_path, stages, gate)
    assert student_entry(tmp_path, None)[0]["folder"] == "order-47"
    write_table(tmp_path, stages[-1:], gate)
    assert student_entry(tmp_path, None)[0]["folder"] == "order-16"
    with pytest.raises(ValueError, match="holds no student"):
        student_entry(tmp_path / "elsewhere", None)


def test_a_student_starts_from_every_weight_of_its_teacher() -> None:
    teacher = little_teacher()
    student = from_teacher(
        Student(StudentConfig(prior=teacher.config, order=GridOrder(0, 1))), teacher
    )
    assert all(
        torch.equal(student.state_dict()[name], weight)
        for name, weight in teacher.state_dict().items()
    )
    assert not student.above.weight.any() and not student.missing.weight.any()
