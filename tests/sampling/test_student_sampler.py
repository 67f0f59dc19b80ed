"""A level of songs by a student: windows together, known codes untouched, the same codes however work is split."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from fixtures.tiny_models import WINDOW, little_prior, plain_draw
from fixtures.tiny_students import student_of

from megajukebox.conditioning.schema import SongConditioning
from megajukebox.models.grid_order import GridOrder
from megajukebox.sampling.levels.autoregressive import Autoregressive
from megajukebox.sampling.levels.level_sampler import LevelJob, new_job
from megajukebox.sampling.levels.level_windows import conditioning_batch
from megajukebox.sampling.students.student_sampler import StudentSampler, VerifiedStudent, phases

ORDERS = [GridOrder(0, 1), GridOrder(1, 1), GridOrder(4, 1)]


def told() -> SongConditioning:
    labels = {"artist": np.array([1]), "genres": np.array([2, -1, -1])}
    return SongConditioning.of(little_prior().config, labels)


def job_of(level: str, total: int, seeds: list[int], known: slice = slice(0, 0)) -> LevelJob:
    draw = torch.Generator().manual_seed(4)
    upper = (
        torch.randint(11, (len(seeds), -(-total // 4)), generator=draw)
        if level == "middle"
        else None
    )
    job = new_job([told() for _ in seeds], total, total * 4, plain_draw(seeds, level), 0.5, upper)
    job.codes_BT[:, known] = torch.randint(11, job.codes_BT[:, known].shape, generator=draw)
    job.known_BT[:, known] = job.prompt_BT[:, known] = True
    return job


def sampler(level: str, order: GridOrder, **settings) -> StudentSampler:
    changed = {"upsampler_conditioner": None, "level": "top"} if level == "top" else {}
    return StudentSampler(student_of(little_prior(**changed), order), **settings)


@pytest.mark.parametrize("total", [5, 16, 17, 40, 63])
@pytest.mark.parametrize("level", ["top", "middle"])
def test_every_code_lies_in_a_window_and_those_of_a_phase_do_not_overlap(
    level: str, total: int
) -> None:
    found = list(phases(sampler(level, GridOrder(0, 1)).student.config, total))
    reached = {t for phase in found for span in phase for t in range(span.start, span.end)}
    assert reached == set(range(total))
    for phase in found:
        assert all(one.end <= other.start for one, other in pairwise(phase))
        assert all(span.start % 4 == 0 for span in phase) or level == "top"


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("level", ["top", "middle"])
def test_known_codes_stay_and_all_others_are_sampled(level: str, order: GridOrder) -> None:
    for known in (slice(0, 0), slice(0, 21), slice(5, 30), slice(30, 50)):
        job = job_of(level, 50, [1, 2], known)
        before, counted = job.codes_BT.clone(), []
        sampler(level, order).sample(job, counted.append)
        assert job.known_BT.all() and sum(counted) == 2 * (50 - (known.stop - known.start))
        assert torch.equal(job.codes_BT[:, known], before[:, known])


@pytest.mark.parametrize("level", ["top", "middle"])
def test_batch_mates_lockstep_and_an_interruption_do_not_matter(level: str) -> None:
    order, seeds = GridOrder(0, 1), [3, 4, 5]
    whole = job_of(level, 60, seeds)
    sampler(level, order).sample(whole, lambda count: None)
    again = job_of(level, 60, seeds)
    sampler(level, order, max_rows=2).sample(again, lambda count: None)
    assert torch.equal(again.codes_BT, whole.codes_BT)
    stopped = job_of(level, 60, seeds)
    stopped.codes_BT[:, :16], stopped.known_BT[:, :16] = (
        whole.codes_BT[:, :16],
        True,
    )  # its first window was done
    sampler(level, order).sample(stopped, lambda count: None)
    assert torch.equal(stopped.codes_BT, whole.codes_BT)


def test_the_windows_between_are_given_what_the_first_ones_sampled() -> None:
    """The codes of the windows between are those of one pass in which both sides are clamped."""
    way, job = sampler("middle", GridOrder(0, 1)), job_of("middle", 40, [9])
    first, then = phases(way.student.config, 40)
    assert [s.start for s in first] == [0, 24] and [s.start for s in then] == [12]
    way.sample(job, lambda count: None)
    between = job_of("middle", 40, [9])
    between.codes_BT[:], between.known_BT[:] = job.codes_BT, True
    between.known_BT[:, 16:24] = False
    sampler("middle", GridOrder(0, 1)).sample(between, lambda count: None)
    assert torch.equal(between.codes_BT, job.codes_BT)
    batch = conditioning_batch(
        way.student.config, [told()], job.upper_BU, [12], 160, torch.device("cpu")
    )
    assert batch["upper_codes"].shape == (1, WINDOW // 4)


def test_at_the_temperature_of_its_lessons_a_student_draws_unchanged() -> None:
    one, other = job_of("middle", 20, [1]), job_of("middle", 20, [1])
    other.token_sampler.temperature_B.fill_(0.7)
    sampler("middle", GridOrder(0, 1)).sample(one, lambda count: None)
    sampler("middle", GridOrder(0, 1), temperature=0.7).sample(other, lambda count: None)
    assert torch.equal(one.codes_BT, other.codes_BT)


@pytest.mark.parametrize("level", ["top", "middle"])
def test_polished_is_the_teachers_sample_whatever_the_student_guessed(level: str) -> None:
    teacher = little_prior(
        **({"upsampler_conditioner": None, "level": "top"} if level == "top" else {})
    )
    exact, polished = (job_of(level, 40, [5, 6], slice(0, 3)) for _ in range(2))
    Autoregressive(teacher).sample(exact, lambda count: None)
    for order in (GridOrder(0, 1), GridOrder(4, 1)):
        again, counted = (
            replace(
                polished, codes_BT=polished.codes_BT.clone(), known_BT=polished.known_BT.clone()
            ),
            [],
        )
        VerifiedStudent(
            StudentSampler(student_of(teacher, order)), teacher, num_draft_tokens=4
        ).sample(again, counted.append)
        assert torch.equal(again.codes_BT, exact.codes_BT) and sum(counted) == 2 * 37
