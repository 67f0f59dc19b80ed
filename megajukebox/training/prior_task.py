"""The stages of priors: the codes of one level, window by window, with what they are conditioned on."""

from typing import Any, NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import read_given, read_inside
from megajukebox.conditioning.schema import ConditionResources, conditions_of
from megajukebox.conditioning.tokenizers import (
    LYRICS_MODEL,
    LyricsTokenizer,
    SentencePieceTokenizer,
)
from megajukebox.conditioning.vocabulary import VOCABULARIES, Vocabulary, vocabularies_json
from megajukebox.data.shards.blended_sets import ShardBlend, open_data
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.blend import BlendedClips
from megajukebox.data.stream.code_dataset import CodeWindows, check_kind
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.training.adapter_task import AdapterTask, adapter_task
from megajukebox.training.config import Preset
from megajukebox.training.finetune import PretrainedModel, check_prior
from megajukebox.training.prior_settings import ConditionSettings, PriorSettings
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest

KEPT_FACTS = ("tokenizer", "names", "licence")  # of model.json, where weights are trained further


class PriorSetup(NamedTuple):
    """What fixes a prior's ids and numbers, and the files in which its run keeps that."""

    config: PriorConfig
    vocabularies: dict[str, Vocabulary]
    tokenizer: LyricsTokenizer | None
    files: dict[str, bytes]
    facts: dict[str, Any]


def prior_task(level: str, request: TaskRequest, reading: ReaderShare) -> Task:
    """The prior of `level` on windows of the codes in `request.data`.

    Raises:
        UserError: codes and preset, or the weights to start from, do not fit together.
    """
    preset = request.preset
    codes = open_data(request.data, request.remote)
    check_codes_of_preset(preset, codes)
    adapter = None
    adapted = request.settings.adapter
    if adapted:
        corpus = {"vqvae": codes.index["vqvae"]["fingerprint"], "made_by": made_by()}
        adapter = adapter_task(adapted, request.settings.seed, level, request.base, corpus)
    setup = prior_setup(preset, level, codes, request.base, adapter)
    config = setup.config
    # Every condition of the prior; some are dropped out in training.
    resources = ConditionResources(
        setup.vocabularies,
        setup.tokenizer,
        preset.dropouts(level, config),
        setup.facts.get("names"),
        adapted.labels if adapted else {},
    )
    conditions = conditions_of(config, resources)
    held_out = request.settings.evaluation.held_out
    codes_per_step = reading.global_batch * config.window
    source: CodeWindows | BlendedClips
    sets: dict[str, Any] = {}
    if isinstance(codes, ShardSet):
        source = CodeWindows(codes, level, config.window, held_out, conditions)
    else:
        parts = [CodeWindows(one, level, config.window, held_out, conditions) for one in codes.sets]
        source = BlendedClips(codes, parts)
        sets = {"sets": source.named_weights()}
    return Task(
        kind="adapter" if adapter else "prior",
        config=config,
        build=lambda: Prior(config),
        source=source,
        settings=request.settings,
        reading=reading,
        units_per_step=codes_per_step,
        audio_seconds=codes_per_step * preset.vqvae.hops[level] / config.sample_rate,
        speed_name="tokens_per_second",
        files=setup.files,
        facts={
            "level": level,
            "sample_rate": config.sample_rate,
            "preset": preset.name,
            "made_by": made_by(),
            "vqvae": codes.index["vqvae"]["fingerprint"],
            "codes": codes.fingerprint,
            **sets,
            **setup.facts,
        },
        adapter=adapter,
    )


def prior_setup(
    preset: Preset,
    level: str,
    codes: ShardSet | ShardBlend,
    base: PretrainedModel | None,
    adapter: AdapterTask | None = None,
) -> PriorSetup:
    """A new prior: its shape from the preset, its names and tokenizer from the corpus; or that of `base`."""
    if base:
        return setup_from_checkpoint(preset, level, codes, base, adapter)
    settings = preset.prior(level)
    vocabularies = {}
    for name in settings.conditions:
        vocabularies[name] = vocabulary(preset.condition(level, name), codes, name)
    files = {VOCABULARIES: vocabularies_json(vocabularies)}
    if not settings.lyrics:
        config = preset.prior_config(level, 0)
        return PriorSetup(config, vocabularies, None, files, {"tokenizer": None})
    if not codes.index["lyrics_model"]:
        raise UserError(
            f"{codes.folder} has no lyrics model (no song came with lyrics), but the preset's prior reads lyrics;"
            " override lyrics=null and the schedule, or add lyrics"
        )
    tokenizer = SentencePieceTokenizer(codes.folder / codes.index["lyrics_model"]["name"])
    files[LYRICS_MODEL] = read_given(codes.folder / LYRICS_MODEL)
    config = preset.prior_config(level, tokenizer.size)
    return PriorSetup(config, vocabularies, tokenizer, files, {"tokenizer": LYRICS_MODEL})


def setup_from_checkpoint(
    preset: Preset,
    level: str,
    codes: ShardSet | ShardBlend,
    base: PretrainedModel,
    adapter: AdapterTask | None = None,
) -> PriorSetup:
    """A prior that is trained further, or beside which an adapter is: that takes names which it does not know.
    Without an adapter it learns the aligned conditions of the preset that it lacks, from zero.

    Raises:
        UserError: the codes, or the names of their songs, are new to it.
    """
    assert isinstance(base.config, PriorConfig)
    config = base.config if adapter else with_new_conditions(base.config, preset.prior(level))
    min_songs = {}
    for name in config.conditions:
        if name in preset.conditions:
            min_songs[name] = preset.condition(level, name).min_songs
    check_prior(base, level, codes, min_songs, unknown_names=adapter is not None)
    vocabularies = {name: base.vocabularies.get(name, Vocabulary()) for name in config.conditions}
    for name, new in (adapter.names if adapter else {}).items():
        vocabularies[name] = Vocabulary((*vocabularies[name].names, *new))
    files = {VOCABULARIES: vocabularies_json(vocabularies)}
    model = base.folder / str(base.facts.get("tokenizer") or LYRICS_MODEL)
    if config.lyrics and model.is_file():
        files[model.name] = read_inside(base.folder, model.relative_to(base.folder))
    facts = {name: base.facts[name] for name in KEPT_FACTS if name in base.facts}
    facts["from"] = {"fingerprint": base.facts["fingerprint"], "step": base.facts["step"]}
    if adapter:
        facts["adapter"] = adapter.settings.model_dump(mode="json")
    return PriorSetup(config, vocabularies, base.tokenizer if config.lyrics else None, files, facts)


def with_new_conditions(config: PriorConfig, settings: PriorSettings) -> PriorConfig:
    """`config` with the aligned conditions of a preset that it lacks; each starts at zero, so no number changes."""
    new: dict[str, Any] = {}
    for name, own in settings.aligned.items():
        if name not in config.aligned:
            new[name] = {key: value for key, value in own.items() if key != "dropout"}
            if name == "memory":
                new[name].setdefault("codebook_size", config.codebook_size)
    if not new:
        return config
    return PriorConfig(**{**config.model_dump(), "aligned": {**config.aligned, **new}})


def check_codes_of_preset(preset: Preset, codes: ShardSet | ShardBlend) -> None:
    """Raise UserError unless the codes are of a VQ-VAE of this preset's shape."""
    check_kind(codes)
    vqvae = codes.index["vqvae"]
    pairs = {
        "sample_rate": (codes.index["sample_rate"], preset.audio.sample_rate),
        "hops": (vqvae["hops"], preset.vqvae.hops),
        "codes": (vqvae["codes"], preset.vqvae.codebook_sizes),
    }
    for name, (stored, wanted) in pairs.items():
        if stored != wanted:
            raise UserError(
                f"{codes.folder} has {name} {stored}, preset {preset.name!r} has {wanted};"
                " use the preset that the codes were made with"
            )


def vocabulary(settings: ConditionSettings, codes: ShardSet | ShardBlend, name: str) -> Vocabulary:
    """The names of one condition that the corpus has often enough."""
    index = codes.index
    if name == "year":
        return years(settings, *index["years"]) if index["years"] else Vocabulary()
    counts = index["vocabulary"].get(name, {})
    return Vocabulary.build(counts, settings.min_songs, settings.table_size)


def years(settings: ConditionSettings, first: int, last: int) -> Vocabulary:
    """The bins of all years from the corpus's first to its last.

    Raises:
        UserError: they are more than the table has entries; names the bin size that fits.
    """
    bins = Vocabulary.of_years(first, last, settings.bin_years)
    if len(bins) > settings.table_size:
        fitting = settings.bin_years
        while len(Vocabulary.of_years(first, last, fitting)) > settings.table_size:
            fitting += 1
        raise UserError(
            f"the songs are of the years {first} to {last}, {len(bins)} entries, and conditions.year.table_size is"
            f" {settings.table_size}; set conditions.year.bin_years to {fitting}, or correct the songs' years"
        )
    return bins
