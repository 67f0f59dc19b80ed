"""The refiners of a jukebox: one a level at most, found beside its other runs or given, and what they make of codes."""

# T samples or codes; audio is [T] of a mono VQ-VAE, [T, 2] of a stereo one
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.levels import LEVELS, REFINED_TRACKS, REFINER_FOLDERS
from megajukebox.common.model_files import FACTS
from megajukebox.models.chunked_codec import refine_long
from megajukebox.models.refiner import Refiner, load_refiner
from megajukebox.models.vqvae import VQVAE


@dataclass(frozen=True)
class LevelRefiner:
    """A refiner of one level, and the fingerprint of its weights."""

    refiner: Refiner
    fingerprint: str

    @property
    def level(self) -> str:
        return self.refiner.config.level

    @property
    def track(self) -> str:
        """Name of the recording that it makes, beside that of the decoder alone."""
        return REFINED_TRACKS[self.level]

    def refined(self, vqvae: VQVAE, codes_T: Tensor) -> np.ndarray:
        """Audio [T*hop] float32, of stereo [T*hop, 2], of all codes of its level."""
        audio = refine_long(vqvae, self.refiner, codes_T).clamp(-1, 1)
        return audio.cpu().numpy()


def load_refiners(
    runs: Path,
    vqvae: Mapping[str, Any],
    device: torch.device | str,
    given: Sequence[Path] | None = None,
) -> dict[str, LevelRefiner]:
    """The refiners of `given`, or (None) those that lie in `runs`, by level. `vqvae` are the facts of the VQ-VAE.

    Raises:
        UserError: one refines another VQ-VAE, or two are of one level.
    """
    if given is None:
        folders = [runs / REFINER_FOLDERS[level] for level in LEVELS]
        given = [folder for folder in folders if (folder / FACTS).is_file()]
    refiners: dict[str, LevelRefiner] = {}
    for folder in given:
        refiner, facts = load_refiner(folder, vqvae, device)
        level = refiner.config.level
        if level in refiners:
            raise UserError(
                f"--refiner {folder} is a second one of level {level}; give one a level"
            )
        refiners[level] = LevelRefiner(refiner, facts["fingerprint"])
    return refiners
