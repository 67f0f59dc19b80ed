"""Does megajukebox compute what the original Jukebox computed? Runs recorded cases through the importer and the models.

    python tests/parity/run.py parity/              # every case in a folder: one line a quantity
    python tests/parity/run.py parity/vqvae         # one case

The exit code is 1 on any difference, and on anything that is not known. A case is a folder with io.npz and meta.json,
and a checkpoint in OpenAI's layout where it has a model.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/, also when this file is run as a script

import torch
from parity.cascade import check_cascade
from parity.misc import check_misc
from parity.priors import check_prior
from parity.report import Case, Report
from parity.vqvae import check_vqvae

from megajukebox.common.levels import RUN_FOLDERS
from megajukebox.common.model_files import load_weights
from megajukebox.interop.checkpoints import read_checkpoints
from megajukebox.interop.import_plan import Part, plan
from megajukebox.interop.jukebox_weights import import_weights


def main(folder: Path) -> int:
    torch.manual_seed(0)
    report = run(folder)
    print(
        f"{len(report.lines) - len(report.failures)} quantities equal, {len(report.failures)} not"
    )
    return 1 if report.failures or not report.lines else 0


def run(folder: Path, quiet: bool = False) -> Report:
    """Check one case, or all cases that are folders of `folder`."""
    report = Report(quiet=quiet)
    if (folder / "meta.json").is_file():
        check(folder, report)
        return report
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    if not found:
        report.fail(str(folder), "holds no cases")
    for inside in found:
        if (inside / "meta.json").is_file() and (inside / "io.npz").is_file():
            check(inside, report)
        elif inside.name != "README.md":
            report.fail(inside.name, "not a case: a folder with io.npz and meta.json")
    return report


def check(folder: Path, report: Report) -> None:
    """One case; an error of ours or a broken file is a failure of the case, not the end of the run."""
    before = len(report.lines)
    try:
        case = Case(folder, report)
        dispatch(case)
        case.finish()
    except Exception as error:
        report.fail(folder.name, f"{type(error).__name__}: {error}")
    if len(report.lines) == before:
        report.fail(folder.name, "holds nothing that can be checked")


def dispatch(case: Case) -> None:
    files = [
        path
        for path in sorted(case.folder.iterdir())
        if path.name not in ("io.npz", "meta.json", "README.md")
    ]
    if "uses" in case.meta:
        check_cascade(case)
    elif len(files) == 1:
        check_model(case, files[0])
        return
    elif not files:
        check_misc(case)
    else:
        case.fail("case", f"unknown kind of case with files {[path.name for path in files]}")
        return
    for path in files:
        case.fail(path.name, "unknown file")


def check_model(case: Case, file: Path) -> None:
    part, stored = imported(case, file)
    if part.name == "vqvae":
        check_vqvae(case, part, stored)
    else:
        check_prior(case, part, stored)


def imported(case: Case, file: Path) -> tuple:
    """The case's model through the real importer: what it is, and its tensors as read back from the run folder."""
    settings = reference_settings(case)
    with tempfile.TemporaryDirectory() as scratch:
        import_weights([file], Path(scratch) / "run", settings)
        part: Part = plan(read_checkpoints([file]), settings)[0]
        _, stored = load_weights(Path(scratch) / "run" / RUN_FOLDERS[part.name])
    return part, stored


def reference_settings(case: Case) -> dict:
    """What meta.json tells of the model, for what the checkpoint alone cannot tell."""
    told = case.fact("hps", {})
    return {name: value for name, value in told.items() if name != "base_hparams"}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1])))
