"""The trainer and `watch` agree about what a spike is."""

import pytest

from megajukebox.monitoring.alerts import SPIKE_SCORE
from megajukebox.records.spike_score import MIN_HISTORY, spike_score
from megajukebox.training.spike_detection import SpikeDetector, SpikeSettings

PLATEAU = [4.0] * 128


@pytest.mark.parametrize("loss", [4.05, 4.1, 4.2, 4.23, 4.25, 4.3, 9.0])
def test_on_a_plateau_watch_alerts_where_the_trainer_skips_and_nowhere_else(loss: float) -> None:
    """Six standard deviations of at least 1 % of the mean: from 4.24 on. `watch` once alerted from 4.024 on."""
    detector = SpikeDetector(SpikeSettings())
    for step, before in enumerate(PLATEAU):
        detector.update(step, before, 1.0, None)
    skipped = detector.check(loss, 1.0) is not None
    score = spike_score([*PLATEAU, loss])
    assert score is not None and (score > SPIKE_SCORE) == skipped == (loss > 4.24)


def test_with_few_losses_nothing_is_scored() -> None:
    assert spike_score([4.0] * MIN_HISTORY) is None
    assert spike_score([0.0] * 20) is None, "no spread to measure by"
