"""Arrays that somebody else may have written: sizes come before contents, and whatever is wrong is a ValueError."""

import io
import random
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fixtures.fuzzing import mutated

from megajukebox.common.npz import codes_of, read_npy, read_npz

pytestmark = pytest.mark.cold_start  # about what a new process is

ARRAYS = {
    "codes": np.arange(300, dtype=np.uint16),
    "soft_ids": np.ones((5, 4), np.uint16),
    "bits": np.linspace(0, 1, 7, dtype=np.float32),
    "taught": np.array(True),
    "key": np.array('{"a": 1}'),
}


def packed(arrays: dict[str, np.ndarray], compress: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def archive(content: bytes, kind: int = zipfile.ZIP_STORED, name: str = "codes.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as out:
        out.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("compress", [False, True])
def test_reads_what_numpy_wrote(compress: bool) -> None:
    arrays = read_npz(packed(ARRAYS, compress))
    assert arrays.keys() == ARRAYS.keys()
    for name, array in arrays.items():
        assert array.dtype == ARRAYS[name].dtype and np.array_equal(array, ARRAYS[name])
    assert read_npz(packed(ARRAYS), names=["bits", "absent"]).keys() == {"bits"}
    columns = np.asfortranarray(np.arange(6).reshape(2, 3))
    assert np.array_equal(read_npy(npy(columns)), columns)
    assert read_npy(npy(np.zeros((0, 3)))).shape == (0, 3)


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


DAMAGED = {
    "nothing": b"",
    "text": b"PK is not a zip",
    "cut": packed(ARRAYS)[:-30],
    "objects": packed({"codes": np.array([{}, []], object)}),
    "dates": packed({"codes": np.array(["2001-01-01"], "M8[D]")}),
    "no array": archive(b"hello"),
    "lzma": archive(npy(ARRAYS["codes"]), zipfile.ZIP_LZMA),
    "bz2": archive(npy(ARRAYS["codes"]), zipfile.ZIP_BZIP2),
    "twice": packed(ARRAYS).replace(b"bits.npy", b"key.npy\0"),
    "shape": archive(header("{'descr': '<u2', 'fortran_order': False, 'shape': (9000000000,)}\n")),
    "negative": archive(
        header("{'descr': '<u2', 'fortran_order': False, 'shape': (-1, -1)}\n") + b"xx"
    ),
    "header": archive(header("(" * 5000)),
    "empty letters": archive(
        header("{'descr': '<U0', 'fortran_order': False, 'shape': (9000000000,)}\n")
    ),
    "records": packed({"codes": np.zeros(2, [("a", "<u2")])}),
    "huge shape": archive(
        header("{'descr': '<u2', 'fortran_order': False, 'shape': (" + "9" * 90 + ",)}")
    ),
    "nul dtype": archive(header("{'descr': '\x00', 'fortran_order': False, 'shape': ()}")),
    "many": packed({f"a{number}": np.zeros(1) for number in range(1200)}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_damaged_is_a_value_error(name: str) -> None:
    with pytest.raises(ValueError):
        codes_of(read_npz(DAMAGED[name])["codes"], "codes")


def test_objects_are_refused_and_not_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return (open, (str(tmp_path / "ran"), "w"))

    with pytest.raises(ValueError, match="no plain numbers"):
        read_npz(packed({"codes": np.array([Evil()], object)}))
    assert not (tmp_path / "ran").exists()


def test_a_bomb_is_refused_by_its_header() -> None:
    bomb = packed({"codes": np.zeros(100_000_000, np.uint8)}, compress=True)
    assert len(bomb) < 200_000
    with pytest.raises(ValueError, match=r"unpacks to 100,000,1.. bytes, more than 1,000,000"):
        read_npz(bomb, 1_000_000)


def test_a_bomb_with_a_lying_header_is_not_unpacked() -> None:
    """In a process of its own that may have so much memory and no more."""
    script = """
import io, re, resource, struct, sys, zipfile
import numpy as np
from megajukebox.common.npz import read_npz
file = io.BytesIO()
np.savez_compressed(file, codes=np.zeros(200_000_000, np.uint8))
data, true = file.getvalue(), struct.pack("<I", 200_000_128)
assert true in data
data = data.replace(true, struct.pack("<I", 1000))
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + 80_000_000,) * 2)
try:
    read_npz(data)
except ValueError as error:
    sys.exit("MemoryError" in str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "array",
    [
        np.array([0, 70_000]),
        np.array([-1]),
        np.array([2**63], np.uint64),
        np.array([1.0]),
        np.zeros((2, 2), int),
        np.array(3),
        np.array(["a"]),
    ],
)
def test_what_are_no_codes_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="a level"):
        codes_of(array, "a level")


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_any_bytes_are_arrays_or_a_value_error(count: int) -> None:
    draw = random.Random(count)
    whole = [packed(ARRAYS), packed(ARRAYS, compress=True), archive(npy(ARRAYS["soft_ids"]))]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    good = 0
    for _ in range(count):
        try:
            arrays = read_npz(mutated(draw.choice(whole), draw), 1_000_000)
        except ValueError:
            continue
        good += all(array.dtype.kind in "biufU" for array in arrays.values())
    assert 0 < good < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB
