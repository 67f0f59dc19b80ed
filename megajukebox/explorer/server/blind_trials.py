"""Blind trials: which pair is played next, and which side of it is hidden behind A. Only the server knows."""

import secrets
import time
from collections import Counter, OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from megajukebox.common.errors import UserError
from megajukebox.explorer import site_files
from megajukebox.explorer.loaders.samples import ListedSample
from megajukebox.explorer.loaders.search_index import SIDES, finest, pairs
from megajukebox.explorer.loaders.timed_lyrics import plain_text
from megajukebox.explorer.server.votes import OTHER_SIDE, Vote, append_vote, read_votes
from megajukebox.explorer.site_files import ContainedFile

MAX_OPEN = 1000  # trials that may wait for their vote; the oldest is dropped
TIE_BREAK_BITS = 32


@dataclass(frozen=True)
class BlindTrial:
    """One pair in the order in which it is played."""

    field: str
    samples: tuple[str, str]  # the names of the samples behind A and B
    sides: tuple[str, str]  # the values of `field` behind A and B
    swapped: bool  # whether A hides the side that was called b
    voter: str = ""  # whoever asked for it: a name that their browser made up, or nothing


class BlindTrials:
    """Open trials; votes go to the file at `votes`, `site` holds the measured loudness."""

    def __init__(self, votes: Path, site: Path) -> None:
        self.votes = votes
        self.site = site
        self.open: OrderedDict[str, BlindTrial] = OrderedDict()
        self.lock = Lock()

    def next(
        self,
        samples: dict[str, ListedSample],
        entries: list[dict[str, Any]],
        field: str,
        a: str,
        b: str,
        voter: str = "",
    ) -> dict[str, Any]:
        """A new trial of two values of `field`, as the page may know it: of the pair with the fewest votes.

        Args:
            samples: by name; `entries` are their records in the list.

        Raises:
            UserError: there is no such pair.
        """
        if field not in SIDES or a == b:
            raise UserError(
                f"no two sides differ in {field!r}; choose two values of {', '.join(SIDES)}"
            )
        matched = pairs(entries, field, a, b)
        if not matched:
            raise UserError(
                f"{a} and {b} have no request in common: sample the same requests with both"
            )
        votes, _ = read_votes(self.votes)
        votes_of = Counter(frozenset((vote.sample_a, vote.sample_b)) for vote in votes)
        left, right = min(
            matched,
            key=lambda pair: (votes_of[pair_names(pair)], secrets.randbits(TIE_BREAK_BITS)),
        )
        trial = BlindTrial(field, (left["name"], right["name"]), (a, b), swapped=False, voter=voter)
        if secrets.randbits(1) == 1:
            names = (right["name"], left["name"])
            trial = BlindTrial(field, names, (b, a), swapped=True, voter=voter)
        identity = secrets.token_urlsafe(12)
        with self.lock:
            self.open[identity] = trial
            while len(self.open) > MAX_OPEN:
                self.open.popitem(last=False)
        voted = sum(votes_of[pair_names(pair)] > 0 for pair in matched)
        first, second = (samples[name] for name in trial.samples)
        loudnesses = {"A": loudness(self.site, first), "B": loudness(self.site, second)}
        return {
            "id": identity,
            "db": loudnesses,
            "pairs": len(matched),
            "voted": min(voted, len(matched) - 1),
            **shared_facts(identity, first),
        }

    def voter(self, identity: str) -> str:
        """Who asked for an open trial; "" where it is none."""
        trial = self.open.get(identity)
        return trial.voter if trial else ""

    def recording(
        self, samples: dict[str, ListedSample], identity: str, side: str
    ) -> ContainedFile | None:
        """The recording behind a side of an open trial."""
        trial = self.open.get(identity)
        if trial is None or side not in ("a", "b"):
            return None
        sample = samples.get(trial.samples["ab".index(side)])
        track = played_track(sample) if sample else ""
        return sample.recording(track) if sample and track else None

    def vote(self, identity: str, choice: str) -> dict[str, str]:
        """Keep a vote and return which value of the field was behind A and B.

        Raises:
            UserError: the trial is not open, or `choice` is none.
        """
        if choice not in OTHER_SIDE:
            raise UserError(f"vote {choice!r} is none of {', '.join(OTHER_SIDE)}")
        with self.lock:
            trial = self.open.pop(identity, None)
        if trial is None:
            raise UserError(
                "this pair is not open for a vote (voted on before, or the server was restarted)"
            )
        a, b = trial.sides
        sample_a, sample_b = trial.samples
        winner = choice
        first = "a"
        if trial.swapped:
            a, b = b, a
            sample_a, sample_b = sample_b, sample_a
            winner = OTHER_SIDE[choice]
            first = "b"
        vote = {
            "field": trial.field,
            "a": a,
            "b": b,
            "sample_a": sample_a,
            "sample_b": sample_b,
            "winner": winner,
            "first": first,
            "time": round(time.time(), 3),
            "voter": trial.voter,
        }
        for name, value in vote.items():
            if isinstance(value, str):  # a file name may hold bytes that are not text
                vote[name] = value.encode("utf-8", "replace").decode()
        append_vote(self.votes, Vote.model_validate(vote))
        return dict(zip("AB", trial.sides))


def pair_names(pair: tuple[dict, dict]) -> frozenset[str]:
    left, right = pair
    return frozenset((left["name"], right["name"]))


def played_track(sample: ListedSample) -> str:
    """The finished song, or the best track there is of it."""
    return finest(dict(zip(sample.audio, sample.audio))) or ""


def loudness(site: Path, sample: ListedSample) -> float | None:
    """In dB, as measured when the pages were built: the louder of two is else preferred."""
    name = f"{site_files.safe_name(sample.name)}.{played_track(sample)}.js"
    try:
        return site_files.read_script(site / "peaks" / name)["db"]
    except OSError:  # it could not be drawn
        return None


def shared_facts(identity: str, sample: ListedSample) -> dict[str, Any]:
    """What both sides of a trial share, and the addresses of their recordings."""
    request = sample.record.request
    return {
        "artist": request.artist,
        "genres": list(request.genres),
        "lyrics": plain_text(sample.lyrics),
        "seconds": sample.record.seconds,
        "audio": {"A": f"/api/trials/{identity}/a", "B": f"/api/trials/{identity}/b"},
    }
