"""One part, in its own process: python -m gpu_parts MODULE:FUNCTION PART gpu_day.json [--small]."""

import argparse
import importlib
from pathlib import Path

from gpu_parts.figures import Figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", help="module:function")
    parser.add_argument("part")
    parser.add_argument("results", type=Path)
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    module, _, function = asked.work.partition(":")
    work = getattr(importlib.import_module(module), function)
    work(Figures(asked.results, asked.part, asked.small))


if __name__ == "__main__":
    main()
