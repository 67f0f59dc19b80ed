"""One archive of a sick run for somebody far away: its state, events, metrics, endings, stacks, machine; no secrets.

    megajukebox support-bundle runs/top_prior                    # writes top_prior-bundle.tar.gz here
    megajukebox support-bundle runs/top_prior --out ~/a.tar.gz

No weights, no audio, no environment but SLURM's, NCCL's and torch's. Look into it before you send it.
"""

from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.monitoring.alerts import format_bytes
from megajukebox.monitoring.support_bundle import write_bundle


def main(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[
        Path | None, typer.Option(help="The archive; by default RUN-bundle.tar.gz here.")
    ] = None,
) -> None:
    """Collect state and logs of RUN into one archive for support (no secrets)."""
    if not run.is_dir():
        raise UserError(f"{str(run)!r} is not a folder; give one that `megajukebox train` wrote")
    target = out or Path(f"{run.resolve().name}-bundle.tar.gz")
    count = write_bundle(run, target)
    print(f"{target}: {count} files, {format_bytes(target.stat().st_size)}")


if __name__ == "__main__":
    run_command(main, "support-bundle")
