"""Tars read once, as they come: what tarfile writes is read, bombs cost their tar and no memory."""

import io
import random
import tarfile
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fixtures.fuzzing import mutated
from fixtures.tiny_shards import CLIP, RATE, write_songs

from megajukebox.common.errors import BadSampleError
from megajukebox.data.shards.tar_stream import TarStream
from megajukebox.data.shards.verify import bad_headers
from megajukebox.data.stream.unindexed import UnindexedBatches, UnindexedShards

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def entry(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_of(files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        for name, data in files.items():
            tar.addfile(entry(name, len(data)), io.BytesIO(data))
    return packed.getvalue()


def read_all(data: bytes | BinaryIO) -> dict[str, bytes]:
    stream = TarStream(io.BytesIO(data) if isinstance(data, bytes) else data)
    return {member.name: stream.read() for member in stream if member.is_file}


@pytest.mark.parametrize("form", FORMATS)
def test_what_tarfile_writes_is_read(form: int) -> None:
    long = (
        {}
        if form == tarfile.USTAR_FORMAT
        else {"folder/" + "n" * 300 + ".json": b"long", "é.txt": b"e"}
    )
    files = {"a.json": b"{}", "a.flac": bytes(1000), "b/c.txt": b"x" * 512, "empty": b"", **long}
    assert read_all(tar_of(files, form)) == files


def test_what_is_no_file_and_what_nobody_reads_is_passed_over() -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(entry("folder", type=tarfile.DIRTYPE))
        tar.addfile(entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"))
        tar.addfile(entry("skipped", 3000), io.BytesIO(bytes(3000)))
        tar.addfile(entry("last", 4), io.BytesIO(b"data"))
    stream = TarStream(io.BytesIO(packed.getvalue()))
    seen = [(m.name, m.is_file, stream.read() if m.name == "last" else b"") for m in stream]
    assert seen == [
        ("folder", False, b""),
        ("link", False, b""),
        ("skipped", True, b""),
        ("last", True, b"data"),
    ]


def pax(records: bytes, size: int | None = None, kind: bytes = tarfile.XHDTYPE) -> bytes:
    header = entry("pax", len(records) if size is None else size, type=kind).tobuf(
        tarfile.GNU_FORMAT
    )
    return header + records + bytes(-len(records) % 512)


def record(text: bytes) -> bytes:
    size = len(text) + 4
    return b"%d %s\n" % (size if size < 100 else size + 1, text)


FILE = entry("a.json", 2).tobuf() + b"{}" + bytes(510)
BOMBS = {
    "long name of 8 GiB": entry("x", 8 << 30, type=tarfile.GNUTYPE_LONGNAME).tobuf(
        tarfile.GNU_FORMAT
    ),
    "long link of 8 GiB": entry("x", 8 << 30, type=tarfile.GNUTYPE_LONGLINK).tobuf(
        tarfile.GNU_FORMAT
    ),
    "pax header of 8 GiB": pax(b"", 8 << 30),
    "global pax header of 8 GiB": pax(b"", 8 << 30, tarfile.XGLTYPE),
    "sparse 0.0": pax(record(b"GNU.sparse.size=1073741824")) + FILE,
    "sparse 1.0": pax(record(b"GNU.sparse.major=1") + record(b"GNU.sparse.realsize=1073741824"))
    + FILE,
    "sparse of old": entry("a.flac", 512, type=tarfile.GNUTYPE_SPARSE).tobuf() + bytes(512),
    "a size below nothing": pax(record(b"size=-5")) + FILE,
    "a size of words": pax(record(b"size=many")) + FILE,
    "records that do not fit": pax(b"99 path=a\n") + FILE,
    "records of nothing": pax(b"0 =\n") + FILE,
    "a member of 1 EB": entry("a.flac", 1 << 60).tobuf(tarfile.GNU_FORMAT) + b"x",
    "no tar": b"\x00\xff" * 5000,
    "empty": b"",
    "cut header": FILE + FILE[:100],
    "cut data": FILE[:513],
    "rubbish after a file": FILE + b"rubbish!" * 64,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_damage_and_costs_no_memory(kind: str, tmp_path: Path) -> None:
    tracemalloc.start()
    with pytest.raises(BadSampleError, match="the tar is damaged") as refused:
        read_all(BOMBS[kind])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused.value.kind == "damaged" and peak < 10e6
    (tmp_path / "bomb.tar").write_bytes(BOMBS[kind])
    assert any("not a whole tar" in finding for finding in bad_headers(tmp_path / "bomb.tar"))


def test_bombs_are_counted_and_training_goes_on(tmp_path: Path) -> None:
    folder = write_songs(tmp_path / "songs")
    good = (folder / "songs-000000.tar").read_bytes()
    tars = [*BOMBS.values(), *[good] * 8]
    for number, data in enumerate(tars):
        (folder / f"songs-{number:06d}.tar").write_bytes(data)
    named: set[str] = set()
    shards = UnindexedShards(f"{folder}/songs-{{000000..{len(tars) - 1:06d}}}.tar", RATE, CLIP)
    batches = UnindexedBatches(
        shards,
        seed=3,
        global_batch=4,
        micro_batch=4,
        max_bad_sample_ratio=1.0,
        on_bad=lambda shard, key, kind, reason: named.add(shard),
    )
    assert len(list(islice(batches, 20))) == 20
    assert len(named) > 4 and set(batches.bad_samples()) == {"damaged"}


class Short(io.BytesIO):
    """A body of which the site promised more."""

    length = 700


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_tars_are_read_or_refused(count: int) -> None:
    files = {"a.json": b"{}", "n" * 150 + ".flac": bytes(700), "é.txt": b"x" * 512}
    originals = [tar_of(files, form) for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    refused = 0
    for seed in range(count):
        dice = random.Random(seed)
        data = mutated(originals[seed % 2][: 512 * 12], dice)
        try:
            read_all(Short(data))
        except BadSampleError:
            refused += 1
    assert count // 10 < refused < count
