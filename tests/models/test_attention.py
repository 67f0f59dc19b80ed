"""Factored attention: the fast form is the masked one, and each schedule has its layers where it says."""

import pytest
import torch
from torch import Tensor

from megajukebox.models.attention import (
    SCHEDULES,
    attend,
    masked_dense_attention,
    schedule,
    visible,
)

# batch, rows, positions in a row, heads, size of a head
SHAPES = [(1, 1, 6, 1, 4), (2, 3, 4, 2, 3), (3, 4, 1, 1, 2), (2, 5, 7, 3, 5), (1, 1, 1, 1, 1)]
OWN_KEYS = ["dense", "row", "column", "previous_row"]


def qkv(batch: int, length: int, heads: int, size: int, keys: int | None = None) -> list[Tensor]:
    torch.manual_seed(batch + length)
    lengths = (length, keys or length, keys or length)
    return [
        torch.randn(batch, n, heads, size, dtype=torch.float64, requires_grad=True) for n in lengths
    ]


def assert_equal_with_gradients(fast: Tensor, slow: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    direction = torch.randn(fast.shape, dtype=fast.dtype)
    # With one row there is no previous one, and so no input to derive by.
    nothing = sum(x.sum() for x in inputs) * 0
    ours, theirs = (
        torch.autograd.grad((out * direction).sum() + nothing, inputs, retain_graph=True)
        for out in (fast, slow)
    )
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", OWN_KEYS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sparse_attention_equals_masked_dense_attention(
    pattern: str, shape: tuple[int, ...]
) -> None:
    batch, rows, columns, heads, size = shape
    inputs = qkv(batch, rows * columns, heads, size)
    mask = visible(pattern, rows * columns, rows)
    assert_equal_with_gradients(
        attend(*inputs, pattern, rows), masked_dense_attention(*inputs, mask), inputs
    )


@pytest.mark.parametrize("prefix", [1, 3, 8, 12, 13, 20])
def test_prefix_attention_equals_masked_dense_attention(prefix: int) -> None:
    inputs = qkv(2, 12, 2, 3)
    fast = attend(*inputs, "prefix", rows=4, prefix=prefix)
    assert_equal_with_gradients(
        fast, masked_dense_attention(*inputs, visible("prefix", 12, prefix=prefix)), inputs
    )


@pytest.mark.parametrize("keys", [1, 5, 12, 30])
def test_lyrics_attention_equals_masked_dense_attention(keys: int) -> None:
    inputs = qkv(2, 12, 3, 4, keys)
    mask = visible("lyrics", 12, keys=keys)
    assert_equal_with_gradients(
        attend(*inputs, "lyrics"), masked_dense_attention(*inputs, mask), inputs
    )


def test_the_first_row_gathers_nothing_from_a_previous_row() -> None:
    inputs = qkv(2, 12, 2, 3)
    assert not attend(*inputs, "previous_row", rows=3)[:, :4].any()
    assert not attend(*inputs, "previous_row", rows=1).any()


def test_visible_positions_are_those_of_the_specification() -> None:
    """The table of the specification, section 5.3, for the position 6 of three rows of 4 (row 1, column 2)."""
    seen = {
        p: visible(p, 12, rows=3, prefix=3)[6].nonzero().flatten().tolist()
        for p in (*OWN_KEYS, "prefix")
    }
    assert seen == {
        "dense": [0, 1, 2, 3, 4, 5, 6],
        "row": [4, 5, 6],
        "column": [2, 6],
        "previous_row": [0, 1, 2, 3],
        "prefix": [0, 1, 2],
    }
    assert visible("prefix", 12, prefix=3)[1].nonzero().flatten().tolist() == [0, 1]
    assert visible("lyrics", 12, keys=2).all()


# What the reference calls each function and attention order (specification, sections 5.3 and 5.4).
FUNCTIONS = {0: "dense", 1: "row", 2: "column", 3: "previous_row", 6: "lyrics", 7: "prefix"}
ORDERS = {
    "dense": lambda d: 0,
    "row_column": lambda d: [1, 2][d % 2],
    "factored": lambda d: [1, 2, 3][d % 3],
    "factored_lyrics": lambda d: [1, 2, 3, 6][d % 4],
    "factored_lyrics_16": lambda d: 6 if d % 16 == 15 else [1, 2, 3][d % 16 % 3],
    "factored_lyrics_10": lambda d: 6 if d % 10 == 9 else [1, 2, 3][d % 10 % 3],
    "factored_dense": lambda d: [1, 2, 3, 0][d % 4],
    "lyrics_dense_16": lambda d: [6, 6, 0][d % 3] if d % 16 == 15 else [1, 2, 3][d % 3],
    "prefix_dense_16": lambda d: [7, 7, 0][d % 3] if d % 16 == 15 else [1, 2, 3][d % 3],
}


@pytest.mark.parametrize("name", ORDERS)
def test_a_schedule_has_the_layers_of_its_attention_order(name: str) -> None:
    assert schedule(name, 150) == [FUNCTIONS[ORDERS[name](d)] for d in range(150)]


def test_the_5b_lyrics_model_reads_lyrics_at_its_seven_layers() -> None:
    layers = schedule("lyrics_after_18", 79)
    assert [d for d, pattern in enumerate(layers) if pattern == "lyrics"] == [
        18,
        28,
        38,
        48,
        58,
        68,
        78,
    ]
    music = [pattern for pattern in layers if pattern != "lyrics"]
    assert music == [("row", "column", "previous_row")[d % 3] for d in range(72)]
    assert schedule("lyrics_after_18", 158) == layers * 2


def test_the_1b_lyrics_model_reads_its_prefix_at_three_layers_and_is_dense_at_one() -> None:
    layers = schedule("prefix_dense_16", 72)
    found = {
        p: [d for d, pattern in enumerate(layers) if pattern == p] for p in ("prefix", "dense")
    }
    assert found == {"prefix": [15, 31, 63], "dense": [47]}


def test_every_schedule_is_covered_here() -> None:
    assert set(SCHEDULES) == {*ORDERS, "lyrics_after_18"}


def test_an_unknown_schedule_is_refused_and_the_known_ones_named() -> None:
    with pytest.raises(
        ValueError, match=r"schedule 'zigzag' is unknown; choose one of dense, .*prefix_dense_16"
    ):
        schedule("zigzag", 3)
