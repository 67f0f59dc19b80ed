"""A checkpoint that somebody else may have written runs nothing, by whatever name, link or exchange it comes."""

import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import environment
from fixtures.fuzzing import limited_time, mutated, peak_megabytes
from fixtures.hostile_checkpoints import (
    MODEL_FILE,
    OPTIMIZER_FILE,
    Evil,
    Filled,
    copied,
    list_everything,
    mutated_pickle,
    pickled_by_hand,
    plain_content,
    write_checkpoint,
)
from fixtures.paths import ROOT

from megajukebox.common.errors import UserError
from megajukebox.training import checkpoint
from megajukebox.training.engines.restricted_loading import (
    FORCE_NO_WEIGHTS_ONLY,
    FORCE_WEIGHTS_ONLY,
    restricted_loading,
)
from megajukebox.training.engines.universal_checkpoint import ALLOWED, vet, weights_of

REFUSED = "holds more than tensors and plain values; nothing in it was run"


def test_a_checkpoint_of_ours_passes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    assert checkpoint.verify(folder) is None
    vet(folder / "state")
    assert torch.equal(weights_of(folder / "state")["w"], torch.arange(6.0).view(2, 3))


# ---- Names, links, folders --------------------------------------------------------------------------------------------

STRAY_NAMES = (
    *("mp_rank_00_0", "mp_rank_00_model_states.pt.bak", "layer_00-x-model_states.pt", "notes"),
    *(
        "zero_pp_rank_0_mp_rank_00_optim_states",
        "mp_rank_00_model_states.PT",
        "bf16_zero_pp_rank_0",
    ),
)


@pytest.mark.parametrize("name", STRAY_NAMES)
def test_a_file_by_another_name_is_refused_whether_or_not_the_manifest_lists_it(
    tmp_path: Path, name: str
) -> None:
    """DeepSpeed's conversions load whatever begins with mp_rank_, also without an ending."""
    folder = write_checkpoint(tmp_path)
    torch.save({"x": Evil(tmp_path)}, folder / "state" / name)
    assert checkpoint.verify(folder) == f"state/{name} is not in its manifest: take it out of there"
    list_everything(folder)
    assert checkpoint.verify(folder) is None
    with pytest.raises(UserError, match="is no file that training writes into a checkpoint"):
        vet(folder / "state")
    with pytest.raises(UserError, match="is no file that training writes into a checkpoint"):
        weights_of(folder / "state")
    assert not (tmp_path / "ran").exists()


def link_to_file(folder: Path, outside: Path) -> None:
    outside.write_bytes((folder / "state" / MODEL_FILE).read_bytes())
    (folder / "state" / MODEL_FILE).unlink()
    (folder / "state" / MODEL_FILE).symlink_to(outside)


def link_to_folder(folder: Path, outside: Path) -> None:
    shutil.move(folder / "state", outside)
    (folder / "state").symlink_to(outside)


def pipe(folder: Path, outside: Path) -> None:
    (folder / "state" / MODEL_FILE).unlink()
    os.mkfifo(folder / "state" / MODEL_FILE)


def empty_folder(folder: Path, outside: Path) -> None:
    (folder / "state/mp_rank_00_1").mkdir()


def stray_link(folder: Path, outside: Path) -> None:
    (folder / "state/mp_rank_00_1").symlink_to(outside)


@pytest.mark.parametrize("spoil", [link_to_file, link_to_folder, pipe, empty_folder, stray_link])
def test_what_is_no_plain_file_is_a_flaw(
    tmp_path: Path, spoil: Callable[[Path, Path], None]
) -> None:
    folder = write_checkpoint(tmp_path / "run")
    spoil(folder, tmp_path / "outside")
    with limited_time(20):
        assert checkpoint.verify(folder) is not None
        if spoil is not link_to_folder:
            with pytest.raises(UserError):
                vet(folder / "state")


def test_a_run_folder_that_is_a_link_to_scratch_goes_on_as_before(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "scratch")
    (tmp_path / "run").symlink_to(tmp_path / "scratch")
    folder, rejected = checkpoint.newest(tmp_path / "run")
    assert folder is not None and not rejected
    vet(folder / "state")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "state/../../x", "a" * 300, "a//b"])
def test_a_manifest_that_leads_out_of_the_checkpoint_is_a_flaw(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "is no file within the checkpoint" in (checkpoint.verify(folder) or "")


@pytest.mark.parametrize(
    "state", ["[]", "5", '{"step": "4"}', '{"step": -1}', '{"step": 4, "stream": []}', "[" * 9999]
)
def test_a_state_of_another_form_is_one_line_for_the_user(tmp_path: Path, state: str) -> None:
    folder = write_checkpoint(tmp_path)
    (folder / "state.json").write_text(state)
    with pytest.raises(UserError, match="choose another checkpoint"):
        checkpoint.read_state(folder)


# ---- What the files hold ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [MODEL_FILE, OPTIMIZER_FILE, "layer_00-model_states.pt"])
def test_code_in_any_file_is_refused_before_and_while_it_is_read(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, plain_content() | {"x": Evil(tmp_path)}, name)
    with pytest.raises(UserError, match=REFUSED):
        vet(folder / "state")
    with restricted_loading(ALLOWED), pytest.raises(Exception, match="system"):
        torch.load(folder / "state" / name, weights_only=False)
    assert not (tmp_path / "ran").exists()


def test_what_torch_lets_in_and_fills_the_memory_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, plain_content() | {"x": Filled()})
    with pytest.raises(UserError, match=REFUSED):
        vet(folder / "state")


def test_a_name_in_another_spelling_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    pickled_by_hand(folder / "state" / MODEL_FILE, b"os.system")
    with pytest.raises(UserError, match=REFUSED):
        vet(folder / "state")


def test_a_file_that_unpacks_to_gigabytes_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    with zipfile.ZipFile(folder / "state" / MODEL_FILE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        with archive.open("archive/data/0", "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(bytes(1 << 20))
    assert (folder / "state" / MODEL_FILE).stat().st_size < 1 << 20
    with pytest.raises(UserError, match="it is compressed"):
        vet(folder / "state")


def test_restricted_loading_beats_callers_and_variables_and_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"x": Evil(tmp_path)}, path)
    monkeypatch.setenv(FORCE_NO_WEIGHTS_ONLY, "1")
    before = torch.serialization.get_safe_globals()
    with restricted_loading(ALLOWED):
        with restricted_loading([]):
            pass
        assert set(torch.serialization.get_safe_globals()) == set(ALLOWED)
        for asked in (True, False, None):
            with pytest.raises(Exception, match="system"):
                torch.load(path, weights_only=asked)
    assert os.environ[FORCE_NO_WEIGHTS_ONLY] == "1" and FORCE_WEIGHTS_ONLY not in os.environ
    assert set(torch.serialization.get_safe_globals()) == set(before)
    assert not (tmp_path / "ran").exists()


# The look passes, then the file is exchanged: what reads it afterwards, DeepSpeed's conversion too, runs nothing.
EXCHANGES = """
import os, sys
from pathlib import Path
import torch
from megajukebox.training.engines import universal_checkpoint

saved, name, way = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
class Evil:
    def __reduce__(self):
        return os.system, (f"touch {saved.parent / 'ran'}",)

look = universal_checkpoint.vet
def look_and_exchange(folder):
    look(folder)
    content = torch.load(saved / name, weights_only=False)
    content["x"] = Evil()
    torch.save(content, saved / name)
universal_checkpoint.vet = look_and_exchange
if way == "child":
    universal_checkpoint.SMALL_BYTES = 0
try:
    if way == "weights":
        universal_checkpoint.weights_of(saved)
    else:
        look_and_exchange(saved)
        universal_checkpoint._convert(saved, saved.parent / "universal", lambda: None)
except Exception as error:
    print(type(error).__name__)
else:
    print("passed")
"""


def optimizer_content(stage: int) -> dict[str, object]:
    return {
        "optimizer_state_dict": {"zero_stage": stage, "partition_count": 1},
        "ds_version": "0.19.8",
    }


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("weights", MODEL_FILE),
        ("weights", OPTIMIZER_FILE),
        ("here", OPTIMIZER_FILE),
        ("child", OPTIMIZER_FILE),
    ],
)
def test_a_file_exchanged_after_the_look_runs_nothing_either(
    tmp_path: Path, way: str, name: str
) -> None:
    folder = write_checkpoint(tmp_path)
    saved = folder / "state"
    if name == OPTIMIZER_FILE:
        torch.save(optimizer_content(1), saved / OPTIMIZER_FILE)
    command = [sys.executable, "-c", EXCHANGES, str(saved), name, way]
    env = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1:] != ["passed"], done.stderr[-2000:]
    assert not (folder / "ran").exists()


# ---- Mutated ----------------------------------------------------------------------------------------------------------

KINDS = ("manifest", "state", "file", "values")


def fuzz_checkpoints(folder: Path, seeds: range) -> None:
    """One mutated input a seed, the kinds in turn; raises what no reader may raise, naming the seed."""
    good = write_checkpoint(folder / "good")
    spoilt = folder / "spoilt/checkpoints/step-00000004"
    spoilt.parent.mkdir(parents=True)
    for seed in seeds:
        dice = random.Random(seed)
        kind = KINDS[seed % len(KINDS)]
        copied(good, spoilt)
        path = spoilt / {"manifest": "manifest.json", "state": "state.json"}.get(
            kind, f"state/{MODEL_FILE}"
        )
        if kind == "values":
            mutated_pickle(path, dice, mutated)
        else:
            path.write_bytes(mutated(path.read_bytes(), dice, texts=kind in ("manifest", "state")))
        try:
            with limited_time(20):
                checkpoint.verify(spoilt)
                for read in (checkpoint.read_state, lambda at: weights_of(at / "state")):
                    with contextlib.suppress(UserError):
                        read(spoilt)
        except BaseException as error:
            raise AssertionError(
                f"seed {seed} ({kind}): {type(error).__name__}: {error}"
            ) from error


def test_mutated_checkpoints_end_as_a_users_mistake(tmp_path: Path) -> None:
    fuzz_checkpoints(tmp_path, range(300))


@pytest.mark.slow
def test_ten_thousand_mutated_checkpoints_end_as_a_users_mistake(tmp_path: Path) -> None:
    before = peak_megabytes()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fuzz_checkpoints(tmp_path, range(1_000, 13_000))
    grown = peak_megabytes() - before
    print(f"12000 inputs, {grown:.0f} MB more at most")
    assert grown < 300
