"""Weights on disk: written whole or not at all, read back exactly, refused with a reason."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import nn

from megajukebox.common.errors import UserError
from megajukebox.common.model_files import (
    FACTS,
    WEIGHTS,
    PendingTensor,
    StoredTensors,
    check_fingerprint,
    load_into,
    load_weights,
    read_facts,
    save_weights,
)


class Shape(BaseModel):
    width: int = 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = nn.LayerNorm(4)
        self.register_buffer("started", torch.tensor(True))


def saved(folder, module=None):
    save_weights(
        folder,
        "prior",
        Shape(),
        (module or Tied()).state_dict(),
        step=3,
        level="top",
        sample_rate=11025,
    )
    return folder


def test_a_model_comes_back_exactly_and_a_tied_tensor_is_stored_once(tmp_path):
    first, second = Tied(), Tied()
    facts = load_into(second, saved(tmp_path, first))
    assert (facts["kind"], facts["level"], facts["step"], facts["config"]) == (
        "prior",
        "top",
        3,
        {"width": 4},
    )
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values())
    )
    assert set(load_file(tmp_path / WEIGHTS)) == {
        "embedding.weight",
        "norm.weight",
        "norm.bias",
        "started",
    }
    check_fingerprint(tmp_path)


def test_exported_weights_are_read_where_nothing_may_be_unpickled(tmp_path, monkeypatch):
    first, second = Tied(), Tied()
    saved(tmp_path, first)
    for where, name in (
        (pickle, "Unpickler"),
        (pickle, "load"),
        (pickle, "loads"),
        (torch, "load"),
    ):
        monkeypatch.setattr(where, name, None)
    load_into(second, tmp_path)
    assert all(
        torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values())
    )


def test_a_module_on_meta_is_filled_straight_in_the_wanted_precision_and_stays_tied(tmp_path):
    with torch.device("meta"):
        module = Tied()
    load_into(module, saved(tmp_path), dtype=torch.bfloat16)
    assert (
        module.head.weight is module.embedding.weight and module.head.weight.dtype == torch.bfloat16
    )
    assert bool(module.started) and not any(p.is_meta for p in module.parameters())


def test_a_pending_tensor_is_made_when_its_turn_comes_and_every_dtype_survives(tmp_path):
    kinds = (torch.float16, torch.bfloat16, torch.int64, torch.bool)
    tensors = {str(d): torch.tensor([[0, 1], [1, 0]]).to(d).t() for d in kinds}
    pending = {n: PendingTensor(t.dtype, tuple(t.shape), lambda t=t: t) for n, t in tensors.items()}
    save_weights(tmp_path, "prior", Shape(), pending, step=0)
    _, stored = load_weights(tmp_path)
    assert all(stored[n].dtype == t.dtype and torch.equal(stored[n], t) for n, t in tensors.items())


def test_a_save_that_fails_leaves_the_old_model_whole(tmp_path):
    def broken():
        raise OSError("disk full")

    saved(tmp_path)
    with pytest.raises(OSError):
        save_weights(
            tmp_path, "prior", Shape(), {"a": PendingTensor(torch.float32, (1,), broken)}, step=4
        )
    assert load_into(Tied(), tmp_path)["step"] == 3


@pytest.mark.parametrize(
    "hurt, message",
    [("lacks", "lacks"), ("extra", "unknown to the model"), ("shape", "model wants")],
)
def test_a_file_of_another_model_is_refused_naming_the_tensor(tmp_path, hurt, message):
    tensors = dict(Tied().state_dict())
    if hurt == "lacks":
        del tensors["norm.bias"]
    if hurt == "extra":
        tensors["other"] = torch.zeros(1)
    if hurt == "shape":
        tensors["norm.bias"] = torch.zeros(5)
    save_weights(tmp_path, "prior", Shape(), tensors, step=0)
    with pytest.raises(ValueError, match=message):
        load_into(Tied(), tmp_path)


def test_a_truncated_a_missing_and_a_replaced_file_are_refused(tmp_path):
    saved(tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="sha256"):
        check_fingerprint(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(data[:-1])
    with pytest.raises(ValueError, match="damaged"):
        load_weights(tmp_path)
    (tmp_path / FACTS).write_text(json.dumps({"kind": "prior"}))
    with pytest.raises(ValueError, match="fingerprint"):
        load_weights(tmp_path)
    (tmp_path / FACTS).unlink()
    with pytest.raises(ValueError, match="no finished model"):
        load_weights(tmp_path)


@pytest.mark.parametrize("size", [(16 << 20) + 1, 99_999_999, 2**63, 2**64 - 1])
def test_a_head_of_absurd_size_is_refused_before_it_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(size.to_bytes(8, "little") + b'{"a":' * 10)
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # a hole: as long as it says
    with pytest.raises(UserError, match="says that its head has"):
        StoredTensors(path)


@pytest.mark.parametrize("kind", ["pipe", "short", "empty"])
def test_what_is_no_safetensors_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"\x10" if kind == "short" else b"")
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        StoredTensors(path)


def test_a_model_json_of_another_form_is_one_line(tmp_path: Path) -> None:
    for text in ("[]", "{", "[" * 5000, '{"kind": 1, "kind": 2}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(UserError, match=r"model\.json"):
            read_facts(tmp_path)
