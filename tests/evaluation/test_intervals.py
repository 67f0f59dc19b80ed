"""Intervals that hold what they promise, and gates that fail and pass as they should."""

import json
import sys
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from megajukebox.common.errors import UserError
from megajukebox.evaluation.evaluators.codebook import codebook_metrics, histogram
from megajukebox.evaluation.metrics import MetricValue, mean_metric, set_metric, sum_metric
from megajukebox.evaluation.reporting.intervals import bootstrap, difference, t_quantile, wilson
from megajukebox.evaluation.reporting.regression_gate import compare
from megajukebox.evaluation.reporting.report import build_report, read_report


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.706), (5, 2.5706), (30, 2.0423), (1000, 1.9623)], ids=str
)
def test_students_t_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(quantile, rel=1e-4)
    assert t_quantile(0.025, degrees) == pytest.approx(-quantile, rel=1e-4)


def t_quantile_on_a_grid(probability: float, degrees: float) -> float:
    """Student's t by integration, as versions up to 0.1.0 had it.

    t = sqrt(f) tan(angle), where the angle has a density proportional to cos^(f-1).
    """
    angle = np.linspace(-np.pi / 2, np.pi / 2, 200_001)[1:-1]
    density = np.cos(angle) ** (degrees - 1)
    below = np.cumsum((density[1:] + density[:-1]) / 2)
    return float(np.sqrt(degrees) * np.tan(np.interp(probability, below / below[-1], angle[1:])))


@pytest.mark.parametrize("degrees", [1, 3.7, 15, 63])
@pytest.mark.parametrize("probability", [0.005, 0.3, 0.975, 0.9995])
def test_students_t_agrees_with_its_integral(degrees: float, probability: float) -> None:
    expected = t_quantile_on_a_grid(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=0.02, abs=1e-3)


@pytest.mark.parametrize(("successes", "n"), [(0, 4), (3, 7), (6, 6), (40, 90)], ids=str)
def test_wilsons_interval_is_that_of_his_formula(successes: int, n: int) -> None:
    z = NormalDist().inv_cdf(0.975)
    ratio = successes / n
    centre = (ratio + z * z / (2 * n)) / (1 + z * z / n)
    reach = z * np.sqrt(ratio * (1 - ratio) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    expected = (max(0.0, centre - reach), min(1.0, centre + reach))
    assert wilson(ratio, n, 0.95) == pytest.approx(expected, abs=1e-12)


def test_without_scipy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(UserError, match=r"pip install 'megajukebox\[evaluate\]'"):
        wilson(0.5, 4, 0.95)


@pytest.mark.parametrize("songs", [6, 40])
def test_a_bootstrap_interval_holds_the_truth_about_as_often_as_it_says(songs: int) -> None:
    rng = np.random.default_rng(0)
    held = []
    for n in range(300):
        low, high = bootstrap(rng.standard_normal(songs), seed=str(n))  # type: ignore[misc]
        held.append(low <= 0 <= high)
    assert 0.91 <= np.mean(held) <= 0.99


def test_one_song_has_no_interval_and_all_right_is_not_certain() -> None:
    assert bootstrap(np.array([3.0])) is None
    assert wilson(1.0, 6, 0.95) == pytest.approx((0.610, 1.0), abs=1e-3)  # 6 of 6
    assert bootstrap(np.ones(6), binary=True) == wilson(1.0, 6, 0.95)


def test_an_interval_depends_on_nothing_but_values_and_name() -> None:
    values = np.random.default_rng(1).random(9)
    assert bootstrap(values, seed="a") == bootstrap(values, seed="a") != bootstrap(values, seed="b")


def test_pseudo_values_of_a_mean_are_the_values_themselves() -> None:
    values = {"a": 1.0, "b": 2.0, "c": 6.0}
    assert set_metric("x/snr_db", values, lambda some: float(np.mean(some))).items == pytest.approx(
        values
    )


def test_two_ways_to_leave_one_song_out_agree() -> None:
    songs = {f"{n}": np.random.default_rng(n).random(5) for n in range(7)}
    one = sum_metric("x/usage", songs, lambda total: float((total**2).sum()))
    other = set_metric("x/usage", songs, lambda some: float((np.sum(some, axis=0) ** 2).sum()))
    assert one.items == pytest.approx(other.items) and one.value == pytest.approx(other.value)


def test_perplexity_of_equally_likely_codes_is_their_number() -> None:
    counts = {f"{n}": histogram(np.arange(64), 128) for n in range(4)}
    found = {metric.name: metric.value for metric in codebook_metrics(counts)}
    assert found == {
        "usage": 0.5,
        "perplexity": pytest.approx(64),
        "entropy_bits": pytest.approx(6),
    }


# ---- The gate

LABELS = {f"song{n}": {"artist": f"artist {n % 2}", "genre": "folk"} for n in range(20)}


def report(snr: np.ndarray, bits: np.ndarray | None = None, against: str = "corpus") -> dict:
    keys = list(LABELS)
    metrics = [mean_metric("reconstruction/top/snr_db", dict(zip(keys, snr.tolist())))]
    if bits is not None:
        metrics.append(mean_metric("bits/top/bits_per_code", dict(zip(keys, bits.tolist()))))
    target = {"kind": "vqvae", "level": None, "step": 1, "weights": "w"}
    facts = {
        "target": target,
        "references": [{"fingerprint": against}],
        "settings": {},
        "time": 0.0,
    }
    return build_report(metrics, LABELS, facts)


RNG = np.random.default_rng(5)
SNR, BITS = RNG.normal(10, 3, 20), RNG.normal(6, 1, 20)
JITTER = RNG.normal(0, 0.3, 20)


def worse(new: dict, old: dict) -> list[str]:
    return [change.name for change in compare(new, old) if change.worse]


def test_a_report_is_not_worse_than_itself() -> None:
    assert compare(report(SNR, BITS), report(SNR, BITS)) and not worse(
        report(SNR, BITS), report(SNR, BITS)
    )


def test_a_loss_far_smaller_than_the_spread_of_songs_is_found_song_by_song() -> None:
    """Songs differ by 3 dB, the change is half a decibel: only pairs can tell."""
    found = worse(report(SNR - 0.5 + JITTER * 0.3), report(SNR))
    assert "reconstruction/top/snr_db" in found


def test_better_is_not_worse_whichever_way_better_is() -> None:
    assert not worse(report(SNR + 2, BITS - 1), report(SNR, BITS))
    assert (
        worse(report(SNR, BITS + 1 + 0.1 * JITTER), report(SNR, BITS))[0]
        == "bits/top/bits_per_code"
    )


def test_one_slice_that_gets_worse_is_named() -> None:
    fallen = SNR - np.where(np.arange(20) % 2, 3.0, -3.0) + JITTER
    assert worse(report(fallen), report(SNR)) == ["reconstruction/top/snr_db artist=artist 1"]


def test_chance_alone_seldom_closes_the_gate() -> None:
    rng = np.random.default_rng(7)
    closed = [bool(worse(report(SNR + rng.normal(0, 1, 20)), report(SNR))) for _ in range(100)]
    assert np.mean(closed) <= 0.08


def test_a_certain_change_that_does_not_matter_is_let_through() -> None:
    assert not worse(report(SNR - 0.01), report(SNR))


def test_other_songs_are_compared_as_two_sets() -> None:
    change, low, high, pairs = difference(
        {f"a{n}": x for n, x in enumerate(SNR)}, {f"b{n}": x for n, x in enumerate(SNR)}, 0.95
    )
    assert (change, pairs) == (0, 0) and low < 0 < high
    assert difference({"a": 1.0}, {"b": 2.0}, 0.95)[1:3] == (-np.inf, np.inf)


def test_reports_of_different_things_are_not_compared() -> None:
    with pytest.raises(ValueError, match="other songs"):
        compare(report(SNR, against="another"), report(SNR))


def test_slices_are_of_labels_that_some_songs_share_and_others_do_not() -> None:
    slices = report(SNR)["metrics"]["reconstruction/top/snr_db"]["slices"]
    assert list(slices) == ["artist=artist 0", "artist=artist 1"]
    assert slices["artist=artist 0"]["value"] == pytest.approx(SNR[::2].mean())
    assert slices["artist=artist 0"]["low"] < SNR[::2].mean() < slices["artist=artist 0"]["high"]


def test_a_metric_without_a_number_is_null_in_the_report() -> None:
    metric = build_report([MetricValue("x/frechet", float("nan"))], {}, {})["metrics"]["x/frechet"]
    assert metric["value"] is None and metric["low"] is None


# ---- Reports of version 1


def as_version_1(new: dict) -> dict:
    """A report as versions up to 0.1.0 wrote it."""
    old = {key: new[key] for key in ("settings", "time", "songs")}
    metrics = {}
    for name, metric in new["metrics"].items():
        metrics[name.replace("_accuracy", "_heard").replace("paired/", "beside/")] = metric
    return {
        "version": 1,
        "subject": new["target"],
        "against": new["references"],
        "figures": metrics,
        **old,
    }


def test_a_report_of_version_1_is_compared_with_a_new_one(tmp_path: Path) -> None:
    right = dict.fromkeys(LABELS, 1.0)
    wrong = dict.fromkeys(LABELS, 0.0)

    def both(accuracy: dict[str, float], shift: float) -> dict:
        snr = report(SNR + shift)
        metrics = [
            mean_metric("samples/top/artist_accuracy", accuracy),
            mean_metric("paired/top/tempo_agreement", accuracy),
        ]
        snr["metrics"] |= build_report(metrics, LABELS, {})["metrics"]
        return snr

    path = tmp_path / "report.json"
    path.write_text(json.dumps(as_version_1(both(right, 0))))
    old = read_report(path)
    assert old["schema"] == 2 and "samples/top/artist_accuracy" in old["metrics"]
    assert not worse(both(right, 0), old)
    names = worse(both(wrong, -1), old)
    assert "reconstruction/top/snr_db" in names
    assert "samples/top/artist_accuracy" in names and "paired/top/tempo_agreement" in names


def test_a_report_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    for text in ("[]", json.dumps({"schema": 7, "metrics": {}}), "{"):
        path.write_text(text)
        with pytest.raises(UserError, match=r"report\.json"):
            read_report(path)
