"""What the list, the comparison and the blind test know of a sample: one flat record, small enough for thousands."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from megajukebox.common.levels import LEVELS
from megajukebox.explorer.loaders.samples import TRACKS, ListedSample
from megajukebox.explorer.loaders.timed_lyrics import plain

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
SIDES = (
    "run",
    "checkpoint",
    "sampler",
    "mode",
    "folder",
)  # what two samples of one request may differ in
# Of a request, what is asked of the song; the rest says how to draw it.
ASKED = (
    "artist", "genres", "year", "moods", "keywords", "language", "lyrics", "seconds", "song_seconds",
    "prompt", "keep_seconds", "upsample", "upsample_from", "infill", "replace", "song",
)  # fmt: skip
SEARCHED = 2000  # characters of the lyrics that the list can search


@dataclass(frozen=True)
class Links:
    """Where the files of one sample lie, as URLs from the page that shows them. Each maps track -> URL."""

    page: str
    audio: dict[str, str]
    spectrogram: dict[str, str]
    peaks: dict[str, str]


def title(sample: ListedSample) -> str:
    return sample.facts.request.artist or sample.name


def entry(sample: ListedSample, links: Links) -> dict[str, Any]:
    """The record of one sample. Empty values are left out: of thousands, they would be half of the bytes."""
    request = sample.facts.request
    known = {
        "name": sample.name,
        "title": title(sample),
        "artist": request.artist,
        "genres": list(request.genres),
        "year": request.year,
        "moods": list(request.moods),
        "language": request.language,
        "run": run_name(sample),
        "checkpoint": checkpoint(sample),
        "sampler": sampler(sample),
        "mode": mode(sample),
        "folder": sample.name.rpartition("/")[0],
        "seed": seed(sample),
        "seconds": sample.facts.seconds,
        "notes": len(sample.facts.notes),
        "made": round(sample.made),
        "asked": asked(sample.request, song_of(sample)),
        "levels": [track for track in TRACKS if track in links.audio],
        "page": links.page,
        "picture": finest(links.spectrogram),
        "audio": links.audio,
        "peaks": links.peaks,
        "spectrogram": links.spectrogram,
    }
    return {
        key: value
        for key, value in known.items()
        if value not in (None, "", [], 0) or key == "seconds"
    }


def mode(sample: ListedSample) -> str:
    """How the song came about: from nothing, from a recording or another sample, or as a reconstruction."""
    if sample.facts.reconstruction:
        return "reconstruct"
    return next(
        (mode for mode in ("prompt", "upsample", "infill") if getattr(sample.facts.request, mode)),
        "new",
    )


def seed(sample: ListedSample) -> str | None:
    """As text, for JavaScript rounds large numbers. A reconstruction draws nothing."""
    given = sample.facts.request.seed
    return None if given is None or sample.facts.reconstruction else str(given)


def words(sample: ListedSample) -> str:
    """What a search may find beside the names."""
    return plain(sample.lyrics)[:SEARCHED]


def finest(by_track: dict[str, str]) -> str | None:
    """The finished song's, or of what there is the best."""
    order = ("bottom", "reconstruction", "original", "middle", "top")
    return next((by_track[track] for track in order if track in by_track), None)


def song_of(sample: ListedSample) -> str | None:
    """The key of the real song that a reconstruction is of."""
    told = sample.facts.reconstruction
    return str(told.get("song")) if isinstance(told, dict) else None


def asked(request: Any, song: str | None = None) -> str:
    """One name for all requests that ask for one song, or all reconstructions of one, whatever is to make it."""
    told = {**request, "song": song} if isinstance(request, dict) else {}
    said = {name: told.get(name) for name in ASKED if told.get(name)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]


def run_name(sample: ListedSample) -> str:
    runs = sample.facts.runs
    return runs_folder(runs) if runs else ""


def runs_folder(runs: object) -> str:
    """The folder of the runs that made a sample, from its path or from the paths of the runs in it; else a guess."""
    one = next(iter(runs.values()), None) if isinstance(runs, dict) else None
    if isinstance(one, str) and "/" in one:
        return one.rpartition("/")[0]
    return runs if isinstance(runs, str) else "runs"


def sampler(sample: ListedSample) -> str:
    """What drew the codes: the request's word for it, a student where one was at work, else how windows followed."""
    if sample.facts.reconstruction:
        return ""
    if sample.facts.request.sampler:
        return sample.facts.request.sampler
    if any(name.endswith("_student") for name in sample.facts.weights):
        return "student"
    ways = {made.way for made in sample.facts.levels.values()} - {"", "sequential"}
    return " ".join(["autoregressive", *sorted(ways)])


def checkpoint(sample: ListedSample) -> str:
    """Which state of the priors (or of a reconstruction's VQ-VAE): the first known step, or a fingerprint's head."""
    for level in ("vqvae",) if sample.facts.reconstruction else LEVELS:
        if sample.facts.steps.get(level) is not None:
            return f"step {sample.facts.steps[level]}"
        if isinstance(weights := sample.facts.weights.get(level), str):
            return weights[:8]
    return ""


def pairs(
    entries: Iterable[dict[str, Any]], field: str, left: str, right: str
) -> list[tuple[dict, dict]]:
    """Samples of the same request, one with each value of `field`; same seeds together, else in the order of names.

    Only samples that can be heard count.
    """
    sides: dict[str, dict[str, list[dict]]] = {left: {}, right: {}}
    for one in sorted(entries, key=lambda one: one["name"]):
        if one.get("audio") and one.get(field) in sides:
            sides[one[field]].setdefault(one["asked"], []).append(one)
    found = []
    for song, ours in sides[left].items():
        theirs = list(sides[right].get(song, []))
        for one in sorted(
            ours, key=lambda one: not any(one.get("seed") == other.get("seed") for other in theirs)
        ):
            if theirs:
                other = next(
                    (other for other in theirs if other.get("seed") == one.get("seed")), theirs[0]
                )
                theirs.remove(other)
                found.append((one, other))
    return found
