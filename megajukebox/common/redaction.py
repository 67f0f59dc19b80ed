"""Secrets taken out of text before it is written anywhere: tokens, keys, passwords, credentials
in URLs.
"""

import logging
import re
from typing import TypeVar

HIDDEN = "[hidden]"
WORDS = r"pass(?:word|wd|phrase)?|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credential|signature|auth"
PATTERNS = (
    # The whole of what is known by its form: Hugging Face, AWS, GitHub, Slack, W&B (40 hex digits
    # after its name), JWT.
    re.compile(
        r"\bhf_[A-Za-z0-9]{8,}|\b(?:AKIA|ASIA)[A-Z0-9]{12,}|\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{20,}"
    ),
    re.compile(r"\bxox[abprs]-[\w-]{8,}|\bsk-[A-Za-z0-9_-]{16,}|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"(?<=hooks\.slack\.com/)[\w/]+|(?<=/webhooks/)[\w/-]{8,}"),
    re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL
    ),
)
PASSWORD_IN_URL = re.compile(r"(?<=://)[^\s/@]+(?=@)")
BEARER = re.compile(r"(?i)\b(bearer|basic)(\s+)[A-Za-z0-9._~+/=-]{6,}")
NAME = rf"[\w.-]*(?<![a-z])(?:{WORDS})(?![a-z])[\w.-]*[\"']?\s*[=:]\s*"
NAMED = re.compile(rf"(?i)({NAME})(?!\[hidden\]|bearer |basic )(\"[^\"]*\"|'[^']*'|[^\s&,;\"'}}]+)")

T = TypeVar("T")


def redact(text: str) -> str:
    """`text` with every secret that can be told by its form or by the name before it replaced by
    [hidden].
    """
    for pattern in PATTERNS:
        text = pattern.sub(HIDDEN, text)
    text = PASSWORD_IN_URL.sub(HIDDEN, text)
    text = BEARER.sub(rf"\1\2{HIDDEN}", text)
    return NAMED.sub(rf"\g<1>{HIDDEN}", text)


def redacted(value: T) -> T:
    """`value` (plain data, nested) with every string redacted; one under a secret's name is
    hidden whole.
    """
    if isinstance(value, str):
        return redact(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        plain = {}
        for key, inner in value.items():
            hide = is_secret(key) and isinstance(inner, str)
            plain[key] = HIDDEN if hide else redacted(inner)
        return plain  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(redacted(v) for v in value)  # type: ignore[return-value]
    return value


def is_secret(name: object) -> bool:
    """Whether the value of a variable or field of this name is a secret; not of `tokens` or
    `tokenizer`.
    """
    return bool(re.search(rf"(?i)(?<![a-z])(?:{WORDS})(?![a-z])", str(name)))


class RedactingFilter(logging.Filter):
    """On a log handler: no line that passes it shows a secret, not even in a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = ()
        if record.exc_info:  # exc_text may be there already: another handler's formatter leaves it
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_text = redact(text)
        return True
