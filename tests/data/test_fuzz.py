"""Mutated inputs are read or refused, never more: benchmarks/fuzz.py does the same with many more of them."""

from pathlib import Path

from fixtures.fuzzing import fuzz, peak_megabytes
from fixtures.ingest_fuzzing import IngestCorpus


def test_mutated_inputs_cause_no_crash_no_hang_and_no_other_error(tmp_path: Path) -> None:
    before = peak_megabytes()
    counts = fuzz(tmp_path, range(550))
    assert set(counts.values()) == {50}
    assert peak_megabytes() - before < 300


def test_mutated_sidecars_lyrics_and_tags_are_taken_or_noted(tmp_path: Path) -> None:
    counts = fuzz(tmp_path, range(450), IngestCorpus)
    assert counts == {"lrc": 150, "sidecars": 150, "tags": 150}
