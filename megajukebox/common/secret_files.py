"""Secrets that a user hands over in a file: an option's value is seen by every account of the machine (`ps`)."""

import os
from pathlib import Path

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import open_given, read_all

MAX_SECRET_BYTES = 1 << 16


def read_secret(path: Path, option: str) -> str:
    """The text of the file that `option` names, without the white space around it.

    Raises:
        UserError: it cannot be read, is empty, or others may read it too.
    """
    try:
        with open_given(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = read_all(file, MAX_SECRET_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} cannot be read: {error}") from None
    if mode & 0o077:
        raise UserError(f"{option} {path} can be read by others; chmod 600 {path}")
    if not secret:
        raise UserError(f"{option} {path} is empty; write the secret into it")
    return secret
