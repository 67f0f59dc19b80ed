"""A student of an upsampler: milliseconds a window where many windows are emitted together, column by column."""

import torch
from timing import forget_peak, median_seconds, peak_gib

from gpu_parts.figures import Figures
from gpu_parts.models import WindowFactory, bytes_per_code, prior_config
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.student import Student, StudentConfig
from megajukebox.sampling.decoding.decoder import PackedPrior
from megajukebox.sampling.students.student_decoder import StudentTokenSampler, emit

WINDOWS = (8, 41, 64)
ORDER = GridOrder(0, 1)  # a whole column of the grid at each step


@torch.inference_mode()
def students(figures: Figures) -> None:
    device = figures.device
    config = prior_config("middle", figures.small)
    torch.manual_seed(0)
    with torch.device(device):
        student = Student(StudentConfig(prior=config, order=ORDER))
    student = student.to(torch.bfloat16).eval().requires_grad_(False)
    packed = PackedPrior(student)
    for number in WINDOWS[: 1 if figures.small else None]:
        make = WindowFactory(student, number)
        with torch.device(device):
            start = torch.zeros(number, dtype=torch.long)
        token_sampler = StudentTokenSampler(make.token_sampler(), start)
        nothing = torch.zeros_like(make.tokens, dtype=torch.bool)

        def milliseconds_a_window() -> float:
            taken = median_seconds(
                lambda: emit(
                    student,
                    make.conditioning,  # noqa: B023
                    make.tokens,  # noqa: B023
                    nothing,  # noqa: B023
                    token_sampler,  # noqa: B023
                    packed=packed,
                ),
                device,
                repeats=2,
                warmup=1,
            )
            return taken / number * 1e3  # noqa: B023

        forget_peak()
        steps = ORDER.steps(config.window, config.transformer.blocks)
        read = steps * bytes_per_code(student, 0)
        floor = read / figures.copy_bytes_per_second() / number * 1e3
        name = f"student {ORDER}, {number} windows"
        figures.measure(name, "ms a window", milliseconds_a_window, floor=floor)
        figures.add(f"{name}, peak", "GiB", peak_gib())
