"""From songs to the job of one level: songs of equal length together, with their conditioning, known codes and samplers."""

# B songs   T codes of the level   U codes of the level above
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from megajukebox.conditioning.schema import SongConditioning
from megajukebox.sampling.decoding import gumbel_noise
from megajukebox.sampling.decoding.token_sampling import FILTERS, TokenSampler
from megajukebox.sampling.levels.level_sampler import DEFAULT_HOP_FRACTIONS, LevelJob
from megajukebox.sampling.prior_run import PriorRun
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import GeneratedSong

DEFAULT_TEMPERATURE = 0.99  # on every level, without filters: Jukebox's own (spec 12.1)


def batches_of_equal_length(songs: list[GeneratedSong], size: int) -> Iterator[list[GeneratedSong]]:
    """Songs of one length (and hops) together: they go through the same windows in lockstep."""
    groups: dict[tuple, list[GeneratedSong]] = {}
    for song in songs:
        request = song.request
        key = (request.seconds, request.song_seconds, str(request.hop_fraction))
        groups.setdefault(key, []).append(song)
    for group in groups.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


def songs_by_adapters(songs: list[GeneratedSong]) -> list[list[GeneratedSong]]:
    """Songs that are sampled with the same weights together."""
    groups: dict[str, list[GeneratedSong]] = {}
    for song in songs:
        groups.setdefault(str(sorted(song.request.adapters.items())), []).append(song)
    return list(groups.values())


def build_job(
    level: str,
    run: PriorRun,
    songs: list[GeneratedSong],
    *,
    total: int,
    samples: int,
    level_above: str | None,
    device: torch.device,
) -> LevelJob:
    """One level of songs of equal length, with what is known of each.

    Args:
        total: codes of the level.
        samples: length in audio samples that timing is conditioned on.
    """
    requests = [song.request for song in songs]
    upper_BU = None
    if level_above is not None:
        upper_BU = torch.from_numpy(np.stack([song.codes[level_above] for song in songs]))
    no_codes = np.zeros(total, np.int64)
    nothing_known = np.zeros(total, bool)
    codes = []
    known = []
    prompt = []
    for song in songs:
        codes.append(song.known.codes.get(level, no_codes))
        known.append(song.known.mask.get(level, nothing_known))
        prompt.append(song.prompt.mask.get(level, nothing_known))
    return LevelJob(
        conditioning=share_conditioning(run, requests),
        codes_BT=torch.from_numpy(np.stack(codes)).to(device),
        known_BT=torch.from_numpy(np.stack(known)).to(device),
        upper_BU=upper_BU,
        samples=samples,
        token_sampler=token_sampler_for(level, requests, device),
        guidance=[request.at("guidance", level, 1.0) for request in requests],
        # The same for all songs of a batch.
        hop_fraction=requests[0].at("hop_fraction", level, DEFAULT_HOP_FRACTIONS[level]),
        prompt_BT=torch.from_numpy(np.stack(prompt)).to(device),
    )


def share_conditioning(run: PriorRun, requests: list[SongRequest]) -> list[SongConditioning]:
    """The conditioning of each song; variations of one request share one object, and so their prefill."""
    shared: dict[str, SongConditioning] = {}
    rows = []
    for request in requests:
        key = request.model_copy(update={"id": "x", "seed": 0}).model_dump_json()
        if key not in shared:
            shared[key] = run.conditioning(request)
        rows.append(shared[key])
    return rows


def token_sampler_for(
    level: str, requests: list[SongRequest], device: torch.device
) -> TokenSampler:
    """How the codes of each song's `level` are sampled: seed, temperature, and the filters that any song asks for."""

    def values(setting: str, default: float) -> Tensor:
        return torch.tensor([r.at(setting, level, default) for r in requests], device=device)

    filters: dict[str, Tensor] = {}
    for name, token_filter in FILTERS.items():
        value_B = values(name, token_filter.off)
        if value_B.any():
            filters[name] = value_B
    keys_B = gumbel_noise.noise_keys([request.seed for request in requests], level)
    return TokenSampler(keys_B.to(device), values("temperature", DEFAULT_TEMPERATURE), filters)
