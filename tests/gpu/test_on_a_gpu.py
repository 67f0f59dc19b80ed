"""On a real GPU (`pytest -m gpu tests/gpu`): what the pretended one (test_on_a_pretended_gpu.py) cannot show.

Numbers of its own kernels, its graphs, its waits, its memory, and DeepSpeed on it. Where a row says "pretended", every
run of the tests does the same on the CPU or the pretended GPU.

| | what | without a GPU |
| --- | --- | --- |
| G1 | loss and gradients of priors and students, in float32, bfloat16, float16 | pretended, here |
| G2 | steps of the VQ-VAE, and its codebooks | pretended, here |
| G3, G4, G5 | windows, guided, filtered; all decodings; students and verified students | pretended, scenarios |
| G3 | several windows and batches with one sampler of graphs | pretended, here |
| G6 | a whole jukebox | on the CPU alone: nothing to compare |
| G7 | every ds_config of the GPU profiles: ten steps, save, resume; planted overflows | on the CPU, slow |
| G8 | waits are those that the pretended GPU counts | pretended, scenarios |
| G9 | peak memory within memory_budget.py | tests/sampling/test_memory_budget.py |
| G10 | int8 against weights rounded beforehand | pretended, here |
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PRESET, environment
from fixtures.gpu_scenarios import SCENARIOS, on_the_host, stored_counts
from fixtures.paths import TESTS
from fixtures.pretend_gpu import PretendGpu
from fixtures.real_gpu import RealGpu
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import little_prior, little_vqvae, plain_draw, prior_batch, window_task
from fixtures.tiny_runs import finish, start_ranks
from fixtures.tiny_students import little_student
from torch import Tensor, nn

from megajukebox.common.errors import UserError
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.transformer import TransformerConfig
from megajukebox.sampling.decoding.packed_linear import int8_scales, pack_linear
from megajukebox.sampling.decoding.step_ops import fused_steps
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.levels.autoregressive import build_level_sampler
from megajukebox.sampling.memory_budget import LevelMemory, step_nodes
from megajukebox.sampling.songs.requests import SongRequest

Gpu = PretendGpu | RealGpu


@pytest.fixture
def real() -> RealGpu:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return RealGpu()


@pytest.fixture(params=["pretended", pytest.param("real", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest) -> Iterator[Gpu]:
    """First the pretended GPU, then the real one."""
    with PretendGpu() if request.param == "pretended" else request.getfixturevalue("real") as gpu:
        yield gpu


def assert_near(result: Tensor, expected: Tensor, tolerance: float) -> None:
    """By their distance, relative to the size of what is expected."""
    error = (result.float() - expected).norm() / expected.norm()
    assert error <= tolerance, f"relative error {error:.1e} is over {tolerance}"


# ---- G1, G2: models -------------------------------------------------------------------------------------------------

# As random weights of these sizes have them on a CPU, with a margin: float32 sums in another order.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
BUILDS = {
    "prior": lambda: little_prior("factored_lyrics"),
    "student (0,1)": lambda: little_student(GridOrder(0, 1)),
    "student (1,2)": lambda: little_student(GridOrder(1, 2)),
}


def loss_and_gradients(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    torch.manual_seed(7)
    loss = model.train()(batch)[0]
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(gradients)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("name", BUILDS)
def test_loss_and_gradients_are_near_the_cpus_of_float32(
    gpu: Gpu, name: str, dtype: torch.dtype
) -> None:
    model = BUILDS[name]()
    batch = prior_batch(model.config)
    expected_loss, expected = loss_and_gradients(model, batch)
    on_gpu = gpu.put(BUILDS[name]().to(dtype))
    loss, gradients = loss_and_gradients(on_gpu, gpu.put(batch))
    assert_near(gpu.host(loss), expected_loss, TOLERANCES[dtype])
    assert_near(gpu.host(gradients), expected, TOLERANCES[dtype])


STEPS = 3


def codebooks_after_steps(model: nn.Module, batch: dict) -> tuple[Tensor, Tensor]:
    """The loss, and the vectors of all codebooks, after some steps of Adam."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model.train()(batch)[0]
        loss.backward()
        optimizer.step()
    vectors = [level.codebook.vectors.flatten() for level in model.levels.values()]
    return loss.detach(), torch.cat(vectors)


def vqvae_batch() -> dict:
    """Noise, and the vectors for codes that nobody uses: those that a device draws are its own."""
    draw = torch.Generator().manual_seed(4)
    config = little_vqvae().config
    batch = {"audio": 0.3 * torch.randn(2, 2048, 1, generator=draw)}
    for level in config.levels:
        shape = (config.codebook_size, config.code_width)
        batch[f"candidates_{level}"] = torch.randn(shape, generator=draw)
    return batch


def test_steps_of_the_vqvae_move_its_codebooks_as_on_the_cpu(gpu: Gpu) -> None:
    batch = vqvae_batch()
    expected_loss, expected = codebooks_after_steps(little_vqvae(), batch)
    loss, vectors = codebooks_after_steps(gpu.put(little_vqvae()), gpu.put(batch))
    assert_near(gpu.host(loss), expected_loss, 1e-4)
    assert_near(gpu.host(vectors), expected, 1e-3)


# ---- G3, G4, G5, G8: sampling ---------------------------------------------------------------------------------------

# Of the table: what a GPU draws at random in training is its own, and 16 bits are compared elsewhere.
COMPARED = [n for n, s in SCENARIOS.items() if s.comparable and n != "train vqvae"]


@pytest.mark.gpu
@pytest.mark.parametrize("name", COMPARED)
def test_a_real_gpu_gives_the_cpus_codes(real: RealGpu, name: str) -> None:
    scenario = SCENARIOS[name]
    result = real.host(scenario.prepare(real.put)())
    expected = on_the_host(scenario)
    if result.is_floating_point():
        assert_near(result, expected, 1e-4)
    else:
        assert torch.equal(result, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_real_gpu_waits_no_more_often_than_the_pretended_one(real: RealGpu, name: str) -> None:
    work = SCENARIOS[name].prepare(real.put)
    with real.waits() as waits:
        work()
    allowed = stored_counts()["counts"][name]["waits"]
    assert len(waits) <= allowed, "\n".join(waits)


@pytest.mark.parametrize("schedule", ["factored", "factored_lyrics"])
def test_one_sampler_of_graphs_samples_windows_and_batches_one_after_another(
    gpu: Gpu, schedule: str
) -> None:
    """From the first code on, from the middle of a row, and again; with other numbers of songs between."""
    prior = little_prior(schedule)
    on_gpu = gpu.put(little_prior(schedule))
    graphs = build_level_sampler(on_gpu, "cuda_graph")
    plain = build_level_sampler(prior, "sequential")
    for songs, known in ((2, 0), (2, 6), (1, 3), (3, 0), (2, 6)):
        batch = prior_batch(prior.config, songs=songs, seed=songs + known)
        draw = plain_draw(list(range(songs)), temperature=2.0)
        expected = window_task(prior, batch, draw, known, prior.config.length)
        plain.window_sampler()(plain.packed, expected)
        window = window_task(on_gpu, gpu.put(batch), gpu.put(draw), known, prior.config.length)
        window.start_B = gpu.put(window.start_B)
        graphs.window_sampler()(graphs.packed, window)
        assert torch.equal(gpu.host(window.tokens_BT), expected.tokens_BT), (songs, known)


# ---- G6: a whole jukebox --------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_a_jukebox_samples_the_songs_of_the_cpu(real: RealGpu, tmp_path: Path) -> None:
    requests = []
    for n in range(3):
        requests.append(SongRequest(id=f"song{n}", artist="ilune", seconds=0.5, seed=n))
    runs = write_runs(tmp_path)
    songs = Jukebox(runs, device="cuda").sample(requests)
    expected = Jukebox(runs, device="cpu").sample(requests)
    for song, other in zip(songs, expected):
        for level in other.codes:
            assert np.array_equal(song.codes[level], other.codes[level]), (song.request.id, level)


# ---- G7: DeepSpeed --------------------------------------------------------------------------------------------------

# One process a profile. The VQ-VAE comes last: what its torch_autocast sets is global to the process.
TRAINED = (
    ("top_prior", "prior_zero3"),
    ("top_prior", "prior_offload"),
    ("middle_upsampler", "upsampler"),
    ("bottom_upsampler", "student"),
    ("vqvae", "vqvae"),
)
STEPS_OF_A_RUN = 10
# Adds of a gradient in another order: not deterministic on a GPU.
RESUMED_TOLERANCE = {"cpu": 0.0, "v100": 2e-2, "hopper": 2e-2}
TRAIN = """
import json, sys, tempfile
from pathlib import Path
import torch
from megajukebox.resilience.exit_codes import leave_now
from megajukebox.training.batching import share_batch
from megajukebox.training.config import load_preset
from megajukebox.training.engines import collectives
from megajukebox.training.engines.factory import build_engine
from megajukebox.training.settings import TrainingSettings
from megajukebox.training.stages import workload_of

preset, steps, runs = json.loads(sys.argv[1])
collectives.start()
losses = {}

def train(engine, first):
    found = []
    for step in range(first, steps):
        torch.manual_seed(step)
        found.append(engine.step([batch], 1.0)["loss"])
    return found

for stage, name in runs:
    of = workload_of(load_preset(preset), stage)
    def build():
        ds_config = share_batch(collectives.read_ds_config(name), 1)
        ds_config |= {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 1, "train_batch_size": 2}
        return build_engine(of.model_config, of.build, ds_config, TrainingSettings(ds_config="", steps=1))
    torch.manual_seed(0)
    batch = of.batch(2)
    engine = build()
    with tempfile.TemporaryDirectory() as folder:
        for step in range(steps // 2):
            torch.manual_seed(step)
            engine.step([batch], 1.0)
        engine.save(Path(folder))
        straight = train(engine, steps // 2)
        resumed = build()
        resumed.load(Path(folder))
    losses[name] = [straight, train(resumed, steps // 2)]
print(json.dumps(losses))
collectives.stop()
leave_now(0)  # as the entries do
"""


def train_and_resume(profile: str) -> dict[str, list[list[float]]]:
    """By ds_config: the losses of the second half of a run, and of one resumed in its middle."""
    runs = [(stage, f"{recipe}_{profile}.json") for stage, recipe in TRAINED]
    if profile == "cpu":  # which has neither offload nor upsampler
        runs = [run for run in runs if "offload" not in run[1] and "upsampler" not in run[1]]
    if profile == "v100":
        runs = [run for run in runs if "offload" not in run[1]]
    told = json.dumps([str(PRESET), STEPS_OF_A_RUN, runs])
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, told],
        env=environment(gpu=profile != "cpu"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "profile",
    [
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param("v100", marks=pytest.mark.gpu),
        pytest.param("hopper", marks=pytest.mark.gpu),
    ],
)
def test_every_ds_config_of_a_profile_trains_saves_and_resumes(
    profile: str, request: pytest.FixtureRequest
) -> None:
    if profile != "cpu":
        request.getfixturevalue("real")
    for name, (straight, resumed) in train_and_resume(profile).items():
        assert np.isfinite(straight).all(), name
        tolerance = RESUMED_TOLERANCE[profile]
        np.testing.assert_allclose(resumed, straight, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    "device",
    [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)],
)
def test_overflows_of_float16_are_seen_and_put_the_codebooks_back(
    device: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """One rank of what tests/training/test_loss_scaler.py shows with two."""
    if device == "cuda":
        request.getfixturevalue("real")
    worker = [str(TESTS / "fixtures/loss_scaler_worker.py"), str(tmp_path)]
    visible = "0" if device == "cuda" else ""
    started = start_ranks(worker, 1, DS_ACCELERATOR=device, CUDA_VISIBLE_DEVICES=visible)
    codes, output = finish(started)
    assert codes == [0], output[-3000:]
    report = json.loads((tmp_path / "rank0.json").read_text())
    for step in report["start"]:
        assert step["overflowed"] == step["codebooks_kept"] == (not step["moved"])
    assert report["start"][0]["overflowed"] and not report["start"][-1]["overflowed"]
    assert report["norm_in_float16"] == pytest.approx(report["norm_in_float32"], rel=0.02)
    assert report["overflowing_doubling"]["overflowed"] and np.isfinite(report["limit_after"])
    assert report["loud"]["reason"] == "nan" and report["loud"]["codebooks_kept"]
    assert report["after_loud"]["codebooks_finite"] and not report["after_loud"]["reason"]


# ---- G9: memory -----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("decoding", ["sequential", "cuda_graph"])
def test_sampling_takes_no_more_memory_than_was_printed(real: RealGpu, decoding: str) -> None:
    shape = TransformerConfig(width=1024, depth=12, heads=2, blocks=16)
    config = PriorConfig(
        level="top",
        sample_rate=44100,
        hop=128,
        codebook_size=2048,
        window=1024,
        transformer=shape,
    )
    songs = 4
    fused = fused_steps(torch.device("cuda", 0), torch.bfloat16)
    nodes = step_nodes(config, fused) if decoding == "cuda_graph" else 0
    level = LevelMemory(config, graph_nodes=nodes)
    bound = level.weight_bytes(torch.bfloat16) + level.auxiliary_bytes(torch.bfloat16, cpu=False)
    bound += level.song_bytes(songs, torch.bfloat16) + level.graph_bytes(songs, torch.bfloat16)
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    prior = real.put(Prior(config).to(torch.bfloat16).eval().requires_grad_(False))
    batch = real.put(prior_batch(config, songs))
    draw = real.put(plain_draw(list(range(songs)), "top"))
    window = window_task(prior, batch, draw, known=960, until=1024)
    window.start_B = real.put(window.start_B)
    sampler = build_level_sampler(prior, decoding)
    sampler.window_sampler()(sampler.packed, window)
    assert torch.cuda.max_memory_allocated() - before <= bound


# ---- G10: int8 ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_int8_weights_give_the_product_of_weights_rounded_beforehand(gpu: Gpu) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 64)
    x = torch.randn(3, 96)
    scale = int8_scales(layer.weight)[:, None]
    rounded = (layer.weight / scale).round().clamp(-127, 127) * scale
    expected = F.linear(x, rounded, layer.bias)
    try:
        apply = pack_linear(gpu.put(layer), int8=True)
    except UserError as refusal:
        pytest.skip(f"refused: {refusal}")
    assert_near(gpu.host(apply(gpu.put(x))), expected, 1e-5)
