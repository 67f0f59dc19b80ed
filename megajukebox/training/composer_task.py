"""The stage `composer`: a prior over events of written music, window by window."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.common.levels import COMPOSER_FOLDER
from megajukebox.common.provenance import made_by
from megajukebox.common.untrusted_files import parse_json, read_inside
from megajukebox.conditioning.schema import ConditionResources, conditions_of
from megajukebox.conditioning.vocabulary import VOCABULARIES, Vocabulary, vocabularies_json
from megajukebox.data.shards.blended_sets import ShardBlend, open_data
from megajukebox.data.shards.index import NOTES_TIME_RATE
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.blend import BlendedClips
from megajukebox.data.stream.note_windows import NoteWindows, check_notes
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.notes.events import NOTES_VOCABULARY, NoteVocabulary
from megajukebox.notes.holes import ScoreLayout
from megajukebox.training.config import Preset
from megajukebox.training.finetune import PretrainedModel
from megajukebox.training.prior_settings import ComposerSettings
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest


def composer_task(request: TaskRequest, reading: ReaderShare) -> Task:
    """The composer of a preset on windows of the notes in `request.data`.

    Raises:
        UserError: they are no notes, the preset describes no composer, or the weights to start from are of another one.
    """
    preset = request.preset
    settings = composer_settings(preset)
    data = open_data(request.data, request.remote)
    sets = [data] if isinstance(data, ShardSet) else list(data.sets)
    for shards in sets:
        check_notes(shards)
    vocabulary, names = vocabularies_of(settings, data, sets, request.base)
    config = preset.composer_config(vocabulary.size, ScoreLayout(vocabulary).entries)
    check_base(request.base, config)
    dropouts = {name: table.dropout for name, table in settings.conditions.items()}
    conditions = conditions_of(config, ConditionResources(names, None, dropouts))
    held_out = request.settings.evaluation.held_out
    slots = settings.score.slots if settings.score else 0
    windows = []
    for shards in sets:
        windows.append(
            NoteWindows(
                *(shards, vocabulary, config.window, held_out, conditions),
                *(settings.transpose, slots),
            )
        )
    blend = None if isinstance(data, ShardSet) else BlendedClips(data, windows)
    events_per_step = reading.global_batch * config.window
    frames = sum(float(shards.songs["frames"].sum()) for shards in sets)
    seconds_an_event = frames / NOTES_TIME_RATE / max(1, total(sets, "events"))
    facts: dict[str, Any] = {
        "level": COMPOSER_FOLDER,
        "sample_rate": NOTES_TIME_RATE,
        "preset": preset.name,
        "made_by": made_by(),
        "notes": data.fingerprint,
        "licences": licences_of(sets),
    }
    return Task(
        kind="composer",
        config=config,
        build=lambda: Prior(config),
        source=blend or windows[0],
        settings=request.settings,
        reading=reading,
        units_per_step=events_per_step,
        audio_seconds=events_per_step * seconds_an_event,
        speed_name="tokens_per_second",
        files={
            VOCABULARIES: vocabularies_json(names),
            NOTES_VOCABULARY: (json.dumps(vocabulary.to_json()) + "\n").encode(),
        },
        facts=facts if blend is None else facts | {"sets": blend.named_weights()},
    )


def total(sets: Sequence[ShardSet], name: str) -> int:
    """Of a count that the index of note shards keeps."""
    return sum(int(shards.index["notes"][name]) for shards in sets)


def licences_of(sets: Sequence[ShardSet]) -> dict[str, int]:
    """How many of the pieces that a composer learns from have which licence."""
    licences: Counter[str] = Counter()
    for shards in sets:
        licences.update(shards.index["notes"]["licences"])
    return dict(sorted(licences.items()))


def composer_settings(preset: Preset) -> ComposerSettings:
    """Raises UserError where the preset describes no composer."""
    if preset.composer is None:
        raise UserError(
            f"preset {preset.name!r} describes no composer; take tiny, or add composer:"
        )
    return preset.composer


def vocabularies_of(
    settings: ComposerSettings,
    data: ShardSet | ShardBlend,
    sets: Sequence[ShardSet],
    base: PretrainedModel | None,
) -> tuple[NoteVocabulary, dict[str, Vocabulary]]:
    """The events, and the names of each condition: of the corpus, or of the weights that are trained further."""
    if base is not None:
        stored = parse_json(read_inside(base.folder, NOTES_VOCABULARY))
        return NoteVocabulary.from_json(stored), dict(base.vocabularies)
    corpus = NoteVocabulary.joined(
        NoteVocabulary.from_json(shards.index["notes"]["vocabulary"]) for shards in sets
    )
    lowest, highest = settings.transpose
    names = {}
    for name, table in settings.conditions.items():
        counts = data.index["vocabulary"].get(name, {})
        names[name] = Vocabulary.build(counts, table.min_songs, table.table_size)
    return corpus.transposed(range(lowest, highest + 1)), names


def check_base(base: PretrainedModel | None, config: PriorConfig) -> None:
    """Raise UserError unless the weights to start from are of a composer of this shape."""
    if base is not None and (base.facts["kind"] != "composer" or base.config != config):
        raise UserError(
            f"--from {base.folder} holds no composer of this shape; give a run of train composer"
            " with the same settings"
        )
