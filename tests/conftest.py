"""The whole pipeline, run once for all tests that need a trained jukebox: the real entries, on two ranks."""

import os

# Tests run side by side, one on each core: with more threads than cores they wait for each other (4 s became 57 s).
# Before anything imports numpy or torch, which read it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from fixtures import warm_starts
from fixtures.paths import FILES
from fixtures.tiny_shards import write_codes

# No example fails for a slow machine. In continuous integration hypothesis has a profile of its own, which stays.
with suppress(ModuleNotFoundError):  # on a bare machine that only runs the tests of a GPU
    import hypothesis

    hypothesis.settings.register_profile("suite", hypothesis.settings.default, deadline=None)
    hypothesis.settings.load_profile("suite")

PRESET = FILES / "mini.yaml"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cold-starts", action="store_true", help="no process of a test is forked")


def pytest_configure(config: pytest.Config) -> None:
    """Tests run on the CPU, on a machine with GPUs too; `-m gpu` alone sees them."""
    if re.search(r"(?<!not )\bgpu\b", config.option.markexpr):
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if not config.getoption("--cold-starts"):
        warm_starts.install(LIBRARIES)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a file's tests share is made once: by one worker, which runs them all."""
    for item in items:
        known = getattr(item, "_fixtureinfo").name2fixturedefs.values()  # noqa: B009
        own = [
            one for named in known for one in named if one.func.__module__ == item.module.__name__
        ]
        is_shared = any(one.scope in ("module", "session") for one in own)
        if is_shared and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def pytest_unconfigure() -> None:
    LIBRARIES.close()


@pytest.fixture(scope="session", autouse=True)
def bytecode(tmp_path_factory: pytest.TempPathFactory) -> None:
    LIBRARIES.bytecode = tmp_path_factory.mktemp("bytecode")


@pytest.fixture(autouse=True)
def warm_or_cold(request: pytest.FixtureRequest) -> None:
    """Processes that a test starts are forks of one with libraries (warm_starts.py), unless it is about starting."""
    LIBRARIES.is_paused = request.node.get_closest_marker("cold_start") is not None


def environment(gpu: bool = False) -> dict[str, str]:
    """Of a process that trains or samples: this environment's programs, one thread, no GPU unless one is wanted.

    A test that trains within the tests' own process leaves its place in the world there; no other is to have it.
    """
    place = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    inherited = {name: value for name, value in os.environ.items() if name not in place}
    device = {} if gpu else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return {
        **inherited,
        **device,
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }


LIBRARIES = warm_starts.LibraryClient(environment())


def demo(out: Path) -> list[str]:
    """What Python is told to run a whole demo in `out`, at miniature size."""
    small = ["--count", "9", "--samples", "3", "--seconds", "1.0"]
    return ["-m", "megajukebox.commands.demo", "--out", str(out), "--preset", str(PRESET), *small]


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Path:
    """The folder of a finished `megajukebox demo` at miniature size: shards/, runs/, samples/, site/."""
    if shutil.which("deepspeed", path=environment()["PATH"]) is None:
        pytest.fail("the deepspeed command is missing; make install")
    out = tmp_path_factory.mktemp("pipeline") / "demo"
    command = [sys.executable, *demo(out)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (out / "stdout.txt").write_text(done.stdout)
    return out


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Code shards for the smallest prior, made without training anything."""
    return write_codes(tmp_path_factory.mktemp("set") / "codes")


@pytest.fixture(scope="session")
def straight(tmp_path_factory, data) -> Path:
    """A run of the smallest prior on two ranks of the deepspeed launcher that nothing disturbs."""
    from fixtures.interrupted_runs import by_deepspeed, run

    out = tmp_path_factory.mktemp("straight") / "run"
    assert run(by_deepspeed(data, out)) == 0
    return out
