"""`megajukebox evaluate` as a user runs it, on a jukebox of a few thousand weights: figures, page, gate, scores.jsonl."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import accessibility, browser
from fixtures.paths import ROOT
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_models import little_prior, little_vqvae
from fixtures.tiny_students import student_of
from typer.testing import CliRunner

from megajukebox.commands.evaluate import WORSE, main
from megajukebox.common.command_line import command_app
from megajukebox.common.errors import EXIT_FATAL
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import load_into, read_facts, save_weights
from megajukebox.data.audio import encode_wav
from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSample, ShardSet, write_shard
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.encode import encode
from megajukebox.evaluation.evaluators.likelihood import (
    window_bits,
    windows_of,
)
from megajukebox.evaluation.frozen_weights import frozen
from megajukebox.evaluation.metrics import METRICS
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.lyric_attention import lyric_layers
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.jukebox import Jukebox, PriorRun
from megajukebox.sampling.lyrics.head_selection import AlignmentHead, write_alignment_head
from megajukebox.sampling.songs.requests import parse_requests

RATE = 11025
ARTISTS = {"ilune": 300.0, "orrin": 900.0}


def play(song: int, artist: str, seconds: float = 4.5) -> np.ndarray:
    """A song whose artist is heard in its tone and whose beat is that of its genre."""
    time = np.arange(int(seconds * RATE)) / RATE
    beat = 0.4 if song % 3 else 0.6
    notes = ARTISTS[artist] * 2 ** (np.array([0, 4, 7, 12])[(time / beat).astype(int) % 4] / 12)
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(notes) / RATE) * np.exp(-4 * (time % beat))
    return (wave + 0.002 * np.random.default_rng(song).standard_normal(len(time))).astype(
        np.float32
    )


def write_songs(folder: Path) -> Path:
    samples = []
    for n in range(20):
        artist = list(ARTISTS)[n % 2]
        said = {"artist": artist, "genres": ["waltz" if n % 3 else "dub"], "language": "en"}
        facts = {"version": 1, "key": f"song-{n:02d}", **said}
        lrc = b"[00:00.00] <00:00.00> la <00:01.10> la <00:02.00>\n[00:02.40] <00:02.40> la <00:03.50> la <00:04.20>\n"
        wave = play(n, artist)
        members = {
            "json": json.dumps(facts).encode(),
            "wav": encode_wav(wave[:, None], RATE),
            "lrc": lrc,
        }
        samples.append(ShardSample(f"song-{n:02d}", len(wave), members))
    folder.mkdir()
    write_shard(folder / "songs-000000.tar", samples)
    made = {"version": "0", "commit": None, "command": "tests"}
    write_index(folder, ["songs-000000.tar"], kind="songs", sample_rate=RATE, made_by=made)
    return folder


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with songs, runs, codes, and samples of those runs."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("score")
    songs = ShardSet(write_songs(folder / "songs"))
    runs = write_runs(folder / "runs", sample_rate=RATE)
    encode(songs, runs / "vqvae", folder / "codes", 0.5, 20.0, part="0/1")
    encode(songs, runs / "vqvae", folder / "codes", 0.5, 20.0, part=None)
    asked, _ = parse_requests(
        [
            {
                "id": f"s{n}",
                "artist": list(ARTISTS)[n % 2],
                "genres": ["dub"],
                "seconds": 0.35,
                "seed": n,
            }
            for n in range(3)
        ]
    )
    for song in Jukebox(runs, "cpu").sample(asked):
        song.audio = {
            level: np.tile(wave, 14)[: 4 * RATE] for level, wave in song.audio.items()
        }  # long enough to judge
        song.save(folder / "samples")
    return folder


def score(*arguments: object) -> Any:
    app = command_app(main, "evaluate")
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_a_jukebox_is_scored_and_its_runs_keep_the_scores(workspace: Path, tmp_path: Path) -> None:
    done = score(
        workspace / "runs",
        "--reference",
        workspace / "songs",
        "--reference",
        workspace / "codes",
        "--held-out",
        0.3,
        "--out",
        tmp_path,
    )
    assert done.exit_code == 0, done.output
    metrics = report(tmp_path)["metrics"]
    for level in ("top", "middle", "bottom"):
        for name in (
            "reconstruction/{}/snr_db",
            "reconstruction/{}/frechet",
            "codebook/{}/perplexity",
            "bits/{}/bits_per_code",
        ):
            assert np.isfinite(metrics[name.format(level)]["value"]), name
    bits = metrics["bits/top/bits_per_code"]
    assert bits["low"] < bits["value"] < bits["high"] and bits["count"] >= 3
    assert {label.split("=")[0] for label in bits["slices"]} == {
        "artist",
        "genre",
    }  # all are of one language: no slice
    assert (
        metrics["reconstruction/original/artist_accuracy"]["value"]
        > metrics["reconstruction/chance/artist_accuracy"]["value"]
    )
    for run in ("vqvae", "top_prior", "middle_upsampler", "bottom_upsampler"):
        line = (workspace / "runs" / run / "scores.jsonl").read_text().splitlines()[-1]
        assert json.loads(line)["step"] in (1, 5) and json.loads(line)["metrics"]
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page and "artist orrin" in page
    assert all(
        (tmp_path / source).is_file() for source in ("plots/bands.light.svg", "plots/bits.dark.svg")
    )
    if browser.binary():
        with browser.chromium(tmp_path / "profile") as tab:
            tab.open((tmp_path / "index.html").as_uri())
            assert accessibility.violations(tab) == []


def test_samples_are_scored_against_songs_and_codes(workspace: Path, tmp_path: Path) -> None:
    done = score(
        workspace / "samples",
        "--reference",
        workspace / "songs",
        "--reference",
        workspace / "codes",
        "--held-out",
        0.3,
        "--out",
        tmp_path,
    )
    assert done.exit_code == 0, done.output
    metrics = report(tmp_path)["metrics"]
    for name in (
        "samples/bottom/loudness_lufs",
        "samples/bottom/frechet",
        "samples/held_out/frechet",
        "samples/top/artist_accuracy",
        "samples/chance/artist_accuracy",
        "samples/middle/tempo_distance",
        "copying/clips/suspicious",
        "copying/codes/shared_codes",
        "sample_codes/bottom/usage",
        "sample_codes/top/artist_accuracy",
    ):
        assert metrics[name]["value"] is not None, name
    assert metrics["samples/held_out/frechet"]["value"] < metrics["samples/bottom/frechet"]["value"]
    assert not (workspace / "samples" / "scores.jsonl").exists()


def test_samples_paired_with_themselves_agree_in_everything(
    workspace: Path, tmp_path: Path
) -> None:
    done = score(workspace / "samples", "--reference", workspace / "samples", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    metrics = report(tmp_path)["metrics"]
    assert metrics["paired/bottom/chroma_agreement"]["value"] == pytest.approx(1)
    assert metrics["paired/bottom/tempo_agreement"]["value"] == 1
    assert metrics["paired/bottom/frechet"]["value"] == pytest.approx(0, abs=1e-6)


def test_the_gate_lets_the_same_through_and_stops_a_worse_one(
    workspace: Path, tmp_path: Path
) -> None:
    arguments = ["--reference", workspace / "songs", "--held-out", 0.7, "--corpus", 4, "--songs", 6]
    assert score(workspace / "runs/vqvae", *arguments, "--out", tmp_path / "one").exit_code == 0
    again = score(
        workspace / "runs/vqvae",
        *arguments,
        "--out",
        tmp_path / "two",
        "--gate",
        tmp_path / "one/report.json",
    )
    assert again.exit_code == 0 and "none of" in again.output
    model = little_vqvae(sample_rate=RATE)
    with torch.no_grad():  # a model whose every reconstruction is off by a loud hum
        for level in model.levels.values():
            list(level.decoder.parameters())[-1].add_(3.0)
    save_weights(
        tmp_path / "broken", "vqvae", model.config, model.state_dict(), 2, sample_rate=RATE
    )
    broken = score(
        tmp_path / "broken",
        *arguments,
        "--out",
        tmp_path / "three",
        "--gate",
        tmp_path / "one/report.json",
    )
    assert broken.exit_code == WORSE, broken.output
    assert "reconstruction/bottom/snr_db" in broken.output


def test_a_checkpoint_is_scored_once(workspace: Path, tmp_path: Path) -> None:
    arguments = [
        workspace / "runs/top_prior",
        "--reference",
        workspace / "codes",
        "--windows",
        2,
        "--checkpoint",
        "newest",
    ]
    first, second = (score(*arguments, "--out", tmp_path) for _ in range(2))
    assert first.exit_code == second.exit_code == 0, first.output
    assert "nothing to do" in second.output and "nothing to do" not in first.output


def test_bits_of_windows_are_those_of_the_training_loss(workspace: Path) -> None:
    """The plain way is `Prior.forward` over one batch."""
    codes = ShardSet(workspace / "codes")
    for name in ("top_prior", "middle_upsampler", "bottom_upsampler"):
        run = PriorRun(
            workspace / "runs" / name, {"fingerprint": codes.index["vqvae"]["fingerprint"]}
        )
        prior = Prior(run.config)
        load_into(prior, run.folder)
        windows = windows_of(run, codes)
        batch = tensors(stack([windows.read(0, clip, None) for clip in range(3)]))
        prior.eval()
        with torch.inference_mode():
            assert float(window_bits(prior, batch).mean()) == pytest.approx(
                float(prior(batch)[1]["bits_per_code"]), rel=1e-5
            )


def write_student(runs: Path, level: str, order: str, awake: bool) -> Path:
    """A student beside the runs, at its teacher's weights; awake, it also listens to what its teacher does not know."""
    teacher = Prior(PriorConfig(**read_facts(runs / PRIOR_FOLDERS[level])["config"]))
    load_into(teacher, runs / PRIOR_FOLDERS[level])
    student = student_of(teacher, GridOrder.parse(order), awake)
    facts = {"level": level, "teacher": read_facts(runs / PRIOR_FOLDERS[level])["fingerprint"]}
    manner, folder = {"temperature": 1.0, "guidance": 1.0}, runs / f"{level}_student"
    save_weights(
        folder / "order", "student", student.how, student.state_dict(), 3, manner=manner, **facts
    )
    (folder / "student.json").write_text(
        json.dumps({"use": "order", "gate": {}, "orders": [{"order": order, "folder": "order"}]})
    )
    return folder


def test_a_student_that_is_its_teacher_is_at_no_distance_and_another_is(
    workspace: Path, tmp_path: Path
) -> None:
    """In the teacher's own order, with its weights, a student is the teacher: the same bits, no divergence."""
    arguments = [
        "--reference",
        workspace / "codes",
        "--windows",
        2,
        "--songs",
        3,
        "--held-out",
        0.5,
        "--out",
        tmp_path,
    ]
    assert score(workspace / "runs/bottom_upsampler", *arguments).exit_code == 0
    teacher = report(tmp_path)["metrics"]["bits/bottom/bits_per_code"]["value"]
    same = score(write_student(workspace / "runs", "bottom", "4,1", awake=False), *arguments)
    assert same.exit_code == 0, same.output
    metrics = report(tmp_path)["metrics"]
    assert metrics["student/bottom/bits_per_code"]["value"] == pytest.approx(teacher, abs=1e-4)
    assert metrics["student/bottom/reverse_kl_bits"]["value"] == pytest.approx(0, abs=1e-4)
    assert "no forward divergence" in report(tmp_path)["notes"][0]
    assert (
        score(write_student(workspace / "runs", "bottom", "0,1", awake=True), *arguments).exit_code
        == 0
    )
    assert report(tmp_path)["metrics"]["student/bottom/reverse_kl_bits"]["value"] > 0.01


def test_word_errors_are_reported_where_a_head_was_chosen(workspace: Path, tmp_path: Path) -> None:
    runs = write_runs(tmp_path / "runs", "prefix", sample_rate=RATE)
    codes = ShardSet(workspace / "codes")
    facts = json.loads((runs / "top_prior/model.json").read_text()) | {
        "vqvae": codes.index["vqvae"]["fingerprint"]
    }
    (runs / "top_prior/model.json").write_text(json.dumps(facts))
    layer = lyric_layers(little_prior("prefix_dense_16"))[0]
    write_alignment_head(runs / "top_prior", AlignmentHead(layer=layer, head=0))
    done = score(
        runs / "top_prior",
        "--reference",
        workspace / "codes",
        "--windows",
        1,
        "--songs",
        2,
        "--held-out",
        1,
        "--out",
        tmp_path,
    )
    assert done.exit_code == 0, done.output
    metrics = report(tmp_path)["metrics"]
    assert (
        metrics["lyrics/top/word_error_ms"]["value"] > 0
        and metrics["lyrics/top/even_error_ms"]["value"] > 0
    )


def test_weights_that_are_replaced_while_they_are_scored_stay_those_that_were_there(
    tmp_path: Path,
) -> None:
    model = little_vqvae(seed=0)
    first = save_weights(tmp_path / "run", "vqvae", model.config, model.state_dict(), 1)
    with frozen(tmp_path / "run") as kept:
        other = little_vqvae(seed=1)
        save_weights(tmp_path / "run", "vqvae", other.config, other.state_dict(), 2)
        assert json.loads((kept / "model.json").read_text())["fingerprint"] == first
        load_into(model, kept)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["runs/vqvae", "--reference", "codes"],
            "is evaluated against song shards; give --reference shards/songs",
        ),
        (
            ["runs/top_prior", "--reference", "songs"],
            "is evaluated against code shards; give --reference shards/codes",
        ),
        (["nowhere", "--reference", "songs"], "does not exist"),
        (["runs/vqvae", "--reference", "runs"], "holds no samples"),
        (["runs/vqvae", "--reference", "songs", "--reference", "songs"], "a second set of songs"),
        (
            ["runs/vqvae", "--reference", "songs", "--checkpoint", "step-7"],
            "neither newest nor a step",
        ),
        (["runs/vqvae", "--reference", "songs", "--gate", "none.json"], "cannot be read"),
    ],
    ids=str,
)
def test_mistakes_are_reported_in_one_line(
    workspace: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    paths = [
        str(workspace / a) if "/" in a or a in ("songs", "codes", "runs", "nowhere") else a
        for a in arguments
    ]
    done = score(*paths, "--out", tmp_path)
    assert done.exit_code == EXIT_FATAL and message in str(done.exception or "") + done.output, (
        done.output
    )


def test_every_metric_is_defined_in_the_documentation() -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text()
    assert not [name for name in METRICS if f"`{name}`" not in text]
