"""Thousands of damaged config.json, records and lists of names: each is read, or refused in one line."""

import json
import random
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures.fuzzing import limited_time, mutated
from fixtures.reference_shapes import written

from megajukebox.common.errors import UserError
from megajukebox.interop import import_plan
from megajukebox.interop.checkpoints import (
    ForeignCheckpoint,
    read_checkpoints,
    transformers_hps,
)
from megajukebox.interop.export import export_hugging_face
from megajukebox.interop.export_record import EXPORT_RECORD, read_export_record
from megajukebox.interop.import_plan import plan
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.interop.label_names import named_rows
from megajukebox.models.prior import PriorConfig

ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 3, 10**30, 0.5, float("inf"), float("nan")),
    *("", "two", "\ud800", "x" * 5000, [], [0], [[]], {}, {"a": {"b": []}}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with every file that has a reader."""
    made = tmp_path_factory.mktemp("layouts")
    two = {"levels": 2, "downs_t": (1, 2), "strides_t": (8, 2), "hvqvae_multipliers": (1, 1)}
    files = written(made, ("vqvae",), **two, depth=1)
    files += written(made, ("upsampler_level_0",), prior_depth=1, cond_depth=1)
    files += written(made, ("prior_5b_lyrics",), level=1, prior_depth=1, prime_depth=1)
    import_weights(files, made / "runs")
    export_hugging_face(made / "runs", made / "hf")
    artists = {"unknown.v2": 0, "the_band.v2": 1, "the band": 4}
    (made / "hf" / "artists.json").write_text(json.dumps(artists))
    (made / "hf" / "genres.json").write_text(json.dumps({"rock.v2": 1, "rock": 2}))
    return made / "hf"


def altered(data: bytes, dice: random.Random) -> bytes:
    """Damage to the bytes, or another value somewhere in the tree."""
    if dice.random() < 0.3:
        return mutated(data, dice, texts=True)
    tree = json.loads(data)
    for _ in range(dice.randint(1, 3)):
        node: Any = tree
        while isinstance(node, dict | list) and node:
            key = dice.choice(list(node) if isinstance(node, dict) else range(len(node)))
            below = node[key]
            if not isinstance(below, dict | list) or not below or dice.random() < 0.2:
                if dice.random() < 0.2 and isinstance(node, dict):
                    node[dice.choice(("", "a.v2", "vqvae", "prior_0", str(key) * 2))] = below
                node[key] = deepcopy(dice.choice(ODD))
                break
            node = below
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def read_everything(folder: Path, seeds: range) -> dict[str, int]:
    """How many damaged files were taken and refused."""
    checkpoints = read_checkpoints([folder / "model.safetensors"])
    parts = plan(checkpoints, {})
    [config] = [part.config for part in parts if isinstance(part.config, PriorConfig)][:1]
    whole = {name: (folder / name).read_bytes() for name in FILES}
    counts = {"taken": 0, "refused": 0}
    for seed in seeds:
        dice = random.Random(seed)
        name = dice.choice(FILES)
        (folder / name).write_bytes(altered(whole[name], dice))
        try:
            with limited_time(60):
                if name == "config.json":
                    plan([with_config(checkpoint) for checkpoint in checkpoints], {})
                elif name == EXPORT_RECORD:
                    record = read_export_record(folder)
                    for part in parts:
                        if part.name in record:
                            record[part.name].describes(part.config)
                else:
                    named_rows(config, dice.choice(("v2", "v3")), folder, required=False)
            counts["taken"] += 1
        except UserError as error:
            assert "\n" not in str(error), f"seed {seed}"
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {name}: {error!r}") from error
        finally:
            (folder / name).write_bytes(whole[name])
    return counts


def with_config(checkpoint: ForeignCheckpoint) -> ForeignCheckpoint:
    """The checkpoint with what config.json says now."""
    hps = transformers_hps(checkpoint.files, checkpoint.kind, checkpoint.from_top)
    return replace(checkpoint, hps=hps)


FILES = ("config.json", "config.json", "megajukebox.json", "artists.json", "genres.json")


def test_damaged_files_beside_weights_are_read_or_refused(folder):
    counts = read_everything(folder, range(150))
    assert min(counts.values()) > 15


@pytest.mark.slow
def test_many_damaged_files_beside_weights_are_read_or_refused(folder, monkeypatch):
    """Without the comparison of tensors, which takes a model for every input; the fast test has it."""
    monkeypatch.setattr(import_plan, "check_cover", lambda part: None)
    counts = read_everything(folder, range(1000, 21_000))
    assert min(counts.values()) > 2000
