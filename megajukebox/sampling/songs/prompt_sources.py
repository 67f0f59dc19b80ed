"""What of a song is known before it is sampled: codes of a recording or of an earlier sample, and which of them stay.

prompt     |====------------|     the beginning stays
upsample   |================|     of the levels above; those below are made
infill     |=======---======|     all but some ranges stay, on every level
"""

# T codes of a level
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from megajukebox.data.audio import downmix, read
from megajukebox.models.chunked_codec import encode_long
from megajukebox.models.vqvae import VQVAE
from megajukebox.sampling.songs.requests import SongRequest


@dataclass
class KnownCodes:
    """Codes [T] of some levels and which of them [T] are known; a level that is not here is not known at all."""

    codes: dict[str, np.ndarray] = field(default_factory=dict)
    mask: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSource:
    """The file of a request: its codes [T] by level and, where it is a recording, its sound (mono) [samples]."""

    codes: dict[str, np.ndarray]
    audio: np.ndarray | None = None


def load_source(path: str, vqvae: VQVAE, fingerprint: str, device: torch.device) -> PromptSource:
    """An audio file (encoded now), or an earlier sample (<id>.json or <id>.codes.npz).

    ValueError if the file is missing, is neither, or holds codes of another VQ-VAE.
    """
    file = Path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is missing"
        raise ValueError(
            f"file {path!r} {what}; give a recording, or the .json of an earlier sample"
        )
    if file.suffix in (".json", ".npz"):
        return PromptSource(_codes_of_sample(file, vqvae, fingerprint))
    try:
        audio = downmix(read(file, vqvae.config.sample_rate))
    except ValueError as error:
        raise ValueError(f"file {path!r} cannot be heard: {error}") from error
    wave = torch.from_numpy(audio).to(device)
    found = {level: encode_long(vqvae, wave, level).cpu().numpy() for level in vqvae.config.levels}
    if not all(map(len, found.values())):
        raise ValueError(f"file {path!r} is shorter than one top code")
    return PromptSource(found, audio)


def _codes_of_sample(file: Path, vqvae: VQVAE, fingerprint: str) -> dict[str, np.ndarray]:
    name = file.name.removesuffix(".json").removesuffix(".npz").removesuffix(".codes")
    record, arrays = file.with_name(f"{name}.json"), file.with_name(f"{name}.codes.npz")
    if not record.is_file() or not arrays.is_file():
        raise ValueError(
            f"sample {str(file)!r} needs both {record.name} and {arrays.name} in its folder"
        )
    try:
        theirs = json.loads(record.read_text())["weights"]["vqvae"]
        with np.load(arrays, allow_pickle=False) as stored:
            codes = {level: stored[level].astype(np.int64) for level in stored.files}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"sample {str(file)!r} cannot be read: {error}") from error
    if theirs != fingerprint:
        raise ValueError(
            f"sample {str(file)!r} has codes of another VQ-VAE ({str(theirs)[:12]}, here {fingerprint[:12]});"
            " give its audio instead"
        )
    wrong = [
        level
        for level, c in codes.items()
        if c.size and not 0 <= c.min() <= c.max() < vqvae.config.codebook_size
    ]
    if wrong:
        raise ValueError(
            f"sample {str(file)!r} holds {wrong[0]} codes beyond {vqvae.config.codebook_size - 1}"
        )
    return codes


def prompt_codes(
    request: SongRequest, source: dict[str, np.ndarray], vqvae: VQVAE
) -> tuple[KnownCodes, float]:
    """What stays of `source` in the song of `request`, and how long the song is, in seconds."""
    levels = list(reversed(vqvae.config.levels))  # from the top
    top_seconds = vqvae.config.hops[levels[0]] / vqvae.config.sample_rate
    if levels[0] not in source:
        raise ValueError(f"{request.mode} {request.source!r} holds no {levels[0]} codes")
    tops = len(source[levels[0]])
    if request.mode == "prompt":
        return _prompt(request, source, vqvae, tops, top_seconds)
    if request.mode == "upsample":
        kept = (
            levels[: levels.index(request.upsample_from) + 1]
            if request.upsample_from in levels
            else levels[:1]
        )
        missing = [level for level in kept if level not in source]
        if missing:
            raise ValueError(f"upsample {request.upsample!r} holds no {missing[0]} codes")
        return KnownCodes(
            {n: source[n] for n in kept}, {n: np.ones(len(source[n]), bool) for n in kept}
        ), tops * top_seconds
    return _infill(request, source, vqvae, tops, top_seconds)


def _prompt(
    request: SongRequest, source: dict[str, np.ndarray], vqvae: VQVAE, tops: int, top_seconds: float
) -> tuple[KnownCodes, float]:
    keep = (
        tops if request.keep_seconds is None else max(1, round(request.keep_seconds / top_seconds))
    )
    total = max(1, round(request.seconds / top_seconds))
    if min(keep, tops) >= total:
        raise ValueError(
            f"prompt {request.prompt!r} lasts {min(keep, tops) * top_seconds:.2f} s, the song {request.seconds:g} s;"
            " ask for more seconds, or for less keep_seconds"
        )
    known, top = KnownCodes(), max(vqvae.config.hops.values())
    for level, codes in source.items():
        ratio = top // vqvae.config.hops[level]
        begin = codes[: min(keep, tops) * ratio]
        known.codes[level] = np.concatenate([begin, np.zeros(total * ratio - len(begin), np.int64)])
        known.mask[level] = np.arange(total * ratio) < len(begin)
    return known, request.seconds


def _infill(
    request: SongRequest, source: dict[str, np.ndarray], vqvae: VQVAE, tops: int, top_seconds: float
) -> tuple[KnownCodes, float]:
    """Ranges are widened to whole top codes."""
    missing = [level for level in vqvae.config.levels if level not in source]
    if missing:
        raise ValueError(
            f"infill {request.infill!r} holds no {missing[0]} codes; sample it to the end first"
        )
    seconds, top = tops * top_seconds, max(vqvae.config.hops.values())
    known = KnownCodes()
    for level, codes in source.items():
        ratio = top // vqvae.config.hops[level]
        stays = np.ones(tops * ratio, bool)
        for start, end in request.replace:
            if start >= seconds:
                raise ValueError(
                    f"replace [{start:g}, {end:g}] begins after {request.infill!r}, {seconds:.2f} s, ends"
                )
            stays[int(start / top_seconds) * ratio : -int(-end // top_seconds) * ratio] = False
        known.codes[level], known.mask[level] = codes[: tops * ratio], stays
    return known, seconds
