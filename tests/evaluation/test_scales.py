"""Samples are held against songs, samples and codes of their own scale alone; a refusal names both and the way out."""

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures.tiny_shards import RATE, write_codes, write_songs
from typer.testing import CliRunner

from megajukebox.commands.evaluate import main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import EXIT_FATAL, UserError
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.evaluation.inputs import References, rate_of_samples, samples_in
from megajukebox.evaluation.reporting.regression_gate import check_comparable


def write_samples(folder: Path, *rates: int, vqvae: str | None = None) -> Path:
    """Records of samples without audio, one a rate in Hz."""
    folder.mkdir()
    for number, rate in enumerate(rates):
        record: dict[str, Any] = {"sample_rate": rate, "request": {"id": f"s{number}"}}
        record["weights"] = {"vqvae": vqvae}
        (folder / f"s{number}.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("songs") / "songs")


@pytest.mark.parametrize("rate", [RATE * 4, RATE // 2])
def test_songs_of_another_sample_rate_are_refused_with_both_rates(
    songs: Path, tmp_path: Path, rate: int
) -> None:
    samples = write_samples(tmp_path / "samples", rate)
    arguments = [str(samples), "--reference", str(songs), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(command_app(main, "evaluate"), arguments)
    assert done.exit_code == EXIT_FATAL
    line = " ".join(done.output.split())
    assert f"holds songs at {RATE} Hz" in line and f"have {rate} Hz" in line
    assert f"prepared with --sample-rate {rate}" in line
    assert not (tmp_path / "out/report.json").exists()


def test_songs_of_their_own_rate_pass(songs: Path, tmp_path: Path) -> None:
    samples = samples_in(write_samples(tmp_path / "samples", RATE, RATE))
    References(songs=ShardSet(songs)).check_scale(samples)
    assert rate_of_samples(samples) == RATE


def test_samples_of_two_rates_are_refused_beside_each_other_and_in_one_folder(
    tmp_path: Path,
) -> None:
    ours = samples_in(write_samples(tmp_path / "ours", 11025))
    theirs = samples_in(write_samples(tmp_path / "theirs", 44100))
    with pytest.raises(UserError, match=r"theirs have 44100 Hz, those in .*ours 11025 Hz"):
        References(samples=theirs).check_scale(ours)
    mixed = samples_in(write_samples(tmp_path / "mixed", 11025, 8000))
    with pytest.raises(UserError, match=r"at 11025 Hz \(s0\) and at 8000 Hz \(s1\)"):
        References().check_scale(mixed)


def test_codes_of_another_vqvae_are_refused(tmp_path: Path) -> None:
    codes = ShardSet(write_codes(tmp_path / "codes"))
    fingerprint = codes.index["vqvae"]["fingerprint"]
    own = samples_in(write_samples(tmp_path / "own", RATE, vqvae=fingerprint))
    References(codes=codes).check_scale(own)
    other = samples_in(write_samples(tmp_path / "other", RATE, vqvae="f" * 64))
    with pytest.raises(UserError, match="holds codes of another VQ-VAE"):
        References(codes=codes).check_scale(other)


def test_the_gate_compares_no_samples_of_two_rates() -> None:
    def report(rate: int | None) -> dict[str, Any]:
        target = {"kind": "samples", "level": None} | ({"sample_rate": rate} if rate else {})
        return {"target": target, "references": [], "settings": {}}

    check_comparable(report(11025), report(11025))
    check_comparable(report(11025), report(None))  # of an older version
    with pytest.raises(UserError, match="samples at 44100 Hz, this one of samples at 11025 Hz"):
        check_comparable(report(11025), report(44100))
