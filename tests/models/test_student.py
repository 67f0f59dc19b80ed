"""The student's one rule: at the teacher's order it is the teacher; at every order nothing is seen before its time."""

import pytest
import torch
from fixtures.tiny_models import CODES, ROWS, WINDOW, little_prior, prior_batch
from fixtures.tiny_students import KNOWN, ORDERS, TEACHERS, known_slots, little_student, student_of
from torch import Tensor

from megajukebox.models.attention import SCHEDULES, masked_dense_attention, visible
from megajukebox.models.grid_order import (
    GridOrder,
    GridVisibility,
    grid_attention,
    times,
    visible_in_order,
)
from megajukebox.models.student import StudentConfig

LISTED = [name for name in SCHEDULES if "prefix" not in name]
PATTERNS = ["row", "column", "previous_row", "dense"]


@pytest.mark.parametrize("schedule", LISTED)
@torch.no_grad()
def test_at_the_teachers_order_a_student_is_its_teacher_to_the_last_bit(schedule: str) -> None:
    teacher = little_prior(schedule)
    batch, student = (
        prior_batch(teacher.config, songs=3),
        student_of(teacher, TEACHERS, awake=False),
    )
    given = teacher.conditioning(batch)
    expected = teacher.logits(batch["codes"], given)
    assert torch.equal(student.logits(batch["codes"], student.conditioning(batch)), expected)
    assert torch.equal(student.logits(batch["codes"], given, known_slots("prefix", 3)), expected)
    two_rows_a_line = student_of(teacher, GridOrder(2 * TEACHERS.down, 1, 2), awake=False)
    assert torch.equal(two_rows_a_line.logits(batch["codes"], given), expected)


@torch.no_grad()
def test_the_rule_itself_and_not_only_a_shortcut_is_the_teacher_at_its_order(monkeypatch) -> None:
    teacher = little_prior("factored_dense")
    batch, student = (
        prior_batch(teacher.config, songs=3),
        student_of(teacher, TEACHERS, awake=False),
    )
    given = teacher.conditioning(batch)
    monkeypatch.setattr(GridVisibility, "is_raster", False)
    torch.testing.assert_close(
        student.logits(batch["codes"], given),
        teacher.logits(batch["codes"], given),
        atol=1e-4,
        rtol=1e-4,
    )


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_rule_at_the_teachers_order_sees_what_the_teachers_pattern_sees(pattern: str) -> None:
    tau = times(TEACHERS, WINDOW, ROWS)[0]
    assert torch.equal(visible_in_order(pattern, tau, ROWS), visible(pattern, WINDOW, ROWS))


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_attention_in_order_equals_masked_dense_attention(
    pattern: str, order: GridOrder, known: str
) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, WINDOW, 2, 5, dtype=torch.double)
    tau = times(order, WINDOW, ROWS, known_slots(known))
    found = grid_attention(q, k, v, pattern, GridVisibility(tau, ROWS))
    for song in range(2):
        mask, one = visible_in_order(pattern, tau[song], ROWS), slice(song, song + 1)
        truth = masked_dense_attention(q[one], k[one], v[one], mask)
        torch.testing.assert_close(found[one], truth, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@torch.no_grad()
def test_no_logit_changes_with_a_token_that_is_not_there_yet_or_comes_later(
    order: GridOrder, known: str
) -> None:
    student = little_student(order, "factored_dense")
    batch, given_slots = prior_batch(student.config), known_slots(known)
    given, tau = student.conditioning(batch), times(order, WINDOW, ROWS, given_slots).expand(2, -1)
    before = student.logits(batch["codes"], given, given_slots)
    moved = torch.zeros(WINDOW, WINDOW, dtype=torch.bool)
    for slot in range(WINDOW):
        codes = batch["codes"].clone()
        codes[:, slot] = (codes[:, slot] + 1) % CODES
        changed = (student.logits(codes, given, given_slots) != before).any(2)
        sooner = (torch.arange(WINDOW) <= slot) & ~given_slots[
            :, slot, None
        ]  # a known one is seen from before it too
        forbidden = (tau <= tau[:, slot, None]) | sooner
        assert not (changed & forbidden).any(), f"slot {slot} is seen before its time"
        moved[slot] = changed.any(0)
    assert moved.sum() > WINDOW, "tokens that change nothing would prove nothing"


def test_slots_of_a_wavefront_and_of_a_column_are_emitted_together() -> None:
    assert times(GridOrder(1, 2), WINDOW, ROWS).unflatten(1, (ROWS, -1))[0].tolist() == [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
        [2, 4, 6, 8],
        [3, 5, 7, 9],
    ]
    assert (
        times(GridOrder(0, 1), WINDOW, ROWS).unflatten(1, (ROWS, -1))[0].tolist()
        == [[0, 1, 2, 3]] * 4
    )
    lines = times(GridOrder(1, 1, 2), WINDOW, ROWS).unflatten(1, (ROWS, -1))[0]
    assert lines.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [1, 2, 3, 4], [5, 6, 7, 8]]
    of_8192 = {
        "64,1": 8192,
        "8,1": 1080,
        "1,3": 317,
        "1,2": 254,
        "1,1": 191,
        "0,1": 64,
        "1,1,8": 527,
        "512,1,8": 8192,
    }
    assert {order: GridOrder.parse(order).steps(8192, 128) for order in of_8192} == of_8192


@pytest.mark.parametrize("known", KNOWN)
def test_a_slot_knows_no_later_token_unless_one_is_given_after_it(known: str) -> None:
    given = known_slots(known)
    slowly = [[not song[slot + 1 :].any() for slot in range(WINDOW)] for song in given]
    assert (
        GridVisibility(times(GridOrder(1, 1), WINDOW, ROWS, given), ROWS).knows_no_later.tolist()
        == slowly
    )


def taught_batch(student, **changed) -> dict:
    batch, draw = prior_batch(student.config), torch.Generator().manual_seed(3)
    log_p = (
        torch.randn(2, WINDOW, CODES, generator=draw).log_softmax(2).sort(dim=2, descending=True)
    )
    soft = {"soft_ids": log_p.indices[..., :6], "soft_log_p": log_p.values[..., :6]}
    return {
        **batch,
        **soft,
        "teacher_bits": torch.ones(2, WINDOW),
        "taught": torch.ones(2, dtype=torch.bool),
        **changed,
    }


@pytest.mark.parametrize("known", ["nothing", "prefix", "suffix", "different"])
@pytest.mark.parametrize("order", [GridOrder(2, 1), GridOrder(1, 2), GridOrder(0, 1)], ids=str)
def test_the_soft_loss_has_no_gradient_where_a_later_token_is_known(
    order: GridOrder, known: str
) -> None:
    student, slots = little_student(order), known_slots(known)
    batch = taught_batch(student)
    logits = (
        student.logits(batch["codes"], student.conditioning(batch), slots).detach().requires_grad_()
    )
    student.soft_loss(logits.log_softmax(2), batch, student.soft_targets(slots)).backward()
    touched = logits.grad.abs().sum(2) > 0
    allowed = GridVisibility(times(order, WINDOW, ROWS, slots), ROWS).knows_no_later & ~slots
    assert torch.equal(touched, allowed.expand(2, -1))
    assert touched.any() == (known != "suffix")


@torch.no_grad()
def test_the_soft_loss_is_the_divergence_from_the_teacher_when_all_codes_are_kept() -> None:
    student = little_student(GridOrder(0, 1))
    batch = taught_batch(student)
    log_p = torch.randn(2, WINDOW, CODES).log_softmax(2)
    batch |= {"soft_ids": torch.arange(CODES).expand(2, WINDOW, -1), "soft_log_p": log_p}
    log_q = student.logits(batch["codes"], student.conditioning(batch)).log_softmax(2)
    truth = (log_p.exp() * (log_p - log_q)).sum() / torch.log(torch.tensor(2.0))
    found = student.soft_loss(log_q, batch, student.soft_targets(known_slots("nothing")))
    torch.testing.assert_close(found, truth, rtol=1e-4, atol=1e-4)


def test_a_student_learns_distributions_wherever_nothing_later_is_given_and_else_a_little_of_the_codes() -> (
    None
):
    student = little_student(GridOrder(1, 1))
    batch = taught_batch(student, taught=torch.tensor([True, False]))
    log_p = torch.randn(2, WINDOW, CODES).log_softmax(2)
    batch |= {"soft_ids": torch.arange(CODES).expand(2, WINDOW, -1), "soft_log_p": log_p}
    assert student.soft_targets(known_slots("nothing")).all(), (
        "also where a song's own codes came before"
    )
    suffix = known_slots("suffix")
    assert not student.soft_targets(suffix).any()
    log_q = student.logits(batch["codes"], student.conditioning(batch)).log_softmax(2)
    truth = (log_p.exp() * (log_p - log_q)).sum(2).mean() / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(student(batch)[0], truth, rtol=1e-4, atol=1e-4)
    student.train()
    student.known_rows = lambda codes: suffix
    loss, metrics = student(batch)
    torch.testing.assert_close(loss.detach(), 0.1 * metrics["bits_per_code"])


def test_known_slots_cost_nothing_and_real_windows_are_no_measure_of_divergence() -> None:
    student = little_student(GridOrder(0, 1), awake=True).train()
    student.how = student.how.model_copy(update={"known_before": 1.0, "known_after": 1.0})
    torch.manual_seed(1)
    known = torch.stack(
        [student.known_rows(prior_batch(student.config)["codes"]) for _ in range(50)]
    )
    shares = known.float().mean(2).unique()
    assert len(shares) > 2 and shares.max() < 1, "rows known before, after and both, never all"
    batch, prefix = (
        taught_batch(student, taught=torch.zeros(2, dtype=torch.bool)),
        known_slots("prefix"),
    )
    student.known_rows = lambda codes: prefix
    loss, metrics = student(batch)
    assert metrics["kl_forward"] == 0 and torch.equal(loss.detach(), metrics["bits_soft"])
    log_q = student.logits(batch["codes"], student.conditioning(batch), prefix).log_softmax(2)
    free = -log_q.gather(2, batch["codes"][..., None])[~prefix].mean() / torch.log(
        torch.tensor(2.0)
    )
    torch.testing.assert_close(metrics["bits_per_code"], free.detach())


def test_what_is_no_order_is_refused() -> None:
    for wrong in ("1", "0,0", "a,b", "-1,2", "1,0", "1,1,0", "1,1,1,1", "1,", "1,1,x"):
        with pytest.raises(ValueError, match="not of the form a,b"):
            GridOrder.parse(wrong)
    with pytest.raises(ValueError, match="has no student"):
        prefixed = little_prior("factored", lyrics={"tokens": 8, "size": 7, "mode": "prefix"})
        StudentConfig(prior=prefixed.config, order=GridOrder(0, 1))
    with pytest.raises(ValueError, match="lines of 3 rows do not fill a window of 4 rows"):
        StudentConfig(prior=little_prior().config, order=GridOrder(1, 1, 3))
    assert GridOrder.parse("1,2") == GridOrder(1, 2) and GridOrder.parse(
        str(GridOrder(1, 1, 8))
    ) == (1, 1, 8)
    with pytest.raises(ValueError, match="saw what comes later; distil it again"):
        StudentConfig.model_validate(
            {"prior": little_prior().config, "order": [0, 1], "causal": False}
        )
    assert StudentConfig.model_validate(
        {"prior": little_prior().config, "order": [0, 1]}
    ).order == GridOrder(0, 1)


def test_a_new_order_moves_the_logits() -> None:
    """Else the tests of the rule would hold for a student that ignores it."""
    teacher = little_prior()
    batch = prior_batch(teacher.config)
    given: Tensor = teacher.conditioning(batch)
    logits = [
        student_of(teacher, order, awake=False).logits(batch["codes"], given) for order in ORDERS
    ]
    assert all((x - logits[0]).abs().max() > 0.1 for x in logits[1:])


@torch.no_grad()
def test_under_factored_patterns_a_steeper_wavefront_sees_nothing_more() -> None:
    """(1,3) is (1,2) in more steps, and but for the code just above so is (1,2) of (0,1); (1,1) sees one slot more."""
    teacher = little_prior()
    batch = prior_batch(teacher.config)
    given = teacher.conditioning(batch)
    steeper, steep, flat = (
        student_of(teacher, GridOrder(1, b)).logits(batch["codes"], given) for b in (3, 2, 1)
    )
    assert torch.equal(steeper, steep) and not torch.equal(steep, flat)
    untold = (
        student_of(teacher, order, awake=False) for order in (GridOrder(1, 2), GridOrder(0, 1))
    )
    steep, columns = (student.logits(batch["codes"], given) for student in untold)
    torch.testing.assert_close(steep, columns)
    seen = [
        visible_in_order("previous_row", times(GridOrder(1, b), WINDOW, ROWS)[0], ROWS)
        for b in (2, 1)
    ]
    assert (seen[0] <= seen[1]).all() and seen[1].sum() > seen[0].sum()
