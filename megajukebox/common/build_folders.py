"""Folders whose content becomes code of this process: extensions and kernels that torch and Triton build and load again.

Whoever writes there runs code as us. So none may be in a place that others can foresee and make first, as a name below
/tmp is, and one that the environment names must be this user's own.
"""

import os
import tempfile
from pathlib import Path

from megajukebox.common.files import make_private_folder

BUILD_FOLDERS = (
    "TORCH_EXTENSIONS_DIR",  # default: below ~/.cache
    "TRITON_CACHE_DIR",  # default: below ~/.triton
    "TORCHINDUCTOR_CACHE_DIR",
    "NUMBA_CACHE_DIR",  # default: beside the source, or below ~/.cache
    "MPLCONFIGDIR",  # default: below ~/.config
)
IN_TMP = "TORCHINDUCTOR_CACHE_DIR"  # the one whose default is /tmp/torchinductor_<user>


def use_private_build_folders() -> None:
    """Make the folders that the environment names for this user alone, and name one where the default is in /tmp.

    Raises:
        UserError: a folder is somebody else's, or others may write to it.
    """
    for name in BUILD_FOLDERS:
        folder = os.environ.get(name)
        if folder:
            make_private_folder(Path(folder))
    if not os.environ.get(IN_TMP):
        home = os.path.expanduser("~")
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
        if not os.path.isabs(cache):  # an account without a home
            cache = tempfile.mkdtemp(prefix="megajukebox-")
        os.environ[IN_TMP] = os.path.join(cache, "megajukebox", "torchinductor")
