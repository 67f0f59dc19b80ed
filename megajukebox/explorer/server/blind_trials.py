"""Blind trials: which pair is heard next, and which side of it is hidden behind A. Only the server knows."""

import secrets
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.samples import ListedSample
from megajukebox.explorer.loaders.search_index import SIDES, finest, pairs
from megajukebox.explorer.loaders.timed_lyrics import plain
from megajukebox.explorer.server.votes import Vote, append, read

OPEN_TRIALS = 1000  # that may wait for their vote; the oldest is forgotten


@dataclass(frozen=True)
class Trial:
    """One pair in the order in which it is heard."""

    field: str
    heard: tuple[str, str]  # the names of the samples behind A and B
    sides: tuple[str, str]  # the values of `field` behind A and B
    turned: bool  # whether A hides the side that was called b


class Trials:
    """Open trials; votes go to the file at `votes`. `samples` are by name, `entries` what the list knows of them."""

    def __init__(self, votes: Path, site: Path) -> None:
        self.votes, self.site = votes, site
        self.open: OrderedDict[str, Trial] = OrderedDict()
        self.lock = Lock()

    def next(
        self,
        samples: dict[str, ListedSample],
        entries: list[dict[str, Any]],
        field: str,
        a: str,
        b: str,
    ) -> dict[str, Any]:
        """A new trial of two values of `field`, as the page may know it. ValueError if there is no such pair."""
        if field not in SIDES or a == b:
            raise ValueError(
                f"no two sides differ in {field!r}; choose two values of {', '.join(SIDES)}"
            )
        found = pairs(entries, field, a, b)
        if not found:
            raise ValueError(
                f"{a} and {b} have no request in common: sample the same requests with both"
            )
        heard = Counter(frozenset((vote.sample_a, vote.sample_b)) for vote in read(self.votes)[0])
        left, right = min(found, key=lambda pair: (heard[names(pair)], secrets.randbits(32)))
        turned = secrets.randbits(1) == 1
        both = (right["name"], left["name"]) if turned else (left["name"], right["name"])
        identity = secrets.token_urlsafe(12)
        with self.lock:
            self.open[identity] = Trial(field, both, (b, a) if turned else (a, b), turned)
            while len(self.open) > OPEN_TRIALS:
                self.open.popitem(last=False)
        done = sum(1 for pair in found if heard[names(pair)])
        count = {"pairs": len(found), "heard": min(done, len(found) - 1)}
        loud = {side: loudness(self.site, samples[name]) for side, name in zip("AB", both)}
        return {"id": identity, "db": loud, **count, **told(identity, samples[both[0]])}

    def recording(self, samples: dict[str, ListedSample], identity: str, side: str) -> Path | None:
        """What is behind a side of an open trial."""
        trial = self.open.get(identity)
        sample = (
            samples.get(trial.heard["ab".index(side)]) if trial and side in ("a", "b") else None
        )
        return sample.audio.get(heard_track(sample)) if sample else None

    def vote(self, identity: str, choice: str) -> dict[str, str]:
        """Keep a vote and tell what was behind the sides. ValueError for a trial that is not open, or no choice."""
        if choice not in ("a", "b", "same"):
            raise ValueError(f"vote {choice!r} is none of a, b, same")
        with self.lock:
            trial = self.open.pop(identity, None)
        if trial is None:
            raise ValueError(
                "this pair is not open for a vote (voted on before, or the server was started again)"
            )
        order = (1, 0) if trial.turned else (0, 1)
        winner = choice if choice == "same" or not trial.turned else {"a": "b", "b": "a"}[choice]
        a, b = (trial.sides[n] for n in order)
        sample_a, sample_b = (trial.heard[n] for n in order)
        kept = {
            "field": trial.field,
            "a": a,
            "b": b,
            "sample_a": sample_a,
            "sample_b": sample_b,
            "winner": winner,
        }
        first = "b" if trial.turned else "a"
        append(
            self.votes, Vote.model_validate(kept | {"first": first, "time": round(time.time(), 3)})
        )
        return dict(zip("AB", trial.sides))


def names(pair: tuple[dict, dict]) -> frozenset[str]:
    return frozenset(one["name"] for one in pair)


def heard_track(sample: ListedSample) -> str:
    """The finished song, or the best there is of it."""
    return finest({track: track for track in sample.audio}) or ""


def loudness(site: Path, sample: ListedSample) -> float | None:
    """In dB, as it was measured when the pages were built; louder is otherwise heard as better."""
    measured = site / "peaks" / f"{site_files.safe_name(sample.name)}.{heard_track(sample)}.js"
    return site_files.read_script(measured)["db"] if measured.is_file() else None


def told(identity: str, sample: ListedSample) -> dict[str, Any]:
    """Of a trial's request, what both sides share; where both can be heard."""
    request = sample.facts.request
    return {
        "artist": request.artist,
        "genres": list(request.genres),
        "lyrics": plain(sample.lyrics),
        "seconds": sample.facts.seconds,
        "audio": {name.upper(): f"/api/trials/{identity}/{name}" for name in "ab"},
    }
