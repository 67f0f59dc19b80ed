"""The options of every command that reads shards behind a URL."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from megajukebox.common.secret_files import read_secret
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.shards.source_url import token_of_environment, warn_of_secret

TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--data-token-file",
        help="File (mode 600) with the token of the shards' URL, or `?` and its query.",
    ),
]
RedirectHostOption = Annotated[
    list[str] | None,
    typer.Option(
        "--redirect-host", help="Another host that the shards' URL may redirect to; repeatable."
    ),
]


def remote_config(
    url: str | Path | Sequence[str],
    token_file: Path | None,
    redirect_hosts: list[str] | None,
    **config: Any,
) -> RemoteConfig:
    """How the shards at `url` (or at several) are read; `config` are the other fields of RemoteConfig.

    Raises:
        UserError: the file of the token cannot be read, or others may read it too.
    """
    for one in [url] if isinstance(url, str | Path) else url:
        warn_of_secret(str(one))
    token = read_secret(token_file, "--data-token-file") if token_file else token_of_environment()
    return RemoteConfig(token=token, redirect_hosts=tuple(redirect_hosts or ()), **config)
