"""What each level of a VQ-VAE keeps of a song: encoded and decoded again.

As a function of sound, as tracks beside a song that was made from a recording, and as songs of their own: held-out
ones, which nobody trained on, with their codes, so that lower levels can be made anew from the true upper ones.
"""

# T samples or codes
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

from megajukebox.data.audio import downmix, read_slice
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.song_dataset import held_out_share, split
from megajukebox.models.chunked_codec import decode_long, encode_long
from megajukebox.models.vqvae import VQVAE, load_vqvae
from megajukebox.sampling.songs.prompt_sources import PromptSource
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import GeneratedSong


def reconstructor(
    run: Path, sample_rate: int
) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """A function from mono audio [T] and its rate (Hz) to the same audio [T] by level, by the VQ-VAE in `run`.

    ValueError if `run` holds no VQ-VAE, or one for another sample rate.
    """
    vqvae, _ = load_vqvae(run, sample_rate)

    def reconstruct(wave_T: np.ndarray, rate: int) -> dict[str, np.ndarray]:
        assert rate == sample_rate, f"{rate} Hz in a set of {sample_rate} Hz"
        audio_T = torch.from_numpy(wave_T)
        levels = {
            level: decode_long(vqvae, encode_long(vqvae, audio_T, level), level)
            for level in vqvae.config.levels
        }
        return {
            level: pad_to(sound.clamp(-1, 1).numpy(), len(wave_T))
            for level, sound in levels.items()
        }

    return reconstruct


def pad_to(wave_T: np.ndarray, length: int) -> np.ndarray:
    """`wave_T` with silence to `length`: a rest shorter than one top code is not encoded."""
    return np.pad(wave_T, (0, length - len(wave_T)))


# ---- Beside a song ---------------------------------------------------------------------------------------------------


def reference_tracks(
    source: PromptSource, vqvae: VQVAE, samples: int, device: torch.device
) -> dict[str, np.ndarray]:
    """What a song was made from, up to its length in `samples`: the recording, and what the finest codes keep of it.

    An earlier sample is its own reconstruction; one that has no codes of the finest level gives nothing.
    """
    finest = min(vqvae.config.hops, key=lambda level: vqvae.config.hops[level])
    tracks = {}
    if finest in source.codes:
        codes_T = torch.from_numpy(
            source.codes[finest][: -(-samples // vqvae.config.hops[finest])]
        ).to(device)
        tracks["reconstruction"] = (
            decode_long(vqvae, codes_T, finest).clamp(-1, 1).float().cpu().numpy()
        )
    if source.audio is not None:
        tracks["original"] = source.audio
    # As long as the song, so that pictures one below the other show the same moments.
    return {track: pad_to(wave_T[:samples], samples) for track, wave_T in tracks.items()}


# ---- Songs of a set --------------------------------------------------------------------------------------------------


def select_rows(shards: ShardSet, run: Path, keys: Sequence[str], count: int) -> list[int]:
    """Rows of the songs named, or of `count` held-out ones, evenly over the set.

    ValueError for a name that is not there, for codes, and where no song was held out from the VQ-VAE in `run`.
    """
    if shards.index["kind"] != "songs":
        raise ValueError(
            f"{shards.source} holds {shards.index['kind']}, which cannot be heard; give song shards"
        )
    if keys:
        rows = {shards.key(row): row for row in range(len(shards))}
        if missing := [key for key in keys if key not in rows]:
            raise ValueError(
                f"{shards.source} has no song {missing[0]!r}; the corpus page shows every song's key"
            )
        return [rows[key] for key in keys]
    share = held_out_share(run)
    held = np.flatnonzero(split(shards.songs["key"], share))
    if not len(held):
        raise ValueError(
            f"no song of {shards.source} was held out from {run} (share {share:g}); name some with --song"
        )
    every = (np.arange(min(count, len(held))) * len(held)) // min(count, len(held))
    return held[every].tolist()


def reconstructions(
    runs: Path, shards: ShardSet, rows: Sequence[int], seconds: float, device: str
) -> Iterator[GeneratedSong]:
    """The first `seconds` of songs, by level, beside the original. What cannot be read raises ValueError when asked."""
    vqvae, facts = load_vqvae(runs / "vqvae", shards.index["sample_rate"])
    vqvae.to(device)
    for row in rows:
        wave_T = read_song_audio(shards, row, seconds)
        known = shards.read_facts(row)
        song = GeneratedSong(
            request_from_song(shards, row, known, len(wave_T)),
            [],
            shards.index["sample_rate"],
            samples=len(wave_T),
        )
        song.facts = {
            "weights": {"vqvae": facts["fingerprint"]}, "steps": {"vqvae": facts.get("step")}, "runs": str(runs),
            "reconstruction": {"of": shards.source, "song": shards.key(row)},
        }  # fmt: skip
        for level in reversed(vqvae.config.levels):
            codes_T = encode_long(vqvae, torch.from_numpy(wave_T).to(device), level)
            sound_T = decode_long(vqvae, codes_T, level).clamp(-1, 1).float().cpu().numpy()
            song.codes[level], song.audio[level] = (
                codes_T.cpu().numpy(),
                pad_to(sound_T, len(wave_T)),
            )
            song.levels[level] = {"codes": len(codes_T)}
        song.add_reference_tracks({"original": wave_T})
        yield song


def read_song_audio(shards: ShardSet, row: int, seconds: float) -> np.ndarray:
    """Mono audio [T] of a song's beginning."""
    rate = shards.index["sample_rate"]
    frames = min(int(shards.songs["frames"][row]), round(seconds * rate))
    with shards.open_member(row, "audio") as file:
        return downmix(read_slice(cast(BinaryIO, file), 0, frames, rate))


def request_from_song(
    shards: ShardSet, row: int, known: dict[str, Any], samples: int
) -> SongRequest:
    """What is known of a song, in the form of a request; names that requests have no place for are left out."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", shards.key(row))[:48].strip("_-") or str(row)
    said = {
        name: known[name]
        for name in ("artist", "genres", "year", "moods", "language")
        if known.get(name)
    }
    lyrics = (
        shards.read_member(row, "lyrics").decode(errors="replace")
        if shards.has(row, "lyrics")
        else ""
    )
    seconds, length = samples / shards.index["sample_rate"], int(shards.songs["frames"][row])
    whole = length / shards.index["sample_rate"]
    return SongRequest(
        id=f"original-{name}", lyrics=lyrics, seconds=seconds, song_seconds=whole, **said
    )
