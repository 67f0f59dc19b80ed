"""The chaos soak in short, five minutes of which are mostly waits for SLURM; `make soak` is the hour."""

import json
import os
import subprocess
import sys

import pytest
from fixtures.paths import ROOT
from fixtures.slurm_cluster import missing

from megajukebox.resilience import exit_codes

SOAK = ROOT / "benchmarks/soak.py"


@pytest.mark.timeout(900)
@pytest.mark.xdist_group("faults")
@pytest.mark.slow  # ten minutes on two cores
def test_killed_damaged_and_warned_by_dice_a_run_ends_as_if_nothing_had_been(tmp_path):
    if missing() or os.geteuid():
        assert "CI" not in os.environ, "continuous integration must have SLURM and root"
        pytest.skip("takes root and SLURM: apt-get install slurm-wlm munge")
    report = tmp_path / "report.json"
    told = [
        "--faults",
        "flip,signal",
        "--every",
        "2",
        "--steps",
        "70",
        "--seed",
        "5",
        "--out",
        str(report),
    ]
    done = subprocess.run(
        [sys.executable, str(SOAK), *told], capture_output=True, text=True, timeout=850
    )
    assert done.returncode == exit_codes.EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    found = json.loads(report.read_text())
    assert found["same_losses"] and found["same_weights"] and found["steps"] == 70
    assert {strike["fault"] for strike in found["strikes"]} == {"flip", "signal"}
    assert found["events"]["checkpoint_rejected"] >= 1, (
        "the damaged checkpoint was refused, and the one before it used"
    )
