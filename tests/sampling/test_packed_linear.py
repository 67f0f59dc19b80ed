"""Packed weights give what the layer gives, for one row and for many, and are in memory once."""

import pytest
import torch
from torch import nn

from megajukebox.sampling.decoding.packed_linear import CACHED_WEIGHTS, pack_linear

ROWS = (1, 2, 7, 64, 600)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(8, 24), (300, 400), (512, 640)])
@torch.inference_mode()
def test_packed_weights_give_what_the_layer_gives(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(*shape, bias=bias)
    before = {rows: (x := torch.randn(rows, shape[0]), layer(x)) for rows in ROWS}
    fast = pack_linear(layer)
    for x, expected in before.values():
        torch.testing.assert_close(fast(x), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_both_kernels_are_tried_by_these_shapes() -> None:
    assert 8 * 24 <= CACHED_WEIGHTS < 300 * 400


@torch.inference_mode()
def test_the_layer_goes_on_with_the_packed_weights_themselves() -> None:
    layer = nn.Linear(300, 400)
    one = pack_linear(layer)
    x = torch.randn(1, 300)
    layer.weight.mul_(2)
    torch.testing.assert_close(one(x), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_int8_is_near(dtype: torch.dtype) -> None:
    layer = nn.Linear(256, 128).to(dtype)
    x = torch.randn(5, 256, dtype=dtype)
    exact, near = layer(x).float(), pack_linear(layer, int8=True)(x).float()
    assert 0 < (near - exact).abs().max() < 0.03 * exact.abs().max()
