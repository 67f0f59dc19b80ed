"""Run a module as `python -m` does, without putting the folder that one stands in on the search path.

    python megajukebox/common/run_module.py megajukebox.sampling.worker runs/tiny

That folder may be a shared one, where a `psutil.py` of somebody else's would be imported. Python 3.11 has
PYTHONSAFEPATH for it; this works from 3.10 on.
"""

import runpy
import sys
from pathlib import Path


def main() -> None:
    own_folder = Path(__file__).resolve().parent  # its modules would hide others of the same names
    others = [path for path in sys.path if path and Path(path).resolve() != own_folder]
    sys.path[:] = [str(own_folder.parents[1]), *others]  # this very package before an installed one
    sys.argv[:] = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
