"""DeepSpeed's conversion of a large checkpoint, in a process of its own that runs no code from it.

    python -m megajukebox.training.engines.convert_checkpoint --input_folder ... --output_folder ...

The options are those of deepspeed.checkpoint.ds_to_universal.
"""

import multiprocessing

from deepspeed.checkpoint import ds_to_universal

from megajukebox.training.engines.restricted_loading import restricted_loading
from megajukebox.training.engines.universal_checkpoint import ALLOWED


def main() -> None:
    # Its workers inherit what may be loaded as forks alone; Python 3.14 would start them otherwise.
    multiprocessing.set_start_method("fork")
    with restricted_loading(ALLOWED):
        ds_to_universal.main(ds_to_universal.parse_arguments())


if __name__ == "__main__":
    main()
