"""Classifier-free guidance (Ho and Salimans 2022): away from what the prior says untold, towards what it says told.

    logits = untold + strength * (told - untold)          strength 1: as the prior says, 0: as if it were told nothing

A guided song has a twin in the batch that is told nothing: every label as training with dropout leaves it out, and no
lyrics; timing and the codes above are the song's own. Both go on with the codes that the song draws. So a guided song
costs the caches and the arithmetic of two, and at most twice the time (less where a batch is small: LOG.md).
"""

# B songs   G guided songs   V vocabulary   U codes of the level above   K known codes
from dataclasses import dataclass

import torch
from torch import Tensor

from megajukebox.data.lyrics import Tokens
from megajukebox.data.vocabulary import Vocabulary
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.decoder import Draw, Progress
from megajukebox.sampling.windows import Told, sample_level


@dataclass(frozen=True)
class Guided:
    """Draws the codes of B songs and G twins: the songs draw from guided logits, the twins follow their songs."""

    draw: Draw
    songs_G: Tensor  # int64, which of the B songs
    strength_G: Tensor

    def __call__(self, logits_BV: Tensor, position: int) -> Tensor:
        told_BV, untold_GV = logits_BV.split([len(logits_BV) - len(self.songs_G), len(self.songs_G)])
        guided_GV = untold_GV + self.strength_G[:, None] * (told_BV[self.songs_G] - untold_GV)
        codes_B = self.draw(told_BV.index_copy(0, self.songs_G, guided_GV), position)
        return torch.cat([codes_B, codes_B[self.songs_G]])


def sample_guided(
    strengths: list[float], prior: Prior, told: list[Told], upper_BU: Tensor | None, total: int, samples: int,
    draw: Draw, hop_fraction: float, known_BK: Tensor | None = None, progress: Progress = lambda count: None,
) -> Tensor:  # fmt: skip
    """`sample_level` with one guidance strength a song; a song of strength 1 is neither doubled nor changed."""
    songs = [song for song, strength in enumerate(strengths) if strength != 1.0]
    if not songs:
        return sample_level(prior, told, upper_BU, total, samples, draw, hop_fraction, known_BK, progress)
    device = draw.keys_B.device
    strength_G = torch.tensor([strengths[song] for song in songs], device=device)
    guided = Guided(draw, torch.tensor(songs, device=device), strength_G)
    everyone = [*told, *[untold(prior.config)] * len(songs)]
    upper, known = (with_twins(codes, songs) for codes in (upper_BU, known_BK))
    return sample_level(prior, everyone, upper, total, samples, guided, hop_fraction, known, progress)[: len(told)]


def untold(config: PriorConfig) -> Told:
    """What a song's twin is told: nothing."""
    names = {name: Vocabulary().ids([], label.slots) for name, label in config.labels.items()}
    return Told(names, Tokens([], []), [])


def with_twins(codes_BT: Tensor | None, songs: list[int]) -> Tensor | None:
    return None if codes_BT is None else torch.cat([codes_BT, codes_BT[songs]])
