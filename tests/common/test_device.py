"""The device: one answer everywhere, also where a CPU is asked for on a GPU machine; unfit builds are refused."""

import ast
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import deepspeed
import pytest
import torch
import torch.distributed as dist
from fixtures.patched_cuda import CUDA_13, patched_cuda
from fixtures.paths import ROOT
from fixtures.tiny_models import little_vqvae
from torch import nn

from megajukebox.common.device import (
    accelerator,
    check_precision,
    choose_device,
    has_kernels,
)
from megajukebox.common.errors import UserError
from megajukebox.training.engines import collectives
from megajukebox.training.engines.ds_config import require_gpu

CUDA_12_6 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((7, 0), CUDA_13, False),
        ((7, 0), CUDA_12_6, True),
        ((9, 0), CUDA_13, True),
        ((8, 9), CUDA_13, True),  # the code of sm_86
        ((8, 0), ["sm_86"], False),
        ((7, 5), ["sm_70"], True),
        ((8, 0), ["sm_75"], False),
        ((12, 1), CUDA_13, True),  # compute_120 is compiled for it
        ((9, 0), ["compute_80"], True),
        ((7, 0), ["compute_80"], False),
        ((10, 0), ["sm_90a"], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["compute_90a"], False),
        ((10, 3), ["sm_100f"], True),
        ((9, 0), [], False),
        ((9, 0), ["gfx942"], False),
    ],
)
def test_kernels_run_on_their_major_number_and_ptx_on_all_later_ones(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert has_kernels(capability, built_for) is runs


def test_every_process_of_a_node_has_its_own_gpu_and_it_becomes_the_current_one() -> None:
    with patched_cuda(count=8) as cuda:
        assert choose_device(3) == torch.device("cuda", 3)
        assert cuda.current == [torch.device("cuda", 3)]


def test_the_one_visible_gpu_of_a_task_is_number_0() -> None:
    with patched_cuda(count=1) as cuda:
        assert choose_device(5) == torch.device("cuda", 0)
        assert cuda.current == [torch.device("cuda", 0)]


def test_a_cpu_that_is_asked_for_is_a_cpu_on_a_gpu_machine(monkeypatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with patched_cuda(count=8) as cuda:
        assert accelerator() == "cpu"
        assert choose_device(3) == torch.device("cpu")
        assert choose_device(3, "cpu") == torch.device("cpu")
        with pytest.raises(UserError, match="contradicts DS_ACCELERATOR=cpu"):
            choose_device(0, "cuda")
        assert cuda.current == [] and cuda.asked == []


@pytest.mark.parametrize(
    ("asked", "index"), [("cuda", 2), ("cuda:0", 0), ("cuda:7", 7)], ids=["any", "first", "last"]
)
def test_a_gpu_may_be_named(asked: str, index: int) -> None:
    with patched_cuda(count=8) as cuda:
        assert choose_device(2, asked) == torch.device("cuda", index)
        assert cuda.current == [torch.device("cuda", index)]


@pytest.mark.parametrize("asked", ["cuda:8", "gpu", "cuda:", "xpu"])
def test_a_device_that_is_not_there_is_refused(asked: str) -> None:
    with patched_cuda(count=8), pytest.raises(UserError, match=re.escape(asked)):
        choose_device(0, asked)


@pytest.mark.parametrize(("asked", "words"), [("cuda", "built for CPUs"), ("xpu", "neither cpu")])
def test_a_job_for_gpus_does_not_train_on_the_cpu(monkeypatch, asked: str, words: str) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", asked)
    with (
        patch.object(torch.cuda, "is_available", lambda: False),
        patch.object(torch.version, "cuda", None),
        pytest.raises(UserError, match=words),
    ):
        choose_device(0)


def test_a_card_without_kernels_is_refused_with_the_build_that_has_them() -> None:
    with (
        patched_cuda(count=8, capability=(7, 0), name="Tesla V100") as cuda,
        pytest.raises(UserError, match=r"Tesla V100.*7\.0.*TORCH_BACKEND=cu126"),
    ):
        choose_device(0)
    assert cuda.current == []


def test_bfloat16_is_refused_where_it_is_emulated() -> None:
    v100 = patched_cuda(count=1, capability=(7, 0), built_for=CUDA_12_6, name="Tesla V100")
    with v100:
        device = choose_device(0)
        check_precision(device, "float16")
        for precision in ("bfloat16", torch.bfloat16):
            with pytest.raises(UserError, match=r"Tesla V100.*float16"):
                check_precision(device, precision)
    with patched_cuda(count=1):
        check_precision(choose_device(0), "bfloat16")
    check_precision(torch.device("cpu"), "bfloat16")


@pytest.fixture
def fresh_deepspeed() -> Iterator[None]:
    """DeepSpeed asks once a process: let it ask again, now and afterwards."""
    from deepspeed.accelerator import real_accelerator

    with patch.object(real_accelerator, "ds_accelerator", None):
        yield


@pytest.mark.parametrize("gpus", [0, 8])
@pytest.mark.parametrize("asked", [None, "cpu", "cuda"])
def test_deepspeed_has_the_same_opinion(
    monkeypatch, fresh_deepspeed: None, gpus: int, asked: str | None
) -> None:
    from deepspeed.accelerator import real_accelerator

    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    if asked:
        monkeypatch.setenv("DS_ACCELERATOR", asked)
    with ExitStack() as stack:
        if gpus:
            stack.enter_context(patched_cuda(count=gpus))
        if asked == "cuda" and not gpus:
            with pytest.raises(UserError):
                choose_device(0)
            return
        assert real_accelerator.get_accelerator().device_name() == accelerator()


# ---- Everywhere ---------------------------------------------------------------------------------

ASKED_OF_TORCH = ("is_available", "set_device", "device_count")


def test_nobody_else_asks_torch_which_device_it_is() -> None:
    """One opinion: whoever asks torch.cuda himself does not know of DS_ACCELERATOR, nor of one GPU a task."""
    found = []
    for path in (ROOT / "megajukebox").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ASKED_OF_TORCH:
                asked = ast.unparse(node.value)
                if asked == "torch.cuda":
                    found.append(path.name)
    assert set(found) == {"device.py"}


def test_a_cpu_profile_on_a_gpu_machine_joins_the_others_by_gloo(monkeypatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with patched_cuda(count=8) as cuda, joined(monkeypatch, local_rank=1) as told:
        assert told["dist_backend"] == "gloo" and cuda.current == []
        assert collectives.device() == torch.device("cpu")


@pytest.mark.parametrize(("visible", "index"), [(8, 5), (1, 0)], ids=["all", "one-a-task"])
def test_deepspeed_is_told_the_gpu_that_was_chosen(monkeypatch, visible: int, index: int) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with patched_cuda(count=visible) as cuda, joined(monkeypatch, local_rank=5) as told:
        assert told["dist_backend"] == "nccl"
        assert cuda.current == [torch.device("cuda", index)]
        assert os.environ["LOCAL_RANK"] == str(index)
        assert os.environ["OMPI_COMM_WORLD_LOCAL_RANK"] == str(index)


@contextmanager
def joined(monkeypatch, local_rank: int) -> Iterator[dict[str, Any]]:
    """What `collectives.start` tells DeepSpeed as one of 16 ranks."""
    place = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": str(local_rank)}
    place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (place | {"OMPI_COMM_WORLD_LOCAL_RANK": str(local_rank)}).items():
        monkeypatch.setenv(name, value)
    told: dict[str, Any] = {}
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **words: told.update(words))
    collectives.start()
    yield told


def test_the_configuration_of_a_gpu_is_not_trained_on_a_cpu_by_mistake(monkeypatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    with patch.object(torch.cuda, "is_available", lambda: False):
        with pytest.raises(UserError, match="is for GPUs"):
            require_gpu("prior_zero3_v100.json")
        require_gpu("prior_zero3_cpu.json")
        monkeypatch.setenv("DS_ACCELERATOR", "cpu")
        require_gpu("prior_zero3_v100.json")
    monkeypatch.delenv("DS_ACCELERATOR")
    with patched_cuda(count=1):
        require_gpu("prior_zero3_v100.json")


def test_songs_are_encoded_and_decoded_without_tf32() -> None:
    vqvae = little_vqvae()
    seen: list[bool] = []
    for module in vqvae.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            module.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    assert torch.backends.cudnn.allow_tf32
    top = vqvae.config.levels[-1]
    codes = vqvae.encode(torch.zeros(1, 8 * vqvae.config.hops[top], 1), top)
    vqvae.decode(codes, top)
    assert seen and not any(seen) and torch.backends.cudnn.allow_tf32
