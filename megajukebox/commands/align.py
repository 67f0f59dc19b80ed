"""Find the attention head of a top prior that follows the lyrics, so that `sample` can time each word.

    megajukebox align runs/tiny --data shards/codes             # over up to 16 songs held out of training
    megajukebox align runs/tiny --data shards/codes --songs 4   # faster

Writes `alignment.json` beside the prior's weights. Where the songs have timed lyrics (.lrc) it also prints by how
many milliseconds the words are off, and by how many if they were sung evenly over the song.
"""

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from megajukebox.common.command_line import run_command
from megajukebox.common.device import choose_device
from megajukebox.common.levels import ALIGNMENT_FILE, PRIOR_FOLDERS, VQVAE_FOLDER
from megajukebox.common.model_files import read_facts
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import check_codes
from megajukebox.data.stream.song_dataset import held_out_share, split
from megajukebox.sampling.jukebox import PriorRun
from megajukebox.sampling.lyrics.alignment import Head
from megajukebox.sampling.lyrics.head_selection import (
    AlignedSong,
    AlignmentHead,
    choose_head,
    write_alignment_head,
)
from megajukebox.sampling.real_songs import known_song

SHOWN_HEADS = 8


def main(
    runs: Annotated[Path, typer.Argument(help="Folder of the runs.")],
    data: Annotated[
        Path, typer.Option(help="Code shards of songs with lyrics, of the same VQ-VAE.")
    ],
    songs: Annotated[int, typer.Option(min=1, help="Songs to choose by (default: 16).")] = 16,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: the GPU if there is one).")
    ] = None,
) -> None:
    """Choose the head whose attention gives the words of sampled songs their times."""
    codes = ShardSet(data)
    run = PriorRun(runs / PRIOR_FOLDERS["top"], read_facts(runs / VQVAE_FOLDER))
    check_codes(codes, run.folder, run.facts)
    # Songs with lyrics that the run did not train on; all of them if it held none out. Imported runs were trained on
    # other songs: all of these are held out.
    held_out = split(codes.songs["key"], held_out_share(run.folder, default=1.0))
    rows = [row for row in range(len(codes)) if codes.has(row, "lyrics")]
    unseen = [row for row in rows if held_out[row]]
    known: list[AlignedSong] = []
    for row in unseen or rows:
        if len(known) == songs:
            break
        song = known_song(run, codes, row)
        if song.conditioning.tokens.ids and len(song.codes):
            known.append(song)
    with run.loaded(choose_device(asked=device), torch.float32) as prior:
        choice, scores = choose_head(prior, known, run.facts["fingerprint"])
    write_alignment_head(run.folder, choice)
    print_scores(choice, scores)
    print(run.folder / ALIGNMENT_FILE)


def print_scores(choice: AlignmentHead, scores: dict[Head, float]) -> None:
    """Print the heads from best to worst, and what is known of the best."""
    table = Table("layer", "head", "score", title=f"heads over {choice.songs} songs")
    best_first = sorted(scores.items(), key=lambda item: -item[1])
    for (layer, head), score in best_first[:SHOWN_HEADS]:
        table.add_row(str(layer), str(head), f"{score:.3f}")
    Console().print(table)
    if choice.error_ms is not None:
        print(
            f"median error of a word's start: {choice.error_ms:.0f} ms;"
            f" sung evenly: {choice.proportion_ms:.0f} ms"
        )
    if not choice.follows:
        print("this prior does not follow its lyrics well enough: sample gives words no times")


if __name__ == "__main__":
    run_command(main, "align")
