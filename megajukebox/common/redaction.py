"""Secrets taken out of text before it is written anywhere: tokens, keys, passwords, credentials in URLs.

Each form that is known is a row of tests/common/test_redaction.py, and so is what must stay. Time is linear in the
length of the text, whoever wrote it: every pattern starts at the beginning of a word or has a bound.
"""

import logging
import re
from functools import lru_cache
from typing import Any, TypeVar

HIDDEN = "[hidden]"

# ---- Known by their own form ------------------------------------------------------------------------------------------

# Of each form what every match has in it, which is looked for first (30 patterns would take a second for a megabyte of a
# log that holds none), and the pattern of what is hidden.
KNOWN_FORMS = (
    ("hf_", r"\bhf_[A-Za-z0-9]{16,}"),  # Hugging Face
    ("api_org_", r"\bapi_org_[A-Za-z0-9]{16,}"),
    ("A", r"\bA(?:KIA|SIA|ROA|IDA)[A-Z0-9]{12,}"),  # AWS
    ("gh", r"\bgh[pousr]_[A-Za-z0-9]{16,}"),
    ("github_pat_", r"\bgithub_pat_\w{20,}"),
    ("gl", r"\bgl(?:pat|ptt|dt|rt|cbt|ft|soat|imt|agent)-[\w-]{16,}"),  # GitLab
    ("npm_", r"\bnpm_[A-Za-z0-9]{30,}"),
    ("pypi-", r"\bpypi-[\w-]{32,}"),
    ("dckr_pat_", r"\bdckr_pat_[\w-]{16,}"),  # Docker
    ("dop_v1_", r"\bdop_v1_[0-9a-f]{32,}"),  # DigitalOcean
    ("xox", r"\bxox[a-z]-[\w-]{8,}"),  # Slack
    ("xapp-", r"\bxapp-[\w-]{16,}"),
    ("sk-", r"\bsk-(?=[\w-]{0,64}\d)[\w-]{16,}"),  # OpenAI, Anthropic
    ("k_", r"\b[srp]k_(?:live|test)_\w{12,}"),  # Stripe
    ("SK", r"\bSK[0-9a-f]{32}\b"),  # Twilio
    ("SG.", r"\bSG\.[\w-]{16,64}\.[\w-]{16,64}"),  # SendGrid
    ("AIza", r"\bAIza[\w-]{30,}"),  # Google
    ("ya29.", r"\bya29\.[\w.-]{16,}"),
    ("GOCSPX-", r"\bGOCSPX-[\w-]{16,}"),
    ("1//0", r"(?<!\w)1//0[\w-]{20,}"),
    ("hv", r"\bhv[sb]\.[\w-]{16,}"),  # Vault
    ("AGE-SECRET-KEY-", r"\bAGE-SECRET-KEY-1[A-Z0-9]{20,}"),
    # JWT. At a word's beginning alone: `eyJ-eyJ-eyJ-` would be looked through from each.
    ("eyJ", r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}(?:\.[\w-]*){1,3}"),
    (".", r"(?<![\w-])[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,40}"),  # bots of Discord
    (":", r"(?<!\w)\d{6,10}:[A-Za-z][\w-]{34}(?![\w-])"),  # bots of Telegram
    # Webhooks: what follows the beginning of their addresses.
    ("hooks.slack.com/", r"(?<=hooks\.slack\.com/)[\w/-]+"),
    ("/webhooks/", r"(?<=/webhooks/)[\w/-]{8,}"),  # Discord
    ("webhook.office.com/", r"(?<=webhook\.office\.com/)[\w/@%.-]{8,}"),  # Teams
    ("outlook.office.com/", r"(?<=outlook\.office\.com/webhook/)[\w/@%.-]{8,}"),
    ("api.telegram.org/bot", r"(?<=api\.telegram\.org/bot)[\w:%-]{8,}"),
    ("hooks.zapier.com/", r"(?<=hooks\.zapier\.com/hooks/)[\w/-]{8,}"),
    ("code=", r"(?<=[?&]code=)[\w%./~+-]{6,}"),  # OAuth: whoever has it gets a token for it
    ("/with/key/", r"(?<=/with/key/)[\w-]{8,}"),
    ("/hooks/", r"(?<=/hooks/)[A-Za-z0-9]{16,}"),  # Mattermost
)
PATTERNS = tuple((part, re.compile(pattern)) for part, pattern in KNOWN_FORMS)
PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----.*?"
    r"(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----|$)",
    re.DOTALL,
)
BEARER = re.compile(
    r"\b((?i:bearer|basic))(\s{1,4})"
    r"(?=[a-z._~+/-]{0,200}[A-Z0-9=]|(?<=[Bb]earer\s)[a-z._~+/-]{16})[A-Za-z0-9._~+/=-]{6,}"
)
CURL_USER = re.compile(r"(?<![\w-])((?:-u|--user)[ =][\"']?[^\s:\"'/=]{1,64}:)(?![/\s])[^\s\"']+")
# user:password@ after ://; `:8080/` is a port. The second holds `/`, `@` or a space in the password.
# `Token 9944b09...`, as some servers have their Authorization; a sentence has no word of 16 with a digit in it.
TOKEN_WORD = re.compile(r"\b((?i:token)\s{1,4})(?=[A-Za-z_~+-]{0,64}\d)[\w.~+/=-]{16,}")
KEY_OF_TWO_WORDS = re.compile(
    r"\b((?i:api|access|secret|private|account|signing|encryption|license)(?i: key\s{0,4}[:=]\s{0,4}))"
    r"(?!\[hidden\])[^\s&,;\"'}\]]+"
)
NETRC = re.compile(r"\b((?:machine|login|account)\s{1,16}\S{1,256}\s{1,16}password\s{1,16})\S+")
# `-psecret` of MySQL's commands, `-p secret` of sshpass: elsewhere -p is a port.
SHORT_OPTION = re.compile(
    r"\b((?:mysql\w{0,12}|mariadb[\w-]{0,12})\b[^\n]{0,200}?\s-p|sshpass\s{1,4}-p\s{0,4})[^\s\"']+"
)
PASSWORD_IN_URL = re.compile(
    r"(?<=://)(?:[^\s/?#\"'<>]{1,256}@"
    r"|[^\s/@:\"'<>]{0,64}:(?!\d{1,5}(?:[/?#\s\"']|$))(?![\s/])[^\n@\"'<>]{1,128}@(?=[\w.-]+(?:[:/?#\s\"']|$)))"
)

# ---- Known by the name before them ------------------------------------------------------------------------------------

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
# Words that mean a secret wherever they stand in a name, and also at the end of a longer word (PGPASSWORD).
STRONG_WORDS = ("password", "passwords", "passwd", "passphrase", "passcode", "secret", "secrets")
# Words that also mean numbers: seconds_per_token, forward_pass, signal 9. A short number after them stays.
WEAK_WORDS = frozenset(
    {
        "token",
        "pat",
        "pass",
        "pwd",
        "pw",
        "auth",
        "authorization",
        "credential",
        "credentials",
        "creds",
        "signature",
        "sig",
        "jwt",
        "otp",
        "sas",
        "cookie",
        "cookies",
        "bearer",
        "apikey",
        "accesskey",
        "privatekey",
        "secretkey",
        "sessionid",
        "phpsessid",
        "jsessionid",
        "xsrf",
        "connectionstring",
    }
)
# A `key` is a secret after one of these; other keys name songs.
KEYS = frozenset(
    {
        "api",
        "access",
        "private",
        "account",
        "shared",
        "signing",
        "encryption",
        "ssh",
        "storage",
        "subscription",
        "service",
        "auth",
        "session",
    }
)
HARMLESS_ENDINGS = frozenset(
    {"file", "files", "path", "paths", "dir", "folder", "type", "kind", "name", "names", "count"}
)
SHORT_NUMBER = re.compile(r"-?\d{1,4}(?![\w.])|-?\d{0,4}\.\d+(?:e[+-]?\d+)?(?![\w.])")

NAME_AND_SIGN = re.compile(
    r"(?<![\w.-])(?P<name>-{0,2}\w[\w.-]{0,100})\\{0,3}[\"']?\s{0,4}(?P<sign>:=|=>|[=:]|%3[ADad])\s{0,4}"
    r"|(?<![\w.-])(?P<option>--?[A-Za-z][\w-]{0,60})\s{1,4}(?=[^\s-])"
)
QUOTED = r"(?P<open>\\{1,3}[\"'])(?P<inner>(?:(?!\\[\"'])[^\n])*)|(?P<quote>\"(?:[^\"\\\n]|\\.)*|'(?:[^'\\\n]|\\.)*)"
IN_BRACKETS = r"\[[^\]\n]*\]?|\{[^}\n]*\}?"
VALUE = re.compile(rf"{QUOTED}|{IN_BRACKETS}|[^\s&,;\"'}}\]\\]+")
# A password may hold all of these; one within a connection string goes as far as its semicolon.
STRONG_VALUE = re.compile(rf"{QUOTED}|{IN_BRACKETS}|[^\s&;\"']+(?:[^\n;\"'&=]{{0,64}}(?=;))?")
LINE = re.compile(rf"{QUOTED}|{IN_BRACKETS}|[^\n\"'}}]+")
DIGEST = re.compile(r"(?i:digest)\s[^\n]+")

T = TypeVar("T")


def redact(text: str) -> str:
    """`text` with every secret that can be told by its form or by the name before it replaced by [hidden]."""
    text = PRIVATE_KEY.sub(HIDDEN, text)
    text = PASSWORD_IN_URL.sub(lambda match: HIDDEN + "@", text)
    for part, pattern in PATTERNS:
        if part in text:
            text = pattern.sub(HIDDEN, text)
    text = BEARER.sub(rf"\1\2{HIDDEN}", text)
    for pattern in (CURL_USER, TOKEN_WORD, KEY_OF_TWO_WORDS, NETRC, SHORT_OPTION):
        text = pattern.sub(rf"\1{HIDDEN}", text)
    return _without_named(text)


def _without_named(text: str) -> str:
    """`text` without the values of `name=value`, `"name": value` and `--name value` where the name means a secret."""
    parts = []
    done = 0
    for match in NAME_AND_SIGN.finditer(text):
        name = match["name"] or match["option"]
        start = match.end()
        if match.start() < done or not is_secret(name) or text.startswith(HIDDEN, start):
            continue
        value = _value_pattern(name, match, text).match(text, start)
        if value is None or (not _is_strong(name) and SHORT_NUMBER.fullmatch(value[0])):
            continue
        parts += [text[done:start], _hidden(value)]
        done = value.end()
    return "".join([*parts, text[done:]])


def _value_pattern(name: str, match: re.Match[str], text: str) -> re.Pattern[str]:
    """How far the value after `name` goes."""
    last = name.lower().strip("-")
    if last.endswith("authorization") and DIGEST.match(text, match.end()):
        return DIGEST
    is_prose = match["sign"] == ":" and text[match.end() - 1] in " \t"
    if last.endswith(("authorization", "cookie", "cookies")) and match["sign"]:
        return LINE
    if _is_strong(name):
        return LINE if is_prose else STRONG_VALUE
    return VALUE


def _hidden(value: re.Match[str]) -> str:
    """What stands in place of a value: quotes stay, so that JSON stays JSON."""
    groups = value.groupdict()
    if groups.get("open"):
        return value["open"] + HIDDEN
    if groups.get("quote"):
        return value["quote"][0] + HIDDEN
    return HIDDEN


def redacted(value: T) -> T:
    """`value` (plain data, nested) with every string redacted; what stands under a secret's name, or follows an option
    of such a name in a list of arguments, is hidden whole.
    """
    if isinstance(value, str):
        return redact(value)  # type: ignore[return-value]
    if isinstance(value, dict):
        plain: dict[Any, Any] = {}
        for key, inner in value.items():
            plain[key] = _hide_whole(inner) if is_secret(key) else redacted(inner)
        return plain  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        shown: list[Any] = []
        for index, inner in enumerate(value):
            before = value[index - 1] if index else None
            hide = _names_next(before, len(value)) and isinstance(inner, str)
            shown.append(HIDDEN if hide else redacted(inner))
        return type(value)(shown)  # type: ignore[return-value]
    return value


def _names_next(item: object, count: int) -> bool:
    """Whether what follows `item` in a list of `count` is its value: `--token X`, or a pair (`Authorization`, X)."""
    if not isinstance(item, str) or not re.fullmatch(r"-{0,2}\w[\w.-]{0,100}", item):
        return False
    return (item.startswith("-") or count == 2) and is_secret(item)


def _hide_whole(value: Any) -> Any:
    """`value` without any of its texts; numbers, which are counts, stay."""
    if isinstance(value, str):
        return HIDDEN
    if isinstance(value, dict):
        return {key: _hide_whole(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_hide_whole, value))
    return value


def redact_arguments(arguments: list[str]) -> str:
    """A command line to show, its arguments redacted one by one: a secret with a space in it goes whole."""
    shown = []
    for argument in redacted(arguments):
        name, equals, value = argument.partition("=")
        hide = equals and name.startswith("-") and HIDDEN in value and is_secret(name)
        shown.append(f"{name}={HIDDEN}" if hide else argument)
    return " ".join(shown)


@lru_cache(maxsize=4096)
def _is_strong(name: str) -> bool:
    return any(word.lower().endswith(STRONG_WORDS) for word in WORD.findall(name))


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    words = [word.lower() for word in WORD.findall(name)]
    if not words or words[-1] in HARMLESS_ENDINGS:
        return False
    for before, word in zip(["", *words], words):
        if word in WEAK_WORDS or word.endswith((*STRONG_WORDS, "token")):
            return True
        if (word == "key" and before in KEYS) or (before, word) == ("connection", "string"):
            return True
    return False


def is_secret(name: object) -> bool:
    """Whether the value of a variable, option or field of this name is a secret; not of `tokens` or `tokenizer`."""
    return _is_secret_name(str(name))


class RedactingFilter(logging.Filter):
    """On a log handler: no line that passes it shows a secret, not even in a traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = redact(record.getMessage())
        record.args = ()
        if record.exc_info:  # exc_text may be there already: another handler's formatter leaves it
            text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_text = redact(text)
        return True
