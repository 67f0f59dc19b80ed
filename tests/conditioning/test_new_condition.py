"""A condition that follows the song in time is two rows and one class: no other file of the package is touched.

The beats of a song stand here for written notes, stems or sections: read from a song and a request, cut to windows,
trained, dropped, guided, planned, put through a pipeline's layers and sampled.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conditioning.test_conditions import preset, run_of
from fixtures.tiny_models import plain_draw, sample_level
from pydantic import Field
from torch import Tensor, nn

from megajukebox.commands.prepare import main as prepare
from megajukebox.common.model_files import save_weights
from megajukebox.common.world import World
from megajukebox.conditioning import schema
from megajukebox.conditioning.schema import (
    ConditionKind,
    ConditionResources,
    RequestedSong,
    SongOnDisk,
    WindowPosition,
)
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.distillation.divergence import null_conditioned_batch
from megajukebox.models import conditioners
from megajukebox.models.conditioners import AlignedConfig, AlignedKind
from megajukebox.models.pipeline_layers import inputs, layers, loss_of
from megajukebox.models.prior import PriorConfig
from megajukebox.models.transformer import Dense
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.training.planner.dummy_batches import windows
from megajukebox.training.prior_task import prior_task
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest

BEATS = "top.aligned={beats: {frames: 8, dropout: 0.25}}"


# ---- What a newcomer writes: conditioning/beats.py, and the module in models/conditioners.py


class BeatsConfig(AlignedConfig):
    frames: int = Field(gt=0, description="frames of a window, each with the number of beats in it")


@dataclass(frozen=True)
class BeatsCondition:
    """Beats in each of `frames` frames of a window, [frames] float32, from the song's list of times in seconds."""

    frames: int
    dropout: float | None
    name: str = "beats"
    group: str | None = None

    def read(self, song: SongOnDisk) -> np.ndarray:
        return np.array(song.metadata.get("beats", []))

    def from_request(self, request: RequestedSong) -> np.ndarray:
        return np.array(request.aligned.get("beats", []))

    def null(self) -> np.ndarray:
        return np.array([])

    def window(self, value: np.ndarray, position: WindowPosition) -> np.ndarray:
        start = position.offset / position.sample_rate
        end = (position.offset + position.length) / position.sample_rate
        counts, _ = np.histogram(value, bins=self.frames, range=(start, end))
        return counts.astype(np.float32)


class BeatsConditioner(nn.Module):
    def __init__(self, config: BeatsConfig, width: int, window: int):
        super().__init__()
        self.repeats = window // config.frames
        self.out = Dense(1, width, 0.0)

    def forward(self, beats_BF: Tensor) -> Tensor:
        return self.out(beats_BF.repeat_interleave(self.repeats, dim=1)[..., None])


def beats_conditions(
    config: PriorConfig, resources: ConditionResources
) -> Iterator[BeatsCondition]:
    settings: Any = config.aligned.get("beats")
    if settings:
        yield BeatsCondition(settings.frames, resources.dropout.get("beats", 0.0))


def random_beats(config: BeatsConfig, size: int, window: int) -> Tensor:
    return torch.randint(3, (size, config.frames)).float()


@pytest.fixture(autouse=True)
def beats_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two rows."""
    kind = AlignedKind(BeatsConfig, BeatsConditioner, random_beats)
    monkeypatch.setitem(conditioners.ALIGNED, "beats", kind)
    row = ConditionKind("beats", beats_conditions)
    monkeypatch.setattr(schema, "CONDITION_KINDS", [*schema.CONDITION_KINDS, row])


# ---- What follows


@pytest.fixture(scope="module")
def codes(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Code shards of three songs whose JSON has the times of their beats."""
    import soundfile
    from fixtures.tiny_models import little_vqvae

    from megajukebox.encode import main as encode

    folder = tmp_path_factory.mktemp("beats")
    (folder / "songs").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, (20000, 1))
        soundfile.write(folder / f"songs/{number}.wav", noise, 8000)
        (folder / f"songs/{number}.json").write_text(json.dumps({"artist": "Ilune"}))
        (folder / f"songs/{number}.txt").write_text("la la the rain falls in the night\n" * 8)
    prepare(
        str(folder / "songs"),
        folder / "shards",
        sample_rate=8000,
        processes=1,
        lyrics_vocabulary=300,
    )
    vqvae = little_vqvae(codebook_size=32, sample_rate=8000)
    save_weights(folder / "vqvae", "vqvae", vqvae.config, vqvae.state_dict(), 1)
    encode(folder / "shards", folder / "vqvae", folder / "codes")
    return ShardSet(folder / "codes")


@pytest.fixture
def task(codes: ShardSet, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Training on those songs, beats every 0.25 s."""
    read_facts = ShardSet.read_facts
    beats = np.arange(0.1, 2.4, 0.25).tolist()
    monkeypatch.setattr(
        ShardSet, "read_facts", lambda self, song: {**read_facts(self, song), "beats": beats}
    )
    return task_of(codes, BEATS)


def task_of(codes: ShardSet, *settings: str) -> Task:
    chosen = preset("training.top_prior.evaluation.held_out=0", *settings)
    reading = ReaderShare(
        World(0, 0, 1), global_batch=4, micro_batch=4, on_bad=lambda *what: pytest.fail(str(what))
    )
    request = TaskRequest(chosen, chosen.stage("top_prior"), str(codes.folder), RemoteConfig())
    return prior_task("top", request, reading)


def first_batch(task: Task) -> dict:
    return next(iter(task.batches(0)))[0]


def test_a_window_has_the_beats_of_its_time_and_dropout_takes_them(task: Task) -> None:
    sample = task.source.read(0, 0, None)
    _, offset, length = sample["timing"].tolist()
    beats = np.arange(0.1, 2.4, 0.25) * 8000
    inside = ((beats >= offset) & (beats < offset + length)).sum()
    assert sample["beats"].shape == (8,) and sample["beats"].sum() == inside > 0
    read = [task.source.read(0, 0, np.random.default_rng(seed))["beats"] for seed in range(200)]
    assert 25 < sum(not beats.any() for beats in read) < 80, "a quarter is dropped"


def test_a_new_condition_starts_at_zero_and_learns(task: Task, codes: ShardSet) -> None:
    torch.manual_seed(0)
    prior = task.build()
    torch.manual_seed(0)
    without = task_of(codes).build()
    batch = first_batch(task)
    loss, _ = prior(batch)
    assert torch.equal(loss, without(batch)[0]), "undisturbed to the last bit at step 0"
    loss.backward()
    assert prior.aligned["beats"].out.weight.grad.any()


def test_pipelines_plans_and_guidance_know_it(task: Task) -> None:
    torch.manual_seed(0)
    prior = awake(task.build())
    config, batch = prior.config, first_batch(task)
    state = inputs(config, batch)
    assert len(state) == len(config.conditions) + 4, "codes, timing, lyrics, beats"
    torch.manual_seed(0)
    built = [build() for build in layers(config)]
    if not config.separate_head:
        built[-1].input.tokens.weight = built[0].input.tokens.weight
    awake(built[0])
    for layer in built:
        state = layer.eval()(state)
    assert torch.equal(loss_of(config, state, prior.tokens(batch))[0], prior(batch)[0])
    assert windows(config, 2)["beats"].shape == (2, 8)
    null = null_conditioned_batch(batch)
    assert not null["beats"].any() and batch["beats"].any()
    assert not torch.equal(prior(batch)[0], prior({**null, "conditions": batch["conditions"]})[0])


def test_a_request_asks_for_it_and_the_sampler_follows(
    task: Task, codes: ShardSet, tmp_path: Path
) -> None:
    run = run_of(task, codes, tmp_path / "run")
    prior = awake(task.build())
    songs = [
        run.conditioning(SongRequest(id="a", aligned=aligned))
        for aligned in ({}, {"beats": [0.1, 0.3, 0.7]})
    ]
    total = prior.config.window + 4
    samples = 4 * total * prior.config.hop
    plain, beaten = (
        sample_level(prior, [song], None, total, samples, plain_draw([1]), 0.5) for song in songs
    )
    assert plain.shape == beaten.shape == (1, total) and not torch.equal(plain, beaten)
    assert "aligned" not in SongRequest(id="a").model_dump(), "records without it stay as they were"


def awake(stem: Any) -> Any:
    """A prior, or its first layer, to which beats matter."""
    with torch.no_grad():
        stem.aligned["beats"].out.weight.copy_(
            torch.linspace(-3, 3, len(stem.aligned["beats"].out.weight))[:, None]
        )
    return stem.eval()


def test_an_unknown_name_is_refused(codes: ShardSet) -> None:
    with pytest.raises(
        ValueError, match=r"aligned condition 'smell' is unknown; known are .*beats"
    ):
        task_of(codes, "top.aligned={smell: {}}")
