"""Whose fault an error is decides its class: a user's mistake is a `UserError`, everything else keeps its traceback."""

EXIT_FATAL = 93  # the exit code of what starting again would not mend; a UserError is that


class UserError(ValueError):
    """A mistake of the user: one line that names the field, the value and the way out.

    Entries print it without a traceback and exit with EXIT_FATAL. A plain `ValueError` is a bug: numpy and torch
    raise it too.
    """
