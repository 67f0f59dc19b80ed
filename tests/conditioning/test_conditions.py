"""Conditions: every kind of label goes from a song's JSON to the model and from a request to the same ids."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import PRESET
from fixtures.reference_shapes import written
from fixtures.tiny_models import little_vqvae

from megajukebox.commands.prepare import main as prepare
from megajukebox.common.files import write_atomic
from megajukebox.common.model_files import read_facts, save_weights
from megajukebox.common.world import World
from megajukebox.conditioning.jukebox_labels import as_written
from megajukebox.conditioning.vocabulary import Vocabulary
from megajukebox.data.shards.remote import RemoteConfig
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.encode import main as encode
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.sampling.jukebox import PriorRun
from megajukebox.sampling.songs.requests import SongRequest
from megajukebox.training.config import CONDITIONS, Preset, load_preset
from megajukebox.training.prior_task import prior_task, years
from megajukebox.training.tasks import ReaderShare, Task, TaskRequest

SONGS = [
    {
        "artist": "Ilune",
        "genres": ["Waltz", "Dub"],
        "year": 1994,
        "moods": ["calm"],
        "language": "en",
    },
    {
        "artist": "Orrin",
        "genres": "folk; dub; waltz",
        "year": 2007,
        "keywords": ["night drive", "rain"],
        "language": "de",
    },
    {"artist": "ILUNE", "year": 1999, "moods": ["calm", "Bright"], "keywords": ["rain"]},
    {},
]
SETTINGS = [
    "top.window=16",
    "top.transformer.blocks=4",
    "top.transformer.init_scale=15",
    "conditions.artist={size: 8, dropout: 0.1}",
    "conditions.genres={slots: 2, size: 8, dropout: 0.2}",
    "conditions.year={size: 8, bin_years: 10, dropout: 0.3}",
    "conditions.moods={slots: 3, size: 8, dropout: 0.4}",
    "conditions.keywords={slots: 4, size: 8, dropout: 0.5}",
    "conditions.language={size: 8, dropout: 0.6}",
    "top.conditions=[artist, genres, year, moods, keywords, language]",
    "top.lyrics.dropout=0.7",
]


@pytest.fixture(scope="module")
def codes(tmp_path_factory) -> ShardSet:
    """The four songs through `prepare` and `encode`, as code shards."""
    folder = tmp_path_factory.mktemp("conditions")
    (folder / "songs").mkdir()
    for number, facts in enumerate(SONGS):
        noise = np.random.default_rng(number).uniform(-0.3, 0.3, (9000 + number, 1))
        soundfile.write(folder / f"songs/{number}.wav", noise, 8000)
        (folder / f"songs/{number}.json").write_text(json.dumps(facts))
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


def preset(*settings: str) -> Preset:
    return load_preset(str(PRESET), [*SETTINGS, *settings])


def top_task(codes: ShardSet, *settings: str) -> Task:
    chosen = preset("training.top_prior.held_out=0", *settings)
    reading = ReaderShare(
        World(0, 0, 1),
        global_batch=4,
        micro_batch=4,
        on_bad=lambda shard, key, why: pytest.fail(why),
    )
    request = TaskRequest(chosen, chosen.stage("top_prior"), str(codes.folder), RemoteConfig())
    return prior_task("top", request, reading)


def test_a_process_that_sees_no_data_makes_as_many_steps_and_opens_no_shard(
    codes: ShardSet, monkeypatch
) -> None:
    more = ("training.top_prior.held_out=0.2", "training.top_prior.held_out_batches=3")
    reads = top_task(codes, *more)
    idle = replace(reads, reading=replace(reads.reading, reads=False, micro_batch=2))
    expected = len(list(replace(reads, reading=replace(reads.reading, micro_batch=2)).held_out()))
    monkeypatch.setattr(ShardSet, "open_member", lambda *unused: pytest.fail("it opened a shard"))
    steps = iter(idle.batches(7))
    assert [next(steps), next(steps)] == [[{}, {}], [{}, {}]] and idle.batches(
        7
    ).bad_samples() == {}
    assert list(idle.held_out()) == [{}] * expected and expected > 0
    assert idle.stream_state(7) == reads.stream_state(7), (
        "what is saved does not depend on who saves it"
    )


def run_of(task: Task, codes: ShardSet, folder: Path) -> PriorRun:
    """The run folder that training would leave, and how sampling reads it."""
    torch.manual_seed(0)
    save_weights(folder, "prior", task.config, task.build().state_dict(), 1, **task.facts)
    for name, content in task.files.items():
        write_atomic(folder / name, content)
    return PriorRun(folder, {"fingerprint": codes.index["vqvae"]["fingerprint"]})


def test_a_request_is_told_the_ids_that_the_songs_of_its_names_were_trained_with(
    codes: ShardSet, tmp_path: Path
) -> None:
    task = top_task(codes)
    run = run_of(task, codes, tmp_path / "run")
    for song in range(len(SONGS)):
        facts = json.loads(codes.read_member(song, "json"))
        known = {name: facts[name] for name in CONDITIONS if name in facts}
        trained = task.source.read(song, 0, None)["conditions"]
        told = run.conditioning(SongRequest(id="a", **known)).labels
        assert set(told) == set(trained) == set(CONDITIONS)
        for name in CONDITIONS:
            assert told[name].tolist() == trained[name].tolist(), f"{name} of song {song}"
        assert not list(run.unknown_names(SongRequest(id="a", **known)))


def test_every_condition_has_the_names_of_the_songs(codes: ShardSet, tmp_path: Path) -> None:
    run = run_of(top_task(codes), codes, tmp_path / "run")
    names = {
        name: set(vocabulary.names) - {"<unknown>"} for name, vocabulary in run.vocabularies.items()
    }
    assert names == {
        "artist": {"ilune", "orrin"},
        "genres": {"waltz", "dub", "folk"},
        "year": {"1990-1999", "2000-2009"},
        "moods": {"calm", "bright"},
        "keywords": {"night drive", "rain"},
        "language": {"en", "de"},
    }


def test_what_is_not_said_is_unknown_or_an_empty_bag(codes: ShardSet, tmp_path: Path) -> None:
    run = run_of(top_task(codes), codes, tmp_path / "run")
    nothing = {n: ids.tolist() for n, ids in run.conditioning(SongRequest(id="a")).labels.items()}
    empty = {
        "artist": [0],
        "year": [0],
        "language": [0],
        "genres": [-1] * 2,
        "moods": [-1] * 3,
        "keywords": [-1] * 4,
    }
    assert nothing == empty
    silent = next(
        s for s in range(len(SONGS)) if "artist" not in json.loads(codes.read_member(s, "json"))
    )
    trained = top_task(codes).source.read(silent, 0, None)["conditions"]
    assert {n: ids.tolist() for n, ids in trained.items()} == empty
    strange = SongRequest(
        id="a",
        artist="Nobody",
        genres=["polka"],
        year=1950,
        moods=["odd"],
        keywords=["x"],
        language="xx",
    )
    assert all(ids[0] == 0 for ids in run.conditioning(strange).labels.values())
    assert sorted(condition for condition, _ in run.unknown_names(strange)) == sorted(CONDITIONS)


def test_every_condition_moves_the_logits_and_learns(codes: ShardSet) -> None:
    task = top_task(codes)
    torch.manual_seed(0)
    prior, batch = task.build(), next(iter(task.batches(0)))[0]
    batch = {
        k: v[:1] if isinstance(v, torch.Tensor) else {n: i[:1] for n, i in v.items()}
        for k, v in batch.items()
    }
    with torch.no_grad():
        plain = prior.logits(prior.tokens(batch), prior.conditioning(batch))
        for name, ids in batch["conditions"].items():
            other = {**batch, "conditions": {**batch["conditions"], name: torch.full_like(ids, 2)}}
            assert not torch.equal(
                plain, prior.logits(prior.tokens(other), prior.conditioning(other))
            ), name
    batch["conditions"] = {name: ids.clamp(min=0) for name, ids in batch["conditions"].items()}
    prior(batch)[0].backward()
    assert all(table.weight.grad.any() for table in prior.labels.tables.values())


def test_each_condition_and_the_lyrics_are_dropped_as_often_as_the_preset_says(
    codes: ShardSet,
) -> None:
    task, draws = top_task(codes), 400
    song = next(
        s
        for s in range(len(SONGS))
        if json.loads(codes.read_member(s, "json")).get("artist") == "Ilune"
    )
    told = task.source.read(song, 0, None)
    said = [name for name, ids in told["conditions"].items() if ids[0] > 0]
    assert set(said) >= {"artist", "genres", "year", "moods", "language"}
    read = [task.source.read(song, 0, np.random.default_rng(seed)) for seed in range(draws)]
    expected = {"artist": 0.1, "genres": 0.2, "year": 0.3, "moods": 0.4, "language": 0.6}
    for name, share in expected.items():
        dropped = np.mean([sample["conditions"][name][0] < 1 for sample in read])
        assert abs(dropped - share) < 4 * (share * (1 - share) / draws) ** 0.5, name
    assert abs(np.mean([not sample["lyrics"].any() for sample in read]) - 0.7) < 0.1
    assert told["lyrics"].any()


def test_each_condition_and_timing_may_be_left_out(codes: ShardSet) -> None:
    for labels in ("[]", *(f"[{name}]" for name in CONDITIONS)):
        task = top_task(codes, f"top.conditions={labels}", "top.timing=null")
        loss, _ = task.build()(next(iter(task.batches(0)))[0])
        assert loss.isfinite() and list(task.config.conditions) == (
            [] if labels == "[]" else [labels[1:-1]]
        )


# ---- Years ----------------------------------------------------------------------------------------------------------


def test_years_share_the_entry_of_their_bin() -> None:
    decades = Vocabulary.of_years(1987, 2011, 10)
    assert (
        decades.names[1:] == ("1980-1989", "1990-1999", "2000-2009", "2010-2019")
        and decades.bin_years == 10
    )
    assert [decades.id(str(year)) for year in (1979, 1980, 1989, 1990, 2015, 2020)] == [
        0,
        1,
        1,
        2,
        4,
        0,
    ]
    assert decades.id("1990-1999") == 2 and Vocabulary.from_json(decades.to_json()).id("1994") == 2
    single = Vocabulary.of_years(1999, 2001)
    assert single.names[1:] == ("1999", "2000", "2001") and single.bin_years == 1
    assert Vocabulary.of_years(0, 9999, 3000).id("9999") == 4


@pytest.mark.parametrize("size", [2, 3, 8, 64])
@pytest.mark.parametrize(("first", "last"), [(0, 2024), (1950, 2024), (1999, 2000), (9990, 9999)])
def test_years_that_do_not_fit_are_refused_with_the_bin_that_does(
    first: int, last: int, size: int
) -> None:
    settings = load_preset(str(PRESET), [f"conditions.year={{size: {size}}}"]).conditions["year"]
    if last - first + 2 <= size:
        assert len(years(settings, first, last)) == last - first + 2
        return
    with pytest.raises(
        ValueError, match=f"years {first} to {last}.* set conditions.year.bin_years to"
    ) as error:
        years(settings, first, last)
    wide = int(str(error.value).split("bin_years to ")[1].split(",")[0])
    assert len(years(settings.model_copy(update={"bin_years": wide}), first, last)) <= size


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("conditions.tempo={size: 4}", "do not say their 'tempo'; conditions are artist, .*, year"),
        ("conditions.artist.bin_years=10", "conditions.artist.bin_years is for year alone"),
        ("conditions.year.bin_years=0", "conditions.year.bin_years"),
        ("top.lyrics.dropout=1", "top.lyrics.dropout"),
    ],
)
def test_conditions_that_cannot_be_are_refused(setting: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        preset(setting)


# ---- OpenAI's names -------------------------------------------------------------------------------------------------


def test_names_are_spelt_as_the_run_has_them() -> None:
    assert as_written(None, "artist", "The Beatles") == ["The Beatles"]
    assert as_written("jukebox_v2", "artist", "The Beatles") == ["the_beatles"]
    assert as_written("jukebox_v2", "genres", "Hip-Hop") == ["hip", "hop"]
    assert as_written("jukebox_v3", "genres", "Hip-Hop") == ["hip-hop"]
    assert as_written("jukebox_v2", "artist", "椎名林檎") == ["椎名林檎"]


def test_openai_s_names_are_found_however_a_request_spells_them(tmp_path: Path) -> None:
    (tmp_path / "v2_artist_ids.txt").write_text("unknown;0\nthe_beatles;1\nc_line_dion;2\n")
    (tmp_path / "v2_genre_ids.txt").write_text("unknown;0\nrock;1\nhip;2\nhop;3\n")
    made = import_weights(
        written(tmp_path, ["vqvae", "prior_5b"]), tmp_path / "runs", labels=tmp_path
    )
    run = PriorRun(made["top"], read_facts(made["vqvae"]))
    told = run.conditioning(
        SongRequest(id="a", artist="Céline Dion", genres=["Hip-Hop", "ROCK"])
    ).labels
    assert told["artist"].tolist() == [2] and told["genres"].tolist()[:3] == [2, 3, 1]
    assert list(run.unknown_names(SongRequest(id="a", artist="Nobody"))) != []
    assert not list(run.unknown_names(SongRequest(id="a", artist="The  Beatles")))
