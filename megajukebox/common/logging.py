"""Logging of every entry: to stderr, with the rank, without secrets; results that a command was asked for go to stdout.

    log = logging.getLogger(__name__)
    log.info("checkpoint of step %d saved in %.1f s", step, seconds)    # megajukebox train: [rank 3] train: checkpoint ...

A library user configures Python's logging himself; only `setup_logging`, which the command line calls, adds a handler.
"""

import logging
import os
import sys
from enum import Enum

from megajukebox.common.plain_text import without_controls
from megajukebox.common.redaction import RedactingFilter
from megajukebox.common.world import SOURCES

# What launchers set instead of --log-level, and what child processes inherit.
LEVEL_VARIABLE = "MEGAJUKEBOX_LOG_LEVEL"
# Ours; "__main__" is an entry that `deepspeed FILE.py` runs. Other libraries log warnings and errors only.
OUR_LOGGERS = ("megajukebox", "__main__")


class LogLevel(str, Enum):
    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class StderrHandler(logging.StreamHandler):
    """Writes to what sys.stderr is at that moment, so that progress bars and tests can take it over."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self.addFilter(RedactingFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the line on a full disk or a closed pipe: that must not end a run."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class RankFormatter(logging.Formatter):
    """`[rank 3] train: warning: message`; the rank only among several, the level only where it is not info."""

    def __init__(self, verb: str, timestamps: bool) -> None:
        super().__init__("%(asctime)s %(message)s" if timestamps else None)
        self.verb = verb

    def formatMessage(self, record: logging.LogRecord) -> str:
        prefix = rank_prefix()
        if self.verb:
            prefix += f"{self.verb}: "
        if record.levelno != logging.INFO:
            prefix += f"{record.levelname.lower()}: "
        record.message = prefix + record.message
        return super().formatMessage(record)

    def format(self, record: logging.LogRecord) -> str:
        return without_controls(super().format(record))


def rank_prefix() -> str:
    """`[rank 3] ` among several ranks, as their launcher numbers them; empty for a process of its own."""
    for rank_name, _, size_name in SOURCES:
        if os.environ.get(size_name, "1") != "1" and rank_name in os.environ:
            return f"[rank {os.environ[rank_name]}] "
    return ""


def setup_logging(verb: str, level: LogLevel | None = None, timestamps: bool = False) -> None:
    """Log to stderr as `verb`, from `level` on (default: $MEGAJUKEBOX_LOG_LEVEL, else info).

    Called again, it replaces its own handler. A `level` that is given holds for child processes too.
    """
    if level is not None:
        os.environ[LEVEL_VARIABLE] = level.value
    handler = StderrHandler()
    handler.setFormatter(RankFormatter(verb, timestamps))
    root = logging.getLogger()
    for old in list(root.handlers):
        if isinstance(old, StderrHandler):
            root.removeHandler(old)
    root.addHandler(handler)
    chosen = os.environ.get(LEVEL_VARIABLE, "").lower()
    if chosen not in LogLevel.__members__:
        chosen = LogLevel.info.value
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(chosen.upper())


def is_quiet() -> bool:
    """Whether --quiet, or a --log-level above info, asks for results, warnings and errors alone."""
    return not logging.getLogger("megajukebox").isEnabledFor(logging.INFO)
