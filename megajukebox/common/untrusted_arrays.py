"""Reading .npz files that somebody else may have written: what is not as it should be is a ValueError, and nothing is
unpacked before its size is known.

numpy's own reader raises a dozen kinds of exceptions for a damaged file, and believes the sizes that it names.
"""

import io
import math
import zipfile
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy_format

MAX_ARRAYS = 256  # of one .npz
MAX_ARRAYS_BYTES = 1 << 30  # of all of them, unpacked
PLAIN_KINDS = "biuf"  # of dtypes: truth values, integers, floats; no text, no objects
HEADER_READERS = {
    (1, 0): npy_format.read_array_header_1_0,
    (2, 0): npy_format.read_array_header_2_0,
}


def read_npz(source: bytes | BinaryIO, max_bytes: int = MAX_ARRAYS_BYTES) -> dict[str, np.ndarray]:
    """The arrays of a .npz by name; those that numpy.savez and savez_compressed write can be read.

    Args:
        max_bytes: of all arrays together, unpacked.

    Raises:
        ValueError: it is none, is damaged, holds other things than numbers, or is larger than `max_bytes`.
        OSError: the file cannot be read.
    """
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len(members) > MAX_ARRAYS:
                raise ValueError(f"holds {len(members)} arrays; at most {MAX_ARRAYS} are read")
            unpacked = sum(member.file_size for member in members)
            if unpacked > max_bytes:
                raise ValueError(f"unpacks to {unpacked:,} bytes; at most {max_bytes:,} are read")
            arrays = {}
            for member in members:
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise ValueError(
                        f"{member.filename!r} is packed in a way that numpy does not write"
                    )
                with archive.open(member) as packed:
                    data = packed.read(member.file_size + 1)
                if len(data) != member.file_size:
                    raise ValueError(f"{member.filename!r} has another size than it says")
                arrays[member.filename.removesuffix(".npy")] = _array(data)
            return arrays
    except (ValueError, OSError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # zipfile and zlib fail in a dozen ways, all of them the file's fault
        raise ValueError(f"is no .npz ({type(error).__name__}: {error})") from None


def _array(data: bytes) -> np.ndarray:
    """The array of a .npy file."""
    file = io.BytesIO(data)
    try:
        read_header = HEADER_READERS[npy_format.read_magic(file)]
        shape, is_fortran, dtype = read_header(file)
    except Exception as error:  # numpy's header parser fails in a dozen ways as well
        raise ValueError(f"holds no array ({type(error).__name__})") from None
    if dtype.kind not in PLAIN_KINDS:
        raise ValueError(f"holds an array of {dtype}; only numbers are read")
    start = file.tell()
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data) - start:
        raise ValueError(f"holds an array whose {len(data) - start} bytes are not {shape} {dtype}")
    if not count:
        return np.zeros(shape, dtype)
    flat = np.frombuffer(data, dtype, count, start)
    return flat.reshape(shape, order="F" if is_fortran else "C").copy()
