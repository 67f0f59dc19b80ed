"""What the URL of a shard set says, and the secret that goes along with it.

    https://host/songs                          the folder
    https://host/songs#sha256=0f3a...           the same, but only with the index of this fingerprint (`shards stats`)
    https://host/songs?sig=..., https://me:pw@host/songs     with a secret, which `ps` shows to every account

A secret belongs into a file (--data-token-file, mode 600) or into the variable MEGAJUKEBOX_DATA_TOKEN. What begins with
`?` is sent as the query of every request, what has a space in it (`Basic dXNlcg==`) as the Authorization header, and
anything else as `Authorization: Bearer ...`. It is sent to the host of the URL alone.
"""

import base64
import logging
import os
import re
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

from megajukebox.common.errors import UserError
from megajukebox.common.redaction import is_secret, redact

TOKEN_VARIABLE = "MEGAJUKEBOX_DATA_TOKEN"
FINGERPRINT = re.compile(r"[0-9a-f]{64}")
HTTP_URL = re.compile(
    r"(?P<scheme>https?://)(?:(?P<userinfo>[^/?#]*)@)?(?P<rest>[^?#]*)(?P<query>\?[^#]*)?"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceUrl:
    """A URL taken apart. `base` may be shown."""

    base: str  # scheme, host and path; of what is no http, all but the fingerprint
    query: str = field(default="", repr=False)  # without its ?
    authorization: str | None = field(default=None, repr=False)  # the header
    fingerprint: str | None = None  # of the index that is wanted

    @classmethod
    def parse(cls, url: str, token: str | None = None) -> "SourceUrl":
        """The parts of `url`; `token` is sent along where it is http.

        Raises:
            UserError: the fingerprint is none.
        """
        url, mark, wanted = url.partition("#sha256=")
        if mark and not FINGERPRINT.fullmatch(wanted):
            raise UserError(
                f"{redact(url)}#sha256={wanted[:70]}: a fingerprint has 64 hex digits; `megajukebox shards stats` shows it"
            )
        fingerprint = wanted or None
        match = HTTP_URL.match(url)
        if not match:
            return cls(url, fingerprint=fingerprint)
        parts = cls(match["scheme"] + match["rest"], (match["query"] or "")[1:], None, fingerprint)
        if match["userinfo"]:
            packed = base64.b64encode(unquote(match["userinfo"]).encode()).decode()
            parts = replace(parts, authorization=f"Basic {packed}")
        if not token:
            return parts
        if token.startswith("?"):
            return replace(parts, query="&".join(filter(None, (parts.query, token[1:]))))
        return replace(parts, authorization=token if " " in token else f"Bearer {token}")

    def with_query(self, path: str) -> str:
        """The URL of a file whose path is `path`."""
        return f"{path}?{self.query}" if self.query else path


def has_secret(url: str) -> bool:
    """Whether an http URL names a user or holds what looks like a secret."""
    match = HTTP_URL.match(url)
    if not match:
        return False
    names = re.findall(r"[?&]([^=&]+)=", match["query"] or "")
    return bool(match["userinfo"]) or any(map(is_secret, names)) or redact(url) != url


def warn_of_secret(url: str) -> None:
    """Say that every account of this machine sees the secret in a URL that came on the command line."""
    if has_secret(url):
        log.warning(
            "the URL %s came with a secret, which `ps` shows to every account of this machine: write the secret "
            "into a file, `chmod 600` it and give --data-token-file FILE, or set %s; the next version refuses such URLs",
            SourceUrl.parse(url).base,
            TOKEN_VARIABLE,
        )


def move_secrets(command: Sequence[str], environment: MutableMapping[str, str]) -> list[str]:
    """`command` with the secret of a URL in it moved into `environment`, so that no launcher can print it.

    Of several such URLs the first: they are the same set, or the command fails for want of the others' secrets.
    """
    moved = []
    for argument in command:
        name, equals, value = (
            argument.rpartition("=") if argument.startswith("--data=") else ("", "", argument)
        )
        if has_secret(value) and TOKEN_VARIABLE not in environment:
            warn_of_secret(value)
            parts = SourceUrl.parse(value)
            if parts.query and parts.authorization:
                raise UserError(
                    f"{parts.base}: give its user and password or its query in --data-token-file"
                )
            environment[TOKEN_VARIABLE] = parts.authorization or f"?{parts.query}"
            value = parts.base
            if parts.fingerprint:
                value += f"#sha256={parts.fingerprint}"
        moved.append(name + equals + value)
    return moved


def token_of_environment() -> str | None:
    """The secret in MEGAJUKEBOX_DATA_TOKEN."""
    return os.environ.get(TOKEN_VARIABLE) or None
