"""Whose fault an error is decides its class: a user's mistake is a `UserError`, everything else
keeps its traceback.
"""

EXIT_FATAL = 93  # the exit code of what starting again would not mend; a UserError is that


class UserError(ValueError):
    """A mistake of the user: one line that names the field, the value and the way out.

    Entries print it without a traceback and exit with EXIT_FATAL. A plain `ValueError` is a bug:
    numpy and torch raise it too.
    """


class BadSampleError(UserError):
    """A stored sample (or a file of the user's) that cannot be used.

    `kind` is one word: what the metrics count it as (data/sample_errors.py has all of them).
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)  # both, so that it survives pickling
        self.kind = kind

    def __str__(self) -> str:
        return str(self.args[1])
