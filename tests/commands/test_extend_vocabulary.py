"""Growing: new names can be told at every level, old names say the same to the last bit, a mistake writes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from fixtures.reference_shapes import written
from fixtures.tiny_jukebox import NAMES, write_runs
from fixtures.tiny_models import prior_batch
from fixtures.tiny_shards import write_songs
from torch import Tensor

from megajukebox.commands.extend_vocabulary import grow, grown_table, main, names_in
from megajukebox.common.errors import UserError
from megajukebox.common.levels import PRIOR_FOLDERS
from megajukebox.common.model_files import check_fingerprint, load_into, read_facts, save_weights
from megajukebox.conditioning.vocabulary import Vocabulary, read_vocabularies, vocabularies_json
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.interop.export import export_openai
from megajukebox.interop.jukebox_weights import import_weights
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.jukebox import Jukebox
from megajukebox.sampling.songs.requests import SongRequest

BANDS = [
    ("artist", f"Band {i}") for i in range(7)
]  # the tables have 2 spare rows: these need both, and 5 more


@pytest.fixture(scope="module", params=["encoder", "prefix"])
def runs(request, tmp_path_factory) -> Path:
    return write_runs(tmp_path_factory.mktemp("little") / "runs", request.param)


def prior_in(folder: Path) -> Prior:
    prior = Prior(PriorConfig(**read_facts(folder)["config"]))
    load_into(prior, folder)
    return prior.eval()


def logits_of_every_name(prior: Prior, names: dict[str, list[int]]) -> Tensor:
    """One song for each id of each condition, all else alike."""
    songs = [(condition, i) for condition, ids in names.items() for i in ids]
    batch = prior_batch(prior.config, songs=1)
    batch = {k: v.expand(len(songs), *v.shape[1:]) for k, v in batch.items() if k != "conditions"}
    batch["conditions"] = {
        c: torch.full((len(songs), s.max_values), -1) for c, s in prior.config.conditions.items()
    }
    for song, (condition, i) in enumerate(songs):
        for other in prior.config.conditions:
            batch["conditions"][other][song, 0] = i if other == condition else 1
    with torch.no_grad():
        return prior.logits(prior.tokens(batch), prior.conditioning(batch))


@pytest.mark.parametrize("level", PRIOR_FOLDERS)
def test_old_names_give_the_same_logits_to_the_last_bit(
    runs: Path, tmp_path: Path, level: str
) -> None:
    grow(runs, tmp_path / "grown", [*BANDS, ("genres", "Ska")])
    before, after = (
        prior_in(folder / PRIOR_FOLDERS[level]) for folder in (runs, tmp_path / "grown")
    )
    assert (
        len(after.labels.tables["artist"].weight) == 10 > len(before.labels.tables["artist"].weight)
    )
    old = {condition: list(range(len(NAMES[condition]))) for condition in before.config.conditions}
    told = logits_of_every_name(before, old)
    assert torch.equal(told, logits_of_every_name(after, old))
    assert len({tuple(song.flatten().tolist()) for song in told}) > len(old), (
        "logits that do not vary prove nothing"
    )
    new = logits_of_every_name(after, {"artist": [0, 1, 2, 3, 9]})
    assert torch.equal(new[3], new[4]), (
        "new names start alike, in a spare row or behind the old table"
    )
    assert not any(torch.equal(new[3], song) for song in new[:3])


def test_one_command_grows_every_level_and_the_runs_can_be_sampled_at_once(
    runs: Path, tmp_path: Path, capsys
) -> None:
    main(runs, tmp_path / "grown", artist=["New Band", "Orrin"], genre=["Ska"])
    printed = capsys.readouterr().out
    assert (
        "top: artist + new band" in printed and "bottom: artist 'Orrin' is known already" in printed
    )
    request = SongRequest(id="a", artist="NEW BAND", genres=("ska",), seconds=0.3)
    (band, genre) = (note for note in Jukebox(runs).notes(request) if "unknown" in note)
    assert (
        "'NEW BAND' is unknown to top, middle, bottom" in band
        and "mean" not in band
        and "'ska'" in genre
    )
    (typed,) = (
        n for n in Jukebox(runs).notes(SongRequest(id="a", artist="ILUNA")) if "unknown" in n
    )
    assert typed.endswith("did you mean 'ilune'?")
    song = Jukebox(tmp_path / "grown").sample([request])[0]
    assert not any("unknown" in note for note in song.notes) and set(song.codes) == set(
        PRIOR_FOLDERS
    )


def test_old_names_sample_the_same_song_from_the_grown_runs(runs: Path, tmp_path: Path) -> None:
    grow(runs, tmp_path / "grown", [*BANDS, ("genres", "Ska")])
    request = SongRequest(
        id="a", artist="ilune", genres=("dub", "folk"), lyrics="la la", seconds=0.3, seed=3
    )
    before, after = (Jukebox(folder).sample([request])[0] for folder in (runs, tmp_path / "grown"))
    assert all(np.array_equal(before.audio[level], after.audio[level]) for level in PRIOR_FOLDERS)


def test_a_grown_run_says_what_it_was_and_nothing_else_of_it_changes(
    runs: Path, tmp_path: Path
) -> None:
    grow(runs, tmp_path / "grown", [("genres", "Ska")])
    for level, name in PRIOR_FOLDERS.items():
        old, new = read_facts(runs / name), read_facts(tmp_path / "grown" / name)
        check_fingerprint(tmp_path / "grown" / name)
        if level == "bottom":  # is told no genres
            assert new == old
            continue
        assert new["grown_from"]["fingerprint"] == old["fingerprint"] != new["fingerprint"]
        assert new["grown_from"]["added"] == {"genres": ["ska"]}
        unchanged = ("kind", "config", "step", "level", "sample_rate", "vqvae", "tokenizer")
        assert [new[fact] for fact in unchanged] == [old[fact] for fact in unchanged], (
            "a spare row was enough"
        )
        before, after = (
            prior_in(folder / name).state_dict() for folder in (runs, tmp_path / "grown")
        )
        assert [n for n in before if not torch.equal(before[n], after[n])] == [
            "labels.tables.genres.weight"
        ]
        assert read_vocabularies(tmp_path / "grown" / name)["genres"].names == (
            *NAMES["genres"],
            "ska",
        )
    assert read_facts(runs / "vqvae") == read_facts(tmp_path / "grown/vqvae")


def test_a_grown_prior_learns_its_new_name_and_leaves_the_others(
    runs: Path, tmp_path: Path
) -> None:
    grow(runs, tmp_path / "grown", BANDS)
    prior = prior_in(tmp_path / "grown/bottom_upsampler")
    batch = prior_batch(prior.config)
    batch["conditions"]["artist"].fill_(
        read_vocabularies(tmp_path / "grown/bottom_upsampler")["artist"].id("Band 6")
    )
    before = prior.labels.tables["artist"].weight.detach().clone()
    losses = []
    optimizer = torch.optim.Adam(prior.parameters(), lr=1e-2)
    for _ in range(5):
        loss, _ = prior(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = (prior.labels.tables["artist"].weight != before).any(1)
    assert moved.tolist() == [False] * 9 + [True] and losses[-1] < losses[0]


def test_new_rows_are_the_mean_of_the_known_names_or_else_the_unknown_one() -> None:
    rows = torch.randn(6, 4, dtype=torch.float16)
    grown = grown_table(rows, known=3, names=5)
    assert torch.equal(grown[[0, 1, 2, 5]], rows[[0, 1, 2, 5]]) and grown.dtype == rows.dtype
    assert torch.equal(grown[3:5], rows[1:3].double().mean(0).half().expand(2, -1))
    assert torch.equal(grown_table(rows, known=1, names=8)[1:], rows[0].expand(7, -1))
    assert torch.equal(grown_table(rows, known=6, names=9)[:6], rows)


def test_names_of_new_songs_are_added_if_enough_songs_bear_them(runs: Path, tmp_path: Path) -> None:
    songs = ShardSet(write_songs(tmp_path / "songs"))
    counts = songs.index["vocabulary"]["artist"]
    assert counts == {"Artist 1": 3, "Artist 3": 3} and set(
        songs.index["vocabulary"]["genres"]
    ) == {"Pop", "Rare"}
    counts["Artist 3"] = 2
    grow(runs, tmp_path / "grown", [], names_in(songs, min_songs=3))
    names = read_vocabularies(tmp_path / "grown/top_prior")
    assert names["artist"].names[3:] == ("artist 1",) and set(names["genres"].names[4:]) == {
        "pop",
        "rare",
    }


def test_years_come_in_the_bins_that_the_prior_has(tmp_path: Path) -> None:
    labels = {"year": {"size": 4}}
    runs = write_runs(tmp_path / "runs") / "top_prior"
    facts = read_facts(runs)
    prior = Prior(PriorConfig(**facts["config"] | {"conditions": labels}))
    save_weights(runs, "prior", prior.config, prior.state_dict(), 1)
    (runs / "vocabularies.json").write_bytes(
        vocabularies_json({"year": Vocabulary.of_years(1990, 2009, 10)})
    )
    grow(runs, tmp_path / "one", [("year", "2031"), ("year", "2033"), ("year", "1994")])
    assert read_vocabularies(tmp_path / "one")["year"].names[1:] == (
        "1990-1999",
        "2000-2009",
        "2030-2039",
    )
    grow(runs, tmp_path / "two", [], {"year": dict.fromkeys(map(str, range(2005, 2022)), 1)})
    assert read_vocabularies(tmp_path / "two")["year"].names[3:] == ("2010-2019", "2020-2029")
    assert read_facts(tmp_path / "two")["config"]["conditions"]["year"]["table_size"] == 5


def test_settings_of_a_grown_run_have_the_new_sizes(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "runs/x").mkdir(parents=True)
    for path in (runs / "bottom_upsampler").iterdir():
        (tmp_path / "runs/x" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "runs/x/lyrics.model").write_bytes(b"words")
    (tmp_path / "runs/x/checkpoints").mkdir()
    (tmp_path / "runs/x/events.jsonl").write_text("{}\n")
    record = {
        "stage": "bottom_upsampler",
        "preset": {
            "conditions": {"artist": {"size": 9, "dropout": 0.1}},
            "bottom": {"condition_tables": {"artist": {"table_size": 5}}},
        },
        "model": {},
    }
    (tmp_path / "runs/x/run.yaml").write_text(yaml.safe_dump(record))
    grow(tmp_path / "runs", tmp_path / "grown", BANDS)
    new = yaml.safe_load((tmp_path / "grown/x/run.yaml").read_text())
    assert new["preset"]["conditions"]["artist"] == {
        "table_size": 10,
        "max_values": 1,
        "dropout": 0.1,
    }
    assert new["preset"]["bottom"]["condition_tables"] == {} and new["stage"] == "bottom_upsampler"
    assert new["model"] == read_facts(tmp_path / "grown/x")["config"]
    assert (tmp_path / "grown/x/lyrics.model").read_bytes() == b"words"
    assert (
        not (tmp_path / "grown/x/checkpoints").exists()
        and not (tmp_path / "grown/x/events.jsonl").exists()
    )


def test_openai_s_weights_grow_and_still_export(tmp_path: Path) -> None:
    (tmp_path / "v2_artist_ids.txt").write_text("unknown;0\nthe_beatles;1\n")
    (tmp_path / "v2_genre_ids.txt").write_text("unknown;0\nrock;1\n")
    files = written(tmp_path, ["vqvae", "prior_5b_lyrics"])
    import_weights(files, tmp_path / "runs", labels=tmp_path)
    grow(
        tmp_path / "runs",
        tmp_path / "grown",
        [("artist", "Ilune & Mirado"), ("genres", "Hip Waltz")],
    )
    names = read_vocabularies(tmp_path / "grown/top_prior")
    assert names["artist"].names[-1] == "ilune_mirado" and set(names["genres"].names[-2:]) == {
        "hip",
        "waltz",
    }
    exported = export_openai(tmp_path / "grown/top_prior", tmp_path / "exported")[0]
    size = {
        name: label["table_size"]
        for name, label in read_facts(tmp_path / "grown/top_prior")["config"]["conditions"].items()
    }
    hps = torch.load(exported, weights_only=True)["hps"]
    assert tuple(hps["y_bins"]) == (size["genres"], size["artist"])


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([("moods", "calm")], "is conditioned on 'moods'; they are conditioned on artist, genres"),
        ([("artist", "Orrin"), ("genres", "WALTZ ")], "known to .* already"),
        ([("artist", "  ")], "'  ' is no artist; give a name"),
        ([], "no name was given; give --artist"),
    ],
)
def test_what_cannot_be_added_is_refused_and_nothing_is_written(
    runs: Path, tmp_path: Path, asked: list, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        grow(runs, tmp_path / "grown", asked)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_exists_or_holds_no_prior_is_refused(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="exists; give the grown runs a folder"):
        grow(runs, runs, BANDS)
    with pytest.raises(ValueError, match="holds no trained prior"):
        grow(runs / "vqvae", tmp_path / "grown", BANDS)
    with pytest.raises(UserError, match="--name 'moods' is not condition=name"):
        main(runs, tmp_path / "grown", name=["moods"])


def test_a_prior_whose_names_are_not_known_is_refused(runs: Path, tmp_path: Path) -> None:
    prior = prior_in(runs / "bottom_upsampler")
    save_weights(tmp_path / "run", "prior", prior.config, prior.state_dict(), 1)
    with pytest.raises(ValueError, match="0 names of artist for a table of 5 rows"):
        grow(tmp_path / "run", tmp_path / "grown", BANDS)
    (tmp_path / "run/vocabularies.json").write_text(
        json.dumps({"artist": ["<unknown>", *map(str, range(9))]})
    )
    with pytest.raises(ValueError, match="10 names of artist for a table of 5 rows"):
        grow(tmp_path / "run", tmp_path / "grown", BANDS)


def test_a_growth_that_fails_leaves_nothing(runs: Path, tmp_path: Path) -> None:
    grow(runs / "top_prior", tmp_path / "run", [("artist", "one")])
    weights = tmp_path / "run/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        grow(tmp_path / "run", tmp_path / "grown", BANDS)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
