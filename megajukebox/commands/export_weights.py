"""Export the weights of a run folder, or of a folder of them, for other programs.

    megajukebox export runs/jukebox_5b_lyrics --to weights                          # our own layout: whatever a run holds
    megajukebox export runs/jukebox_5b_lyrics --to weights --layout openai          # OpenAI's four .pth.tar files
    megajukebox export runs/jukebox_1b_lyrics --to weights --layout huggingface     # for transformers' from_pretrained

No number changes: what was imported comes back byte for byte. What OpenAI's code or transformers would compute otherwise
(conditions at every position, moods, own tokenizers, other schedules) is refused before a file is written; our own
layout holds it, and `megajukebox import` and `sample` read it.
"""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.model_files import FACTS, read_facts
from megajukebox.common.plain_text import without_controls
from megajukebox.interop.export import export_hugging_face, export_openai, left_out
from megajukebox.interop.own_layout import export_models, model_folders


class Layout(str, Enum):
    megajukebox = "megajukebox"
    plain = "plain"  # its name up to 0.1.0
    openai = "openai"
    huggingface = "huggingface"


EXPORTS = {
    Layout.megajukebox: export_models,
    Layout.plain: export_models,
    Layout.openai: export_openai,
    Layout.huggingface: export_hugging_face,
}


def main(
    runs: Annotated[
        Path, typer.Argument(help="A run folder, or a folder with vqvae, top_prior, ...")
    ],
    to: Annotated[Path, typer.Option(help="Folder for the exported files.")],
    layout: Annotated[
        Layout, typer.Option(help="Names and format of the files.")
    ] = Layout.megajukebox,
) -> None:
    """Export the weights of runs in a layout that other programs read."""
    for file in EXPORTS[layout](runs, to):
        print(file)
    if layout in (Layout.openai, Layout.huggingface):
        for line in left_out(runs):
            print(line)
    licences: set[str] = set()
    for folder in model_folders(runs):
        if (folder / FACTS).is_file():
            licences.add(str(read_facts(folder).get("licence") or ""))
    for notice in sorted(licences - {""}):
        print(without_controls(notice))


if __name__ == "__main__":
    run_command(main, "export")
