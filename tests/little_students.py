"""Students of the little priors: at the teacher's weights, with what is new in them awake."""

import torch
from little_models import WINDOW, little_prior
from torch import Tensor

from megajukebox.models.grid import GridOrder
from megajukebox.models.prior import Prior
from megajukebox.models.student import Student, StudentConfig, from_teacher

TEACHERS = GridOrder(4, 1)  # of a window of 16 in 4 rows
ORDERS = [
    TEACHERS,
    GridOrder(3, 1),
    GridOrder(2, 1),
    GridOrder(1, 1),
    GridOrder(1, 2),
    GridOrder(1, 3),
    GridOrder(2, 3),
    GridOrder(0, 1),
    GridOrder(1, 1, 2),  # two lines of two rows
    GridOrder(0, 1, 2),
]


def student_of(teacher: Prior, order: GridOrder, awake: bool = True, **how) -> Student:
    student = from_teacher(Student(StudentConfig(prior=teacher.config, order=order, **how)), teacher)
    if awake:
        draw = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for table in (student.above, student.missing):
                table.weight.copy_(torch.randn(table.weight.shape, generator=draw) * 0.5)
    return student.eval()


def little_student(order: GridOrder, schedule: str = "factored", awake: bool = True, **changed) -> Student:
    return student_of(little_prior(schedule, **changed), order, awake)


def known_slots(name: str, songs: int = 2) -> Tensor:
    """[songs, WINDOW] bool: what is given."""
    slot = torch.arange(WINDOW)
    one = {
        "nothing": slot < 0,
        "prefix": slot < 6,
        "both_sides": (slot < 4) | (slot >= 12),
        "suffix": slot >= 10,
        "scattered": (slot % 5 == 2) | (slot == 8),
    }
    if name == "different":
        return torch.stack([one[n] for n in ("prefix", "scattered", "nothing")])[:songs]
    return one[name].expand(songs, -1).clone()


KNOWN = ["nothing", "prefix", "both_sides", "suffix", "scattered", "different"]
