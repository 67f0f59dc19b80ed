"""megajukebox/commands/prepare.py from the command line: songs in, shards out; killed, restarted, refused."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from megajukebox.commands.prepare import main, preset_sample_rate, print_table
from megajukebox.common.errors import UserError
from megajukebox.common.process_pool import in_order
from megajukebox.conditioning.tokenizers import SentencePieceTokenizer
from megajukebox.data import audio
from megajukebox.data.ingest.convert import ConvertedSong, IngestConfig, convert, slug
from megajukebox.data.ingest.discover import find_songs
from megajukebox.data.ingest.prepare import plan_shards
from megajukebox.data.ingest.source_song import SourceSong
from megajukebox.data.ingest.tags import metadata_of_tags
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.training.config import PRESETS, load_preset

RATE = 11_025


def command(source: Path, out: Path, *options: str) -> list[str]:
    """The real entry, for a process of its own."""
    entry = [sys.executable, "-m", "megajukebox.commands.prepare", str(source), "--out", str(out)]
    return [*entry, "--sample-rate", str(RATE), *options]


def prepare(source: Path | str, out: Path, **options: object) -> ShardSet:
    """The same entry in this process, which spares each test the start of torch."""
    main(str(source), out, **{"sample_rate": RATE, "processes": 1, **options})
    return ShardSet(out)


def music(number: int, frames: int = 2 * RATE, channels: int = 2) -> np.ndarray:
    """[T, C] on the grid of 16 bits; another number is another sound."""
    rng = np.random.default_rng(number)
    return (rng.integers(-9000, 9000, (frames, channels)) / 2**15).astype(np.float32)


def songs(folder: Path, count: int, frames: int = 2 * RATE) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(count):
        soundfile.write(folder / f"song {number:02d}.wav", music(number, frames + number), RATE)
    (folder / "song 00.json").write_text('{"artist": "Ilune", "genres": ["waltz"], "year": 1998}')
    (folder / "song 01.txt").write_text("a plain song\nof two lines\n")
    (folder / "song 02.lrc").write_text(
        "[00:00.50] <00:00.50> a <00:00.70> timed <00:01.00> song <00:01.50>"
    )
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on how the set was made; index.json without the command that made it."""
    index = json.loads((folder / "index.json").read_text())
    kept = {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.name not in ("index.json", "plan.json")
    }
    return {**kept, "index.json": json.dumps({**index, "made_by": None}).encode()}


def refusals(out: Path) -> dict[str, str]:
    return {
        line["song"]: line["reason"]
        for line in map(json.loads, (out / "refused.jsonl").read_text().splitlines())
    }


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    options = ("--songs-per-shard", "4", "--processes", "2")
    subprocess.run(
        command(songs(folder / "songs", 10), folder / "out", *options), check=True, timeout=120
    )
    return folder


def test_stereo_and_every_frame_are_kept(prepared):
    shards = ShardSet(prepared / "out")
    assert len(shards) == 10 and [shard["songs"] for shard in shards.index["shards"]] == [4, 4, 2]
    for row in range(10):
        with shards.open_member(row, "audio") as file:
            x = audio.read_slice(file, 0, int(shards.songs[row]["frames"]), RATE)
        np.testing.assert_array_equal(x, music(row, 2 * RATE + row))


def test_json_lyrics_vocabulary_and_tokenizer_are_stored(prepared):
    shards = ShardSet(prepared / "out")
    told = json.loads(shards.read_member(0, "json"))
    assert told["artist"] == "Ilune" and told["genres"] == ["waltz"] and "album" not in told
    assert (told["source"], told["channels"], told["frames"], told["sample_rate"]) == (
        "song 00.wav",
        2,
        2 * RATE,
        RATE,
    )
    assert told["key"] == shards.key(0) == f"song-00-{told['sha256'][:8]}"
    assert shards.read_member(1, "lyrics") == b"a plain song\nof two lines\n"
    assert [shards.member_extension(row, "lyrics") for row in (1, 2)] == [
        "txt",
        "lrc",
    ] and not shards.has(3, "lyrics")
    assert shards.index["vocabulary"]["artist"] == {"Ilune": 1} and shards.index["years"] == [
        1998,
        1998,
    ]
    assert (
        shards.index["lyrics_model"]["name"] == "lyrics.model"
        and (prepared / "out" / "lyrics.model").stat().st_size
    )
    assert shards.index["made_by"]["command"].startswith("prepare.py ")


def test_the_number_of_processes_does_not_change_a_byte(prepared, tmp_path):
    prepare(prepared / "songs", tmp_path / "out", songs_per_shard=4, processes=1)
    assert contents(tmp_path / "out") == contents(prepared / "out")


def test_a_finished_set_is_kept_when_prepared_again(prepared, tmp_path, capsys):
    out = shutil.copytree(prepared / "out", tmp_path / "out")
    before = (out / "songs-000000.tar").stat().st_mtime_ns
    prepare(prepared / "songs", out, songs_per_shard=4)
    assert "(0 made, 3 kept)" in " ".join(capsys.readouterr().err.split())
    assert (out / "songs-000000.tar").stat().st_mtime_ns == before


def test_killed_and_restarted_gives_the_same_bytes(tmp_path):
    source = songs(tmp_path / "songs", 24, frames=15 * RATE)
    soundfile.write(
        source / "twin of 01.wav", music(1, 15 * RATE + 1), RATE
    )  # to be known as a twin after the restart
    prepare(source, tmp_path / "calm", songs_per_shard=2)
    out = tmp_path / "killed"
    out.mkdir()
    os.mkfifo(
        out / "songs-000005.tar.partial"
    )  # to write there is to wait for a reader, who never comes
    running = subprocess.Popen(command(source, out, "--songs-per-shard", "2", "--processes", "2"))
    while not (out / "songs-000004.rows.json").exists():
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    running.wait()
    (out / "songs-000005.tar.partial").unlink()
    assert not (out / "index.json").exists() and len(list(out.glob("*.tar"))) == 5
    for tar in out.glob("*.tar"):
        assert tar.read_bytes() == (tmp_path / "calm" / tar.name).read_bytes()
    first = (out / "songs-000000.tar").stat().st_mtime_ns
    prepare(source, out, songs_per_shard=2, processes=2)
    assert contents(out) == contents(tmp_path / "calm") and refusals(out) == {
        "twin of 01.wav": "duplicate"
    }
    assert (out / "songs-000000.tar").stat().st_mtime_ns == first


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    script = "import time; from megajukebox.common import process_pool; pool = process_pool.new_pool(1); "
    script += "print(pool.submit(__import__('os').getpid).result(), flush=True); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(2000):
        if not running(worker):
            return
        time.sleep(0.05)
    pytest.fail(f"worker {worker} is still there")


def running(process: int) -> bool:
    """Neither gone nor a zombie that nobody reaps."""
    try:
        os.kill(process, 0)
        return (
            not Path(f"/proc/{process}/stat").exists()
            or ") Z " not in Path(f"/proc/{process}/stat").read_text()
        )
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_songs_that_cannot_be_used_are_refused_with_their_reason(tmp_path, capsys):
    source = songs(tmp_path / "songs", 3)
    soundfile.write(
        source / "a copy.flac", music(2, 2 * RATE + 2), RATE
    )  # comes first, so song 02 is the copy
    soundfile.write(source / "short.wav", music(50, RATE // 2), RATE)
    soundfile.write(source / "silent.wav", np.full((2 * RATE, 2), 0.00005), RATE, subtype="FLOAT")
    soundfile.write(source / "nan.wav", np.full((2 * RATE, 2), np.nan), RATE, subtype="FLOAT")
    (source / "text.mp3").write_text("this is not music")
    (source / "empty.wav").touch()
    assert len(prepare(source, tmp_path / "out")) == 3
    assert refusals(tmp_path / "out") == {
        "empty.wav": "unreadable",
        "nan.wav": "not finite",
        "short.wav": "too short",
        "silent.wav": "silent",
        "song 02.wav": "duplicate",
        "text.mp3": "unreadable",
    }
    said = capsys.readouterr().err
    assert "2 unreadable" in said and "a copy.flac" in said


def test_if_every_song_is_refused_that_is_an_error(tmp_path):
    (tmp_path / "a.mp3").write_text("this is not music")
    done = subprocess.run(command(tmp_path, tmp_path / "out"), capture_output=True, text=True)
    assert done.returncode == 93 and "all 1 songs were refused (1 unreadable)" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out" / "index.json").exists()


def test_other_songs_or_settings_are_refused_unless_fresh(tmp_path):
    source, out = songs(tmp_path / "songs", 3), tmp_path / "out"
    prepare(source, out)
    soundfile.write(source / "new.wav", music(9), RATE)
    with pytest.raises(
        UserError,
        match=r"bits was 16 and is now 24; it had 3 songs and there are now 4. Pass --fresh",
    ):
        prepare(source, out, bits=24)
    assert len(ShardSet(out)) == 3
    assert len(prepare(source, out, bits=24, fresh=True)) == 4
    (source / "new.json").write_text('{"artist": "X"}')
    with pytest.raises(UserError, match="their metadata, their lyrics or their order have changed"):
        prepare(source, out, bits=24)


def test_demo_songs_are_made_and_float_wav_keeps_them(tmp_path):
    shards = prepare("demo:1", tmp_path / "out", audio="wav")
    assert len(list((tmp_path / "demo_songs").glob("*.wav"))) == 1
    assert (
        len(shards) == 1
        and shards.member_extension(0, "audio") == "wav"
        and shards.has(0, "lyrics")
    )
    with shards.open_member(0, "audio") as file:
        assert audio.facts(file).subtype == "FLOAT"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"bits": 20}, "bits is 20; choose 16 or 24"),
        ({"preset": "nope", "sample_rate": None}, "preset 'nope' is neither a file"),
        ({"songs_per_shard": 0}, "songs_per_shard is 0; choose at least 1"),
        ({"min_seconds": 9999}, "min_seconds is 9999; choose 0 or more, below max_seconds 3600"),
    ],
)
def test_impossible_options_are_refused_with_the_way_out(tmp_path, options, said):
    with pytest.raises(UserError, match=said):
        prepare(songs(tmp_path / "songs", 3), tmp_path / "out", **options)


def test_the_plan_fills_shards_by_count_and_by_size(tmp_path):
    found = find_songs(songs(tmp_path, 10, frames=400_000))  # 1.6 MB each
    assert [
        len(group) for group in plan_shards(found, IngestConfig(songs_per_shard=4)).values()
    ] == [
        4,
        4,
        2,
    ]
    plan = plan_shards(found, IngestConfig(shard_megabytes=5))
    assert [len(group) for group in plan.values()] == [3, 3, 3, 1]
    assert [song for group in plan.values() for song in group] == found
    assert plan == plan_shards(found, IngestConfig(shard_megabytes=5))


def test_resampled_songs_last_as_long_as_before(tmp_path):
    soundfile.write(tmp_path / "a.wav", music(1, 88_200), 44_100)
    made = convert(SourceSong(tmp_path / "a.wav", "a.wav"), IngestConfig(sample_rate=RATE))
    assert made == convert(SourceSong(tmp_path / "a.wav", "a.wav"), IngestConfig(sample_rate=RATE))
    assert (made.frames, made.channels, made.refusal) == (22_050, 2, None)


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_songs_are_prepared_at_the_rate_that_every_preset_trains_at(path):
    assert preset_sample_rate(path.stem) == load_preset(path.stem).audio.sample_rate


def test_a_pipe_called_a_song_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    assert convert(SourceSong(tmp_path / "a.wav", "a.wav"), IngestConfig()) == ConvertedSong(
        "unreadable: not a file"
    )


def test_a_song_that_needs_too_much_memory_costs_itself_alone(tmp_path, monkeypatch):
    def read(*_: object) -> None:
        raise MemoryError

    put = songs(tmp_path, 1) / "song 00.wav"
    monkeypatch.setattr(audio, "read_recording", read)
    assert convert(SourceSong(put, put.name), IngestConfig()).refusal.startswith("too large: ")
    assert IngestConfig().worker_memory < 11 << 30


def test_one_process_has_the_limit_of_a_worker_and_lifts_it_again():
    before = resource.getrlimit(resource.RLIMIT_AS)
    assert list(in_order(len, [bytearray(9)], 1, crashed=len, memory=2 << 30)) == [9]
    with pytest.raises(MemoryError):
        list(in_order(bytearray, [8 << 30], 1, crashed=bytearray, memory=2 << 30))
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_worker_may_take_so_much_memory_and_no_more():
    sizes = [1 << 10, 4 << 30]
    results = in_order(bytearray, sizes, 2, crashed=bytearray, memory=2 << 30)
    assert len(next(results)) == 1 << 10
    with pytest.raises(MemoryError):
        next(results)
    results.close()


def test_a_name_cannot_command_the_terminal():
    screen = io.StringIO()
    rows = [("\x1b]52;c;aGk=\x07.wav", "silent", "[bold]x\x9b31m\n")]
    print_table(Console(file=screen, width=200), "refused", rows)
    shown = screen.getvalue()
    assert "?]52;c;aGk=?.wav" in shown and "[bold]x?31m?" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)


def test_a_song_that_vanished_is_a_refusal(tmp_path):
    assert convert(SourceSong(tmp_path / "a.wav", "a.wav"), IngestConfig()) == ConvertedSong(
        "unreadable: No such file or directory"
    )


@pytest.mark.parametrize(
    ("stem", "wanted"),
    [("01 Élan_Vital!", "01-elan_vital"), ("曲", "song"), ("x" * 60, "x" * 36), ("a.b", "a-b")],
)
def test_keys_are_plain(stem, wanted):
    assert slug(stem) == wanted


def test_results_come_in_order_and_a_crash_is_blamed_on_its_item():
    assert list(in_order(fragile, range(9), processes=2, crashed=lambda item: -item)) == [
        0,
        1,
        2,
        3,
        4,
        -5,
        6,
        7,
        8,
    ]


def fragile(item: int) -> int:
    if item == 5:
        os._exit(1)
    return item


def test_songs_without_lyrics_get_a_tokenizer_that_spells_bytes(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in/tone.wav", 0.3 * np.sin(np.arange(20000) / 9), 11025)
    prepare(tmp_path / "in", tmp_path / "out")
    tokenizer = SentencePieceTokenizer(tmp_path / "out/lyrics.model")
    assert tokenizer.decode(tokenizer.encode("ночь 夜").ids) == "ночь 夜"


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3", "wav"])
def test_what_nobody_says_of_a_song_is_taken_from_its_tags(tmp_path, suffix):
    folder = tmp_path / "in"
    folder.mkdir()
    with soundfile.SoundFile(folder / f"a.{suffix}", "w", 2 * RATE, 1) as file:
        file.artist, file.title, file.genre, file.date = "Ilune", "Hyper", "Jazz; Pop", "2011-07-19"
        file.write(music(3, 4 * RATE, 1))
    (folder / "a.json").write_text('{"title": "Ballad"}')
    told = json.loads(prepare(folder, tmp_path / "out").read_member(0, "json"))
    assert [told[name] for name in ("artist", "title", "genres", "year")] == [
        "Ilune",
        "Ballad",
        ["Jazz", "Pop"],
        2011,
    ]
    bare = json.loads(prepare(folder, tmp_path / "bare", tags=False).read_member(0, "json"))
    assert bare["title"] == "Ballad" and not {"artist", "genres", "year"} & set(bare)


def test_shards_begun_when_tags_were_not_read_go_on_without_them(tmp_path):
    plain, plan = {"tags": False}, tmp_path / "out/plan.json"
    prepare(songs(tmp_path / "in", 3), tmp_path / "out", **plain)
    before = json.loads(plan.read_text())
    del before["settings"]["tags"]
    plan.write_text(json.dumps(before))
    prepare(tmp_path / "in", tmp_path / "out", **plain)
    with pytest.raises(UserError, match="tags was False and is now True"):
        prepare(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ({"genre": "(250)", "date": "07/2011", "artist": "  "}, {"year": 2011}),
        ({"genre": "192"}, {}),
        ({"genre": "(17)"}, {"genres": ["Rock"]}),
        (
            {"title": "x" * 1001, "album": "Night", "date": "soon", "license": "CC0"},
            {"album": "Night", "licence": "CC0"},
        ),
    ],
)
def test_tags_that_make_no_sense_are_left_out(tags, told):
    assert metadata_of_tags(tags) == told
