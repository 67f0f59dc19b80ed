"""Reading what `torch.save` wrote and somebody else may have exchanged: tensors and plain values come in, code never.

A checkpoint's files are pickles in a zip. `check_saved_files` looks at all of them before any is read and says early and
in one line what is wrong. `restricted_loading` holds while they are read, by us or by DeepSpeed: so a file that was
exchanged after the look cannot run anything either.
"""

import errno
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megajukebox.common.errors import UserError
from megajukebox.common.untrusted_files import UnsafeFileError, open_inside

# Variables of torch.load. The first overrules even a caller that asks for weights_only=False.
FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
FORCE_NO_WEIGHTS_ONLY = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
# What DeepSpeed calls the files of a checkpoint. Its readers take whatever begins so, also without the ending.
SAVED_FILE = re.compile(
    r"(?:(?:bf16_|fp16_)?zero_pp_rank_\d+_)?mp_rank_\d+_(?:model|optim)_states\.pt"
    r"|layer_\d+-(?:model_\d+-)?model_states\.pt"
)
# What torch's own tensors, types and shapes name in a pickle. (bytearray, which torch would let in, makes 60 bytes fill
# the memory.)
PLAIN_NAME = re.compile(
    r"torch\.(?:\w+Storage|Tensor|Size|device|bool|u?int\d+|b?float\d+\w*|complex\d+)"
    r"|torch\.storage\.(?:Typed|Untyped)Storage"
    r"|torch\._utils\._rebuild_(?:tensor_v2|parameter)|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.nn\.parameter\.Parameter"
    r"|collections\.OrderedDict"
)
# Instructions that name something by other means than GLOBAL; torch.save uses none of them.
OTHER_NAMING = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}
MAX_PICKLE_BYTES = (
    1 << 28
)  # of a file's values without its numbers: a large stage has some hundred kB


@contextmanager
def restricted_loading(allowed: Sequence[Any]) -> Iterator[None]:
    """Inside, torch.load makes tensors, plain values and what is `allowed`, whatever its caller asks for.

    Forked children inherit it. Within one another, the inner one holds.
    """
    names_before = torch.serialization.get_safe_globals()
    variables_before = {}
    for name in (FORCE_WEIGHTS_ONLY, FORCE_NO_WEIGHTS_ONLY):
        variables_before[name] = os.environ.pop(name, None)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(list(allowed))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(names_before)
        del os.environ[FORCE_WEIGHTS_ONLY]
        for name, value in variables_before.items():
            if value is not None:
                os.environ[name] = value


def load_restricted(path: Path, allowed: Sequence[Any]) -> Any:
    """What one file of a checkpoint holds, on the CPU.

    Raises:
        UserError: it is damaged, or holds more than tensors, plain values and what is `allowed`; nothing in it was run.
    """
    with restricted_loading(allowed), as_user_error(path):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def as_user_error(path: Path) -> Iterator[None]:
    """What goes wrong inside is the fault of the content of `path`: a damaged file makes readers fail in a dozen ways.

    A disk that does not answer and too little memory are not, and stay what they are.
    """
    try:
        yield
    except (OSError, MemoryError, UserError):
        raise
    except pickle.UnpicklingError as error:
        raise refused(path) from error
    except Exception as error:
        gist = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(f"{path} is damaged, or no checkpoint of ours ({gist})") from error


def refused(path: Path, what: str = "") -> UserError:
    return UserError(
        f"{path} holds more than tensors and plain values; nothing in it was run{what}"
    )


# ---- The look ---------------------------------------------------------------------------------------------------------


def check_saved_files(saved: Path, allowed: Sequence[Any]) -> None:
    """Look at every file of the folder that DeepSpeed's readers get, without carrying out anything that it holds.

    Raises:
        UserError: there is a link, a folder, a name that training does not write, or a file that names more than
            tensors, plain values and what is `allowed`; the first of them is named.
    """
    permitted = {f"{thing.__module__}.{thing.__qualname__}" for thing in allowed}
    for path in sorted(saved.iterdir()):
        if not SAVED_FILE.fullmatch(path.name):
            raise UserError(
                f"{path} is no file that training writes into a checkpoint; take it out of there"
            )
        try:
            with open_inside(saved, path.name) as file, as_user_error(path):
                names = pickled_names(pickle_of(file))
        except (UnsafeFileError, IsADirectoryError) as error:
            raise UserError(
                f"{path} {error.strerror}; a checkpoint has plain files alone"
            ) from None
        odd = sorted(name for name in names - permitted if not PLAIN_NAME.fullmatch(name))
        if odd:
            raise refused(path, f" (it names {odd[0]})")


def pickle_of(file: BinaryIO) -> bytes:
    """The values in a file of torch.save, still pickled; its numbers are not read.

    Raises:
        ValueError: it is no such file. What was packed is refused: a few bytes could stand for gigabytes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("it is compressed, as torch.save never does")
            pickles = [member for member in members if member.filename.lower().endswith(".pkl")]
            if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
                raise ValueError("it has not one data.pkl")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise ValueError(f"its data.pkl has more than {MAX_PICKLE_BYTES:,} bytes")
            return archive.read(pickles[0])
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ValueError("it is no file of torch.save: it points before its beginning") from None


def pickled_names(data: bytes) -> set[str]:
    """The dotted names of all that a pickle would make or call.

    Raises:
        pickle.UnpicklingError: it names things by other means than torch.save does.
        ValueError: it is no pickle.
    """
    names = set()
    for instruction, argument, _ in pickletools.genops(data):
        if instruction.name == "GLOBAL":
            names.add(str(argument).replace(" ", "."))
        elif instruction.name in OTHER_NAMING:
            raise pickle.UnpicklingError(f"has {instruction.name}")
    return names
