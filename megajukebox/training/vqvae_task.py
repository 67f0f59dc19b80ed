"""The stage `vqvae`: a VQ-VAE on clips of songs."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.provenance import made_by
from megajukebox.common.redaction import redact
from megajukebox.data.shards.blended_sets import open_data
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.augment import Augment
from megajukebox.data.stream.batches import read_or_replace, training_order
from megajukebox.data.stream.blend import BlendedClips
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.unindexed import UnindexedBatches, UnindexedShards
from megajukebox.models.losses import Bandwidth
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest


def vqvae_task(request: TaskRequest, reading: ReaderShare) -> Task:
    """The VQ-VAE on clips of the songs in `request.data`; tars without an index resume only statistically.

    Raises:
        UserError: songs, settings or weights to start from are not of the preset's kind and sample rate.
    """
    preset = request.preset
    settings = request.settings
    base = request.base
    top_hop = max(preset.vqvae.hops.values())
    channels = preset.audio.channels
    clips, songs = open_clips(request, "vqvae", "top hop", top_hop, channels)
    config = base.config if base else preset.vqvae
    rate = preset.audio.sample_rate
    if (
        not isinstance(config, VQVAEConfig)
        or config.sample_rate != rate
        or config.channels != channels
        or config.hops != preset.vqvae.hops
    ):
        folder = base.folder if base else ""
        raise UserError(f"--from {folder} holds no VQ-VAE of preset {preset.name!r}")
    if settings.bandwidth_seconds and not base:
        config = config.model_copy(update={"bandwidth": measure_bandwidth(clips, config, settings)})
    seconds = reading.global_batch * clips.clip / rate
    return Task(
        kind="vqvae",
        config=config,
        build=lambda: VQVAE(config),
        source=clips,
        settings=settings,
        reading=reading,
        units_per_step=seconds,
        audio_seconds=seconds,
        speed_name="audio_seconds_per_second",
        facts={
            "sample_rate": rate,
            "preset": preset.name,
            **songs,
            "made_by": made_by(),
        },
    )


def open_clips(
    request: TaskRequest, stage: str, unit_name: str, unit: int, channels: int
) -> tuple[SongClips | BlendedClips | UnindexedShards, dict[str, Any]]:
    """The clips to train on, and what identifies their songs: fingerprints, or URLs of tars without an index.

    A clip of `stage` must be a multiple of `unit` samples; it has `channels`.
    """
    preset = request.preset
    loader = request.settings.loader
    clip = request.settings.clip
    if clip is None or clip % unit:
        raise UserError(f"training.{stage}.clip {clip} is not a multiple of the {unit_name} {unit}")
    held_out = request.settings.evaluation.held_out
    augment = Augment(loader.volume_db, loader.eq_db)
    rate = preset.audio.sample_rate
    if loader.data_mode == "unindexed":
        tars = UnindexedShards(
            unindexed_address(request.data),
            rate,
            clip,
            held_out,
            loader.clips_per_song_visit,
            augment=augment,
            remote=request.remote,
            channels=channels,
        )
        return tars, {"songs": redact(tars.shown)}
    songs = open_data(request.data, request.remote)
    kind = songs.index["kind"]
    theirs = songs.index["sample_rate"]
    if kind != "songs" or theirs != rate:
        raise UserError(
            f"{songs.source} holds {kind} at {theirs} Hz, preset {preset.name!r} wants songs at {rate} Hz;"
            f" prepare them with --sample-rate {rate}"
        )
    if isinstance(songs, ShardSet):
        alone = SongClips(songs, clip, held_out, augment=augment, channels=channels)
        return alone, {"songs": songs.fingerprint}
    parts = [
        SongClips(one, clip, held_out, augment=augment, channels=channels) for one in songs.sets
    ]
    clips = BlendedClips(songs, parts)
    return clips, {"songs": songs.fingerprint, "sets": clips.named_weights()}


def unindexed_address(data: str | Sequence[str]) -> str:
    """The tars to stream without an index.

    Raises:
        UserError: there are several addresses, or it is a set with an index.
    """
    addresses = [data] if isinstance(data, str) else data
    if len(addresses) > 1:
        raise UserError(
            "loader.data_mode=unindexed takes one --data; name all tars in it: --data 'A::B'"
        )
    address = addresses[0]
    if (Path(address) / "index.json").is_file():
        raise UserError(
            f"{address} has an index; leave out training.<stage>.loader.data_mode=unindexed to use it"
        )
    return address


def measure_bandwidth(
    clips: SongClips | BlendedClips | UnindexedShards,
    config: VQVAEConfig,
    settings: TrainingSettings,
) -> Bandwidth:
    """The scale of the first `bandwidth_seconds` of the training order: what losses are divided by (spec section 3)."""
    count = max(1, int(settings.bandwidth_seconds * config.sample_rate / clips.clip))
    x_NT = first_clips(clips, count, settings)
    spectral = torch.stack([config.loss.stft.magnitude(x[None]).norm() for x in x_NT]).mean()
    return Bandwidth(
        l2=float(x_NT.var(correction=0)), l1=float(x_NT.abs().mean()), spectral=float(spectral)
    )


def first_clips(
    clips: SongClips | BlendedClips | UnindexedShards, count: int, settings: TrainingSettings
) -> Tensor:
    """Every channel [N, T] of at most `count` clips of the training order; bad ones are replaced as in training."""
    if isinstance(clips, UnindexedShards):
        steps = UnindexedBatches(
            clips,
            seed=settings.seed,
            global_batch=1,
            micro_batch=1,
            max_bad_sample_ratio=settings.loader.max_bad_sample_ratio,
        )
        clips_BTA = [step[0]["audio"] for step in islice(steps, count)]
        return torch.cat(clips_BTA).transpose(1, 2).flatten(0, 1)
    order = training_order(clips, settings.seed)
    waves = []
    for position in range(min(count, order.clips)):
        clip = read_or_replace(clips, order, position, None)
        waves.extend(clip.fields["audio"].T)
    return torch.from_numpy(np.stack(waves))
