"""Students beside the priors: found by name and order, and what a request asks of them that they cannot give."""

import json
from pathlib import Path

import pytest
import torch
from fixtures.tiny_jukebox import write_runs
from fixtures.tiny_students import student_of

from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import load_into, read_facts, save_weights
from megajukebox.models.grid_order import GridOrder
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.level_jobs import token_sampler_for
from megajukebox.sampling.levels.autoregressive import Autoregressive
from megajukebox.sampling.levels.level_sampler import LevelJob, new_job
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.sampling.songs.song_writer import SongWriter
from megajukebox.sampling.students.student_runs import fingerprints, parse_students
from megajukebox.sampling.students.student_sampler import StudentSampler, VerifiedStudent

ORDERS = {"top": ("1,1", "4,1"), "middle": ("0,1", "1,1"), "bottom": ("0,1",)}


def load(runs: Path, level: str) -> Prior:
    prior = Prior(PriorConfig(**read_facts(runs / PRIOR_FOLDERS[level])["config"]))
    load_into(prior, runs / PRIOR_FOLDERS[level])
    return prior.eval()


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A little jukebox with a student or two for each level; those named first are in use."""
    folder = write_runs(tmp_path_factory.mktemp("runs"))
    vqvae = read_facts(folder / "vqvae")["fingerprint"]
    for level, orders in ORDERS.items():
        rows = []
        for order in orders:
            student = student_of(load(folder, level), GridOrder.parse(order))
            row = {"order": order, "folder": f"order-{order.replace(',', '-')}"}
            rows.append(row | {"passed": order != "4,1", "kl_forward": 0.06})
            facts = {
                "level": level,
                "vqvae": vqvae,
                "manner": {"temperature": 0.9, "guidance": 1.0},
            }
            run = folder / f"{level}_student" / rows[-1]["folder"]
            save_weights(run, "student", student.how, student.state_dict(), 3, **facts)
        table = {
            "use": rows[0]["folder"],
            "gate": {"kl_forward": 0.05, "kl_reverse": 0.08},
            "orders": rows,
        }
        (folder / f"{level}_student" / "student.json").write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["student"], {"middle": "0,1", "bottom": "0,1"}),
        (["top=student"], {"top": "1,1"}),
        (
            ["student", "top=student:4,1", "middle=student:1,1"],
            {"top": "4,1", "middle": "1,1", "bottom": "0,1"},
        ),
        (["student", "bottom=exact"], {"middle": "0,1"}),
        ([], {}),
    ],
    ids=str,
)
def test_names_choose_students_by_level_and_order(runs, asked, found) -> None:
    students = parse_students(runs, asked)
    assert {level: str(run.config.order) for level, run in students.items()} == found
    assert set(fingerprints(students)) == {f"{level}_student" for level in found}


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("teacher", "is none; write student"),
        ("high=student", "a level of top, middle, bottom"),
        ("middle=student:3,1", "has no student of order 3,1; it has 0,1; 1,1"),
        ("middle=student:1", "not of the form a,b"),
    ],
)
def test_what_is_no_sampler_is_refused_with_those_there_are(runs, asked, told) -> None:
    with pytest.raises(ValueError, match=told):
        parse_students(runs, [asked])


def test_a_level_without_a_student_says_to_distill_one(tmp_path) -> None:
    with pytest.raises(ValueError, match="holds no student"):
        parse_students(write_runs(tmp_path), ["student"])


def sampled(runs: Path, level: str, make) -> LevelJob:
    jukebox, requests = (
        Jukebox(runs),
        [SongRequest(id="one", seconds=2.0, seed=3), SongRequest(id="two", seconds=2.0, seed=4)],
    )
    told = [jukebox.levels[level].conditioning(request) for request in requests]
    above = torch.randint(16, (2, 64), generator=torch.Generator().manual_seed(0))
    job = new_job(told, 200, 2000, token_sampler_for(level, requests, jukebox.device), 0.5, above)
    make(load(runs, level)).sample(job, lambda count: None)
    return job


def test_a_student_samples_its_level_and_verified_it_is_the_prior(runs) -> None:
    exact = sampled(runs, "middle", Autoregressive)
    run = parse_students(runs, ["middle=student"])["middle"]
    assert isinstance(run(load(runs, "middle")), StudentSampler)
    quick = sampled(runs, "middle", run)
    assert quick.known_BT.all() and not torch.equal(quick.codes_BT, exact.codes_BT)
    verified = parse_students(runs, ["middle=verified"])["middle"]
    assert isinstance(verified(load(runs, "middle")), VerifiedStudent)
    assert torch.equal(sampled(runs, "middle", verified).codes_BT, exact.codes_BT)
    assert not fingerprints({"middle": verified}), "the song is the prior's alone"


def test_what_a_student_was_not_taught_is_noted(runs) -> None:
    run = parse_students(runs, ["student"])["bottom"]
    assert not list(run.notes(SongRequest(id="a", temperature=0.9)))
    notes = list(run.notes(SongRequest(id="a", temperature=0.5, guidance=2)))
    assert len(notes) == 2 and "taught guidance 1 and keeps to it; 2 was asked" in notes[0]


def test_a_student_that_did_not_pass_its_gate_is_noted(runs) -> None:
    notes = [
        list(
            parse_students(runs, [f"top=student{order}"])["top"].notes(
                SongRequest(id="a", temperature=0.9)
            )
        )
        for order in ("", ":4,1")
    ]
    further = (
        "the top student 4,1 is further from its prior than allowed: 0.060 bits per code, gate 0.05"
    )
    assert notes == [[], [further]]


def test_songs_go_on_and_are_mended_by_students_with_what_is_given_untouched(
    runs, tmp_path
) -> None:
    jukebox = Jukebox(runs, students=["student", "top=student"])
    first = jukebox.sample(
        [SongRequest(id="first", seconds=2.0, seed=1, temperature=0.9)],
        sink=SongWriter(jukebox, tmp_path),
    )[0]
    record = json.loads((tmp_path / "first.json").read_text())
    assert record["decoding"] == {
        "exact": False,
        "students": {"top": "student 1,1", "middle": "student 0,1", "bottom": "student 0,1"},
    }
    assert {"top_student", "middle_student", "bottom_student"} <= set(record["weights"]) and not [
        note for note in record["notes"] if "student" in note
    ]
    source = str(tmp_path / "first.json")
    longer = SongRequest(id="longer", prompt=source, seconds=4.0, seed=2)
    mended = SongRequest(id="mended", infill=source, replace=((0.6, 1.1),), seed=3)
    for song in jukebox.sample([longer]) + jukebox.sample([mended]):
        for level, codes in first.codes.items():
            stays = song.prompt.mask[level][: len(codes)]
            assert stays.any() and (song.codes[level][: len(codes)] == codes)[stays].all()
    assert (song.codes["bottom"] != first.codes["bottom"]).any(), "the mended range is new"
