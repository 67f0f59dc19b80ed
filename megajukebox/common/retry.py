"""Try again what may pass: a server that answers 503, a connection that breaks off."""

import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Result = TypeVar("Result")


class RetriesExhausted(Exception):
    """Every try failed, or one failed in a way that no other try can mend.

    last_error   the exception of the last try
    tries        how often it was tried
    """

    def __init__(self, last_error: Exception, tries: int) -> None:
        super().__init__(last_error, tries)
        self.last_error = last_error
        self.tries = tries

    def __str__(self) -> str:
        return f"gave up after {self.tries} tries: {self.last_error}"


def retry(
    attempt: Callable[[], Result],
    pauses: Iterable[float],
    *,
    errors: tuple[type[Exception], ...] = (OSError,),
    is_transient: Callable[[Exception], bool] = lambda error: True,
    sleep: Callable[[float], object] = time.sleep,
) -> Result:
    """The result of `attempt()`, tried once and then once more after each of `pauses` (seconds).

    Args:
        errors: what a failed try raises; any other exception rises at once.
        is_transient: whether another try may succeed after this error.

    Raises:
        RetriesExhausted: the last try failed, or an error was not transient.
    """
    tries = 0
    remaining = iter(pauses)
    while True:
        tries += 1
        try:
            return attempt()
        except errors as error:
            pause = next(remaining, None)
            if pause is None or not is_transient(error):
                raise RetriesExhausted(error, tries) from error
        sleep(pause)


def exponential_backoff(first_pause: float, count: int) -> Iterator[float]:
    """`count` pauses in seconds, each twice as long as the one before.

    Each is shortened at random by up to half, so that processes which failed together do not try
    together.
    """
    for n in range(count):
        yield first_pause * 2**n * random.uniform(0.5, 1.0)
