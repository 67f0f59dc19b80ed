"""Real runs on several sets at once: they resume on the same blend alone, and their records name the sets."""

import json
from pathlib import Path

import pytest
from fixtures.tiny_runs import as_of, command, events, finish, losses, start_ranks, write_preset
from fixtures.tiny_shards import (
    HOPS,
    MADE_BY,
    RATE,
    codes_of,
    facts_of,
    frames_of,
    npy,
    write_codes,
)

from megajukebox.data.shards.build_index import write_index
from megajukebox.data.shards.shard_set import ShardSample, ShardSet, write_shard
from megajukebox.records.jsonl_tail import read_lines

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("blend")]


def second_set(folder: Path) -> Path:
    """Four more songs of the same VQ-VAE."""
    folder.mkdir()
    samples = []
    for song in range(4, 8):
        key = f"more-{song}"
        facts = {**json.loads(facts_of(song)), "key": key, "artist": "Jane Doe"}
        members = {f"{level}.npy": npy(codes_of(song, level)) for level in HOPS}
        data = {"json": json.dumps(facts).encode(), **members}
        samples.append(ShardSample(key, frames_of(song), data))
    write_shard(folder / "codes-000000.tar", samples)
    vqvae = {"fingerprint": "0" * 64, "hops": HOPS, "codes": dict.fromkeys(HOPS, 2048)}
    write_index(
        folder,
        ["codes-000000.tar"],
        kind="codes",
        sample_rate=RATE,
        made_by=MADE_BY,
        extra={"vqvae": vqvae},
    )
    return folder


def train_on(data: list[str], preset: Path, out: Path, *more: str, ranks: int = 1) -> tuple:
    told = command(Path(data[0]), preset, out, *more)
    for one in data[1:]:
        told[2:2] = ["--data", one]
    codes, said = finish(start_ranks(told, ranks))
    return codes, said


def test_a_run_on_two_sets_names_them_and_ends_at_its_last_step(tmp_path: Path) -> None:
    a, b = write_codes(tmp_path / "a"), second_set(tmp_path / "b")
    preset = write_preset(tmp_path, log_every=2, steps=3, save_every=3)
    out = tmp_path / "run"
    codes, said = train_on([f"{a}:3", f"{b}:1"], preset, out)
    assert codes == [0], said[-3000:]
    facts = json.loads((out / "model.json").read_text())
    assert facts["sets"] == {ShardSet(a).fingerprint: 3, ShardSet(b).fingerprint: 1}
    assert "jane doe" in (out / "vocabularies.json").read_text().lower()
    [data] = events(out, "data")
    assert data["counts"]["sets"] == 2 and data["counts"]["songs"] == 16
    rows = [row["step"] for row in read_lines(out / "metrics.jsonl") if row["split"] == "train"]
    assert rows == [1, 2, 3]  # the last too, though it is not due
    codes, said = train_on([f"{a}:2", f"{b}:1"], preset, out)
    assert codes == [93] and "has weight 2 instead of 3" in said


@pytest.mark.slow
def test_a_run_on_two_sets_resumes_exactly_and_on_another_number_of_ranks(tmp_path: Path) -> None:
    a, b = write_codes(tmp_path / "a"), second_set(tmp_path / "b")
    preset = write_preset(tmp_path, log_every=1, steps=8, save_every=4)
    sets = [f"{a}:0.75", f"{b}:0.25"]
    codes, said = train_on(sets, preset, tmp_path / "run", ranks=2)
    assert codes == [0, 0], said[-3000:]
    for ranks in (2, 1):
        copy = as_of(tmp_path / "run", 4, tmp_path / f"copy{ranks}")
        codes, said = train_on([sets[1], sets[0]], preset, copy, ranks=ranks)
        assert codes == [0] * ranks, said[-3000:]
        assert losses(copy)[:4] == losses(tmp_path / "run")[:4] and len(losses(copy)) == 8
        assert losses(copy, 4) == pytest.approx(losses(tmp_path / "run", 4), rel=1e-5)
