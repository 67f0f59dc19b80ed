"""Arrays that others wrote: what numpy writes is read as numpy reads it, all else is a ValueError and costs no memory."""

import io
import random
import resource
import zipfile
from typing import Any

import numpy as np
import pytest
from fixtures.fuzzing import mutated

from megajukebox.common.untrusted_arrays import read_npz

ARRAYS: dict[str, Any] = {
    "codes": np.arange(12, dtype=np.uint16),
    "soft": np.ones((3, 4), np.float16),
    "turned": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "flag": np.array(True),
    "none": np.zeros((0, 5), np.int64),
    "a.b": np.array(-7),
}


def npz(save: Any = np.savez, **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def zipped(name: str, data: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        archive.writestr(name, data)
    return file.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_numpy_reads_them(save: Any) -> None:
    read = read_npz(npz(save, **ARRAYS))
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype and read[name].shape == array.shape
        np.testing.assert_array_equal(read[name], array)


BAD = {
    "no zip": b"x" * 100,
    "empty": b"",
    "cut": npz(**ARRAYS)[:-30],
    "objects": npz(o=np.array([{}], dtype=object)),
    "texts": npz(t=np.array(["a"])),
    "records": npz(r=np.zeros(2, [("a", "<u2")])),
    "no array": zipped("x.npy", b"hello"),
    "lying shape": zipped("x.npy", header("{'descr':'<f4','fortran_order':False,'shape':(9,)}")),
    "negative shape": zipped(
        "x.npy", header("{'descr':'<f4','fortran_order':False,'shape':(-1,)}") + b"1234"
    ),
    "huge shape": zipped(
        "x.npy", header("{'descr':'<f4','fortran_order':False,'shape':(" + "9" * 90 + ",)}")
    ),
    "nested header": zipped("x.npy", header("(" * 3000)),
    "nul dtype": zipped("x.npy", header("{'descr':'\x00','fortran_order':False,'shape':()}")),
    "packed otherwise": zipped("x.npy", b"\x93NUMPY" * 100, zipfile.ZIP_LZMA),
    "many": zipped("x.npy", b"") + b"",
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_npz_of_numbers_is_a_value_error(kind: str) -> None:
    with pytest.raises(ValueError):
        read_npz(BAD[kind])


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = npz(np.savez_compressed, x=np.zeros(64 << 20, np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="at most 1,000,000 are read"):
        read_npz(bomb, 1_000_000)
    lying = bomb.replace((64 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    with pytest.raises(ValueError):
        read_npz(lying, 1_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutated_npz_are_read_or_refused(count: int) -> None:
    originals = [npz(save, **ARRAYS) for save in (np.savez, np.savez_compressed)]
    refused = 0
    for seed in range(count):
        dice = random.Random(seed)
        try:
            read_npz(mutated(originals[seed % 2], dice), 1 << 20)
        except ValueError:
            refused += 1
    assert count // 2 < refused < count
