"""What is trained, one function a kind: the VQ-VAE on clips of songs, the priors on windows of its codes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from megajukebox.common.provenance import made_by
from megajukebox.common.redaction import redact
from megajukebox.common.world import World
from megajukebox.conditioning.schema import ConditionResources, conditions_of
from megajukebox.conditioning.tokenizers import (
    LYRICS_MODEL,
    LyricsTokenizer,
    SentencePieceTokenizer,
)
from megajukebox.conditioning.vocabulary import VOCABULARIES, Vocabulary, vocabularies_json
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.augment import Augment
from megajukebox.data.stream.batches import (
    Batches,
    ClipSource,
    OnBad,
    held_out_batches,
    held_out_steps,
    read_or_replace,
    stream_identity,
)
from megajukebox.data.stream.code_dataset import (
    CodeWindows,
    check_kind,
)
from megajukebox.data.stream.sample_order import Order
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.data.stream.stream_identity import StreamIdentity, UnindexedStreamIdentity
from megajukebox.data.stream.unindexed import UnindexedBatches, UnindexedShards
from megajukebox.data.stream.unindexed import held_out_batches as piped_held_out
from megajukebox.data.stream.worker_pool import ReadAhead
from megajukebox.models.losses import Bandwidth
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig
from megajukebox.training.batching import NoClips
from megajukebox.training.config import ConditionSettings, Preset, level_of
from megajukebox.training.finetune import PretrainedModel, check_prior
from megajukebox.training.settings import TrainingSettings

Stream = Batches | UnindexedBatches | NoClips


@dataclass(frozen=True)
class ReaderShare:
    """How this process shares the reading with the others."""

    place: World
    global_batch: int
    micro_batch: int
    on_bad: OnBad
    needed: bool = (
        True  # False between the ends of a pipeline: nothing is read, all else is as for the others
    )


@dataclass(frozen=True)
class Task:
    """All that the loop needs to know of what it trains."""

    kind: str  # vqvae or prior, as in model.json
    config: BaseModel
    build: Callable[[], nn.Module]
    source: ClipSource | UnindexedShards
    settings: TrainingSettings
    reading: ReaderShare
    units_per_step: float
    audio_seconds: float  # in one step
    speed_name: str
    facts: dict[str, Any]
    files: dict[str, bytes] = field(
        default_factory=dict
    )  # what the run folder keeps beside the weights
    judge: Callable[[nn.Module], dict[str, Tensor]] | None = (
        None  # more to evaluate: by name, values of some windows
    )

    def batches(self, first_step: int) -> Stream:
        """Lists of micro-batches, one list a step, from `first_step` on."""
        reading = self.reading
        if not reading.needed:
            return NoClips(reading.global_batch // (reading.place.size * reading.micro_batch))
        return self._stream(first_step)

    def held_out(self) -> Iterable[dict]:
        """The same few batches of held-out songs each time."""
        size, place = self.reading.micro_batch, self.reading.place
        limit = self.settings.evaluation.batches * size * place.size
        if isinstance(self.source, UnindexedShards):
            return piped_held_out(
                self.source, micro_batch=size, rank=place.rank, world=place.size, limit=limit
            )
        if not self.reading.needed:
            return [{}] * held_out_steps(
                self.source, micro_batch=size, world=place.size, limit=limit
            )
        on_bad = self.reading.on_bad
        return held_out_batches(
            self.source,
            micro_batch=size,
            rank=place.rank,
            world=place.size,
            limit=limit,
            on_bad=on_bad,
        )

    def corpus(self) -> dict[str, int]:
        """How many songs and clips are trained on, held out, or too short; nothing is known of a pipe."""
        return {} if isinstance(self.source, UnindexedShards) else self.source.report()

    def stream_state(self, next_step: int) -> dict[str, object]:
        """Where the stream stands before `next_step`: holds for any number of ranks."""
        return self._identity().state(next_step)

    def check_state(self, state: dict[str, object]) -> None:
        """Raises UserError if a checkpoint was trained on another order of clips."""
        self._identity().check(state)

    def _identity(self) -> StreamIdentity | UnindexedStreamIdentity:
        if isinstance(self.source, UnindexedShards):
            return UnindexedStreamIdentity(self.source.urls)
        return stream_identity(
            self.source,
            seed=self.settings.seed,
            global_batch=self.reading.global_batch,
            block=self.settings.loader.shuffle_shards,
            clips_per_song_visit=self.settings.loader.clips_per_song_visit,
        )

    def _stream(self, first_step: int) -> Batches | UnindexedBatches:
        reading, settings, loader = self.reading, self.settings, self.settings.loader
        common: dict[str, Any] = {
            "seed": settings.seed, "global_batch": reading.global_batch, "micro_batch": reading.micro_batch,
            "rank": reading.place.rank, "world": reading.place.size, "first_step": first_step,
            "ahead": ReadAhead(
                loader.workers, loader.prefetch, loader.timeout_seconds, int(loader.worker_memory_gb * 2**30)
            ),
            "on_bad": reading.on_bad, "max_bad_sample_ratio": loader.max_bad_sample_ratio,
        }  # fmt: skip
        if isinstance(self.source, UnindexedShards):
            return UnindexedBatches(self.source, **common)
        return Batches(
            self.source,
            **common,
            block=loader.shuffle_shards,
            clips_per_song_visit=loader.clips_per_song_visit,
        )


def vqvae_task(
    preset: Preset,
    songs: ShardSet,
    settings: TrainingSettings,
    reading: ReaderShare,
    base: PretrainedModel | None = None,
) -> Task:
    """The VQ-VAE on clips of `songs`. Raises ValueError if their sample rate is not the preset's."""
    if settings.loader.data_mode == "unindexed":
        raise ValueError(
            f"{songs.source} has an index; leave out training.vqvae.loader.data_mode=unindexed to use it"
        )
    rate = songs.index["sample_rate"]
    if songs.index["kind"] != "songs" or rate != preset.audio.sample_rate:
        raise ValueError(
            f"{songs.folder} holds {songs.index['kind']} at {rate} Hz, preset {preset.name!r} wants songs at"
            f" {preset.audio.sample_rate} Hz; prepare them with --preset {preset.name}"
        )
    clips = SongClips(
        songs, clip_of(preset, settings), settings.evaluation.held_out, augment=augment_of(settings)
    )
    return audio_task(preset, clips, songs.fingerprint, settings, reading, base)


def piped_task(
    preset: Preset, urls: str, allow_pipe: bool, settings: TrainingSettings, reading: ReaderShare
) -> Task:
    """The VQ-VAE on tars without an index, read as they come; it resumes only statistically."""
    piped = UnindexedShards(
        urls, preset.audio.sample_rate, clip_of(preset, settings), settings.evaluation.held_out, settings.loader.clips_per_song_visit,
        augment=augment_of(settings), allow_pipe=allow_pipe,
    )  # fmt: skip
    return audio_task(preset, piped, urls, settings, reading)


def audio_task(
    preset: Preset, clips: SongClips | UnindexedShards, songs: str, settings: TrainingSettings, reading: ReaderShare,
    base: PretrainedModel | None = None,
) -> Task:  # fmt: skip
    config, rate = base.config if base else preset.vqvae, preset.audio.sample_rate
    if (
        not isinstance(config, VQVAEConfig)
        or config.sample_rate != rate
        or config.hops != preset.vqvae.hops
    ):
        raise ValueError(
            f"--from {base.folder if base else ''} holds no VQ-VAE of preset {preset.name!r}"
        )
    if settings.bandwidth_seconds and not base:
        config = config.model_copy(update={"bandwidth": measure_bandwidth(clips, config, settings)})
    return Task(
        kind="vqvae", config=config, build=lambda: VQVAE(config), source=clips, settings=settings, reading=reading,
        units_per_step=reading.global_batch * clips.clip / rate, speed_name="audio_seconds_per_second",
        audio_seconds=reading.global_batch * clips.clip / rate,
        facts={"sample_rate": rate, "preset": preset.name, "songs": redact(songs), "made_by": made_by()},
    )  # fmt: skip


def clip_of(preset: Preset, settings: TrainingSettings) -> int:
    top_hop = max(preset.vqvae.hops.values())
    if settings.clip is None or settings.clip % top_hop:
        raise ValueError(
            f"training.vqvae.clip {settings.clip} is not a multiple of the top hop {top_hop}"
        )
    return settings.clip


def augment_of(settings: TrainingSettings) -> Augment:
    return Augment(settings.loader.volume_db, settings.loader.eq_db)


def measure_bandwidth(
    clips: SongClips | UnindexedShards, config: VQVAEConfig, settings: TrainingSettings
) -> Bandwidth:
    """The scale of the first `bandwidth_seconds` of the training order: what losses are divided by (spec section 3)."""
    number = max(1, int(settings.bandwidth_seconds * config.sample_rate / clips.clip))
    if isinstance(clips, UnindexedShards):
        first = UnindexedBatches(
            clips,
            seed=settings.seed,
            global_batch=1,
            micro_batch=1,
            max_bad_sample_ratio=settings.loader.max_bad_sample_ratio,
        )
        x_NT = torch.cat([step[0]["audio"][:, :, 0] for step in islice(first, number)])
    else:
        order = Order(clips.clips("train"), clips.shard_of_song, settings.seed)
        x_NT = torch.from_numpy(np.stack(first_clips(clips, order, min(number, order.clips))))
    spectral = torch.stack([config.loss.stft.magnitude(x[None]).norm() for x in x_NT]).mean()
    return Bandwidth(
        l2=float(x_NT.var(correction=0)), l1=float(x_NT.abs().mean()), spectral=float(spectral)
    )


def first_clips(clips: SongClips, order: Order, number: int) -> list[np.ndarray]:
    """The first `number` clips [T] of an order, unchanged; broken ones are replaced as in training."""

    def read(position: int) -> np.ndarray:
        return read_or_replace(clips, order, position, None).fields["audio"][:, 0]

    return [read(position) for position in range(number)]


def prior_task(
    preset: Preset,
    stage: str,
    codes: ShardSet,
    settings: TrainingSettings,
    reading: ReaderShare,
    base: PretrainedModel | None = None,
) -> Task:
    """The prior of one level on windows of `codes`. Raises ValueError where codes and preset, or base, disagree."""
    level = level_of(stage)
    check_codes_of_preset(preset, codes)
    known = (
        setup_from_checkpoint(preset, level, codes, base)
        if base
        else setup_from_corpus(preset, level, codes)
    )
    config = known.config
    resources = ConditionResources(
        known.vocabularies, known.tokenizer, preset.dropouts(level, config)
    )
    conditions = conditions_of(config, resources)
    return Task(
        kind="prior", config=config, build=lambda: Prior(config), settings=settings, reading=reading, files=known.files,
        source=CodeWindows(codes, level, config.window, settings.evaluation.held_out, conditions),
        units_per_step=reading.global_batch * config.window, speed_name="tokens_per_second",
        audio_seconds=reading.global_batch * config.window * preset.vqvae.hops[level] / config.sample_rate,
        facts={
            "level": level, "sample_rate": config.sample_rate, "preset": preset.name, "made_by": made_by(),
            "vqvae": codes.index["vqvae"]["fingerprint"], "codes": codes.fingerprint, **known.facts,
        },
    )  # fmt: skip


class PriorSetup(NamedTuple):
    """What fixes a prior's ids and numbers, and the files in which its run keeps that."""

    config: PriorConfig
    vocabularies: dict[str, Vocabulary]
    tokenizer: LyricsTokenizer | None
    files: dict[str, bytes]
    facts: dict[str, Any]


def setup_from_corpus(preset: Preset, level: str, codes: ShardSet) -> PriorSetup:
    """A new prior: its shape from the preset, its names and tokenizer from the corpus."""
    told = preset.prior(level)
    vocabularies = {
        name: vocabulary(preset.condition(level, name), codes, name) for name in told.conditions
    }
    tokenizer = lyrics_tokenizer(codes) if told.lyrics else None
    files = {VOCABULARIES: vocabularies_json(vocabularies)}
    if tokenizer:
        files[LYRICS_MODEL] = (codes.folder / LYRICS_MODEL).read_bytes()
    config = preset.prior_config(level, tokenizer.size if tokenizer else 0)
    return PriorSetup(
        config, vocabularies, tokenizer, files, {"tokenizer": LYRICS_MODEL if tokenizer else None}
    )


def setup_from_checkpoint(
    preset: Preset, level: str, codes: ShardSet, base: PretrainedModel
) -> PriorSetup:
    """A prior that is trained further. ValueError where the codes, or names of their songs, are new to it."""
    config = base.config
    assert isinstance(config, PriorConfig)
    least = {
        name: preset.condition(level, name).min_songs
        for name in config.conditions
        if name in preset.conditions
    }
    check_prior(base, level, codes, least)
    vocabularies = {name: base.vocabularies.get(name, Vocabulary()) for name in config.conditions}
    files = {VOCABULARIES: vocabularies_json(vocabularies)}
    model = base.folder / str(base.facts.get("tokenizer") or LYRICS_MODEL)
    if config.lyrics and model.is_file():
        files[model.name] = model.read_bytes()
    kept: tuple[str, ...] = ("tokenizer", "names", "licence")
    facts = {name: base.facts[name] for name in kept if name in base.facts}
    facts["from"] = {"fingerprint": base.facts["fingerprint"], "step": base.facts["step"]}
    return PriorSetup(config, vocabularies, base.tokenizer if config.lyrics else None, files, facts)


def check_codes_of_preset(preset: Preset, codes: ShardSet) -> None:
    """The code shards must be those of a VQ-VAE of this preset's shape."""
    check_kind(codes)
    ours = {
        "sample_rate": preset.audio.sample_rate,
        "hops": preset.vqvae.hops,
        "codes": dict.fromkeys(preset.levels, preset.vqvae.codebook_size),
    }
    theirs = {
        "sample_rate": codes.index["sample_rate"],
        **{k: codes.index["vqvae"][k] for k in ("hops", "codes")},
    }
    for name, value in ours.items():
        if theirs[name] != value:
            raise ValueError(
                f"{codes.folder} has {name} {theirs[name]}, preset {preset.name!r} has {value};"
                " use the preset that the codes were made with"
            )


def vocabulary(settings: ConditionSettings, codes: ShardSet, name: str) -> Vocabulary:
    """The names of one condition that the corpus has often enough."""
    index = codes.index
    if name == "year":
        return years(settings, *index["years"]) if index["years"] else Vocabulary()
    return Vocabulary.build(
        index["vocabulary"].get(name, {}), settings.min_songs, settings.table_size
    )


def years(settings: ConditionSettings, first: int, last: int) -> Vocabulary:
    """The bins of all years from the corpus's first to its last. ValueError if the table has no room for them."""
    bins = Vocabulary.of_years(first, last, settings.bin_years)
    if len(bins) > settings.table_size:
        fits = next(
            n
            for n in count(settings.bin_years)
            if len(Vocabulary.of_years(first, last, n)) <= settings.table_size
        )
        raise ValueError(
            f"the songs are of the years {first} to {last}, {len(bins)} entries, and conditions.year.size is"
            f" {settings.table_size}; set conditions.year.bin_years to {fits}, or mend the songs' years"
        )
    return bins


def lyrics_tokenizer(codes: ShardSet) -> LyricsTokenizer:
    if not codes.index["lyrics_model"]:
        raise ValueError(
            f"{codes.folder} has no lyrics model (no song came with lyrics), but the preset's prior reads lyrics;"
            " override lyrics=null and the schedule, or add lyrics"
        )
    return SentencePieceTokenizer(codes.folder / codes.index["lyrics_model"]["name"])
