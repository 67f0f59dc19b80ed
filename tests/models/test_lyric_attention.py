"""Which code reads which lyric token: weights of a layer, and windows laid over a song."""

import numpy as np
import pytest
import torch
from fixtures.reference_shapes import TINY, checkpoint

from megajukebox.conditioning.schema import SongConditioning
from megajukebox.conditioning.tokenizers import TokenizedLyrics
from megajukebox.interop.checkpoints import read_checkpoints
from megajukebox.interop.import_plan import converted, plan
from megajukebox.models.lyric_attention import lyric_attention, lyric_layers
from megajukebox.models.prior import Prior
from megajukebox.sampling.levels.level_windows import window_starts
from megajukebox.sampling.lyrics.alignment import align, place_window


@pytest.fixture(params=["prior_5b_lyrics", "prior_1b_lyrics"])
def prior(request, tmp_path):
    content = checkpoint(TINY[request.param])
    torch.save(content, tmp_path / "x.pth.tar")
    part = plan(
        read_checkpoints([tmp_path / "x.pth.tar"]), {"downs_t": (3, 2, 2), "strides_t": (2, 2, 2)}
    )[0]
    model = Prior(part.config)
    state = {
        name: pending.make()
        for name, pending in converted(part, content["model"].__getitem__).items()
    }
    model.load_state_dict(state, strict=False)
    return model.eval()


def song(prior: Prior, length: int) -> SongConditioning:
    ids = [1 + i % (prior.config.lyrics.size - 1) for i in range(length)]
    names = {
        name: np.zeros(label.max_values, dtype=np.int64)
        for name, label in prior.config.conditions.items()
    }
    tokens = TokenizedLyrics(ids, [(i, i + 1) for i in range(length)])
    return SongConditioning.of(prior.config, names, tokens)


def test_weights_over_a_lyrics_encoder_sum_to_one_and_other_layers_are_refused(prior):
    config, told = prior.config, song(prior, 40)
    batch = {
        "codes": torch.zeros(1, config.window, dtype=torch.long),
        "timing": torch.tensor([[9_000_000, 0, config.window * config.hop]]),
        "conditions": {
            name: torch.from_numpy(told.values[name])[None] for name in config.conditions
        },
        "lyrics": torch.tensor([told.tokens.ids[: config.lyrics.tokens]]),
    }
    layer = lyric_layers(prior)[0]
    weights = lyric_attention(prior, batch, [layer])[layer]
    assert weights.shape == (1, config.transformer.heads, config.window, config.lyrics.tokens)
    total = weights.sum(-1)
    if prior.lyrics is None:
        assert (total <= 1 + 1e-6).all() and (total > 0).all()
    else:
        torch.testing.assert_close(total, torch.ones_like(total))
    with pytest.raises(ValueError, match="reads no lyrics"):
        lyric_attention(prior, batch, [0])


def test_a_song_longer_than_a_window_is_covered_to_its_end(prior):
    codes, told = torch.randint(32, (1, 150)), song(prior, 60)
    pair = (lyric_layers(prior)[0], 0)
    found = align(prior, [told], codes, samples=9_000_000, pairs=[pair])[pair][0]
    assert found.shape == (150, 60) and (found.sum(1) > 0).all()


def test_all_heads_at_once_are_the_heads_one_by_one(prior):
    codes, told = torch.randint(32, (2, 150)), [song(prior, 60), song(prior, 9)]
    pairs = [
        (layer, head)
        for layer in lyric_layers(prior)
        for head in range(prior.config.transformer.heads)
    ]
    together = align(prior, told, codes, 9_000_000, pairs)
    for pair in pairs:
        for b, one in enumerate(told):
            alone = align(prior, [one], codes[b : b + 1], 9_000_000, [pair])[pair][0]
            np.testing.assert_allclose(together[pair][b], alone, atol=1e-6)


def laid(windows: list, indices: list, starts: list[int], total: int, tokens: int) -> np.ndarray:
    out = np.zeros((total, tokens + 1), np.float32)
    for window, index, start in reversed(list(zip(windows, indices, starts))):
        place_window(out, window, index, start)
    return out[:, :-1]


def test_of_overlapping_windows_the_earlier_counts_and_padding_is_dropped():
    windows = [np.full((4, 2), n, dtype=np.float32) for n in (1, 2)]
    out = laid(windows, [np.array([0, 1]), np.array([-1, 2])], [0, 2], 6, 3)
    assert out.tolist() == [[1, 1, 0], [1, 1, 0], [1, 1, 2], [1, 1, 2], [0, 0, 2], [0, 0, 2]]


@pytest.mark.parametrize("total", [5, 8, 20, 23])
def test_laying_windows_equals_asking_for_each_code_and_token_which_window_is_first(total):
    rng, size, columns, tokens = np.random.default_rng(total), 8, 6, 11
    starts = window_starts(total, size, 2)
    firsts = [rng.integers(-3, tokens - columns + 1) for _ in starts]
    indices = [np.maximum(np.arange(first, first + columns), -1) for first in firsts]
    windows = [rng.random((size, columns), dtype=np.float32) for _ in starts]
    slow = np.zeros((total, tokens), np.float32)
    for code in range(total):
        for token in range(tokens):
            for window, index, start in zip(windows, indices, starts):
                if 0 <= code - start < size and token in index:
                    slow[code, token] = window[code - start, list(index).index(token)]
                    break
    assert np.array_equal(laid(windows, indices, starts, total, tokens), slow)
