"""What ranks tell each other: JSON that comes back to the bit, and nothing of it is ever unpickled."""

import json
import math
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import environment
from fixtures.paths import ROOT

from megajukebox.common.rank_messages import (
    MAX_MESSAGE_BYTES,
    _checked_size,
    to_message,
)
from megajukebox.common.untrusted_files import PlainUnpickler, parse_json

VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**63 - 1,
    0.1,
    -0.0,
    5e-324,
    1.7976931348623157e308,
    math.inf,
    -math.inf,
    "Bjørk \u2028 🎵 \x00",
    [],
    {},
    [1, [2.5, {"a": [None]}]],
    {"weights/a.b": [4, 128], "": {"1": False}},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_value_comes_back_as_it_was(value: object) -> None:
    back = parse_json(to_message(value))
    assert repr(back) == repr(value) and type(back) is type(value)


def test_no_number_comes_back_as_no_number() -> None:
    back = parse_json(to_message([math.nan]))
    assert math.isnan(back[0])


@pytest.mark.parametrize("value", [(1, 2), {1: "a"}, b"x", {"a": {2}}, Path("x"), [1j]], ids=repr)
def test_what_json_would_change_is_refused_where_it_is_sent(value: object) -> None:
    with pytest.raises(TypeError):
        to_message(value)


@pytest.mark.parametrize("size", [-1, MAX_MESSAGE_BYTES + 1, 2**62])
def test_an_absurd_size_is_refused_before_memory_is_taken(size: int) -> None:
    import torch

    with pytest.raises(ValueError, match="says that its message has"):
        _checked_size(torch.tensor([size]))


# Three ranks exchange values in every way; rank 1 then sends a pickle with code in it, as somebody who joined first could.
RANK = """
import json, math, os, sys
import torch, torch.distributed as dist
from megajukebox.common.rank_messages import all_gather_json, broadcast_json, refuse_pickled_code
from megajukebox.training.engines.collectives import broadcast_batch

folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=3)
counted = []
for name in ("all_gather", "broadcast"):
    call = getattr(dist, name)
    setattr(dist, name, lambda *a, call=call, name=name, **k: counted.append(name) or call(*a, **k))
refuse_pickled_code()
gathered = all_gather_json({"rank": rank, "loss": math.inf, "text": "x" * rank * 1000})
assert [one["rank"] for one in gathered] == [0, 1, 2] and gathered[2]["loss"] == math.inf
assert [len(one["text"]) for one in gathered] == [0, 1000, 2000]
assert broadcast_json(1, [1.5, None] if rank == 1 else None) == [1.5, None]
rows = torch.arange(6, dtype=torch.int32).view(2, 3)
batch = {"codes": rows.t(), "conditions": {"artist": rows[0], "none": torch.zeros(0)}}
back = broadcast_batch(2, batch if rank == 2 else None)
assert torch.equal(back["codes"], rows.t()) and back["codes"].dtype == torch.int32
assert torch.equal(back["conditions"]["artist"], rows[0]) and back["conditions"]["none"].shape == (0,)
calls = list(counted)

class Evil:
    def __reduce__(self):
        return os.system, (f"touch {folder}/ran",)

answers = [None] * 3
try:
    dist.all_gather_object(answers, Evil() if rank == 1 else {"plain": 1})
    print(json.dumps(["taken", calls]))
except Exception as error:
    print(json.dumps([str(error), calls]))
os._exit(0)
"""


def test_three_ranks_understand_each_other_and_run_nothing_that_one_sends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK, str(tmp_path)]
    env = environment() | {"PYTHONPATH": str(ROOT)}
    ranks = []
    for rank in range(3):
        ranks.append(
            subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True, env=env)
        )
    answers = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    for answer in answers:
        said, calls = json.loads(answer.splitlines()[-1])
        assert "system; nothing was run" in said
        # As many as torch's object collectives take: sizes, then bytes.
        assert calls == ["all_gather"] * 2 + ["broadcast"] * 4
    assert not (tmp_path / "ran").exists()


def test_plain_values_pass_the_refusing_unpickler_and_classes_do_not() -> None:
    import io

    plain = {"a": [1, 2.5, None, "x", (3,)]}
    assert PlainUnpickler(io.BytesIO(pickle.dumps(plain))).load() == plain
    with pytest.raises(pickle.UnpicklingError, match="nothing was run"):
        PlainUnpickler(io.BytesIO(pickle.dumps(os.system))).load()


# Where pickles are named in the package, and why nothing of somebody else's is unpickled there.
PICKLES = {
    "common/rank_messages.py": "the unpickler that refuses, and the names of what it stands for",
    "interop/checkpoints.py": "the class of torch's refusal",
    "common/untrusted_files.py": "an unpickler that refuses every class",
    "resilience/flight_recorder.py": "looks at pickles, and reads them by that one",
    "training/engines/comm_timing.py": "names of collectives that are timed where others call them",
    "training/engines/restricted_loading.py": "looks at pickles without carrying them out",
}
UNPICKLING = re.compile(
    r"^\s*(?:import|from) (?:pickle|dill|cloudpickle|shelve|marshal|joblib)\b"
    r"|\b(?:all_gather|broadcast|gather|scatter|send|recv)_object(?:_list)?\b"
    r"|weights_only=False|allow_pickle=True"
    r"|\bbcast\(",
    re.MULTILINE,
)


def test_nothing_in_the_package_unpickles_what_others_may_have_written() -> None:
    package = ROOT / "megajukebox"
    found = set()
    for path in sorted(package.rglob("*.py")):
        if UNPICKLING.search(path.read_text()):
            found.add(str(path.relative_to(package)))
    assert found <= set(PICKLES)
    assert {"training/engines/restricted_loading.py", "common/rank_messages.py"} <= found
