"""Codes that a song has before it is sampled: of a recording or of an earlier sample.

prompt     |====------------|     the start is known
upsample   |================|     the levels above are known, those below are sampled
infill     |=======---======|     all but some ranges are known, on every level
"""

# T codes of a level
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from megajukebox.common.errors import UserError
from megajukebox.common.npz import codes_of, read_npz
from megajukebox.common.plain_text import plain
from megajukebox.common.untrusted_files import open_given, parse_json, read_given
from megajukebox.data.audio import as_channels, read, read_mono
from megajukebox.models.chunked_codec import encode_long
from megajukebox.models.vqvae import VQVAE
from megajukebox.sampling.songs.requests import SongRequest

MAX_CODES_BYTES = 1 << 27  # of <id>.codes.npz; those of an hour are 60 MB
MAX_SHOWN = 300  # characters of a name or a reason


@dataclass
class KnownCodes:
    """Codes [T] of some levels and which of them [T] are known; nothing is known of a level that is not here."""

    codes: dict[str, np.ndarray] = field(default_factory=dict)
    mask: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class PromptSource:
    """The file of a request: its codes [T] by level and, where it is a recording, its audio [samples], of stereo [samples, 2]."""

    codes: dict[str, np.ndarray]
    audio: np.ndarray | None = None


def load_source(path: str, vqvae: VQVAE, fingerprint: str, device: torch.device) -> PromptSource:
    """An audio file (encoded now), or an earlier sample (<id>.json or <id>.codes.npz).

    Raises:
        UserError: the file is missing, is neither, or holds codes of another VQ-VAE.
    """
    file = Path(path)
    if file.suffix in (".json", ".npz"):
        return PromptSource(_codes_of_sample(file, vqvae, fingerprint))
    try:
        with open_given(file) as recording:
            if vqvae.config.channels == 1:
                audio = read_mono(recording, vqvae.config.sample_rate)
            else:
                stereo = read(recording, vqvae.config.sample_rate)
                audio = as_channels(stereo, vqvae.config.channels)
    except OSError as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else error.strerror
        raise UserError(
            f"file {path[:MAX_SHOWN]!r} {what}; give a recording, or the .json of an earlier sample"
        ) from None
    except ValueError as error:
        raise UserError(f"file {path[:MAX_SHOWN]!r} cannot be read as audio: {error}") from error
    wave = torch.from_numpy(audio).to(device)
    codes = {level: encode_long(vqvae, wave, level).cpu().numpy() for level in vqvae.config.levels}
    if not all(map(len, codes.values())):
        raise UserError(f"file {path!r} is shorter than one top code")
    return PromptSource(codes, audio)


def _codes_of_sample(file: Path, vqvae: VQVAE, fingerprint: str) -> dict[str, np.ndarray]:
    name = file.name.removesuffix(".json").removesuffix(".npz").removesuffix(".codes")
    record = file.with_name(f"{name}.json")
    arrays = file.with_name(f"{name}.codes.npz")
    try:
        made_with = parse_json(read_given(record))["weights"]["vqvae"]
        stored = read_npz(read_given(arrays, MAX_CODES_BYTES), names=vqvae.config.levels)
        codes = {level: codes_of(array, level) for level, array in stored.items()}
    except FileNotFoundError:
        raise UserError(
            f"sample {str(file)!r} needs both {record.name} and {arrays.name} in its folder"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"sample {str(file)[:MAX_SHOWN]!r} cannot be read: {plain(str(error))[:MAX_SHOWN]}"
        ) from error
    if made_with != fingerprint:
        raise UserError(
            f"sample {str(file)!r} has codes of another VQ-VAE ({str(made_with)[:12]}, here {fingerprint[:12]});"
            " give its audio instead"
        )
    for level, level_codes in codes.items():
        largest = vqvae.config.codebook_sizes[level] - 1
        if level_codes.size and not 0 <= level_codes.min() <= level_codes.max() <= largest:
            raise UserError(f"sample {str(file)!r} holds {level} codes beyond {largest}")
    return codes


def prompt_codes(
    request: SongRequest,
    source: dict[str, np.ndarray],
    vqvae: VQVAE,
    sampled: Sequence[str] | None = None,
) -> tuple[KnownCodes, float]:
    """What the song of `request` keeps of its source's codes, and how long the song is, in seconds.

    Args:
        sampled: levels of the song (default: all); the source's codes of others are left out.

    Raises:
        UserError: the source lacks a level, or does not fit the request's times.
    """
    levels = [x for x in vqvae.config.levels[::-1] if sampled is None or x in sampled]
    source = {level: codes for level, codes in source.items() if level in levels}
    if levels[0] not in source:
        raise UserError(f"{request.mode} {request.source!r} holds no {levels[0]} codes")
    if request.mode == "prompt":
        return _prompt(request, source, vqvae)
    if request.mode == "infill":
        return _infill(request, source, vqvae, levels)
    kept = levels[:1]
    if request.upsample_from in levels:
        kept = levels[: levels.index(request.upsample_from) + 1]
    known = KnownCodes()
    for level in kept:
        if level not in source:
            raise UserError(f"upsample {request.upsample!r} holds no {level} codes")
        known.codes[level] = source[level]
        known.mask[level] = np.ones(len(source[level]), bool)
    return known, len(source[levels[0]]) * _top_seconds(vqvae)


def _top_seconds(vqvae: VQVAE) -> float:
    return max(vqvae.config.hops.values()) / vqvae.config.sample_rate


def _prompt(
    request: SongRequest, source: dict[str, np.ndarray], vqvae: VQVAE
) -> tuple[KnownCodes, float]:
    """The start of the source, whole top codes of it, and unknown codes up to the song's length."""
    top_seconds = _top_seconds(vqvae)
    keep = len(source[vqvae.config.levels[-1]])
    if request.keep_seconds is not None:
        keep = min(keep, max(1, round(request.keep_seconds / top_seconds)))
    total = max(1, round(request.seconds / top_seconds))
    if keep >= total:
        raise UserError(
            f"prompt {request.prompt!r} lasts {keep * top_seconds:.2f} s, the song {request.seconds:g} s;"
            " ask for more seconds, or for less keep_seconds"
        )
    known = KnownCodes()
    for level, codes in source.items():
        ratio = max(vqvae.config.hops.values()) // vqvae.config.hops[level]
        prompt = codes[: keep * ratio]
        unknown = np.zeros(total * ratio - len(prompt), np.int64)
        known.codes[level] = np.concatenate([prompt, unknown])
        known.mask[level] = np.arange(total * ratio) < len(prompt)
    return known, request.seconds


def _infill(
    request: SongRequest, source: dict[str, np.ndarray], vqvae: VQVAE, levels: Sequence[str]
) -> tuple[KnownCodes, float]:
    """The source but for the ranges to replace, which are widened to whole top codes.

    top codes   |====|====|====|====|
    range             --  --
    unknown          |----|----|
    """
    for level in levels:
        if level not in source:
            raise UserError(
                f"infill {request.infill!r} holds no {level} codes; sample it to the end first"
            )
    top_seconds = _top_seconds(vqvae)
    tops = len(source[vqvae.config.levels[-1]])
    seconds = tops * top_seconds
    for start, end in request.replace:
        if start >= seconds:
            raise UserError(
                f"replace [{start:g}, {end:g}] begins after {request.infill!r}, {seconds:.2f} s, ends"
            )
    known = KnownCodes()
    for level, codes in source.items():
        ratio = max(vqvae.config.hops.values()) // vqvae.config.hops[level]
        mask = np.ones(tops * ratio, bool)
        for start, end in request.replace:
            first = int(start / top_seconds)
            last = -int(-end // top_seconds)  # rounded up
            mask[first * ratio : last * ratio] = False
        known.codes[level] = codes[: tops * ratio]
        known.mask[level] = mask
    return known, seconds
