"""Real songs of code shards, told to a prior as in training: what its heads are chosen and judged by."""

import torch

from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.conditioning.vocabulary import Vocabulary
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import names_of, read_codes
from megajukebox.sampling.jukebox import PriorRun
from megajukebox.sampling.levels.level_sampler import SongConditioning
from megajukebox.sampling.lyrics.head_selection import AlignedSong


def known_song(run: PriorRun, codes: ShardSet, row: int) -> AlignedSong:
    """One song of the shards, told as in training."""
    assert run.tokenizer is not None
    facts = codes.read_facts(row)
    text, words = parse_lrc(codes.read_member(row, "lyrics").decode())
    names = {
        name: run.vocabularies.get(name, Vocabulary()).ids(names_of(facts, name), label.max_values)
        for name, label in run.config.conditions.items()
    }
    samples = int(codes.songs["frames"][row])
    with codes.open_member(row, run.config.level) as file:
        row_codes = read_codes(file, 0, samples // run.config.hop)
    return AlignedSong(
        SongConditioning(names, run.tokenizer.encode(text), words),
        text,
        torch.from_numpy(row_codes),
        samples,
    )
