"""Training goes on from the weights of another run: all or some of them, on songs whose names the model knows."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures.tiny_runs import codes_and_preset, losses, train, write_ds_config
from typer.testing import CliRunner

from megajukebox.commands.evaluate import main as evaluate_main
from megajukebox.common.command_line import command_app
from megajukebox.common.files import write_atomic
from megajukebox.common.model_files import load_weights
from megajukebox.conditioning.vocabulary import VOCABULARIES
from megajukebox.training.engines.universal_checkpoint import weights_of

app = command_app(evaluate_main, "evaluate")

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("finetune")]


@pytest.fixture(scope="module")
def little(tmp_path_factory):
    return codes_and_preset(tmp_path_factory.mktemp("little"), steps=4, save_every=4)


@pytest.fixture(scope="module")
def base(little, tmp_path_factory):
    """Trained for four steps under ZeRO-3 on two ranks, every weight shared out."""
    folder = tmp_path_factory.mktemp("base")
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    train(
        *little,
        folder / "run",
        "--ds-config",
        str(write_ds_config(folder, "prior_zero3_cpu.json", zero_optimization=zero)),
        ranks=2,
    )
    return folder / "run"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_weights(run)[1])


def test_frozen_parts_stay_to_the_last_bit_and_the_others_learn(little, base, tmp_path):
    run = tmp_path / "run"
    freeze = "training.top_prior.freeze=[input, blocks.0]"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    path = write_ds_config(
        tmp_path, "prior_zero3_cpu.json", zero_optimization=zero, activation_checkpointing={}
    )
    train(*little, run, "--from", str(base), "--ds-config", str(path), freeze, ranks=2)
    before, after = weights(base), weights(run)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("input.", "blocks.0."))}
    facts = json.loads((run / "model.json").read_text())
    assert (
        facts["from"]["fingerprint"] == json.loads((base / "model.json").read_text())["fingerprint"]
    )


def test_a_checkpoint_of_a_run_is_as_good_a_start_as_the_run(little, base, tmp_path):
    checkpoint = next((base / "checkpoints").glob("step-*"))
    found = weights_of(checkpoint / "state")
    assert all(torch.equal(found[name], tensor) for name, tensor in weights(base).items())
    for name, start in (("run", base), ("checkpoint", checkpoint)):
        train(*little, tmp_path / name, "--from", str(start), "training.top_prior.steps=2")
    assert losses(tmp_path / "run") == losses(tmp_path / "checkpoint")
    assert losses(tmp_path / "run")[0] < losses(base)[0], "it starts where the other had come to"


@pytest.mark.slow
def test_sections_and_memory_are_added_to_a_trained_prior_at_zero(little, base, tmp_path):
    """The first loss is that of a run without them, to the last bit; then they learn."""
    memory = "memory: {width: 8, depth: 2, margin: 4, dropout: 0.1}"
    aligned = f"top.aligned={{sections: {{dropout: 0.1}}, {memory}}}"
    grown, plain = tmp_path / "grown", tmp_path / "plain"
    train(*little, plain, "--from", str(base), "--stop-after", "1")
    train(*little, grown, "--from", str(base), aligned)
    assert losses(grown)[0] == losses(plain)[0]
    config = json.loads((grown / "model.json").read_text())["config"]
    assert sorted(config["aligned"]) == ["memory", "sections"]
    assert set(weights(base)) < set(weights(grown))
    train(*little, tmp_path / "further", "--from", str(grown), aligned, "--stop-after", "1")


def test_a_kept_checkpoint_is_scored_as_the_run_was_at_that_step(little, base, tmp_path):
    codes, run = little[0], shutil.copytree(base, tmp_path / "runs" / "top_prior")

    def score(*more: str) -> tuple[str, dict]:
        settings = [
            "--held-out",
            "0.5",
            "--windows",
            "1",
            "--songs",
            "2",
            "--out",
            str(tmp_path / "out"),
        ]
        done = CliRunner().invoke(app, [str(run), "--reference", str(codes), *settings, *more])
        return done.output, json.loads(
            (tmp_path / "out" / "report.json").read_text()
        ) if not done.exit_code else {}

    kept, exported = score("--checkpoint", "4")[1], score()[1]
    name = "bits/top/bits_per_code"
    assert kept["metrics"][name]["value"] == pytest.approx(
        exported["metrics"][name]["value"], abs=1e-6
    )
    assert (
        kept["target"]["weights"] == exported["target"]["weights"] and kept["target"]["step"] == 4
    )
    assert kept["target"]["path"] == str(run) and "checkpoint 4" in kept["notes"][-1]
    assert [
        json.loads(line)["step"] for line in (run / "scores.jsonl").read_text().splitlines()
    ] == [4, 4]
    assert (
        "evaluated before" in score("--checkpoint", "4")[0]
        and "it has 4" in score("--checkpoint", "3")[0]
    )
    assert [path.name for path in run.parent.iterdir()] == ["top_prior"], "nothing is left behind"


def test_songs_with_names_that_the_model_does_not_know_are_refused_naming_grow(
    little, base, tmp_path
):
    copy = shutil.copytree(base, tmp_path / "base")
    known = json.loads((copy / VOCABULARIES).read_text())
    gone = known["artist"].pop()
    write_atomic(copy / VOCABULARIES, json.dumps(known).encode())
    said = train(*little, tmp_path / "run", "--from", str(copy), expect=93)
    assert (
        f"does not know artist {gone!r}" in said.lower()
        and f"megajukebox extend-vocabulary {copy}" in said
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_wrong_start_or_part_is_refused_with_the_way_out(little, base, tmp_path):
    said = train(*little, tmp_path / "run", "--from", str(tmp_path), expect=93)
    assert "neither a run" in said
    said = train(
        *little,
        tmp_path / "run",
        "--from",
        str(base),
        "training.top_prior.freeze=[drums]",
        expect=93,
    )
    assert "no part 'drums'" in said and "blocks" in said


def average(history: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    """What the moving average must be: from the first weights on, once a step."""
    kept = dict(history[0])
    for moved in history[1:]:
        kept = {name: decay * kept[name] + (1 - decay) * moved[name] for name in kept}
    return kept


@pytest.mark.parametrize(
    "name",
    [
        "zero3",
        pytest.param("pipeline", marks=pytest.mark.slow),
        pytest.param("zero1", marks=pytest.mark.slow),
    ],
)
def test_the_average_of_the_weights_is_exported_and_survives_other_numbers_of_processes(
    little, base, tmp_path, name
):
    """The weights of each step are known from a run without an average; then with it, resumed, on other ranks too."""
    zero = {"stage": 1 if name == "pipeline" else int(name[-1])}
    file = "prior_pipeline_cpu.json" if name == "pipeline" else "prior_zero3_cpu.json"
    more = {"train_batch_size": 4, "gradient_accumulation_steps": None, "zero_optimization": zero}
    told = ["--from", str(base), "--ds-config", str(write_ds_config(tmp_path, file, **more))]
    often = [f"training.top_prior.{setting}" for setting in ("save_every=1", "keep=9")]
    train(*little, tmp_path / "plain", *told, *often, "--stop-after", "3", ranks=2)
    history = [
        weights(base),
        *(
            weights_of(at / "state")
            for at in sorted((tmp_path / "plain/checkpoints").glob("step*"))
        ),
    ]
    assert len(history) == 4
    run, ema = tmp_path / "run", "training.top_prior.ema_decay=0.5"
    train(*little, run, *told, ema, "--stop-after", "1", ranks=2)
    train(*little, run, *told, ema, "--stop-after", "1", ranks=2)
    train(*little, run, *told, ema, "--stop-after", "1", ranks=1)
    for key, expected in average(history, 0.5).items():
        torch.testing.assert_close(weights(run)[key], expected, rtol=1e-4, atol=1e-5)
