"""What the list, the comparison and the blind test need of a sample: one flat record, small enough for thousands."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megajukebox.common.levels import LEVELS, VQVAE_FOLDER
from megajukebox.explorer.loaders.samples import TRACKS, ListedSample

FACETS = {  # field of an entry -> its name on the page, in the order of the filters
    "artist": "Artist",
    "genres": "Genre",
    "year": "Year",
    "moods": "Mood",
    "run": "Run",
    "checkpoint": "Checkpoint",
    "levels": "Level",
    "sampler": "Sampler",
    "mode": "Mode",
}
SIDES = ("run", "checkpoint", "sampler", "mode", "folder")  # what two samples may differ in
# Fields of a request that describe the song; the others are those of the sampler.
SONG_FIELDS = (
    "artist",
    "genres",
    "year",
    "moods",
    "keywords",
    "language",
    "lyrics",
    "seconds",
    "song_seconds",
    "prompt",
    "keep_seconds",
    "upsample",
    "upsample_from",
    "infill",
    "replace",
    "song",
)
MAX_SEARCHED_LETTERS = 2000  # of the lyrics that the list can search
FINEST_FIRST = (
    "refined_bottom",
    "bottom",
    "reconstruction",
    "original",
    "refined_middle",
    "middle",
    "refined_top",
    "top",
)
PLAIN_DECODING = ("", "sequential")  # not worth a word in the list
SHOWN_FINGERPRINT = 8  # letters


@dataclass(frozen=True)
class SampleLinks:
    """Where the files of one sample lie, as URLs from the page that shows them. Each maps track -> URL."""

    page: str
    audio: dict[str, str]
    spectrogram: dict[str, str]
    peaks: dict[str, str]


def title(sample: ListedSample) -> str:
    return sample.record.request.artist or sample.name


def entry(sample: ListedSample, links: SampleLinks) -> dict[str, Any]:
    """The record of one sample. Empty values are left out: of thousands, they would be half of the bytes."""
    request = sample.record.request
    reconstruction = sample.record.reconstruction
    song = str(reconstruction.get("song")) if isinstance(reconstruction, dict) else None
    fields = {
        "name": sample.name,
        "title": title(sample),
        "artist": request.artist,
        "genres": list(request.genres),
        "year": request.year,
        "moods": list(request.moods),
        "language": request.language,
        "run": runs_folder(sample.record.runs) if sample.record.runs else "",
        "checkpoint": checkpoint(sample),
        "sampler": sampler(sample),
        "mode": mode(sample),
        "folder": sample.name.rpartition("/")[0],
        "seed": seed(sample),
        "seconds": sample.record.seconds,
        "notes": len(sample.record.notes),
        "created": round(sample.created),
        "request_key": request_key(sample.request, song),
        "levels": [track for track in TRACKS if track in links.audio],
        "page": links.page,
        "picture": finest(links.spectrogram),
        "audio": links.audio,
        "peaks": links.peaks,
        "spectrogram": links.spectrogram,
    }
    record = {}
    for name, value in fields.items():
        if value not in (None, "", [], 0) or name == "seconds":
            record[name] = value
    return record


def mode(sample: ListedSample) -> str:
    """How the song was sampled: from nothing, from a recording or another sample, or as a reconstruction."""
    if sample.record.reconstruction:
        return "reconstruct"
    for name in ("prompt", "upsample", "infill"):
        if getattr(sample.record.request, name):
            return name
    return "new"


def seed(sample: ListedSample) -> str | None:
    """As text, for JavaScript rounds large numbers. A reconstruction draws nothing."""
    number = sample.record.request.seed
    return None if number is None or sample.record.reconstruction else str(number)


def finest(by_track: dict[str, str]) -> str | None:
    """The value of the finished song, or of the best track that there is."""
    for track in FINEST_FIRST:
        if track in by_track:
            return by_track[track]
    return None


def request_key(request: Any, song: str | None = None) -> str:
    """One key for all requests of the same song, or all reconstructions of the real `song`, whatever sampled them."""
    fields = {**request, "song": song} if isinstance(request, dict) else {}
    described = {name: fields[name] for name in SONG_FIELDS if fields.get(name)}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:12]


def runs_folder(runs: object) -> str:
    """The folder of the runs that sampled a song, from its path or from the paths of the runs in it; else a guess."""
    first = next(iter(runs.values()), None) if isinstance(runs, dict) else None
    if isinstance(first, str) and "/" in first:
        return first.rpartition("/")[0]
    return runs if isinstance(runs, str) else "runs"


def sampler(sample: ListedSample) -> str:
    """What sampled the codes: as the request names it, a student if one was used, else how windows were decoded."""
    if sample.record.reconstruction:
        return ""
    if sample.record.request.sampler:
        return sample.record.request.sampler
    if any(name.endswith("_student") for name in sample.record.weights):
        return "student"
    decodings = {level.decoding for level in sample.record.levels.values()}
    return " ".join(["autoregressive", *sorted(decodings.difference(PLAIN_DECODING))])


def checkpoint(sample: ListedSample) -> str:
    """Which state of the priors (or of a reconstruction's VQ-VAE): the first known step, or a fingerprint's head."""
    record = sample.record
    for level in (VQVAE_FOLDER,) if record.reconstruction else LEVELS:
        if record.steps.get(level) is not None:
            return f"step {record.steps[level]}"
        fingerprint = record.weights.get(level)
        if isinstance(fingerprint, str):
            return fingerprint[:SHOWN_FINGERPRINT]
    return ""


def pairs(
    entries: Iterable[dict[str, Any]], field: str, left: str, right: str
) -> list[tuple[dict, dict]]:
    """Samples of the same request, one with each value of `field`; same seeds together, else in the order of names.

    Only samples that have a recording count.
    """
    sides: dict[str, dict[str, list[dict]]] = {left: {}, right: {}}
    for one in sorted(entries, key=lambda one: one["name"]):
        if one.get("audio") and one.get(field) in sides:
            sides[one[field]].setdefault(one["request_key"], []).append(one)
    matched = []
    for song, left_entries in sides[left].items():
        unmatched = list(sides[right].get(song, []))
        right_seeds = [other.get("seed") for other in unmatched]
        # Entries whose seed the other side has come first, so that no other takes their partner.
        for one in sorted(left_entries, key=lambda one: one.get("seed") not in right_seeds):
            if unmatched:
                same_seed = [other for other in unmatched if other.get("seed") == one.get("seed")]
                partner = same_seed[0] if same_seed else unmatched[0]
                unmatched.remove(partner)
                matched.append((one, partner))
    return matched
