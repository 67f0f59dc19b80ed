"""Mutated inputs are read or refused, never more: benchmarks/fuzz.py does the same with many more of them."""

from pathlib import Path

from fixtures.fuzzing import fuzz, peak_megabytes


def test_mutated_inputs_cause_no_crash_no_hang_and_no_other_error(tmp_path: Path) -> None:
    before = peak_megabytes()
    counts = fuzz(tmp_path, range(550))
    assert set(counts.values()) == {50}
    assert peak_megabytes() - before < 300
