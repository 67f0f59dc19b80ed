"""Listening tests: the clips of which there are several recordings, their anchors, and the order for each listener."""

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from threading import Lock
from typing import Any

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.data.audio import encode_flac, facts, read
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.samples import ListedSample
from megajukebox.explorer.loaders.search_index import FINEST_FIRST
from megajukebox.explorer.server.ratings import (
    ANCHOR,
    ORIGINAL,
    ClipRating,
    append_rating,
    read_ratings,
)
from megajukebox.explorer.site_files import ContainedFile

MAX_OPEN = 1000  # tests that may wait for their ratings; the oldest is dropped
MAX_CONDITIONS = (
    7  # with the original and the anchor nine: more cannot be kept in mind, nor have a key
)
MAX_SECONDS = 60.0  # of a clip; BS.1534 asks for about ten seconds
ANCHOR_HERTZ = 3500.0  # the low-range anchor of BS.1534-3
ANCHOR_RATIO = 1 / 6  # of the sample rate, where that is lower: an anchor must be heard to be one
ROLL_OFF = 8 / 7  # of the anchor: from its edge to nothing


@dataclass(frozen=True)
class ListeningClip:
    """One real song of which there are reconstructions."""

    key: str
    title: str
    seconds: float
    original: tuple[str, str]  # (name of a sample, its track)
    tracks: Mapping[str, tuple[str, str]]  # by condition


@dataclass(frozen=True)
class OpenTest:
    """The recordings that one listener was given, in their order."""

    clip: ListeningClip
    listener: str
    order: tuple[str, ...]  # conditions, number 1 first


def clips_of(
    samples: Mapping[str, ListedSample], entries: Iterable[Mapping[str, Any]]
) -> list[ListeningClip]:
    """Every song with its original and at least one reconstruction, by key. A condition is a track, of a run."""
    grouped: dict[str, list[tuple[str, ListedSample]]] = {}
    for entry in entries:
        sample = samples.get(entry["name"])
        if sample and entry.get("mode") == "reconstruct" and ORIGINAL in sample.audio:
            grouped.setdefault(entry["request_key"], []).append((entry.get("run", ""), sample))
    runs = {run for members in grouped.values() for run, _ in members}
    clips = []
    for key, members in sorted(grouped.items()):
        tracks: dict[str, tuple[str, str]] = {}
        for run, sample in sorted(members, key=lambda member: (member[0], member[1].name)):
            for track in FINEST_FIRST:
                if track in sample.audio and track not in (ORIGINAL, "reconstruction"):
                    name = track.replace("_", " ")
                    condition = f"{run}: {name}" if len(runs) > 1 else name
                    tracks.setdefault(condition, (sample.name, track))
        first = members[0][1]
        seconds = first.record.seconds
        if tracks and 0 < seconds <= MAX_SECONDS:
            title = first.record.request.artist or first.name
            clips.append(ListeningClip(key, title, seconds, (first.name, ORIGINAL), tracks))
    return clips


def shuffled(values: Iterable[str], *seed: str) -> list[str]:
    """`values` in an order that the seed alone decides."""

    def place(value: str) -> bytes:
        return hashlib.sha256("\0".join((*seed, value)).encode()).digest()

    return sorted(values, key=place)


@dataclass
class ListeningTests:
    """Open tests; ratings go to the file at `ratings`, anchors and measured loudness are in `site`."""

    ratings: Path
    site: Path
    pending: OrderedDict[str, OpenTest] = field(default_factory=OrderedDict)
    lock: Lock = field(default_factory=Lock)

    def next(
        self,
        samples: Mapping[str, ListedSample],
        clips: list[ListeningClip],
        conditions: list[str],
        listener: str,
    ) -> dict[str, Any]:
        """A new test as the page may know it: of the first clip, in the listener's order, that they did not rate.

        Once they rated all, they may rate them again: the last ratings count.

        Raises:
            UserError: too few or too many conditions, no clip has them all, or the original cannot be read.
        """
        if not 1 <= len(conditions) <= MAX_CONDITIONS:
            raise UserError(
                f"{len(conditions)} recordings are chosen; choose 1 to {MAX_CONDITIONS}"
            )
        complete = {clip.key: clip for clip in clips if set(conditions) <= clip.tracks.keys()}
        if not complete:
            raise UserError("no clip has all recordings that are chosen; choose fewer")
        known, _ = read_ratings(self.ratings)
        rated = {one.clip for one in known if one.listener == listener}
        order = shuffled(complete, listener)
        unrated = [key for key in order if key not in rated]
        clip = complete[(unrated or order)[0]]
        stimuli = shuffled([*conditions, ORIGINAL, ANCHOR], listener, clip.key)
        self.anchor(samples, clip)
        identity = secrets.token_urlsafe(12)
        with self.lock:
            self.pending[identity] = OpenTest(clip, listener, tuple(stimuli))
            while len(self.pending) > MAX_OPEN:
                self.pending.popitem(last=False)
        audio = {str(n): f"/api/stimuli/{identity}/{n}" for n in range(1, len(stimuli) + 1)}
        audio["Reference"] = f"/api/stimuli/{identity}/0"
        measured = [self.loudness(samples, clip, name) for name in (ORIGINAL, *stimuli)]
        return {
            "id": identity,
            "seconds": clip.seconds,
            "clips": len(complete),
            "rated": len(complete) - len(unrated),
            "audio": audio,
            "db": dict(zip(("Reference", *audio), measured)),
        }

    def recording(
        self, samples: Mapping[str, ListedSample], identity: str, number: str
    ) -> ContainedFile | None:
        """The recording of a number of an open test; 0 is the reference."""
        test = self.pending.get(identity)
        numbers = [str(n) for n in range(len(test.order) + 1)] if test else []
        if test is None or number not in numbers:
            return None
        condition = (ORIGINAL, *test.order)[int(number)]
        if condition == ANCHOR:
            return self.anchor(samples, test.clip)
        name, track = track_of(test.clip, condition)
        sample = samples.get(name)
        return sample.recording(track) if sample and track in sample.audio else None

    def anchor(self, samples: Mapping[str, ListedSample], clip: ListeningClip) -> ContainedFile:
        """The original without its treble, written when it is asked for first.

        Raises:
            UserError: the original cannot be read.
        """
        name, track = clip.original
        sample = samples.get(name)
        if sample is None or track not in sample.audio:
            raise UserError(f"the original of {clip.title} is gone; load the page again")
        file = ContainedFile(self.site, PurePath("anchors") / f"{sample.digest[:32]}.flac")
        if not file.is_recording():
            try:
                with sample.recording(track).reader() as recording:
                    rate = facts(recording).sample_rate
                    recording.seek(0)
                    wave_TC = read(recording, rate, MAX_SECONDS + 1)
            except (OSError, ValueError) as error:
                raise UserError(f"the original of {clip.title} cannot be read: {error}") from error
            site_files.write(file.path, encode_flac(low_pass(wave_TC, rate), rate))
        return file

    def loudness(
        self, samples: Mapping[str, ListedSample], clip: ListeningClip, condition: str
    ) -> float | None:
        """In dB, as measured when the pages were built; the anchor is as loud as the original was."""
        name, track = track_of(clip, ORIGINAL if condition == ANCHOR else condition)
        sample = samples[name]
        try:
            safe = site_files.safe_name(sample.name)
            return site_files.read_script(self.site / "peaks" / f"{safe}.{track}.js")["db"]
        except (OSError, ValueError, KeyError):  # it could not be drawn
            return None

    def listener(self, identity: str) -> str:
        """Who asked for an open test; "" where it is none."""
        test = self.pending.get(identity)
        return test.listener if test else ""

    def rate(self, identity: str, scores: object) -> dict[str, str]:
        """Keep the ratings {number: 0 to 100} of a test, and return what was behind each number.

        Raises:
            UserError: the test is not open, or a number has no score from 0 to 100.
        """
        test = self.pending.get(identity)
        if test is None:
            raise UserError(
                "this clip is not open for ratings (rated before, or the server was restarted)"
            )
        numbers = {str(number): name for number, name in enumerate(test.order, start=1)}
        if not isinstance(scores, dict) or scores.keys() != numbers.keys():
            raise UserError(f"rate every recording, 1 to {len(numbers)}")
        for number, score in scores.items():
            is_number = isinstance(score, int | float) and not isinstance(score, bool)
            if not is_number or not 0 <= score <= 100:
                raise UserError(f"recording {number} has no score from 0 to 100")
        rating = ClipRating(
            clip=test.clip.key,
            listener=test.listener,
            scores={printable(numbers[number]): score for number, score in scores.items()},
            order=tuple(map(printable, test.order)),
            time=round(time.time(), 3),
        )
        with self.lock:
            if self.pending.pop(identity, None) is None:
                raise UserError("this clip was rated a moment ago")
        append_rating(self.ratings, rating)
        return numbers


def track_of(clip: ListeningClip, condition: str) -> tuple[str, str]:
    """(name of the sample, its track)."""
    return clip.original if condition == ORIGINAL else clip.tracks[condition]


def printable(name: str) -> str:
    """A folder's name may hold bytes that are not text."""
    return name.encode("utf-8", "replace").decode()


def low_pass(wave_TC: np.ndarray, rate: int) -> np.ndarray:
    """`wave_TC` [T, C] with nothing above the anchor's edge but its roll-off; a raised cosine, no delay."""
    edge = min(ANCHOR_HERTZ, ANCHOR_RATIO * rate)
    hertz = np.fft.rfftfreq(len(wave_TC), 1 / rate)
    beyond = np.clip((hertz - edge) / (edge * (ROLL_OFF - 1)), 0, 1)
    gain = 0.5 + 0.5 * np.cos(np.pi * beyond)
    spectrum = np.fft.rfft(wave_TC, axis=0) * gain[:, None]
    return np.fft.irfft(spectrum, len(wave_TC), axis=0).astype(np.float32)
