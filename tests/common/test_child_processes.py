"""Processes of ours import nothing from the folder they stand in, see no secret, and load nothing that others built."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.paths import ROOT

from megajukebox.common.build_folders import BUILD_FOLDERS, IN_TMP, use_private_build_folders
from megajukebox.common.child_processes import child_environment, module_command
from megajukebox.common.errors import UserError
from megajukebox.common.process_pool import in_order

pytestmark = pytest.mark.cold_start  # about what a new process is

# Modules of the standard library and of ours that every child imports early.
HOSTILE = ("psutil", "json", "torch", "numpy", "megajukebox", "sitecustomize", "runpy")


@pytest.fixture
def shared_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that somebody else may write to, in which the parent stands."""
    folder = tmp_path / "shared"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\n"
        )
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("search_path", ["{}", ":{}", "{}::"])
@pytest.mark.parametrize("variable", [True, False], ids=["", "as under Python 3.10"])
def test_a_child_imports_nothing_from_the_folder_it_stands_in(
    shared_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    search_path: str,
    variable: bool,
) -> None:
    own = shared_folder.parent / "own"
    own.mkdir()
    (own / "probe.py").write_text("import json, psutil, numpy, megajukebox.common.errors")
    monkeypatch.setenv("PYTHONPATH", search_path.format(own))
    environment = child_environment()
    if not variable:
        del environment["PYTHONSAFEPATH"]
    subprocess.run(module_command("probe"), env=environment, check=True, timeout=120)
    assert not (shared_folder.parent / "ran").exists()


def test_a_module_sees_its_name_and_arguments_as_under_python_m(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("import sys; print(__name__, sys.argv[1:], __spec__.name)")
    environment = child_environment() | {"PYTHONPATH": str(tmp_path)}
    command = module_command("shown", "a", "--b=c d")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "__main__ ['a', '--b=c d'] shown\n", done.stderr


def test_a_child_gets_what_it_needs_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = {
        "PATH": "/bin",
        "HOME": "/h",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "1",
        "TRITON_X": "y",
    }
    secret = (
        "AWS_SECRET_ACCESS_KEY",
        "SLURM_JWT",
        "HF_TOKEN",
        "WANDB_API_KEY",
        "SSH_AUTH_SOCK",
        "RANK",
        # Of an allowed beginning, and still secrets: by the name, and by what is in it.
        "PYTORCH_SECRET_TOKEN",
        "NVIDIA_API_KEY",
    )
    monkeypatch.setenv("TORCH_MIRROR", "https://me:hunter2@host/wheels")
    for name, value in {**needed, **dict.fromkeys(secret, "s")}.items():
        monkeypatch.setenv(name, value)
    environment = child_environment()
    assert needed.items() <= environment.items()
    assert not set(secret) & set(environment) and "TORCH_MIRROR" not in environment
    assert environment["PYTHONSAFEPATH"] == "1"


def own_environment(_: int) -> dict[str, str]:
    return dict(os.environ)


def test_workers_of_a_pool_see_no_secret_and_this_process_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden = {"HF_TOKEN": "s", "GITHUB_PAT": "s", "PROXY": "http://me:hunter2@host:8080"}
    shown = {"LANG": "C", "SONGS": "/data/songs"}
    for name, value in {**hidden, **shown}.items():
        monkeypatch.setenv(name, value)
    for seen in in_order(own_environment, [1, 2], 2, crashed=own_environment):
        assert shown.items() <= seen.items() and not set(hidden) & set(seen)
    assert hidden.items() <= os.environ.items()


# ---- What is built and loaded again -----------------------------------------------------------------------------------


@pytest.fixture
def no_build_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in BUILD_FOLDERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def test_what_torch_would_build_below_tmp_goes_below_the_home(no_build_folders: Path) -> None:
    use_private_build_folders()
    home = no_build_folders / "home"
    assert os.environ[IN_TMP] == str(home / ".cache/megajukebox/torchinductor")


@pytest.mark.parametrize("name", BUILD_FOLDERS)
def test_a_folder_of_built_code_is_made_for_this_user_alone(
    no_build_folders: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = no_build_folders / "built"
    monkeypatch.setenv(name, str(folder))
    use_private_build_folders()
    assert folder.stat().st_mode & 0o777 == 0o700
    use_private_build_folders()  # a second start finds it


@pytest.mark.parametrize("name", BUILD_FOLDERS)
def test_one_that_others_may_write_to_or_made_is_refused(
    no_build_folders: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = no_build_folders / "built"
    folder.mkdir()
    monkeypatch.setenv(name, str(folder))
    folder.chmod(0o777)
    with pytest.raises(UserError, match="others may write to it"):
        use_private_build_folders()
    folder.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(UserError, match="is not a folder of yours"):
        use_private_build_folders()
    monkeypatch.undo()
    (no_build_folders / "link").symlink_to(folder)
    monkeypatch.setenv(name, str(no_build_folders / "link"))
    with pytest.raises(UserError, match="is not a folder of yours"):
        use_private_build_folders()


# Where the package or its scripts name a temporary folder, and why nobody can have made it before.
TEMPORARY = {
    "megajukebox/commands/evaluate.py": "TemporaryDirectory: a random name, mode 0700",
    "megajukebox/common/build_folders.py": "mkdtemp, and what torch's default is",
    "megajukebox/common/child_processes.py": "hands TMPDIR on to a child",
    "megajukebox/data/piece_files.py": "TemporaryDirectory: a random name, mode 0700",
    "megajukebox/data/recordings/foreign_audio.py": "TemporaryFile: it has no name",
    "megajukebox/evaluation/frozen_weights.py": "TemporaryDirectory beside the run",
    "megajukebox/explorer/server/api.py": "mkstemp: a random name, mode 0600",
    "megajukebox/explorer/server/draw_api.py": "TemporaryDirectory: a random name, mode 0700",
    "megajukebox/explorer/server/uploads.py": "TemporaryDirectory",
    "megajukebox/resilience/standby_launcher.py": "a random name, made 0700, refused if not ours",
    "megajukebox/training/engines/collectives.py": "a comment on what DeepSpeed would do",
    "slurm/cluster.sh": "mktemp -d",
}
NAMES_TMP = re.compile(r"/tmp\b|/dev/shm|\btempfile\b|gettempdir|mktemp|TMPDIR\b")


def test_no_predictable_name_in_a_temporary_folder() -> None:
    found = set()
    files = [*(ROOT / "megajukebox").rglob("*.py"), *(ROOT / "slurm").iterdir()]
    for path in files:
        if NAMES_TMP.search(path.read_text()):
            found.add(str(path.relative_to(ROOT)))
    assert found <= set(TEMPORARY)


def test_no_process_of_ours_is_started_by_python_m() -> None:
    """It would put the folder that one stands in first on the search path."""
    found = []
    for path in (ROOT / "megajukebox").rglob("*.py"):
        if re.search(r"sys\.executable,\s*(?:\"-\w+\",\s*)*\"-m\"", path.read_text()):
            found.append(str(path.relative_to(ROOT)))
    assert not found


CLUSTER_SCRIPT = """
cd {root}
scontrol() {{ case "$2" in hostnames) echo n1;; *) echo " NodeAddr=10.0.0.1 ";; esac; }}
SLURM_JOB_ID=4711 SLURM_JOB_NODELIST=n1 DRY_RUN={dry} VENV={venv} PROFILE=cpu
. slurm/cluster.sh
printf '%s\\n' "$TORCH_EXTENSIONS_DIR" "$MASTER_PORT" "$MASTER_ADDR" "$PYTHONSAFEPATH"
"""


def sourced_cluster(tmp_path: Path, dry: str = "") -> list[str]:
    """Folder of extensions, port, address and PYTHONSAFEPATH, as job 4711 has them."""
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True, exist_ok=True)
    python = venv / "bin/python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    script = CLUSTER_SCRIPT.format(root=ROOT, venv=venv, dry=dry)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_a_job_has_a_folder_and_a_port_that_nobody_can_reckon(tmp_path: Path) -> None:
    first, second = sourced_cluster(tmp_path), sourced_cluster(tmp_path)
    for folder, port, address, safe in (first, second):
        assert Path(folder).is_dir() and Path(folder).stat().st_mode & 0o777 == 0o700
        assert "4711" not in folder and port != str(20000 + 4711 * 37 % 12000)
        assert 20000 <= int(port) < 32000 and address == "10.0.0.1" and safe == "1"
    assert first[0] != second[0] and first[1] != second[1]
    assert not Path(sourced_cluster(tmp_path, dry="1")[0]).exists(), "a dry run makes nothing"
