"""The runs of a whole jukebox of a few thousand weights: what trained runs look like on disk, made in a second."""

from pathlib import Path

import torch
from little_models import little_prior, little_vqvae

from megajukebox.data.conditions.vocabulary import VOCABULARIES, Vocabulary, vocabularies_json
from megajukebox.data.files import write_whole
from megajukebox.data.weights import save_weights
from megajukebox.models.prior import Prior
from megajukebox.sampling.jukebox import RUNS

NAMES = {"artist": ("<unknown>", "ilune", "orrin"), "genres": ("<unknown>", "waltz", "dub", "folk")}
HOPS = {"top": 128, "middle": 32, "bottom": 8}
UPPER = {"width": 6, "depth": 2}


def write_runs(folder: Path, lyrics: str = "encoder", sample_rate: int = 1000, **changed) -> Path:
    """The runs vqvae, top_prior, middle_upsampler and bottom_upsampler; the top sings, the bottom knows no genres."""
    vqvae = little_vqvae(sample_rate=sample_rate)
    fingerprint = save_weights(folder / "vqvae", "vqvae", vqvae.config, vqvae.state_dict(), 1, sample_rate=sample_rate)
    for level, prior in priors(lyrics, vqvae.config.codes, sample_rate=sample_rate, **changed).items():
        facts = {"level": level, "sample_rate": sample_rate, "vqvae": fingerprint, "tokenizer": "jukebox_v2"}
        save_weights(folder / RUNS[level], "prior", prior.config, prior.state_dict(), 5, **facts)
        known = {name: Vocabulary(NAMES[name]) for name in prior.config.labels}
        write_whole(folder / RUNS[level] / VOCABULARIES, vocabularies_json(known))
    return folder


def priors(lyrics: str, codes: int, **changed) -> dict[str, Prior]:
    """One prior a level. `lyrics` is the mode of the top's."""
    settings: dict[str, dict] = {
        level: {"level": level, "hop": HOPS[level], "codes": codes} | changed for level in HOPS
    }
    size = 80  # of the characters of Jukebox's v2
    sung = {"lyrics": {"tokens": 8, "size": size, "mode": "prefix"}}
    if lyrics == "encoder":
        encoder = {"width": 8, "depth": 3, "heads": 2, "rows": 2, "attention_ratio": 0.5, "init_scale": 15.0}
        sung = {"lyrics": {"tokens": 8, "size": size, "encoder": encoder}}
    schedule = {"encoder": "factored_lyrics", "prefix": "prefix_dense_16"}[lyrics]
    artist = {"artist": {"size": 5}}
    return {
        "top": hearing(little_prior(schedule, seed=1, upper=None, **sung, **settings["top"])),
        "middle": hearing(little_prior("factored", seed=2, timing=None, **settings["middle"])),
        "bottom": hearing(little_prior("row_column", seed=3, timing=None, labels=artist, **settings["bottom"])),
    }


def hearing(prior: Prior) -> Prior:
    """`prior` with labels that matter as much to it as its codes: untrained, they hardly do."""
    with torch.no_grad():
        for table in prior.labels.tables.values():
            table.weight *= 10
    return prior
