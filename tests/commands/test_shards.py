"""megajukebox shards: damage of every kind is found and named, exit statuses tell, statistics are drawn."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fixtures.shard_server import serving
from fixtures.tiny_shards import SONGS, write_codes, write_songs

from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.data.shards.verify import MAX_FINDINGS, check_shard


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_songs(tmp_path_factory.mktemp("sets") / "songs")


def shards(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "megajukebox.commands.shards", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    )


def findings(folder: Path, number: int = 0) -> str:
    return "\n".join(check_shard((ShardSet(folder), number)))


def test_a_whole_set_is_said_to_be_well(songs: Path, tmp_path: Path) -> None:
    assert not any(
        check_shard((ShardSet(folder), n))
        for folder in (write_codes(tmp_path / "codes"),)
        for n in range(3)
    )
    done = shards("check", songs, "--processes", "2")
    assert done.returncode == 0 and "3 shards, 12 songs: all is well" in done.stdout


def test_several_sets_are_looked_at_in_their_order_and_compared(
    songs: Path, tmp_path: Path
) -> None:
    other = write_songs(tmp_path / "other")
    index = (other / "index.json").read_text().replace('"Rare"', '"Rarer"')
    (other / "index.json").write_text(index)
    done = shards("ls", f"{songs}:3", f"{other}:1")
    lines = done.stdout.splitlines()
    assert [line for line in lines if "\t" not in line] == [str(songs), str(other)]
    assert len(lines) == 2 * 14
    codes = write_codes(tmp_path / "codes_too")
    refused = shards("stats", songs, codes)
    assert refused.returncode == 2 and "has kind songs and" in refused.stderr


def test_a_flipped_bit_a_short_tar_and_a_lost_tar_are_found_and_named(
    songs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(songs, tmp_path / "broken")
    song = ShardSet(folder).songs[1]
    with open(folder / "songs-000000.tar", "r+b") as tar:
        tar.seek(int(song["audio_offset"]) + 50)
        tar.write(b"\xff")
    os.truncate(folder / "songs-000001.tar", 30_000)
    (folder / "songs-000002.tar").unlink()
    done = shards("check", folder, "--processes", "1")
    assert done.returncode == 1
    assert "songs-000000.tar: its sha256 is not the one in the index" in done.stdout
    assert "audio of song-01 is damaged (crc32)" in done.stdout
    assert (
        "songs-000001.tar: it has 30000 bytes" in done.stdout
        and "(the tar ends before it does)" in done.stdout
    )
    assert "No such file" in done.stdout and "findings" in done.stdout
    assert len(check_shard((ShardSet(folder), 0))) <= MAX_FINDINGS + 1
    assert shards("check", folder, "--shard", "0").returncode == 1


def test_hostile_names_in_a_tar_are_found_and_nothing_is_unpacked(
    songs: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(songs, tmp_path / "hostile")
    with tarfile.open(folder / "songs-000000.tar", "a") as tar:
        for name in ("../escape.json", "/tmp/absolute.flac", "song-00.pyd", "ok.json/../../x.wav"):
            member = tarfile.TarInfo(name)
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
        link = tarfile.TarInfo("song-99.flac")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    found = findings(folder)
    for name in (
        "'../escape.json'",
        "'/tmp/absolute.flac'",
        "'song-00.pyd'",
        "'ok.json/../../x.wav'",
    ):
        assert f"{name} is not the name of a song's file" in found
    assert "'song-99.flac' is not a plain file" in found
    assert sorted(tmp_path.rglob("*")) == before


def test_rows_that_do_not_fit_their_songs_are_found(songs: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(songs, tmp_path / "rows")
    rows = np.load(folder / "songs.npy")
    rows["frames"][0] = 7
    rows["audio_bytes"][1] = 0
    rows["json_offset"][2] = rows["json_offset"][3]
    rows["shard"][4] = 1
    save_rows(folder, rows)
    found = findings(folder)
    assert (
        "the JSON of song-00 speaks of 'song-00', 3000 frames" in found
        and "song-01 has no audio" in found
    )
    assert (
        "json of song-02 is damaged" in found
        and "songs.npy has 4 songs from row 0 on, the index 5" in found
    )


def save_rows(folder: Path, rows: np.ndarray) -> None:
    """songs.npy and an index that vouches for it."""
    import hashlib

    np.save(folder / "songs.npy", rows)
    index = json.loads((folder / "index.json").read_text())
    index["songs_file"]["sha256"] = hashlib.sha256((folder / "songs.npy").read_bytes()).hexdigest()
    (folder / "index.json").write_text(json.dumps(index))


def test_a_set_behind_a_url_is_checked_too(songs: Path, tmp_path: Path) -> None:
    with serving(songs) as server:
        done = shards("check", server.url, "--cache", tmp_path / "cache", "--processes", "1")
    assert done.returncode == 0, done.stderr


def test_where_there_is_no_set_the_exit_status_is_2(tmp_path: Path) -> None:
    done = shards("check", tmp_path)
    assert done.returncode == 2 and "run prepare" in done.stderr and "Traceback" not in done.stderr


def test_statistics_are_shown_and_drawn(songs: Path, tmp_path: Path) -> None:
    done = shards("stats", songs, "--picture", tmp_path / "new" / "songs.png")
    assert (
        done.returncode == 0
        and "12" in done.stdout
        and "Artist 1" in done.stdout
        and "11025 Hz" in done.stdout
    )
    assert (tmp_path / "new" / "songs.png").read_bytes().startswith(b"\x89PNG")


def test_ls_has_a_line_for_every_song(songs: Path) -> None:
    lines = shards("ls", songs).stdout.splitlines()
    assert len(lines) == 1 + SONGS and lines[1].split("\t")[:2] == ["songs-000000.tar", "song-00"]
    assert len(shards("ls", songs, "--shard", "2").stdout.splitlines()) == 1 + 3
