"""Several shard sets trained on together: how `--data` names them, and what they are as one corpus.

    --data shards/a:3 --data shards/b:1      three clips of a for one of b
    --data shards/a --data shards/b          by their sizes: an epoch has every clip of both once

A weight is the number after the last colon. A folder whose own name ends so is taken as it is, and so is a
URL without a path (https://host:8080). data/stream/blend.py has the order in which the clips come.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from megajukebox.common.errors import UserError
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.source_url import SourceUrl
from megajukebox.data.shards.transports import is_http, is_url

WEIGHTED = re.compile(r"(?P<address>.+):(?P<weight>[^:/\\#?]*)", re.DOTALL)
NUMBER = re.compile(r"\d{1,9}(?:\.\d{1,9})?")
MAX_SETS = 64


@dataclass(frozen=True)
class WeightedAddress:
    """A `--data` of the command line: an address, and its weight where it has one."""

    address: str
    weight: Fraction | None = None

    @classmethod
    def parse(cls, text: str) -> "WeightedAddress":
        """The parts of `FOLDER`, `FOLDER:3`, `URL:0.25`.

        Raises:
            UserError: the weight is no number above zero.
        """
        match = WEIGHTED.fullmatch(text)
        if match is None or text.startswith("pipe:") or Path(text).exists():
            return cls(text)
        address = match["address"]
        # https://host:8080 names a port; s3://bucket:2 has no such thing, but a bucket alone is no set.
        if is_url(text) and not urlsplit(address).path.strip("/"):
            return cls(text)
        if not NUMBER.fullmatch(match["weight"]) or not float(match["weight"]):
            if is_url(text) or not Path(address).exists():
                return cls(text)
            raise UserError(
                f"--data {text}: weight {match['weight']!r} is not a number above 0; write {address}:2 or {address}:0.5"
            )
        return cls(address, Fraction(match["weight"]))


def parse_data(texts: Sequence[str]) -> list[WeightedAddress]:
    """All `--data` of a command; the weights reduced to whole numbers without a common divisor.

    Raises:
        UserError: some have a weight and some have none, or one is named twice.
    """
    if len(texts) == 1 and is_url(texts[0]):
        return [WeightedAddress(texts[0])]  # as before there were blends
    sets = [WeightedAddress.parse(text) for text in texts]
    if len(sets) > MAX_SETS:
        raise UserError(f"--data is given {len(sets)} times; at most {MAX_SETS} sets are blended")
    twice = [address for address, count in Counter(s.address for s in sets).items() if count > 1]
    if twice:
        raise UserError(f"--data {twice[0]} is given twice; give it once, with a higher weight")
    without = [one.address for one in sets if one.weight is None]
    if without and len(without) < len(sets):
        raise UserError(
            f"--data {without[0]} has no weight, and others have one; write {without[0]}:1, or leave all weights out"
            " to blend by size"
        )
    if without:
        return sets
    weights = whole_weights([one.weight for one in sets if one.weight is not None])
    return [WeightedAddress(one.address, Fraction(w)) for one, w in zip(sets, weights)]


def whole_weights(weights: Sequence[Fraction | int]) -> list[int]:
    """The smallest whole numbers in the proportions of `weights`."""
    fractions = [Fraction(weight) for weight in weights]
    unit = math.lcm(*(weight.denominator for weight in fractions))
    whole = [int(weight * unit) for weight in fractions]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


class ShardBlend:
    """Several shard sets of one kind as one corpus. Song n and shard n count through the sets, in the order of their
    fingerprints: whatever the order on the command line, the blend is the same.

    given        the sets in the order in which they were given
    source       what they were opened by, without secrets
    weights      of the sets, whole numbers; None: by size
    index        as one set of all songs would have it; a shard's name says of which set it is
    folder       of the set whose lyrics model is used: the heaviest that has one
    fingerprint  of the sets and weights, hex
    """

    def __init__(self, sets: Sequence[ShardSet], weights: Sequence[int] | None) -> None:
        check_alike(sets)
        self.given = tuple(sets)
        order = sorted(range(len(sets)), key=lambda number: sets[number].fingerprint)
        self.sets = tuple(sets[number] for number in order)
        self.weights = None if weights is None else tuple(weights[number] for number in order)
        for one, other in zip(self.sets, self.sets[1:]):
            if one.fingerprint == other.fingerprint:
                raise UserError(
                    f"{one.source} and {other.source} are the same set; give it once, with a higher weight"
                )
        self.source = " + ".join(one.source for one in sets)
        lyrical = [one for one in self.sets if one.index.get("lyrics_model")]
        weight_of = dict(zip(self.sets, self.weights or map(len, self.sets)))
        heaviest = max(lyrical, key=lambda one: weight_of[one], default=self.sets[0])
        self.folder = heaviest.folder
        self.index = blended_index(self.sets, heaviest)
        names = self.named_weights(self.weights or ["size"] * len(self.sets))
        self.fingerprint = hashlib.sha256(json.dumps(names, sort_keys=True).encode()).hexdigest()
        self.first_song = np.cumsum([0, *map(len, self.sets)])
        self.first_shard = np.cumsum([0, *(len(one.index["shards"]) for one in self.sets)])

    def __len__(self) -> int:
        return int(self.first_song[-1])

    def named_weights(self, weights: Sequence[int | str]) -> dict[str, int | str]:
        """`weights` by the sets' fingerprints, as records keep them."""
        return dict(zip((one.fingerprint for one in self.sets), weights))

    def song_of(self, song: int) -> tuple[int, int]:
        """(number of the set, song in it)."""
        number = int(np.searchsorted(self.first_song, song, side="right")) - 1
        return number, song - int(self.first_song[number])

    def key(self, song: int) -> str:
        number, own = self.song_of(song)
        return self.sets[number].key(own)

    def prefetch(self, shards: Iterable[int]) -> None:
        """Fetch remote shards that will be needed soon, in the background."""
        wanted = np.asarray(list(shards), dtype=np.int64)
        numbers = np.searchsorted(self.first_shard, wanted, side="right") - 1
        for number in np.unique(numbers).tolist():
            own = wanted[numbers == number] - self.first_shard[number]
            self.sets[number].prefetch(own)


def check_alike(sets: Sequence[ShardSet]) -> None:
    """Raise UserError unless the sets can be trained on together."""
    first = sets[0]
    for other in sets[1:]:
        pairs: list[tuple[str, Any, Any]] = []
        for name in ("kind", "sample_rate"):
            pairs.append((name, first.index[name], other.index[name]))
        mine, theirs = first.index.get("vqvae") or {}, other.index.get("vqvae") or {}
        for name in ("fingerprint", "hops", "codes"):
            pairs.append((f"vqvae {name}", mine.get(name), theirs.get(name)))
        for name, ours, others in pairs:
            if ours != others:
                raise UserError(
                    f"{first.source} has {name} {ours} and {other.source} has {others}; blend sets that were prepared"
                    " at one rate, or encoded by one VQ-VAE"
                )


def blended_index(sets: Sequence[ShardSet], lyrical: ShardSet) -> dict[str, Any]:
    """What an index of all songs of the sets says; `lyrical` is the set whose lyrics model is used."""
    first = sets[0].index
    shards = []
    vocabulary: dict[str, Counter[str]] = {}
    years: list[int] = []
    for one in sets:
        for shard in one.index["shards"]:
            shards.append({**shard, "name": f"{one.source}/{shard['name']}"})
        for name, counts in one.index["vocabulary"].items():
            vocabulary.setdefault(name, Counter()).update(counts)
        years.extend(one.index.get("years") or ())
    index: dict[str, Any] = {}
    for name in ("format", "kind", "sample_rate", "vqvae"):
        if name in first:
            index[name] = first[name]
    return index | {
        "members": sorted({member for one in sets for member in one.members}),
        "songs": sum(map(len, sets)),
        "shards": shards,
        "vocabulary": {name: dict(sorted(counts.items())) for name, counts in vocabulary.items()},
        "years": [min(years), max(years)] if years else None,
        "lyrics_model": lyrical.index.get("lyrics_model"),
    }


def open_data(
    data: str | Sequence[str], remote: RemoteConfig | None = None
) -> ShardSet | ShardBlend:
    """The set that one `--data` names, or the blend of several.

    Raises:
        UserError: a set cannot be opened, they do not fit together, or a secret would go to two hosts.
    """
    addresses = parse_data([data] if isinstance(data, str) else data)
    if len(addresses) == 1:
        return ShardSet(addresses[0].address, remote)
    check_one_host([one.address for one in addresses], remote)
    sets = [ShardSet(one.address, remote) for one in addresses]
    weights = [int(one.weight) for one in addresses if one.weight is not None]
    return ShardBlend(sets, weights or None)


def check_one_host(addresses: Sequence[str], remote: RemoteConfig | None) -> None:
    """Raise UserError where one secret would be sent to several hosts."""
    if remote is None or not remote.token:
        return
    hosts = {urlsplit(SourceUrl.parse(url).base).netloc for url in addresses if is_http(url)}
    if len(hosts) > 1:
        raise UserError(
            f"the secret of --data-token-file or the environment is for one host, and the sets lie on"
            f" {', '.join(sorted(hosts))}; copy all but one host's sets to a disk first"
        )
