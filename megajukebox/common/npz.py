"""Reading .npy and .npz files that somebody else may have written: sizes before contents, no objects, ValueError alone.

numpy's own reader believes what a header says: two megabytes can unpack to two gigabytes, and a damaged file raises one
of a dozen errors of zip, zlib and Python's parser.
"""

import io
import math
import zipfile
from collections.abc import Collection

import numpy as np
from numpy.lib import format as npy_format

MAX_NPZ_BYTES = 1 << 27  # unpacked; the codes of an hour are 60 MB
MAX_ARRAYS = 1000
MAX_DIMENSIONS = 8
PLAIN_KINDS = (
    "biufU"  # of dtypes: truth values, whole numbers, floats, text; nothing that is an object
)
MAX_CODE = (1 << 16) - 1  # codes are stored in 16 bits


def read_npz(
    data: bytes, max_bytes: int = MAX_NPZ_BYTES, names: Collection[str] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name, of those in `names` where it is given.

    Raises:
        ValueError: it is none, is damaged, holds objects, or unpacks to more than `max_bytes`.
    """
    try:
        return _read_archive(data, max_bytes, names)
    except ValueError:
        raise
    except Exception as error:  # zipfile, zlib and numpy's parser fail in a dozen ways, all of them the file's fault
        raise ValueError(f"is no .npz file, or damaged: {type(error).__name__}: {error}") from None


def _read_archive(
    data: bytes, max_bytes: int, names: Collection[str] | None
) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        if len(members) > MAX_ARRAYS:
            raise ValueError(f"holds {len(members)} arrays, more than {MAX_ARRAYS}")
        wanted = []
        for member in members:
            name = member.filename.removesuffix(".npy")
            if names is None or name in names:
                wanted.append((name, member))
        total = sum(member.file_size for _, member in wanted)
        if total > max_bytes:
            raise ValueError(f"unpacks to {total:,} bytes, more than {max_bytes:,}")
        for name, member in wanted:
            if name in arrays:
                raise ValueError(f"holds {name!r} twice")
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{name!r} is packed in a way that numpy does not write")
            with archive.open(member) as file:
                # Not all that is packed: of that the size in its header may know nothing.
                content = file.read(member.file_size + 1)
            arrays[name] = read_npy(content, max_bytes)
    return arrays


def read_npy(data: bytes, max_bytes: int = MAX_NPZ_BYTES) -> np.ndarray:
    """The array of a .npy file; it cannot be written to.

    Raises:
        ValueError: it is none, holds objects, is not as long as its header says, or has more than `max_bytes`.
    """
    file = io.BytesIO(data)
    try:
        version = npy_format.read_magic(file)
        read_header = npy_format.read_array_header_1_0
        if version != (1, 0):
            read_header = npy_format.read_array_header_2_0
        shape, fortran_order, dtype = read_header(file)
    except Exception as error:
        raise ValueError(f"starts with {data[:32]!r}, not as a .npy file") from error
    if dtype.kind not in PLAIN_KINDS or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"holds {dtype} in {len(shape)} dimensions, no plain numbers")
    size = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or size != len(data) - file.tell():
        raise ValueError(f"has {len(data) - file.tell():,} bytes, not the {size:,} of its header")
    if size > max_bytes:
        raise ValueError(f"has {size:,} bytes, more than {max_bytes:,}")
    if not size:
        return np.zeros(shape, dtype)
    values = np.frombuffer(data, dtype, offset=file.tell())
    return values.reshape(shape, order="F" if fortran_order else "C")


def codes_of(array: np.ndarray, name: str) -> np.ndarray:
    """A stored array as one row of codes [T] int64.

    Raises:
        ValueError: it is none, or holds other numbers than codes of 16 bits.
    """
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not one row of codes")
    if array.size and not 0 <= int(array.min()) <= int(array.max()) <= MAX_CODE:
        raise ValueError(f"{name} holds codes outside 0 to {MAX_CODE}")
    return array.astype(np.int64)
