"""What version 1 left on disk is still read, resumed, sampled, watched and scored as by version 1.

`fixtures/files/version_1.tar.xz` holds its files and, in expected.json, what it computed from them;
`version_1.md` beside it says how they were made. Verbs, options and settings in the strings below
are those of version 1: they must go on working, so do not rename them.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import environment
from fixtures.paths import FILES, ROOT

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.stream.batches import Batches
from megajukebox.data.stream.code_dataset import CodeWindows
from megajukebox.data.stream.song_dataset import SongClips
from megajukebox.evaluation.reporting.report import read_report
from megajukebox.explorer.server import votes
from megajukebox.monitoring.legacy_names import LEGACY_ALERTS
from megajukebox.records.jsonl_tail import read_lines
from megajukebox.resilience.restart_policy import MAX_FRUITLESS_ATTEMPTS, attempts_without_progress
from megajukebox.training.config import load_preset

ARCHIVE = FILES / "version_1.tar.xz"
LEVELS = ("top", "middle", "bottom")
STEPS = 3  # that every run is trained on for
DATA = {"vqvae": "shards/songs"}  # of the other stages: shards/codes
LSB = 2**-15  # of the stored audio
RENAMED = {  # parts of the exporter's series, and keys of watch: in version 1 -> now
    "productive": "step",
    "ckpt_save": "checkpoint_save",
    "ckpt_restore": "checkpoint_load",
    **LEGACY_ALERTS,
}
WORDING = ("do", "what")  # of an alert, for people
NOT_KEPT = (
    "megajukebox_spike_score",  # version 1 judged it by another least spread
    'megajukebox_metric{name="skipped"',  # now bad_samples_total
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of version 1, for tests that only read them."""
    folder = tmp_path_factory.mktemp("version_1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder / "version_1"


@pytest.fixture
def here(stored: Path, tmp_path: Path) -> Path:
    """A copy of them, for tests that go on with them."""
    return Path(shutil.copytree(stored, tmp_path / "version_1"))


@pytest.fixture(scope="module")
def expected(stored: Path) -> dict[str, Any]:
    return json.loads((stored / "expected.json").read_text())


def megajukebox(folder: Path, *words: str, expect: tuple[int, ...] = (0,)) -> str:
    """What a verb prints that is run inside `folder`, as a user does."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-m", "megajukebox.cli", *words],
        cwd=folder,
        env=environment() | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in expect, (done.returncode, done.stdout[-2000:], done.stderr[-4000:])
    return done.stdout


# ---- Data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["songs", "codes"])
def test_shards_are_whole_and_hold_the_same_songs(stored: Path, expected: dict, kind: str) -> None:
    shards, facts = ShardSet(str(stored / "shards" / kind)), expected["shards"][kind]
    assert shards.fingerprint == facts["fingerprint"]
    assert [shards.key(row) for row in range(len(shards))] == facts["keys"]
    assert megajukebox(stored, "shards", "check", f"shards/{kind}").strip() == facts["check"]
    assert megajukebox(stored, "shards", "ls", f"shards/{kind}") == facts["ls"]


@pytest.mark.parametrize("name", ["vqvae", *LEVELS])
def test_the_order_of_the_data_is_the_same(stored: Path, expected: dict, name: str) -> None:
    """The clips of the first five steps, and the state that a checkpoint keeps of their order."""
    if name == "vqvae":
        source: Any = SongClips(ShardSet(str(stored / "shards/songs")), 2048, 0.3)
    else:
        source = CodeWindows(ShardSet(str(stored / "shards/codes")), name, 32, 0.3)
    stream = Batches(source, seed=7, global_batch=4, micro_batch=2, block=2)
    places = []
    for position in range(20):
        epoch, song, clip = stream.order.locate(position)
        places.append([epoch, source.shards.key(song), clip])
    assert places == expected["streams"][name]["places"]
    for _ in zip(range(5), stream):
        pass
    assert json.loads(json.dumps(stream.state())) == expected["streams"][name]["state"]
    stream.identity.check(expected["streams"][name]["state"])


# ---- Settings -------------------------------------------------------------------------------------------------------


def test_a_preset_in_the_old_keys_is_accepted_and_means_the_same(
    stored: Path, expected: dict
) -> None:
    preset = load_preset(
        str(stored / "preset.yaml"), ["training.vqvae.spike_sigmas=7", "training.vqvae.keep=4"]
    )
    settings, before = preset.stage("vqvae"), expected["preset"]["training"]["vqvae"]
    assert (settings.spikes.threshold_std, settings.checkpointing.keep_last) == (7, 4)
    bottom = preset.stage("bottom_upsampler")
    spikes = bottom.spikes
    assert (spikes.max_skipped_steps, spikes.max_rewinds, spikes.rewind_skip_steps) == (1, 1, 2)
    assert bottom.previews.every == 5
    watchdog = settings.watchdog
    assert (watchdog.step_timeout_seconds, watchdog.phase_timeout_seconds) == (
        before["hang_seconds"],
        before["hang_slow_seconds"],
    )
    assert settings.checks.replica_check_every == 2
    assert settings.loader.worker_memory_gb == 4
    assert settings.loader.max_bad_sample_ratio == 0.9
    top = preset.prior_config("top", 270)
    assert {
        name: (label.max_values, label.table_size) for name, label in top.conditions.items()
    } == {
        "artist": (1, 4),
        "genres": (3, 5),
    }
    assert (top.codebook_size, top.transformer.blocks, top.conditions_at_every_position) == (
        16,
        4,
        True,
    )
    assert preset.prior_config("middle", 270).upsampler_conditioner is not None


# ---- Training -------------------------------------------------------------------------------------------------------


def losses_after(run: Path, step: int) -> dict[str, float]:
    """The loss of every training step after `step`, by its number."""
    lines = [line for line in read_lines(run / "metrics.jsonl") if line["split"] == "train"]
    return {str(line["step"]): line["loss"] for line in lines if line["step"] > step}


def check_resumed(run: Path, expected: dict) -> None:
    resumed = [event for event in read_lines(run / "events.jsonl") if event["event"] == "resume"][
        -1
    ]
    assert resumed["step"] == expected["from"]
    assert losses_after(run, expected["from"]) == pytest.approx(
        expected["losses"], rel=1e-6, abs=1e-7
    )
    assert len(expected["losses"]) == STEPS


@pytest.mark.parametrize(
    "stage",
    [
        "vqvae",
        "top_prior",
        pytest.param("middle_upsampler", marks=pytest.mark.slow),
        pytest.param("bottom_upsampler", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_resumed_with_the_same_losses(here: Path, expected: dict, stage: str) -> None:
    """By its own command, with a setting of the old name changed."""
    data, out = DATA.get(stage, "shards/codes"), f"runs/{stage}"
    command = [
        "train",
        stage,
        "--preset",
        "preset.yaml",
        "--data",
        data,
        "--out",
        out,
        "--stop-after",
        str(STEPS),
    ]
    megajukebox(here, *command, f"training.{stage}.hang_seconds=500")
    check_resumed(here / out, expected["train"][stage])


def test_a_student_is_taught_on_with_the_same_losses(here: Path, expected: dict) -> None:
    out = "runs/bottom_student"
    command = ["distill", "bottom", "--preset", "preset.yaml", "--teacher", "runs/bottom_upsampler"]
    command += ["--data", "shards/codes", "--out", out, "--windows", "16", "--keep-going"]
    windows = (here / out / "windows/windows-000000.tar").stat().st_mtime_ns
    megajukebox(here, *command, "--order", "1,1", "--order", "0,1", "--stop-after", str(STEPS))
    check_resumed(here / out / "order-0-1", expected["train"]["bottom_student/order-0-1"])
    assert (here / out / "windows/windows-000000.tar").stat().st_mtime_ns == windows, (
        "windows are not sampled again"
    )


# ---- Sampling -------------------------------------------------------------------------------------------------------


def check_song(out: Path, name: str, facts: dict) -> None:
    """The same codes in every level, and the same words beside them."""
    with np.load(out / f"{name}.codes.npz", allow_pickle=False) as codes:
        assert {level: codes[level].tolist() for level in codes.files} == facts["codes"]
    for file, text in facts["lyrics"].items():
        assert (out / file).read_text() == text


def test_a_request_makes_the_same_song(here: Path, expected: dict) -> None:
    megajukebox(here, "sample", "runs", "--requests", "requests.yaml", "--out", "new")
    check_song(here / "new", "song", expected["sample"]["song"])
    for path in sorted((here / "samples").glob("song*.wav")):
        before, _ = soundfile.read(path)
        now, _ = soundfile.read(here / "new" / path.name)
        np.testing.assert_allclose(now, before, rtol=0, atol=2 * LSB)


def test_a_song_that_is_there_is_known_and_not_made_again(here: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in (here / "samples").glob("song*")}
    megajukebox(here, "sample", "runs", "--requests", "requests.yaml", "--out", "samples")
    assert {
        path.name: path.stat().st_mtime_ns for path in (here / "samples").glob("song*")
    } == before


def test_an_unfinished_song_goes_on_where_it_was(here: Path, expected: dict) -> None:
    megajukebox(here, "sample", "runs", "--requests", "unfinished.yaml", "--out", "samples")
    check_song(here / "samples", "unfinished", expected["sample"]["unfinished"])
    made = json.loads((here / "samples/unfinished.json").read_text())["levels"]
    new = {
        level: round(facts["tokens_per_second"] * facts["wall_seconds"])
        for level, facts in made.items()
    }
    assert new == expected["sample"]["new_codes"], (
        "top, middle and a third of the bottom were there"
    )


def test_a_student_makes_the_same_song(here: Path, expected: dict) -> None:
    megajukebox(
        here,
        "sample",
        "runs",
        "--requests",
        "requests.yaml",
        "--out",
        "new",
        "--sampler",
        "bottom=student",
    )
    check_song(here / "new", "song", expected["sample"]["student"])


# ---- Watching and scoring -------------------------------------------------------------------------------------------


def assert_holds(found: Any, expected: Any, where: str = "") -> None:
    """`found` has all that `expected` has: dicts may have more keys."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            if key in WORDING:
                continue
            now = RENAMED.get(key, key)
            assert now in found, f"{where}.{now}"
            assert_holds(found[now], value, f"{where}.{now}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            assert_holds(found[number], value, f"{where}[{number}]")
    elif isinstance(expected, float) and not math.isnan(expected):
        assert found == pytest.approx(expected, rel=1e-6), where
    else:
        assert found == RENAMED.get(str(expected), expected), where


def test_watch_says_the_same_of_the_runs(stored: Path, expected: dict) -> None:
    printed = megajukebox(stored, "watch", "runs", "--json", expect=(expected["watch"]["exit"],))
    assert_holds(json.loads(printed), expected["watch"]["runs"])


def test_the_exporter_tells_the_same_of_the_runs(
    stored: Path, expected: dict, tmp_path: Path
) -> None:
    """Everything that does not hang on the clock."""
    megajukebox(stored, "exporter", "runs", "--legacy-names", "--textfile", str(tmp_path), "--once")
    lines = [
        line
        for line in (tmp_path / "megajukebox.prom").read_text().splitlines()
        if not line.startswith("#")
    ]
    page = dict(line.rsplit(" ", 1) for line in lines)
    wrong = {}
    for series, value in expected["exporter"].items():
        if series.startswith(NOT_KEPT):
            continue
        now = series
        for before, today in RENAMED.items():
            now = now.replace(f'"{before}"', f'"{today}"')
        # Python 3.12 sums floats more exactly: the last digit of a sum may differ.
        if float(page.get(now, "nan")) != pytest.approx(float(value), rel=1e-12, nan_ok=True):
            wrong[now] = (value, page.get(now))
    assert not wrong


def test_supervision_reads_the_attempts_of_before(stored: Path) -> None:
    assert attempts_without_progress(stored / "runs/top_prior") == MAX_FRUITLESS_ATTEMPTS
    assert attempts_without_progress(stored / "runs/middle_upsampler") == 0


def test_a_report_of_before_is_a_gate_for_the_same_runs(here: Path) -> None:
    against = ["--against", "shards/songs", "--against", "shards/codes"]
    megajukebox(here, "score", "runs", *against, "--out", "again", "--gate", "score/report.json")
    before = read_report(here / "score" / "report.json")["metrics"]
    now = read_report(here / "again" / "report.json")["metrics"]
    values = {name: metric["value"] for name, metric in before.items()}
    again = {name: now[name]["value"] for name in values}  # today there are more beside them
    assert again == pytest.approx(values, rel=1e-4, abs=1e-4)


def test_votes_are_counted(stored: Path, expected: dict) -> None:
    kept, skipped = votes.read_votes(stored / "votes.jsonl")
    assert [one.as_json() for one in votes.tally_votes(kept)] == expected["votes"]["sums"]
    assert skipped == expected["votes"]["skipped"] == 0
