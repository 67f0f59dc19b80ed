"""What `make install` installs: the build of torch that the card and its driver can run, with or without a network."""

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fixtures.paths import ROOT

pytestmark = pytest.mark.cold_start  # about what a new process is

TOOLS = ("sh", "uname", "timeout", "sort", "head", "tail", "cut", "tr")
# Writes its arguments down. No torch is there yet; it fails at requirements that end with $MISSING.
FAKE_PYTHON = """#!/bin/sh
[ "$1" != -c ] || exit 1
echo "$@" >> {log}
case "$*" in *"${{MISSING:-nothing is missing}}") exit 1 ;; esac
"""
FAKE_UV = """#!/bin/sh
echo "uv $@" >> {log}
"""
FAKE_NVIDIA_SMI = """#!/bin/sh
{answer}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder with `bin`, all that is on PATH, and `venv`, an environment whose programs only write to `log`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "venv").mkdir()
    for tool in TOOLS:
        path = shutil.which(tool)
        assert path, tool
        (tmp_path / "bin" / tool).symlink_to(path)
    for name, text in (("python", FAKE_PYTHON), ("uv", FAKE_UV)):
        program(tmp_path / "venv" / name, text.format(log=tmp_path / "log"))
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def nvidia_smi(machine: Path, *gpus: str, status: int = 0) -> None:
    """Let the machine have these GPUs, each as "capability, driver"."""
    lines = "\n".join([*[f"echo '{gpu}'" for gpu in gpus], f"exit {status}"])
    program(machine / "bin" / "nvidia-smi", FAKE_NVIDIA_SMI.format(answer=lines))


def install_torch(machine: Path, **variables: str) -> tuple[list[str], subprocess.CompletedProcess]:
    """The commands that the installer gave, each without what all have in common, and how it ended."""
    environment = {"PATH": str(machine / "bin"), "BIN": str(machine / "venv"), "TORCH": "2.13.0"}
    done = subprocess.run(
        [str(machine / "bin" / "sh"), str(ROOT / ".ci/install_torch")],
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    log = machine / "log"
    commands = log.read_text().splitlines() if log.exists() else []
    return [line.replace("-m pip install --quiet ", "pip ") for line in commands], done


@pytest.mark.parametrize(
    ("gpus", "requirement"),
    [
        ([], "torch==2.13.0+cpu"),
        (["7.0, 535.129.03"], "torch==2.13.0+cu126"),
        (["7.0, 580.65.06"], "torch==2.13.0+cu126"),
        (["9.0, 580.65.06"], "torch==2.13.0"),
        (["7.5, 590.12"], "torch==2.13.0"),
        (["9.0, 550.54.14"], "torch==2.13.0+cu126"),
        (["9.0, 580.65.06", "7.0, 580.65.06"], "torch==2.13.0+cu126"),
        (["10.0, 580.65.06", "9.0, 580.65.06"], "torch==2.13.0"),
    ],
    ids=["none", "v100", "v100-new-driver", "hopper", "turing", "old-driver", "mixed", "blackwell"],
)
def test_the_card_and_its_driver_choose_the_build(
    machine: Path, gpus: list[str], requirement: str
) -> None:
    if gpus:
        nvidia_smi(machine, *gpus)
    commands, done = install_torch(machine)
    assert done.returncode == 0, done.stderr
    assert commands == [f"pip {requirement}"]


@pytest.mark.parametrize(
    ("gpus", "status", "torch", "words"),
    [
        (["7.0, 535.129.03"], 0, "2.15.0", "torch 2.15.0 does not have"),
        (["9.0, 550.54.14"], 0, "2.16.1", "driver 550.54.14 needs the build for CUDA 12.6"),
        (["10.0, 570.26"], 0, "2.13.0", "capability 10.0 needs CUDA 13"),
        (["7.0, 470.82.01"], 0, "2.13.0", "older than 525.60"),
        ([], 9, "2.13.0", "TORCH_BACKEND=cpu"),
        (["No devices were found"], 6, "2.13.0", "TORCH_BACKEND=cpu"),
    ],
    ids=["v100-2.15", "driver-2.16", "blackwell-old-driver", "driver-470", "dead", "no-device"],
)
def test_what_no_build_can_run_is_refused_in_one_line(
    machine: Path, gpus: list[str], status: int, torch: str, words: str
) -> None:
    nvidia_smi(machine, *gpus, status=status)
    commands, done = install_torch(machine, TORCH=torch)
    assert done.returncode == 93 and not commands
    assert words in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_login_node_is_told_the_backend(machine: Path) -> None:
    commands, done = install_torch(machine, TORCH_BACKEND="cu126")
    assert done.returncode == 0 and commands == ["pip torch==2.13.0+cu126"]


def test_uv_finds_a_build_that_pip_does_not_know(machine: Path) -> None:
    nvidia_smi(machine, "7.0, 535.129.03")
    commands, done = install_torch(machine, MISSING="+cu126")
    python = machine / "venv" / "python"
    assert done.returncode == 0
    assert commands[1:] == [
        "pip uv",
        f"uv pip install --quiet --python {python} --torch-backend cu126 torch==2.13.0",
    ]


@pytest.mark.parametrize(
    ("wheels", "gpu", "backend", "version"),
    [
        (["2.13.0+cu126", "2.13.0"], "7.0, 535.129.03", "", "2.13.0+cu126"),
        (["2.13.0+cpu", "2.13.0"], "9.0, 580.65.06", "", "2.13.0"),
        (["2.13.0+cpu", "2.13.0+cu130"], "9.0, 580.65.06", "", "2.13.0+cu130"),
        (["2.13.0"], None, "cu130", "2.13.0"),
        (["2.13.0+cpu"], None, "auto", "2.13.0+cpu"),
    ],
)
def test_a_wheelhouse_gives_the_build_of_the_card_without_a_network(
    machine: Path, wheels: list[str], gpu: str | None, backend: str, version: str
) -> None:
    if gpu:
        nvidia_smi(machine, gpu)
    house = wheelhouse(machine, wheels)
    commands, done = install_torch(machine, WHEELHOUSE=str(house), TORCH_BACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert commands == [f"pip --no-index --find-links {house} torch==={version}"]


def wheelhouse(machine: Path, versions: list[str]) -> Path:
    house = machine / "wheels"
    house.mkdir()
    for version in versions:
        (house / f"torch-{version}-cp311-cp311-manylinux_2_28_x86_64.whl").touch()
    return house


def test_a_wheelhouse_without_the_build_is_refused(machine: Path) -> None:
    nvidia_smi(machine, "7.0, 535.129.03")
    house = wheelhouse(machine, ["2.13.0", "2.13.0+cpu"])
    commands, done = install_torch(machine, WHEELHOUSE=str(house))
    assert done.returncode == 93 and not commands
    assert "has no torch 2.13.0+cu126" in done.stderr and "TORCH_BACKEND=cu126" in done.stderr


def make(target: str, **variables: str) -> str:
    """What `make` would run for a target, in an environment that is still to be made."""
    command = ["make", "--dry-run", "--always-make", target]
    command += [f"{name}={value}" for name, value in variables.items()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_every_pip_of_make_stays_off_the_network_with_a_wheelhouse(tmp_path: Path) -> None:
    printed = make("check", WHEELHOUSE=str(tmp_path), VENV=str(tmp_path / "venv"))
    installs = [line for line in printed.splitlines() if "pip install" in line]
    assert len(installs) == 2  # megajukebox, and with its tests; torch by the installer
    assert all(f"--no-index --find-links {tmp_path}" in line for line in installs)
    assert f"WHEELHOUSE={tmp_path}" in printed


def test_without_a_wheelhouse_make_asks_the_registry(tmp_path: Path) -> None:
    assert "--no-index" not in make("check", VENV=str(tmp_path / "venv"))


# ---- The script that makes a wheelhouse ---------------------------------------------------------


def wheelhouse_script() -> Any:
    loader = importlib.machinery.SourceFileLoader("wheelhouse", str(ROOT / ".ci/wheelhouse"))
    spec = importlib.util.spec_from_loader("wheelhouse", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def script(monkeypatch) -> Any:
    """The script with a pip that only makes the wheels it is told to build; its `calls` are what pip was given."""
    module = wheelhouse_script()
    module.calls = []

    def pip(*arguments: str) -> bool:
        module.calls.append(arguments)
        if arguments[0] == "wheel":
            folder = Path(arguments[arguments.index("--wheel-dir") + 1])
            name = "megajukebox" if arguments[-1] == str(ROOT) else "deepspeed"
            (folder / f"{name}-0.1-py3-none-any.whl").touch()
        is_special = any(argument.endswith("+cu126") for argument in arguments)
        return not is_special or "--extra-index-url" in arguments

    monkeypatch.setattr(module, "pip", pip)
    monkeypatch.setattr(module, "index_of", lambda *_: ["--extra-index-url", "where-uv-says"])
    return module


def fill(script: Any, folder: Path, **changes: str) -> tuple[str, ...]:
    """Run the script; the last call of pip."""
    options = {"torch": "2.13.0", "torch_backend": "none", "python": None, "platform": None}
    script.fill(Namespace(folder=folder, **{**options, "extras": "test", "without": ""} | changes))
    return script.calls[-1]


def test_a_wheelhouse_is_made_for_another_machine_without_its_torch(
    script: Any, tmp_path: Path
) -> None:
    (tmp_path / "numpy-2.5-cp312-cp312-linux_x86_64.whl").touch()
    command = fill(
        script, tmp_path, python="3.12", platform="manylinux_2_28_x86_64", without="numpy"
    )
    assert command[command.index("--python-version") + 1] == "3.12"
    platforms = [b for a, b in pairwise(command) if a == "--platform"]
    assert platforms[0] == "manylinux_2_28_x86_64" and "manylinux2014_x86_64" in platforms
    assert "torch==2.13.0+absent" in command  # an empty wheel: nothing is fetched for it
    assert [path.name for path in tmp_path.glob("*.whl")] == ["deepspeed-0.1-py3-none-any.whl"]


def test_a_build_that_no_mirror_has_comes_from_the_index_that_uv_names(
    script: Any, tmp_path: Path
) -> None:
    command = fill(script, tmp_path, torch_backend="cu126")
    assert "torch==2.13.0+cu126" in command and "where-uv-says" in command


def test_the_empty_torch_is_a_wheel_that_pip_installs(tmp_path: Path) -> None:
    requirement = wheelhouse_script().empty_torch(tmp_path, "2.13.0")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    command += ["--find-links", str(tmp_path), "--target", str(tmp_path / "there"), requirement]
    subprocess.run(command, check=True, timeout=120)
    assert (tmp_path / "there" / "torch-2.13.0+absent.dist-info").is_dir()


@pytest.mark.slow
def test_torch_is_really_installed_from_a_wheelhouse(tmp_path: Path) -> None:
    """A new environment, a torch of no size, and no network: pip's index is a closed port."""
    house = tmp_path / "wheels"
    house.mkdir()
    wheelhouse_script().empty_torch(house, "2.13.0")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True, timeout=200)
    variables = {
        "BIN": str(tmp_path / "venv/bin"),
        "TORCH": "2.13.0",
        "TORCH_BACKEND": "absent",
        "WHEELHOUSE": str(house),
        "PIP_INDEX_URL": "http://127.0.0.1:9",
    }
    command = ["sh", str(ROOT / ".ci/install_torch")]
    subprocess.run(command, env=os.environ | variables, check=True, timeout=200)
    listed = [str(tmp_path / "venv/bin/python"), "-m", "pip", "list", "--format", "freeze"]
    installed = subprocess.run(listed, capture_output=True, text=True, timeout=100).stdout
    assert "torch==2.13.0+absent" in installed
