"""Reading ds_configs/: one JSON per way of training, holding only what DeepSpeed owns."""

import json
from pathlib import Path

from megajukebox.training.planner.recipe import check_keys

DS_CONFIGS = Path(__file__).parents[3] / "ds_configs"


def read_ds_config(name: str) -> dict:
    """The JSON called `name` in ds_configs/, or at that path. Raises ValueError if it is missing or does not parse."""
    path = Path(name) if Path(name).is_file() else DS_CONFIGS / name
    if not path.is_file():
        known = ", ".join(sorted(p.name for p in DS_CONFIGS.glob("*.json")))
        raise ValueError(f"ds_config {name!r} is neither a file nor one of {known}")
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    check_keys(found)
    return found
