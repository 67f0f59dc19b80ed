"""Export the weights of a run folder, or of a folder of them, for other programs.

    megajukebox export runs/jukebox_5b_lyrics --to weights                          # safetensors and JSON
    megajukebox export runs/jukebox_5b_lyrics --to weights --layout openai          # OpenAI's four .pth.tar files
    megajukebox export runs/jukebox_1b_lyrics --to weights --layout huggingface     # one model.safetensors

No number changes: what was imported comes back byte for byte.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.plain_text import without_controls
from megajukebox.interop.export import export_hugging_face, export_openai, export_plain, open_runs


class Layout(str, Enum):
    plain = "plain"
    openai = "openai"
    huggingface = "huggingface"


EXPORTS = {
    Layout.plain: export_plain,
    Layout.openai: export_openai,
    Layout.huggingface: export_hugging_face,
}


def main(
    runs: Annotated[
        Path, typer.Argument(help="A run folder, or a folder with vqvae, top_prior, ...")
    ],
    to: Annotated[Path, typer.Option(help="Folder for the exported files.")],
    layout: Annotated[Layout, typer.Option(help="Names and format of the files.")] = Layout.plain,
) -> None:
    """Export the weights of runs in a layout that other programs read."""
    for file in EXPORTS[layout](runs, to):
        print(file)
    for notice in {run.facts.get("licence") for run in open_runs(runs)}:
        if notice:
            print(without_controls(str(notice)))


if __name__ == "__main__":
    run_command(main, "export")
