"""Retries: how often, after which pauses, and which errors end them at once."""

import pytest

from megajukebox.common.retry import RetriesExhausted, exponential_backoff, retry


class Flaky:
    """Fails with each of `errors`, then returns "done"."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.tries = 0

    def __call__(self) -> str:
        self.tries += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_an_attempt_that_fails_twice_is_tried_a_third_time_after_both_pauses() -> None:
    slept: list[float] = []
    attempt = Flaky(OSError("a"), TimeoutError("b"))
    assert retry(attempt, (1.0, 4.0, 15.0), sleep=slept.append) == "done"
    assert attempt.tries == 3 and slept == [1.0, 4.0]


def test_after_the_last_pause_the_last_error_and_the_number_of_tries_are_reported() -> None:
    errors = [OSError("a"), OSError("b"), OSError("c")]
    with pytest.raises(RetriesExhausted) as failed:
        retry(Flaky(*errors), (0.0, 0.0), sleep=lambda pause: None)
    assert failed.value.tries == 3 and failed.value.last_error is errors[-1]
    assert failed.value.__cause__ is errors[-1]


def test_an_error_that_cannot_pass_ends_the_tries() -> None:
    attempt = Flaky(FileNotFoundError("gone"))
    with pytest.raises(RetriesExhausted) as failed:
        retry(attempt, (0.0,), is_transient=lambda error: not isinstance(error, FileNotFoundError))
    assert failed.value.tries == attempt.tries == 1


def test_an_error_of_another_class_rises_as_it_is() -> None:
    with pytest.raises(KeyError):
        retry(Flaky(KeyError("bug")), (0.0,))


def test_pauses_double_and_differ_between_processes() -> None:
    pauses = list(exponential_backoff(2.0, 5))
    assert len(pauses) == 5
    for n, pause in enumerate(pauses):
        assert 2.0**n <= pause <= 2.0 * 2**n
