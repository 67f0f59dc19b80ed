"""What each level of a VQ-VAE keeps of a song: encoded and decoded again.

As a function of audio, as tracks beside a song that continues a recording, and as songs of their own: held-out ones,
which the VQ-VAE was not trained on, with their codes, so that lower levels can be sampled from the true upper ones.
"""

# T samples or codes; audio is [T] of a mono VQ-VAE, [T, 2] of a stereo one
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from megajukebox.common.errors import UserError
from megajukebox.common.levels import VQVAE_FOLDER
from megajukebox.data.audio import as_channels, read_channels_slice
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.song_dataset import held_out_share, split
from megajukebox.models.chunked_codec import decode_long, encode_long
from megajukebox.models.vqvae import VQVAE, load_vqvae
from megajukebox.sampling.refiners import load_refiners
from megajukebox.sampling.songs.prompt_sources import PromptSource
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song import GeneratedSong

METADATA = ("artist", "genres", "year", "moods", "language")  # of a song, that a request has too
MAX_KEY_IN_ID = 48  # characters


def reconstructor(
    run: Path, sample_rate: int
) -> Callable[[np.ndarray, int], dict[str, np.ndarray]]:
    """A function from audio [T] or [T, C] and its rate (Hz) to the same audio by level, by the VQ-VAE in `run`.

    Refiners that lie beside the run add their own tracks.

    Raises:
        UserError: `run` holds no VQ-VAE, or one for another sample rate; or a refiner is of another.
    """
    vqvae, facts = load_vqvae(run, sample_rate)
    refiners = load_refiners(run.parent, facts, "cpu")

    def reconstruct(wave: np.ndarray, rate: int) -> dict[str, np.ndarray]:
        assert rate == sample_rate, f"{rate} Hz in a set of {sample_rate} Hz"
        wave_TC = wave.reshape(len(wave), -1)
        audio = torch.from_numpy(as_channels(wave_TC, vqvae.config.channels))
        reconstructions = {}
        for level in vqvae.config.levels:
            codes_T = encode_long(vqvae, audio, level)
            decoded = decode_long(vqvae, codes_T, level)
            reconstructions[level] = pad_to(decoded.clamp(-1, 1).numpy(), len(audio))
            if level in refiners:
                refined = refiners[level].refined(vqvae, codes_T)
                reconstructions[refiners[level].track] = pad_to(refined, len(audio))
        return reconstructions

    return reconstruct


def pad_to(wave: np.ndarray, length: int) -> np.ndarray:
    """`wave` with silence to `length`: a last part shorter than one top code is not encoded."""
    silence = [(0, length - len(wave))] + [(0, 0)] * (wave.ndim - 1)
    return np.pad(wave, silence)


# ---- Beside a song --------------------------------------------------------------------------------------------------


def reference_tracks(
    source: PromptSource, vqvae: VQVAE, samples: int, device: torch.device
) -> dict[str, np.ndarray]:
    """The audio of a song's source, as long as the song (`samples`): the recording, and what its finest codes keep.

    An earlier sample is its own reconstruction; one that has no codes of the finest level has none.
    """
    finest = min(vqvae.config.hops, key=lambda level: vqvae.config.hops[level])
    tracks = {}
    if finest in source.codes:
        length = -(-samples // vqvae.config.hops[finest])  # codes, rounded up
        codes_T = torch.from_numpy(source.codes[finest][:length]).to(device)
        decoded = decode_long(vqvae, codes_T, finest).clamp(-1, 1)
        tracks["reconstruction"] = decoded.float().cpu().numpy()
    if source.audio is not None:
        tracks["original"] = source.audio
    # As long as the song, so that pictures one below the other show the same moments.
    return {track: pad_to(wave[:samples], samples) for track, wave in tracks.items()}


# ---- Songs of a set -------------------------------------------------------------------------------------------------


def select_rows(shards: ShardSet, run: Path, keys: Sequence[str], count: int) -> list[int]:
    """Rows of the songs of those keys, or of `count` held-out ones, evenly over the set.

    Raises:
        UserError: a key is not in the set, the set holds codes, or no song was held out from the VQ-VAE in `run`.
    """
    if shards.index["kind"] != "songs":
        raise UserError(
            f"{shards.source} holds {shards.index['kind']}, not audio; give song shards"
        )
    if keys:
        rows = {shards.key(row): row for row in range(len(shards))}
        for key in keys:
            if key not in rows:
                raise UserError(
                    f"{shards.source} has no song {key!r}; the corpus page shows every song's key"
                )
        return [rows[key] for key in keys]
    share = held_out_share(run)
    held_out = np.flatnonzero(split(shards.songs["key"], share))
    if not len(held_out):
        raise UserError(
            f"no song of {shards.source} was held out from {run} (share {share:g}); name some with --song"
        )
    count = min(count, len(held_out))
    evenly = (np.arange(count) * len(held_out)) // count
    return held_out[evenly].tolist()


def reconstructions(
    runs: Path,
    shards: ShardSet,
    rows: Sequence[int],
    seconds: float,
    device: str,
    refiner_runs: Sequence[Path] | None = None,
) -> Iterator[GeneratedSong]:
    """The first `seconds` of songs, encoded and decoded by level, beside the original; and refined.

    `refiner_runs` are runs of refiners; None: those that lie in `runs`.
    """
    rate = shards.index["sample_rate"]
    vqvae, facts = load_vqvae(runs / VQVAE_FOLDER, rate, device)
    refiners = load_refiners(runs, facts, device, refiner_runs)
    for row in rows:
        frames = min(int(shards.songs["frames"][row]), round(seconds * rate))
        with shards.open_member(row, "audio") as file:
            channels = vqvae.config.channels
            wave = read_channels_slice(cast(BinaryIO, file), 0, frames, rate, channels)
        song = GeneratedSong(request_from_song(shards, row, len(wave)), [], rate, samples=len(wave))
        song.facts = {
            "weights": {"vqvae": facts["fingerprint"]},
            "steps": {"vqvae": facts.get("step")},
            "runs": str(runs),
            "reconstruction": {"of": shards.source, "song": shards.key(row)},
        }
        if refiners:
            used = {level: refiner.fingerprint for level, refiner in refiners.items()}
            song.facts["refiners"] = used
        for level in reversed(vqvae.config.levels):
            codes_T = encode_long(vqvae, torch.from_numpy(wave).to(device), level)
            decoded = decode_long(vqvae, codes_T, level).clamp(-1, 1)
            song.codes[level] = codes_T.cpu().numpy()
            song.audio[level] = pad_to(decoded.float().cpu().numpy(), len(wave))
            song.levels[level] = {"codes": len(codes_T)}
            if level in refiners:
                refined = pad_to(refiners[level].refined(vqvae, codes_T), len(wave))
                song.add_reference_tracks({refiners[level].track: refined})
        song.add_reference_tracks({"original": wave})
        yield song


def request_from_song(shards: ShardSet, row: int, samples: int) -> SongRequest:
    """A request for the first `samples` of a song, with the metadata that requests have settings for."""
    facts = shards.read_facts(row)
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", shards.key(row))
    name = key[:MAX_KEY_IN_ID].strip("_-") or str(row)
    conditions = {}
    for condition in METADATA:
        if facts.get(condition):
            conditions[condition] = facts[condition]
    lyrics = ""
    if shards.has(row, "lyrics"):
        lyrics = shards.read_member(row, "lyrics").decode(errors="replace")
    rate = shards.index["sample_rate"]
    return SongRequest(
        id=f"original-{name}",
        lyrics=lyrics,
        seconds=samples / rate,
        song_seconds=int(shards.songs["frames"][row]) / rate,
        **conditions,
    )
