"""Import Jukebox checkpoints that you have as run folders: OpenAI's files, or Hugging Face's copy of them.

    megajukebox import vqvae.pth.tar prior_level_*.pth.tar --to runs/jukebox_5b_lyrics
    megajukebox import jukebox-1b-lyrics/ --to runs/jukebox_1b_lyrics                        # Hugging Face's folder
    megajukebox import my_prior.pth.tar --to runs/mine --set level=2 --set downs_t=3,2,2     # what a file does not say
    megajukebox import weights/ --to runs/mine --set top.heads=2 --set bottom.heads=1        # of one part
    megajukebox import exported/ --to runs/mine                                              # `export`'s own layout

config.json, artists.json and genres.json of a Hugging Face folder are read, and OpenAI's lists of names where they lie
beside the weights; rows of artists and genres that no list names are asked for by their number ("17").
Nothing in the files is run, nothing is written unless all of them are whole and fit, and memory stays below 1.3 times
the largest file. The folder is then ready for `megajukebox sample`.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from megajukebox.common.command_line import run_command
from megajukebox.common.errors import UserError
from megajukebox.common.model_files import FACTS, read_facts
from megajukebox.common.plain_text import without_controls
from megajukebox.common.untrusted_files import parse_yaml
from megajukebox.interop.jukebox_weights import import_weights


def main(
    files: Annotated[list[Path], typer.Argument(help="Checkpoints, or folders with them.")],
    to: Annotated[Path, typer.Option(help="Folder for the run folders: vqvae, top_prior, ...")],
    labels: Annotated[
        Path | None,
        typer.Option(help="Folder with lists of names: v2_artist_ids.txt, ..., or artists.json."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A hyper-parameter as name=value or part.name=value, under OpenAI's name."
        ),
    ] = None,
) -> None:
    """Import checkpoints of OpenAI's Jukebox as run folders."""
    hyper_parameters: dict[str, Any] = {}
    for text in settings or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise UserError(f"--set {text} is not name=value")
        if "," in value and not value.startswith("["):  # a list, as in `downs_t=3,2,2`
            value = f"[{value}]"
        try:
            hyper_parameters[name] = parse_yaml(value)
        except ValueError as error:
            raise UserError(f"--set {text}: the value {error}") from None
    folders = import_weights(files, to, hyper_parameters, labels)
    for part, folder in folders.items():
        print(f"{part}: {folder}")
    made = [folder for folder in folders.values() if (folder / FACTS).is_file()]
    licences = {str(read_facts(folder).get("licence") or "") for folder in made}
    for notice in sorted(licences - {""}):
        print(without_controls(notice))


if __name__ == "__main__":
    run_command(main, "import")
