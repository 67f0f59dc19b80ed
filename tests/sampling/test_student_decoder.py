"""The student's cached decoder: each step is the full forward pass, known slots stay, samples are as it says."""

import pytest
import torch
from fixtures.tiny_models import WINDOW, little_prior, plain_draw, prior_batch, song_of, window_task
from fixtures.tiny_students import KNOWN, ORDERS, TEACHERS, known_slots, little_student, student_of

from megajukebox.models.grid_order import GridOrder
from megajukebox.models.student import Student
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.decoding.window_sampler import sample_window
from megajukebox.sampling.students.student_decoder import (
    StudentTokenSampler,
    emit,
    emit_slowly,
    student_decoding,
)


def draws_of(seeds: list[int], first: list[int]) -> StudentTokenSampler:
    return StudentTokenSampler(plain_draw(seeds), torch.tensor(first))


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@torch.no_grad()
def test_cached_logits_equal_those_of_the_full_forward_pass(order: GridOrder, known: str) -> None:
    assert_cached_equals_full(little_student(order, "factored_lyrics"), known)


@pytest.mark.parametrize("schedule", ["row_column", "factored_dense", "dense"])
@torch.no_grad()
def test_cached_logits_equal_the_full_ones_under_other_schedules(schedule: str) -> None:
    for changed in ({}, {"timing": None, "upsampler_conditioner": None}, {"conditions": {}}):
        assert_cached_equals_full(little_student(GridOrder(1, 2), schedule, **changed), "different")


def assert_cached_equals_full(student: Student, known: str) -> None:
    """Given the same codes, each step's logits are those of one pass over the whole window; packed or not."""
    batch, slots = prior_batch(student.config, songs=3), known_slots(known, 3)
    given = student.conditioning(batch)
    full = student.logits(batch["codes"], given, slots)
    assert full.std(dim=1).mean() > 0.5, "logits that do not vary would prove nothing"
    for packed in (None, PackedPrior(student)):
        hidden, seen = torch.zeros_like(batch["codes"]), torch.zeros(WINDOW, dtype=torch.bool)
        hidden[slots] = batch["codes"][slots]
        with student_decoding(student, given, slots, packed) as decoder:
            if slots.any():
                decoder.prefill(hidden)
            for step in decoder.steps:
                logits, open_BN = decoder.step(hidden, step), ~slots[:, step.slots_N]
                torch.testing.assert_close(
                    logits[open_BN], full[:, step.slots_N][open_BN], atol=2e-4, rtol=2e-4
                )
                hidden[:, step.slots_N] = batch["codes"][
                    :, step.slots_N
                ]  # not there before their time
                seen[step.slots_N] = True
        assert seen[~slots.all(0)].all(), "every slot that is not known in all windows is emitted"


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("order", [TEACHERS, GridOrder(1, 2), GridOrder(0, 1)], ids=str)
def test_emitting_with_caches_gives_the_codes_of_the_slow_twin_and_known_ones_stay(
    order: GridOrder, known: str
) -> None:
    student = little_student(order)
    batch, slots = prior_batch(student.config, songs=3), known_slots(known, 3)
    given, draws = student.conditioning(batch), draws_of([1, 2, 3], [0, 64, 16])
    codes = emit(student, given, batch["codes"], slots, draws)
    assert torch.equal(codes, emit_slowly(student, given, batch["codes"], slots, draws))
    assert torch.equal(codes[slots], batch["codes"][slots])


def test_at_the_teachers_order_a_student_samples_the_teachers_codes() -> None:
    teacher = little_prior("factored_lyrics")
    batch, student = prior_batch(teacher.config), student_of(teacher, TEACHERS, awake=False)
    given, slots = teacher.conditioning(batch), known_slots("prefix")
    window = window_task(teacher, batch, plain_draw([1, 2]), 6, WINDOW, first=40)
    theirs = sample_window(PackedPrior(teacher), window)
    assert torch.equal(
        emit(student, given, batch["codes"], slots, draws_of([1, 2], [40, 40])), theirs
    )


@pytest.mark.parametrize("order", [GridOrder(1, 2), GridOrder(0, 1)], ids=str)
def test_batch_mates_do_not_matter(order: GridOrder) -> None:
    student = little_student(order)
    batch, slots = prior_batch(student.config, songs=3), known_slots("different", 3)
    together = emit(
        student,
        student.conditioning(batch),
        batch["codes"],
        slots,
        draws_of([7, 8, 9], [0, 16, 32]),
    )
    for song, seed in enumerate((7, 8, 9)):
        one = song_of(batch, song)
        alone = draws_of([seed], [16 * song])
        codes = emit(
            student, student.conditioning(one), one["codes"], slots[song : song + 1], alone
        )
        assert torch.equal(codes[0], together[song])


@torch.no_grad()
def test_memory_is_made_once_and_gone_afterwards() -> None:
    student, slots = little_student(GridOrder(0, 1), "factored_lyrics"), known_slots("different", 2)
    batch = prior_batch(student.config)
    with student_decoding(student, student.conditioning(batch), slots) as decoder:
        memory = [
            (x.data_ptr(), x.shape) for layer in decoder.layers for x in (layer.keys, layer.values)
        ]
        decoder.prefill(batch["codes"])
        for step in decoder.steps:
            decoder.step(batch["codes"], step)
        assert memory == [
            (x.data_ptr(), x.shape) for layer in decoder.layers for x in (layer.keys, layer.values)
        ]
    assert not decoder.layers


def test_progress_counts_every_emitted_slot_of_a_window() -> None:
    student, told = little_student(GridOrder(1, 2)), []
    batch, slots = prior_batch(student.config), known_slots("prefix")
    emit(
        student,
        student.conditioning(batch),
        batch["codes"],
        slots,
        draws_of([1, 2], [0, 0]),
        told.append,
    )
    assert sum(told) == WINDOW - 6


SONGS = 500
PLAIN = {"codebook_size": 32, "window": 64, "timing": None, "upsampler_conditioner": None}


def surprisal(order: GridOrder, temperature: float) -> float:
    """Z of the surprisal of emitted codes under the student's own likelihood: standard normal if the sampler is true.

    Given what came before, the slots of a step are independent, and each one's surprisal less its entropy has mean 0.
    """
    shape = {**little_prior().config.transformer.model_dump(), "blocks": 8, "init_scale": 18.0}
    student = little_student(order, transformer=shape, **PLAIN)
    batch, nothing = (
        prior_batch(student.config, songs=SONGS),
        torch.zeros(SONGS, 64, dtype=torch.bool),
    )
    draws = StudentTokenSampler(
        plain_draw(list(range(SONGS)), temperature=temperature),
        torch.zeros(SONGS, dtype=torch.long),
    )
    with torch.no_grad():
        given = student.conditioning(batch)
        codes = emit(student, given, batch["codes"], nothing, draws)
        log_q = student.logits(codes, given).double().log_softmax(2)
    weight = log_q.exp()
    entropy = -(weight * log_q).sum(2)
    variance = (weight * log_q.square()).sum(2) - entropy.square()
    surprise = -log_q.gather(2, codes[..., None])[..., 0]
    return float((surprise - entropy).sum() / variance.sum().sqrt())


@pytest.mark.parametrize("order", [GridOrder(1, 2), GridOrder(0, 1), GridOrder(2, 1)], ids=str)
def test_emitted_codes_are_as_surprising_as_the_student_says(order: GridOrder) -> None:
    assert abs(surprisal(order, 1.0)) < 3.5


def test_a_temperature_that_is_5_percent_off_is_found_out() -> None:
    assert abs(surprisal(GridOrder(0, 1), 0.95)) > 4 and abs(surprisal(GridOrder(1, 2), 1.05)) > 4
