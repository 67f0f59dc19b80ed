"""Songs with adapters: those of weights in which they are folded, whatever way they are sampled; others are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.tiny_jukebox import write_runs

from megajukebox.commands.merge import merge
from megajukebox.common.errors import UserError
from megajukebox.common.model_files import StoredTensors, read_facts
from megajukebox.data.adapters import (
    AdapterMix,
    FoldedTensors,
    ScaledAdapter,
    parse_adapter,
    read_adapter,
    save_adapter,
)
from megajukebox.models.adapters import AdapterConfig, shapes_of
from megajukebox.records.adapters import ADAPTER_FACTS, AdapterRecord
from megajukebox.sampling.jukebox import Jukebox, SongRequest
from megajukebox.sampling.prior_run import PriorRun

SONG = {"id": "a", "artist": "My Band", "seconds": 1.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("jukebox") / "runs")


def write_adapter(runs, folder, seed=0, kind="lora", names=("my band",), **changed):
    """An adapter of the top, of random numbers large enough to change songs."""
    run = runs / "top_prior"
    stored = StoredTensors(run / "model.safetensors")
    config = AdapterConfig(kind=kind, rank=2, alpha=2)
    shapes = shapes_of(config, {name: stored.shape(name) for name in stored})
    if names:
        width = stored.shape("labels.tables.artist.weight")[1]
        shapes["labels.tables.artist.new_rows"] = (len(names), width)
    torch.manual_seed(seed)
    tensors = {name: 0.5 * torch.randn(shape) for name, shape in shapes.items()}
    record = AdapterRecord(
        level="top",
        base=read_facts(run)["fingerprint"],
        config=config.model_dump(),
        names={"artist": list(names)} if names else {},
        licence="for tests",
    )
    save_adapter(folder, replace(record, **changed), tensors)
    return folder


def codes(runs, adapters=(), request=SONG, **options):
    jukebox = Jukebox(runs, levels=("top",), adapters=[*map(parse_adapter, adapters)], **options)
    song = jukebox.sample([jukebox.adapters.applied(SongRequest(**request))])[0]
    return song.codes["top"], song


def test_songs_of_an_adapter_are_those_of_the_merged_run_and_differ_from_the_bases(runs, tmp_path):
    folder = write_adapter(runs, tmp_path / "mine")
    ours, song = codes(runs, [f"{folder}:0.8"])
    assert merge(runs, [f"{folder}:0.8"], tmp_path / "merged") == ["top"]
    merged, _ = codes(tmp_path / "merged")
    assert np.array_equal(ours, merged) and not np.array_equal(ours, codes(runs)[0])
    facts = song.record()["adapters"]["top"]["mine"]
    assert facts["scale"] == 0.8 and facts["licence"] == "for tests"
    assert not any("My Band" in note for note in song.notes), "the adapter brings the name"
    assert any("My Band" in note for note in codes(runs)[1].notes)


def test_requests_of_one_batch_have_each_their_own_adapters(runs, tmp_path):
    given = [ScaledAdapter(write_adapter(runs, tmp_path / name, n)) for n, name in enumerate("xy")]
    jukebox = Jukebox(runs, levels=("top",), adapters=given)
    asked = [{}, {"adapters": {"x": 0.5}}, {"adapters": ["y"]}, {"adapters": {}}]
    requests = [SongRequest(**SONG | {"id": f"s{n}"} | own) for n, own in enumerate(asked[1:])]
    together = jukebox.sample(requests)
    for song, own in zip(together, asked[1:]):
        alone = jukebox.sample([SongRequest(**SONG | {"id": "alone"} | own)])[0]
        assert np.array_equal(song.codes["top"], alone.codes["top"])
    assert len({song.codes["top"].tobytes() for song in together}) == 3
    both = jukebox.adapters.applied(SongRequest(**SONG))
    with pytest.raises(UserError, match="mean different things"):
        jukebox.start_song(both)


def test_scale_zero_is_the_base_bit_for_bit_and_the_order_does_not_matter(runs, tmp_path):
    path = runs / "top_prior" / "model.safetensors"
    parts = []
    for n, name in enumerate("xyz"):
        folder = write_adapter(runs, tmp_path / name, seed=n, names=())
        parts.append((read_adapter(folder, name), 0.3 * n))
    base = StoredTensors(path)
    zero = FoldedTensors(path, AdapterMix.of([(parts[2][0], 0.0)]), {})
    assert all(torch.equal(zero[name], base[name]) for name in base)
    one = FoldedTensors(path, AdapterMix.of(parts), {})
    other = FoldedTensors(path, AdapterMix.of(parts[::-1]), {})
    assert all(torch.equal(one[name], other[name]) for name in base)
    changed = {name for name in base if not torch.equal(one[name], base[name])}
    assert changed and all(n.startswith("blocks.") and n.endswith("weight") for n in changed)


def test_a_dora_adapter_is_used_alone_at_its_full_scale(runs, tmp_path):
    dora = write_adapter(runs, tmp_path / "dora", kind="dora", names=())
    other = write_adapter(runs, tmp_path / "other", names=())
    assert len(codes(runs, [str(dora)])[0])
    for asked in ([f"{dora}:0.5"], [str(dora), str(other)]):
        with pytest.raises(UserError, match="use it alone, at scale 1"):
            codes(runs, asked)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"base": "0" * 64}, "trained beside other weights"),
        ({"level": "middle"}, "move it to|middle level"),
        ({"config": {"kind": "lora", "rank": 3}}, "has no blocks|is of another base"),
        ({"config": {"kind": "magic"}}, "config kind"),
        ({"names": {"artist": ["orrin"]}}, "which the base knows"),
        ({"names": {"artist": ["a", "A "]}}, "no list of different names"),
        ({"names": {"mood": ["calm"]}}, "not told"),
    ],
)
def test_what_is_no_adapter_of_these_runs_is_refused_in_a_line(runs, tmp_path, fault, message):
    folder = write_adapter(runs, tmp_path / "mine")
    written = json.loads((folder / ADAPTER_FACTS).read_text())
    (folder / ADAPTER_FACTS).write_text(json.dumps(written | fault))
    run = runs / "top_prior"
    with pytest.raises(UserError, match=message) as raised:
        adapter = read_adapter(folder, "mine")
        mix = AdapterMix.of([(adapter, 1.0)])
        PriorRun(run, {"fingerprint": read_facts(run)["vqvae"]}, mix)
    assert "\n" not in str(raised.value)
    if "base" in fault:
        PriorRun(run, {"fingerprint": read_facts(run)["vqvae"]}, mix, any_base=True)


def test_damaged_weights_are_refused(runs, tmp_path):
    folder = write_adapter(runs, tmp_path / "mine", names=())
    adapter = read_adapter(folder, "mine")
    tensors = {name: adapter.tensors[name] for name in adapter.tensors}
    first = next(iter(tensors))
    run = runs / "top_prior"
    for wrong, message in (
        ({first: torch.full_like(tensors[first], float("nan"))}, "finite floats"),
        ({first: tensors[first].long()}, "finite floats"),
        ({"blocks.0.attention.extra": torch.zeros(2)}, "no tensor of this adapter"),
    ):
        save_adapter(folder, adapter.record, tensors | wrong)
        mix = AdapterMix.of([(read_adapter(folder, "mine"), 1.0)])
        with pytest.raises(UserError, match=message):
            PriorRun(run, {"fingerprint": read_facts(run)["vqvae"]}, mix)
    weights = folder / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="copy both files again"):
        read_adapter(folder, "mine")
    with pytest.raises(UserError, match="holds no adapter"):
        codes(runs, [str(tmp_path)])
    with pytest.raises(UserError, match=r"write FOLDER:0\.8"):
        parse_adapter("mine:9")
