"""The table of what a prior may be conditioned on; dataset, sampler, guidance and planner walk it.

    song on disk --- read ----------+
                                    +--> value of the whole song --- window ---> array of one window ---> torch module
    request -------- from_request --+
                     null: the value of a song of which nothing is known (dropout, guidance)

The torch module of each lies in models/conditioners.py. Codes of the level above are codes, not a condition: they come
from the code shards or from the level that was sampled before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from megajukebox.conditioning.jukebox_labels import as_written
from megajukebox.conditioning.lrc import TimedWord, parse_lrc
from megajukebox.conditioning.lyric_windows import LyricWindow, window_of_lyrics
from megajukebox.conditioning.section_conditions import (
    MEMORY,
    SECTIONS,
    EarlierCodes,
    MemoryCondition,
    memory_conditions,
    sections_conditions,
)
from megajukebox.conditioning.song_sections import SectionPlan
from megajukebox.conditioning.tokenizers import LyricsTokenizer, TokenizedLyrics
from megajukebox.conditioning.vocabulary import Vocabulary

if TYPE_CHECKING:
    from megajukebox.models.prior import PriorConfig

LABELS = "conditions"  # the entry of a batch that holds one array for each label
LYRICS = "lyrics"
TIMING = "timing"


@dataclass(frozen=True)
class WindowPosition:
    """Where a window lies in its song, all in audio samples."""

    song: int  # length of the whole song
    offset: int
    length: int
    sample_rate: int
    # Reads codes of the song's level before the window; None where there are none at hand.
    earlier: EarlierCodes | None = field(default=None, compare=False)

    @property
    def timing(self) -> tuple[int, int, int]:
        """(length of the song, start, length of the window): what the timing conditioner reads."""
        return self.song, self.offset, self.length


class SongOnDisk(Protocol):
    """What a condition may read of a song in a shard set."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The fields of the song's JSON."""

    def member(self, name: str) -> bytes | None:
        """A file that lies beside the song's codes (`lyrics`, ...); None if this song has none."""


class RequestedSong(Protocol):
    """What a condition may read of a request to sample a song."""

    @property
    def lyrics(self) -> str:
        """Plain text, or LRC with times."""

    @property
    def aligned(self) -> Mapping[str, Any]:
        """What is asked of each condition that follows the time of the song, by its name."""

    @property
    def section_plan(self) -> SectionPlan:
        """When which section is to sound, and which of them returns."""

    def names(self, condition: str) -> list[str]:
        """The names asked for under one label."""


@dataclass(frozen=True)
class SongConditioning:
    """What a whole song is conditioned on: the conditions of its prior, and the value of each by its name."""

    conditions: tuple[Condition, ...]
    values: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        config: PriorConfig,
        labels: Mapping[str, np.ndarray],
        tokens: TokenizedLyrics | None = None,
        words: Sequence[TimedWord] = (),
    ) -> SongConditioning:
        """From ids of labels and the tokens of the lyrics; all else is unknown."""
        unknown = cls(conditions_of(config, ConditionResources()), {}).null()
        lyrics = SongLyrics(tokens or NO_TOKENS, tuple(words))
        return cls(unknown.conditions, {**unknown.values, **labels, LYRICS: lyrics})

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """The ids of every label."""
        return {c.name: self.values[c.name] for c in self.conditions if c.group == LABELS}

    @property
    def tokens(self) -> TokenizedLyrics:
        """Of the whole lyrics; none for a song without lyrics, or a prior that reads none."""
        return self.values.get(LYRICS, NO_LYRICS).tokens

    @property
    def words(self) -> tuple[TimedWord, ...]:
        """With their times, if the lyrics came with them."""
        return self.values.get(LYRICS, NO_LYRICS).words

    def lyrics_window(self, position: WindowPosition) -> LyricWindow:
        """The lyric tokens of one window, and which tokens of the song they are."""
        for condition in self.conditions:
            if isinstance(condition, LyricsCondition):
                return self.values[LYRICS].window(position, condition.tokens)
        raise AssertionError("only a prior that reads lyrics can be aligned with them")

    def without_word_times(self) -> SongConditioning:
        """The same song with the linear rule for its lyric windows."""
        return SongConditioning(self.conditions, {**self.values, LYRICS: SongLyrics(self.tokens)})

    def null(self) -> SongConditioning:
        """A song of which nothing is known, for the same prior; dropout leaves conditions out in this way."""
        return SongConditioning(self.conditions, {c.name: c.null() for c in self.conditions})

    def window(
        self, position: WindowPosition, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """What one window is conditioned on: {name: array}, labels together under `conditions`.

        With `rng` each condition is left out with its own dropout. It draws once a condition, so that one's dropout
        does not move the draws of the others.
        """
        arrays: dict[str, Any] = {LABELS: {}}
        for condition in self.conditions:
            value = self.values[condition.name]
            dropout = condition.dropout
            if rng is not None and dropout is not None:
                draw = rng.random()
                if draw < dropout:
                    value = condition.null()
                elif isinstance(condition, MemoryCondition):
                    value = condition.perturbed(value, seed=int(draw * 2**53))
            group = arrays if condition.group is None else arrays[condition.group]
            group[condition.name] = condition.window(value, position)
        return arrays


@dataclass(frozen=True)
class SongLyrics:
    """The tokens of a song's lyrics, and its words with their times if the lyrics came with them."""

    tokens: TokenizedLyrics
    words: tuple[TimedWord, ...] = ()

    def window(self, position: WindowPosition, size: int) -> LyricWindow:
        """The `size` tokens around the middle of a window."""
        return window_of_lyrics(
            self.tokens, self.words, *position.timing, position.sample_rate, size
        )


NO_TOKENS = TokenizedLyrics([], [])
NO_LYRICS = SongLyrics(NO_TOKENS)


class Condition(Protocol):
    """One thing that a prior is conditioned on."""

    @property
    def name(self) -> str:
        """Of the condition: in a song's values, in a batch, in settings."""

    @property
    def group(self) -> str | None:
        """The entry of the batch that holds this condition's array; None: the batch itself."""

    @property
    def dropout(self) -> float | None:
        """Share of training windows without it; None: it is always given."""

    def read(self, song: SongOnDisk) -> Any:
        """The value of a whole song."""

    def from_request(self, request: RequestedSong) -> Any:
        """The value that a request asks for."""

    def null(self) -> Any:
        """The value of a song of which nothing is known."""

    def window(self, value: Any, position: WindowPosition) -> np.ndarray:
        """The array of one window."""


@dataclass(frozen=True)
class LabelCondition:
    """Names under one field of a song's JSON: artist, genres, moods ... as ids [max_values] int64."""

    name: str
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    max_values: int = (
        1  # 1: one name, unknown where there is none; more: a bag, empty where there is none
    )
    dropout: float | None = 0.0
    spelling: str | None = None  # of the vocabulary, see jukebox_labels.as_written
    group: str | None = LABELS
    always: str | None = None  # the name that every song on disk is given, whatever it says

    def read(self, song: SongOnDisk) -> np.ndarray:
        names = names_of(song.metadata, self.name)
        if self.always is not None:
            names = as_written(self.spelling, self.name, self.always)
        return self.vocabulary.ids(names, self.max_values)

    def from_request(self, request: RequestedSong) -> np.ndarray:
        return self.vocabulary.ids(self.names(request), self.max_values)

    def names(self, request: RequestedSong) -> list[str]:
        """The names that the request asks for, as this vocabulary spells them."""
        spelt: list[str] = []
        for name in request.names(self.name):
            spelt += as_written(self.spelling, self.name, name)
        return spelt

    def null(self) -> np.ndarray:
        return self.vocabulary.ids([], self.max_values)

    def window(self, value: np.ndarray, position: WindowPosition) -> np.ndarray:
        return value


@dataclass(frozen=True)
class TimingCondition:
    """How long the song is and where in it the window lies, [3] int64 in audio samples."""

    name: str = TIMING
    group: str | None = None
    dropout: float | None = None

    def read(self, song: SongOnDisk) -> None:
        return None

    def from_request(self, request: RequestedSong) -> None:
        return None

    def null(self) -> None:
        return None

    def window(self, value: None, position: WindowPosition) -> np.ndarray:
        return np.array(position.timing, dtype=np.int64)


@dataclass(frozen=True)
class LyricsCondition:
    """The `tokens` lyric tokens around the middle of a window, [tokens] int64."""

    tokenizer: LyricsTokenizer | None  # None: songs are given as tokens already
    tokens: int
    dropout: float | None = 0.0
    name: str = LYRICS
    group: str | None = None

    def read(self, song: SongOnDisk) -> SongLyrics:
        text = song.member(LYRICS)
        return NO_LYRICS if text is None else self._encoded(text.decode())

    def from_request(self, request: RequestedSong) -> SongLyrics:
        return self._encoded(request.lyrics)

    def _encoded(self, written: str) -> SongLyrics:
        assert self.tokenizer is not None, "a prior that reads lyrics comes with its tokenizer"
        text, words = parse_lrc(written)
        return SongLyrics(self.tokenizer.encode(text), tuple(words))

    def null(self) -> SongLyrics:
        return NO_LYRICS

    def window(self, value: SongLyrics, position: WindowPosition) -> np.ndarray:
        return value.window(position, self.tokens).ids


@dataclass(frozen=True)
class ConditionResources:
    """What a run keeps beside its weights to read songs and requests: names, tokenizer, dropout."""

    vocabularies: Mapping[str, Vocabulary] = field(default_factory=dict)
    tokenizer: LyricsTokenizer | None = None
    dropout: Mapping[str, float] = field(default_factory=dict)  # by the name of the condition
    spelling: str | None = None  # `names` of the run's model.json
    always: Mapping[str, str] = field(default_factory=dict)  # by label, the name of every song


@dataclass(frozen=True)
class ConditionKind:
    """A row of the table: the conditions of one kind that a prior's config asks for, in the order of its batch."""

    name: str
    conditions: Callable[[PriorConfig, ConditionResources], Iterable[Condition]]


def label_conditions(config: PriorConfig, resources: ConditionResources) -> Iterable[Condition]:
    for name, label in config.conditions.items():
        vocabulary = resources.vocabularies.get(name, Vocabulary())
        dropout = resources.dropout.get(name, 0.0)
        yield LabelCondition(
            name,
            vocabulary,
            label.max_values,
            dropout,
            resources.spelling,
            always=resources.always.get(name),
        )


def lyrics_conditions(config: PriorConfig, resources: ConditionResources) -> Iterable[Condition]:
    if config.lyrics:
        dropout = resources.dropout.get(LYRICS, 0.0)
        yield LyricsCondition(resources.tokenizer, config.lyrics.tokens, dropout)


# The order is that of the random draws of dropout: a new kind goes to the end.
CONDITION_KINDS: list[ConditionKind] = [
    ConditionKind("labels", label_conditions),
    ConditionKind("timing", lambda config, resources: [TimingCondition()]),
    ConditionKind("lyrics", lyrics_conditions),
    ConditionKind(SECTIONS, sections_conditions),
    ConditionKind(MEMORY, memory_conditions),
]


def conditions_of(config: PriorConfig, resources: ConditionResources) -> tuple[Condition, ...]:
    """All conditions of a prior, in the order of the table."""
    conditions: list[Condition] = []
    for kind in CONDITION_KINDS:
        conditions += kind.conditions(config, resources)
    return tuple(conditions)


def read_song(conditions: tuple[Condition, ...], song: SongOnDisk) -> SongConditioning:
    """What a song of a shard set says about each of a prior's conditions."""
    return SongConditioning(conditions, {c.name: c.read(song) for c in conditions})


def read_request(conditions: tuple[Condition, ...], request: RequestedSong) -> SongConditioning:
    """What a request asks for of each of a prior's conditions."""
    return SongConditioning(conditions, {c.name: c.from_request(request) for c in conditions})


def names_of(metadata: Mapping[str, Any], name: str) -> list[str]:
    """The names in field `name` of a song's JSON: none, one, or many."""
    value = metadata.get(name)
    if value is None:
        return []
    if isinstance(value, list):
        return list(map(str, value))
    return [str(value)]
