"""Votes of the blind test: the file, the sums, and what a listener may not find out before the vote."""

import json
from multiprocessing import get_context
from pathlib import Path

import pytest
from fixtures.explorer_samples import add_sample

from megajukebox.explorer.server.blind_trials import BlindTrials
from megajukebox.explorer.server.votes import (
    Vote,
    append_vote,
    read_votes,
    sign_test,
    tally_votes,
    wilson,
)
from megajukebox.explorer.site_builder import write_samples


def vote(winner: str = "a", a: str = "old", b: str = "new", number: int = 0) -> Vote:
    facts = {
        "field": "run",
        "a": a,
        "b": b,
        "sample_a": f"s{number}",
        "sample_b": "t",
        "winner": winner,
    }
    return Vote.model_validate(facts | {"first": "a", "time": 1.0})


def test_the_interval_is_wilsons() -> None:
    assert wilson(0.9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0.0, 5) == pytest.approx((0.0, 0.4345), abs=1e-4)
    assert wilson(1.0, 5)[1] == 1.0


def test_the_sign_test_is_that_of_coins() -> None:
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(9, 1) == pytest.approx(2 * 11 / 1024)
    assert sign_test(3, 3) == sign_test(0, 0) == 1.0


def test_votes_count_the_same_whichever_way_round_the_sides_were_chosen() -> None:
    (one,) = tally_votes([vote("a"), vote("b", a="new", b="old"), vote("same"), vote("b")])
    assert (one.a, one.b) == ("new", "old") and (one.wins_a, one.wins_b, one.same) == (1, 2, 1)
    assert (
        one.as_json()["votes"] == 4
        and one.share == pytest.approx(0.625)
        and one.low < 0.625 < one.high
    )


def test_a_torn_line_costs_one_vote_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    append_vote(path, vote(number=1))
    with path.open("a") as file:
        file.write('{"field": "run", "a": "ol')  # the power went
    append_vote(path, vote(number=2))
    votes, skipped = read_votes(path)
    assert [one.sample_a for one in votes] == ["s1", "s2"] and skipped == 1
    assert read_votes(tmp_path / "nowhere") == ([], 0)


def append_many(path: Path, start: int) -> None:
    for number in range(start, start + 50):
        append_vote(path, vote(number=number))


def test_two_servers_can_keep_one_file(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    others = [
        get_context("spawn").Process(target=append_many, args=(path, start)) for start in (0, 50)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()
    votes, skipped = read_votes(path)
    assert sorted(int(one.sample_a[1:]) for one in votes) == list(range(100)) and skipped == 0


def test_a_listener_hears_every_pair_and_learns_the_sides_only_by_voting(tmp_path: Path) -> None:
    for run, loudness in (("old", 1.0), ("new", 0.5)):
        for seed in range(3):
            add_sample(
                tmp_path / run, f"song-{seed}", runs=f"runs/{run}", seed=seed, loudness=loudness
            )
    listed = write_samples([tmp_path / "old", tmp_path / "new"], tmp_path / "site")
    samples = {sample.name: sample for sample in listed.samples}
    trials = BlindTrials(tmp_path / "votes.jsonl", tmp_path / "site")
    heard = set()
    for number in range(3):
        trial = trials.next(samples, listed.entries, "run", "runs/old", "runs/new")
        assert (trial["pairs"], trial["voted"]) == (3, number)
        hidden = json.dumps({key: value for key, value in trial.items() if key != "db"})
        assert not any(word in hidden for word in ("old", "new", "song-"))
        assert abs(trial["db"]["A"] - trial["db"]["B"]) == pytest.approx(6.02, abs=0.1)
        paths = [trials.recording(samples, trial["id"], side) for side in "ab"]
        sides = trials.vote(trial["id"], "a")
        assert [file.path.parent.name for file in paths if file] == [
            sides[side].removeprefix("runs/") for side in "AB"
        ]
        heard.add(paths[0].name if paths[0] else "")
        assert trials.recording(samples, trial["id"], "a") is None
        with pytest.raises(ValueError, match="not open"):
            trials.vote(trial["id"], "a")
        kept = read_votes(tmp_path / "votes.jsonl")[0][-1]
        assert {"a": kept.a, "b": kept.b}[kept.winner] == sides["A"] and kept.a == "runs/old"
    assert len(heard) == 3
    for question in (
        ("run", "runs/old", "runs/old"),
        ("name", "x", "y"),
        ("run", "runs/old", "runs/none"),
    ):
        with pytest.raises(ValueError, match=r"no two sides|no request in common"):
            trials.next(samples, listed.entries, *question)
