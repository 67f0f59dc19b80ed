"""A finished run of a little prior over the made-up codes of little_sets: what `distill` is given."""

from pathlib import Path

import torch
from little_models import little_prior
from little_sets import HOPS, RATE

from megajukebox.data.conditions.vocabulary import VOCABULARIES, Vocabulary, vocabularies_json
from megajukebox.data.files import write_whole
from megajukebox.data.weights import save_weights
from megajukebox.models.prior import Prior

NAMES = {"artist": ("<unknown>", "artist 1", "artist 3"), "genres": ("<unknown>", "pop")}


def little_teacher() -> Prior:
    """A middle level of 2048 codes that likes few of them."""
    prior = little_prior(
        codes=2048, sample_rate=RATE, hop=HOPS["middle"], timing={"bins": 16, "min_seconds": 0, "max_seconds": 2}
    )
    with torch.no_grad():
        prior.input.tokens.weight[32:] *= 0.01
    return prior


def write_teacher(folder: Path) -> Path:
    prior = little_teacher()
    save_weights(folder, "prior", prior.config, prior.state_dict(), 5, level="middle", vqvae="0" * 64)
    write_whole(folder / VOCABULARIES, vocabularies_json({n: Vocabulary(names) for n, names in NAMES.items()}))
    return folder
