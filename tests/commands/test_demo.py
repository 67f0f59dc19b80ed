"""What the demo asks for: which stages, which songs, at which settings."""

from pathlib import Path

from fixtures.paths import FILES

from megajukebox.commands.demo import song_requests, stages, write_requests
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.sampling.songs.requests import read_requests
from megajukebox.training.config import load_preset

MINI = str(FILES / "mini.yaml")


def names(preset: str, all_levels: int) -> list[str]:
    return [stage.name for stage in stages(Path("demo"), "demo:1", preset, 1, [], all_levels)]


def test_songs_are_sampled_from_a_top_of_spectra_and_some_at_all_levels() -> None:
    assert names("tiny", 8)[-3:] == ["sample all levels", "sample", "explore"]
    assert "sample all levels" not in names("tiny", 0)
    assert "sample all levels" not in names(MINI, 8), "a song of a wave top has them anyway"
    plan = {s.name: s.command for s in stages(Path("demo"), "demo:1", "tiny", 1, [], 8)}
    assert "--levels" not in plan["sample"], "the top alone is its default"
    assert plan["sample all levels"][-4:] == ["--levels", "all", "--out", "demo/all_levels"]
    assert {"demo/samples", "demo/all_levels"} <= set(plan["explore"]), "the page shows both"


def test_requests_are_of_every_artist_and_genre_and_suit_the_top(
    data: Path, tmp_path: Path
) -> None:
    codes = ShardSet(data)
    spectra = song_requests(codes, load_preset("tiny"), 4, 10.0)
    assert {request["temperature"]["top"] for request in spectra} == {1.0}
    assert all(request["guidance"] == {"top": 2.0} for request in spectra)
    assert not any("lyrics" in request for request in spectra), "the top would not hear them"
    waves = song_requests(codes, load_preset(MINI), 4, 10.0)
    assert {request["temperature"]["top"] for request in waves} == {0.9}
    assert all("lyrics" in request and "guidance" not in request for request in waves)
    for requests in (spectra, waves):
        write_requests(tmp_path / "requests.yaml", requests)
        read, refused = read_requests(tmp_path / "requests.yaml")
        assert not refused and [request.seed for request in read] == [0, 1, 2, 3]
        assert {request.artist for request in read} == {"Artist 1", "Artist 3"}
