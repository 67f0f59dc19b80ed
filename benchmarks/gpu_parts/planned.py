"""What `megajukebox plan` says of the training steps of gpu_day.py, so that no GPU waits for it.

python -m gpu_parts.planned     # in benchmarks/: writes results/gpu_day_plan.json, about a minute
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_parts.models import RELEASED
from megajukebox.common.files import write_atomic
from megajukebox.training.config import Preset, load_preset
from megajukebox.training.engines.ds_config import read_ds_config
from megajukebox.training.planner.gpus import gpu_named
from megajukebox.training.planner.plan import Assumptions, plan
from megajukebox.training.planner.workload import PlannedStage
from megajukebox.training.stages import workload_of

PLAN = Path(__file__).parents[1] / "results" / "gpu_day_plan.json"
CARD = "h200-141gb"
SHALLOW_DEPTH = 8  # layers of priors whose steps are only to be tried


@dataclass(frozen=True)
class TrainingCase:
    """A stage of the released preset, trained in one way on one GPU."""

    stage: str
    ds_config: str
    shallow: bool = False

    @property
    def name(self) -> str:
        depth = f", {SHALLOW_DEPTH} layers" if self.shallow else ""
        return f"{self.stage}, {self.ds_config.removesuffix('.json')}{depth}"

    def preset(self) -> Preset:
        changes = []
        for level in ("top", "middle", "bottom") if self.shallow else ():
            changes.append(f"{level}.transformer.depth={SHALLOW_DEPTH}")
        if self.shallow:
            changes.append("top.transformer.schedule=factored_lyrics")  # reads lyrics early
        return load_preset(RELEASED, changes)


VQVAE = TrainingCase("vqvae", "vqvae_hopper.json")
UPSAMPLER = TrainingCase("middle_upsampler", "upsampler_hopper.json")
TOP = TrainingCase("top_prior", "prior_zero3_hopper.json")
# Of a V100's profile, on whatever GPU there is: fp16 with loss scaling. A pipeline takes several GPUs.
V100 = (
    TrainingCase("vqvae", "vqvae_v100.json"),
    TrainingCase("top_prior", "prior_zero3_v100.json", shallow=True),
    TrainingCase("middle_upsampler", "upsampler_v100.json", shallow=True),
    TrainingCase("bottom_upsampler", "student_v100.json", shallow=True),
)


@dataclass(frozen=True)
class PlannedStep:
    """Of one optimizer step on one GPU."""

    flops: float
    gib: float
    seconds: float


def planned(case: TrainingCase) -> PlannedStep:
    """As stored."""
    return PlannedStep(**json.loads(PLAN.read_text())[case.name])


def main() -> None:
    steps = {}
    for case in (VQVAE, UPSAMPLER, TOP, *V100):
        preset = case.preset()
        stage = PlannedStage(case.stage, workload_of(preset, case.stage), default_gpus=1)
        ds_config = read_ds_config(case.ds_config)
        wanted = plan(preset, stage, 1, gpu_named(CARD), ds_config, case.ds_config, Assumptions())
        flops = wanted.teraflops_per_sample * 1e12 * wanted.samples_per_step
        steps[case.name] = asdict(PlannedStep(flops, wanted.memory.needed, wanted.step_seconds))
        print(case.name, steps[case.name])
    write_atomic(PLAN, (json.dumps(steps, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
