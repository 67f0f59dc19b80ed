"""Real songs of code shards, conditioned as in training: what alignment heads are chosen and evaluated by."""

import torch

from megajukebox.conditioning.lrc import parse_lrc
from megajukebox.conditioning.schema import read_song
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.code_dataset import ShardSong, read_codes
from megajukebox.sampling.lyrics.head_selection import AlignedSong
from megajukebox.sampling.prior_run import PriorRun


def known_song(run: PriorRun, codes: ShardSet, row: int) -> AlignedSong:
    """One song of the shards that has lyrics, with its codes and conditioning."""
    samples = int(codes.songs["frames"][row])
    with codes.open_member(row, run.config.level) as file:
        codes_T = read_codes(file, 0, samples // run.config.hop)
    text, _ = parse_lrc(codes.read_member(row, "lyrics").decode())
    conditioning = read_song(run.conditions, ShardSong(codes, row))
    return AlignedSong(conditioning, text, torch.from_numpy(codes_T), samples)
