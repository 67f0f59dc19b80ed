"""A run that trains can be heard: it samples from itself in another process, and what fails there does not matter."""

import json
import wave
from pathlib import Path

import pytest
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_runs import codes_and_preset, events, train

from megajukebox.commands.preview import level_folders, preview_requests
from megajukebox.records.events import PreviewWritten
from megajukebox.training.previews import PreviewSampler, PreviewSettings


class Log:
    def __init__(self) -> None:
        self.told: list[PreviewWritten] = []

    def event(self, event: PreviewWritten) -> None:
        self.told.append(event)


def settings(**changed) -> PreviewSettings:
    return PreviewSettings(every=4, seconds=0.3, **changed)


def test_a_run_is_heard_when_its_turn_comes_and_at_no_other_save(tmp_path):
    runs, log = write_runs(tmp_path / "runs"), Log()
    run = runs / "top_prior"
    hearing = PreviewSampler(run, settings(), log, 0, active=True)
    for step in (2, 4, 5, 7):
        hearing.after_save(step)
    hearing.end(wait=True)
    assert log.told == [PreviewWritten(step=4, folder="samples/step-00000004")]
    made = run / "samples/step-00000004"
    assert {path.name for path in made.glob("*.wav")} >= {
        "sample-0.wav",
        "sample-1.wav",
        "sample-0.top.wav",
    }
    with wave.open(str(made / "sample-0.wav")) as audio:
        assert audio.getnframes() / audio.getframerate() == pytest.approx(0.3, abs=0.07)
    assert json.loads((made / "sample-0.json").read_text())["levels"]["top"]["codes"]


def test_a_top_prior_alone_is_heard_through_its_own_level(tmp_path):
    runs = write_runs(tmp_path / "runs")
    (runs / "middle_upsampler/model.json").unlink()
    assert list(level_folders(runs / "top_prior", runs)) == ["top"]
    with pytest.raises(ValueError, match="holds no trained middle prior, which is above this run"):
        level_folders(runs / "bottom_upsampler", runs)
    with pytest.raises(ValueError, match="vqvae holds a vqvae; give the run of a prior"):
        level_folders(runs / "vqvae", runs)
    assert [r.artist for r in preview_requests(runs / "top_prior", 1.0, 3)] == [
        "ilune",
        "orrin",
        "ilune",
    ]


def test_what_goes_wrong_there_is_told_and_nothing_else(tmp_path):
    runs, log = write_runs(tmp_path / "runs"), Log()
    hearing = PreviewSampler(
        runs / "top_prior", settings(runs=str(tmp_path / "nowhere")), log, 0, active=True
    )
    hearing.after_save(4)
    hearing.end(wait=True)
    [event] = log.told
    assert event.step == 4 and event.reason is not None
    assert "failed: preview:" in event.reason and "nowhere" in event.reason


def test_other_ranks_and_runs_that_do_not_want_it_start_nothing(tmp_path):
    for hearing in (
        PreviewSampler(tmp_path, settings(), Log(), 0, active=False),
        PreviewSampler(tmp_path, settings().model_copy(update={"every": 0}), Log(), 0, active=True),
    ):
        hearing.after_save(4)
        assert hearing.process is None


@pytest.mark.timeout(600)
def test_training_tells_of_its_samples_and_goes_on_without_them(tmp_path):
    """No VQ-VAE lies beside this run, so nothing can be heard: the run ends as it should all the same."""
    little: tuple[Path, Path] = codes_and_preset(tmp_path, steps=4, save_every=2)
    train(
        *little,
        tmp_path / "top_prior",
        "training.top_prior.previews.every=2",
        "training.top_prior.previews.seconds=1",
    )
    assert (
        events(tmp_path / "top_prior", "done")
        and "failed" in events(tmp_path / "top_prior", "preview")[-1]["reason"]
    )
