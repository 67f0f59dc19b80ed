"""Windows of a teacher that somebody damaged: each is replaced, whatever is wrong with its arrays."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
from fixtures.fuzzing import mutated

from megajukebox.common.errors import BadSampleError
from megajukebox.data.stream.teacher_dataset import TeacherWindows, teacher_sample

ARRAYS = {
    "codes": np.arange(8),
    "soft_ids": np.ones((8, 2), int),
    "soft_log_p": np.zeros((8, 2), np.float32),
    "teacher_bits": np.zeros(8, np.float32),
    "taught": np.array(True),
    "conditions": {"artist": np.array([3])},
}
STORED = teacher_sample("train", 1, 800, ARRAYS).members["npz"]


def read(data: bytes) -> dict:
    windows = object.__new__(TeacherWindows)
    windows.shards = SimpleNamespace(  # type: ignore[assignment]
        read_member=lambda song, member: data, key=lambda song: "train-0000001"
    )
    windows._held_out = np.zeros(1, bool)
    windows._layout = None
    return windows.read(0, 0, None)


def test_a_window_is_read_as_it_was_written() -> None:
    window = read(STORED)
    assert window.keys() == ARRAYS.keys() and window["conditions"]["artist"].tolist() == [3]
    assert window["codes"].dtype == np.int64 and window["soft_log_p"].dtype == np.float32


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_a_damaged_window_is_a_bad_sample_and_nothing_else(count: int) -> None:
    draw = random.Random(count)
    bad = 0
    for _ in range(count):
        try:
            read(mutated(STORED, draw))
        except BadSampleError as error:
            bad += error.kind == "damaged"
    assert bad > 0
