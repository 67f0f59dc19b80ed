"""The recorded cases of the original Jukebox (../shared/parity; skipped where that folder is missing)."""

import json

import numpy as np
import pytest
from fixtures.paths import SHARED
from parity import run as parity

FOLDER = SHARED / "parity"
CASES = sorted(path for path in FOLDER.iterdir() if path.is_dir()) if FOLDER.is_dir() else []


@pytest.mark.skipif(
    not CASES, reason=f"the recordings of the original program are not at {FOLDER.name}/"
)
@pytest.mark.parametrize("case", CASES, ids=lambda path: path.name)
def test_every_quantity_of_the_original_comes_out_the_same(case):
    report = parity.run(case, quiet=True)
    assert report.lines and not report.failures, "\n".join(report.lines)


def test_an_unknown_case_and_an_unknown_quantity_are_failures(tmp_path):
    (tmp_path / "stranger").mkdir()
    assert parity.run(tmp_path, quiet=True).failures == ["stranger"]
    assert parity.main(tmp_path / "missing") == 1


@pytest.mark.skipif(
    not CASES, reason=f"the recordings of the original program are not at {FOLDER.name}/"
)
def test_a_wrong_number_and_a_new_quantity_are_found(tmp_path):
    case = FOLDER / "prior_top_nolabels"
    for file in case.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    arrays = dict(np.load(case / "io.npz"))
    arrays["logits"][0, 0, 0] += 0.01
    np.savez(tmp_path / "io.npz", **arrays, novelty=np.zeros(3))
    meta = json.loads((case / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"loss": meta["loss"] * 1.001}))
    names = {name.split("/")[1] for name in parity.run(tmp_path, quiet=True).failures}
    assert names == {"logits", "loss", "novelty"}
