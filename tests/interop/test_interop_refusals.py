"""Files that are not what they should be: refused with a reason, nothing run, nothing half written."""

import pickle
from pathlib import Path

import pytest
import torch
from fixtures.reference_shapes import TINY, checkpoint, written

from megajukebox.common.errors import UserError
from megajukebox.interop.jukebox_weights import import_weights


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def refused(tmp_path: Path, files: list[Path], message: str, settings: dict | None = None) -> None:
    with pytest.raises(UserError, match=message):
        import_weights(files, tmp_path / "run", settings or {})
    assert not (tmp_path / "run").exists() and not (tmp_path / "run.partial").exists()


@pytest.mark.parametrize(
    "wrap", [lambda b: b, lambda b: {"model": b}, lambda b: {"model": {"a": b}, "hps": {}}]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_nothing_is_run(wrap, zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(Bomb()), tmp_path / "x.pth.tar", _use_new_zipfile_serialization=zipped)
    refused(tmp_path, [tmp_path / "x.pth.tar"], "nothing in it was run")
    (tmp_path / "x.pth.tar").write_bytes(pickle.dumps(wrap(Bomb())))
    refused(tmp_path, [tmp_path / "x.pth.tar"], "nothing in it was run|damaged")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(kept, zipped, tmp_path):
    file = tmp_path / "vqvae.pth.tar"
    torch.save(checkpoint(TINY["vqvae"]), file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    refused(tmp_path, [file], "damaged or not a checkpoint")


def test_a_file_of_something_else_is_refused(tmp_path):
    file = tmp_path / "x.pth.tar"
    file.write_bytes(b"RIFF....WAVE")
    refused(tmp_path, [file], "damaged or not a checkpoint")
    for content in ({}, [1, 2], {"model": {"a": 1}}, 3):
        torch.save(content, file)
        refused(tmp_path, [file], "no weights of Jukebox")
    torch.save({"a": torch.zeros(1)}, file)
    refused(tmp_path, [file], "neither a VQ-VAE nor a prior")
    refused(tmp_path, [tmp_path / "missing.pth.tar"], "is not a file")


def test_a_missing_an_extra_and_a_misshapen_tensor_are_named(tmp_path):
    file = tmp_path / "vqvae.pth.tar"
    name = "decoders.1.level_blocks.0.model.1.0.model.0.model.3.bias"
    wrong = {
        f"lacks {name}": {name: None},
        "new": {"new": torch.zeros(1)},
        name: {name: torch.zeros(99)},
    }
    for message, change in wrong.items():
        content = checkpoint(TINY["vqvae"])
        content["model"] = {n: t for n, t in (content["model"] | change).items() if t is not None}
        torch.save(content, file)
        refused(tmp_path, [file], message)


def test_a_prior_of_the_wrong_level_or_of_another_vqvae_is_refused(tmp_path):
    vqvae, bottom = written(tmp_path, ("vqvae", "upsampler_level_0"))
    wrong = bottom.rename(tmp_path / "prior_level_1.pth.tar")
    refused(tmp_path, [vqvae, wrong], "named as one of level 1")
    right = wrong.rename(tmp_path / "prior.pth.tar")
    refused(tmp_path, [vqvae, right], "not the prior of level 2", {"level": 2})
    refused(tmp_path, [vqvae, right], "levels 0 to 2", {"level": 3})
    torch.save(checkpoint(TINY["vqvae"] | {"downs_t": (3, 1, 2)}), vqvae)
    refused(tmp_path, [vqvae, right], "different models")
    torch.save(checkpoint(TINY["vqvae"] | {"l_bins": 16}), vqvae)
    refused(tmp_path, [vqvae, right], "different models")
    refused(tmp_path, [right], "does not tell how many samples a code stands for")


def test_two_files_for_one_part_and_a_run_that_exists_are_refused(tmp_path):
    file = written(tmp_path, ("vqvae",))[0]
    refused(tmp_path, [file, file], "both hold the vqvae")
    import_weights([file], tmp_path / "run")
    with pytest.raises(UserError, match="exists"):
        import_weights([file], tmp_path / "run")


def test_what_a_file_does_not_say_is_asked_for_by_name(tmp_path):
    file = written(tmp_path, ("prior_5b",))[0]
    content = torch.load(file, weights_only=True)
    torch.save(content["model"], file)
    given = {"downs_t": (3, 2, 2), "strides_t": (2, 2, 2)}
    refused(tmp_path, [file], "does not say sr", given)
    refused(tmp_path, [file], "does not say heads, blocks, attn_order", given | {"sr": 44100})


def test_a_schedule_that_contradicts_the_weights_is_refused(tmp_path):
    files = written(tmp_path, ("vqvae", "prior_5b_lyrics"))
    refused(tmp_path, files, "by attn_order 8", {"attn_order": 8})
