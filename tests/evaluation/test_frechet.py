"""Fréchet distances of Gaussians with known answers; embeddings that tell music apart; embedders from files."""

import numpy as np
import pytest
import torch

from megajukebox.evaluation.evaluators.embedding import load_embedder, mel_modulation
from megajukebox.evaluation.evaluators.frechet import frechet, frechet_metric, gaussian, moments
from megajukebox.evaluation.inputs import EvalSong

RATE = 11025


def test_one_dimension_has_a_closed_form() -> None:
    """(m - n)^2 + (s - t)^2"""
    assert frechet(
        np.array([1.0]), np.array([[4.0]]), np.array([-2.0]), np.array([[9.0]])
    ) == pytest.approx(9 + 1)


def test_covariances_that_commute_have_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    a, b, m, n = (
        rng.random(5) + 0.1,
        rng.random(5) + 0.1,
        rng.standard_normal(5),
        rng.standard_normal(5),
    )
    expected = ((m - n) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet(m, turn @ np.diag(a) @ turn.T, n, turn @ np.diag(b) @ turn.T) == pytest.approx(
        expected
    )


def test_the_distance_is_that_of_a_matrix_square_root() -> None:
    """Against the other formula, tr (AB)^1/2 by eigenvalues of a product that is not symmetric; and both ways round."""
    rng = np.random.default_rng(1)
    a, b = (x @ x.T for x in rng.standard_normal((2, 6, 6)))
    m, n = rng.standard_normal((2, 6))
    root = np.sqrt(np.linalg.eigvals(a @ b).real.clip(min=0)).sum()
    expected = ((m - n) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * root
    assert frechet(m, a, n, b) == pytest.approx(expected) == pytest.approx(frechet(n, b, m, a))


def test_moments_of_parts_are_those_of_the_whole() -> None:
    x = np.random.default_rng(2).standard_normal((40, 3)) + 5
    mean, covariance = gaussian(moments(x[:10]) + moments(x[10:]))
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(covariance, np.cov(x.T), atol=1e-9)


def sets(shift: float, songs: int = 40, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"song{n}": rng.standard_normal((30, 4)) * 3 + 3 * shift for n in range(songs)}


def test_identical_sets_are_at_distance_0_and_shifted_ones_at_their_shift() -> None:
    """In units of the corpus's standard deviations: 4 features, each moved by one."""
    (same,) = frechet_metric(sets(0), sets(0))
    (moved,) = frechet_metric(sets(1, seed=1), sets(0))
    assert same.value == pytest.approx(0, abs=1e-9)
    assert moved.value == pytest.approx(4, rel=0.1)


def test_pseudo_values_take_the_bias_of_few_songs_away() -> None:
    """Of one distribution: the plain distance of 4 songs is far above 0, the mean of their pseudo-values near it."""
    metrics = []
    for seed in range(1, 11):
        metrics += frechet_metric(sets(0, songs=4, seed=seed), sets(0, songs=200, seed=99))
    plain = np.mean([metric.value for metric in metrics])
    corrected = np.mean([np.mean(list(metric.items.values())) for metric in metrics])
    assert abs(corrected) < 0.5 * plain


def sound(seed: int, hertz: float = 0.0) -> EvalSong:
    """Noise that swells `hertz` times a second."""
    time = np.arange(6 * RATE) / RATE
    wave = np.random.default_rng(seed).standard_normal(len(time)) * (
        1 + 0.9 * np.sin(2 * np.pi * hertz * time)
    )
    return EvalSong(f"{seed}", (0.1 * wave).astype(np.float32), RATE)


def test_the_built_in_embedding_is_of_known_size_and_always_the_same() -> None:
    one, again = mel_modulation(sound(0, 3)), mel_modulation(sound(0, 3))
    assert one.shape == (4, 54) and np.array_equal(one, again)
    assert mel_modulation(EvalSong("short", np.zeros(100, np.float32), RATE)).shape == (0, 54)


def test_volume_does_not_change_the_embedding() -> None:
    song = sound(0, 3)
    quiet = EvalSong("quiet", 0.01 * song.audio, RATE)
    np.testing.assert_allclose(mel_modulation(quiet), mel_modulation(song), atol=0.01)


def test_the_embedding_hears_rhythm_that_the_mean_spectrum_does_not_tell() -> None:
    slow, slow_too, fast = (
        mel_modulation(sound(*what)).mean(0) for what in ((0, 3), (1, 3), (2, 12))
    )
    assert np.linalg.norm(slow - fast) > 3 * np.linalg.norm(slow - slow_too)
    assert np.abs(slow - fast)[:16].max() < np.abs(slow - fast)[26:].max()


class Powers(torch.nn.Module):
    """An embedder: power and mean of each window."""

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        return torch.stack([audio.square().mean(1), audio.mean(1)], dim=1)


def test_a_torchscript_embedder_is_run_only_when_its_code_is_trusted(tmp_path) -> None:
    torch.jit.script(Powers()).save(str(tmp_path / "powers.pt"))
    with pytest.raises(ValueError, match="--trust-code"):
        load_embedder(tmp_path / "powers.pt", 16000, 1.0, trust_code=False)
    embedder = load_embedder(tmp_path / "powers.pt", 16000, 1.0, trust_code=True)
    found = embedder.embed(EvalSong("half", np.full(3 * 8000, 0.5, np.float32), 8000))
    assert found.shape == (5, 2) and found[2] == pytest.approx([0.25, 0.5], abs=1e-3)


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match="neither"):
        load_embedder(tmp_path / "embedder.pkl", 16000, 1.0, trust_code=True)


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def message(field: int, content: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def onnx_of_mean_square() -> bytes:
    """The bytes of an ONNX model, by hand: ReduceSumSquare over axis 1 of audio [N, T]. protobuf is all it takes."""

    def shape(*sizes: str | int) -> bytes:
        sizes_ = b"".join(
            message(1, message(2, s.encode()) if isinstance(s, str) else number(1, s))
            for s in sizes
        )
        return message(2, message(1, number(1, 1) + message(2, sizes_)))

    axes = message(1, b"axes") + number(8, 1) + number(20, 7)
    node = (
        message(1, b"audio")
        + message(2, b"out")
        + message(4, b"ReduceSumSquare")
        + message(5, axes)
    )
    audio, out = message(1, b"audio") + shape("n", "t"), message(1, b"out") + shape("n", 1)
    graph = message(1, node) + message(2, b"graph") + message(11, audio) + message(12, out)
    return number(1, 7) + message(7, graph) + message(8, number(2, 11))


def test_an_onnx_embedder_needs_no_trust(tmp_path) -> None:
    pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed; it comes with megajukebox[test]"
    )
    (tmp_path / "power.onnx").write_bytes(onnx_of_mean_square())
    embedder = load_embedder(tmp_path / "power.onnx", 1000, 1.0, trust_code=False)
    found = embedder.embed(EvalSong("half", np.full(2000, 0.5, np.float32), 1000))
    assert found.tolist() == [[250.0]] * 3
