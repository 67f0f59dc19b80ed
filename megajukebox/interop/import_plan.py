"""What would be imported: which model each file holds, and the proof that its tensors and ours are the same set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megajukebox.common.levels import RUN_FOLDERS
from megajukebox.common.model_files import PendingTensor
from megajukebox.interop.checkpoints import ForeignCheckpoint
from megajukebox.interop.config_from_shapes import hops, prior_config, vqvae_config
from megajukebox.interop.hps import OF_THE_VQVAE, Hps, refuse_unsupported
from megajukebox.interop.released_configs import HOPS, like_released_prior, like_released_vqvae
from megajukebox.interop.tensor_names import CODEBOOK_MADE, TensorMapping, prior_table, vqvae_table
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.models.vqvae import VQVAE, VQVAEConfig


@dataclass(frozen=True)
class Part:
    """One model of an import: where it comes from, what it is, and how its tensors are called there and here."""

    name: str  # "vqvae" or a level
    checkpoint: ForeignCheckpoint
    config: VQVAEConfig | PriorConfig
    table: list[TensorMapping]

    @property
    def folder(self) -> str:
        return RUN_FOLDERS[self.name]


def plan(
    checkpoints: list[ForeignCheckpoint],
    settings: Mapping[str, Any],
    vqvae: VQVAEConfig | None = None,
) -> list[Part]:
    """What would be imported. Every tensor of the files and of our models is accounted for, in name and shape."""
    parts = [vqvae_part(c, settings) for c in checkpoints if c.kind == "vqvae"]
    if parts:
        config = parts[0].config
        assert isinstance(config, VQVAEConfig)
        vqvae = config
    parts += [prior_part(c, settings, vqvae) for c in checkpoints if c.kind == "prior"]
    for part in parts:
        same = [other.checkpoint.path for other in parts if other.name == part.name]
        if len(same) > 1:
            raise ValueError(f"{same[0]} and {same[1]} both hold the {part.name}; give one of them")
    return parts


def vqvae_part(checkpoint: ForeignCheckpoint, settings: Mapping[str, Any]) -> Part:
    shapes = checkpoint.shapes
    given = Hps(str(checkpoint.path), settings, checkpoint.hps, like_released_vqvae(shapes))
    refuse_unsupported(given)
    config = vqvae_config(shapes, given)
    part = Part("vqvae", checkpoint, config, vqvae_table(config))
    check_cover(part)
    return part


def prior_part(
    checkpoint: ForeignCheckpoint, settings: Mapping[str, Any], vqvae: VQVAEConfig | None
) -> Part:
    shapes, where = checkpoint.shapes, str(checkpoint.path)
    number = settings.get("level", checkpoint.level)
    released = like_released_prior(shapes, number)
    said = {name: value for name, value in checkpoint.hps.items() if name not in OF_THE_VQVAE}
    given = Hps(where, settings, said, {"merged_decoder": not checkpoint.tied}, released)
    given.require(["level"] if number is None else [])
    number = given["level"] if number is None else number
    refuse_unsupported(given)
    all_hops = _hops(given, vqvae, bool(released))
    level = _level_name(where, number, len(all_hops), "conditioner_blocks.0.x_emb.weight" in shapes)
    config = prior_config(shapes, given, level, all_hops[number])
    if (
        vqvae is not None and config.timing is None
    ):  # then the rate changes no number, and files often hold a default
        config = config.model_copy(update={"sample_rate": vqvae.sample_rate})
    _check_against_vqvae(where, config, all_hops, number, vqvae)
    part = Part(level, checkpoint, config, prior_table(config))
    check_cover(part)
    if not config.separate_head and "prior.x_out.weight" in shapes and not checkpoint.tied:
        raise ValueError(
            f"{where}: prior.x_out differs from prior.x_emb, but a model without merged_decoder has them as one"
        )
    return part


def _hops(given: Hps, vqvae: VQVAEConfig | None, released: bool) -> tuple[int, ...]:
    if vqvae is not None:
        return tuple(vqvae.hops.values())
    if "downs_t" in given and "strides_t" in given:
        return hops(given["downs_t"], given["strides_t"])
    if released:
        return HOPS
    raise ValueError(
        f"{given.where} does not tell how many samples a code stands for; import its VQ-VAE with it, "
        "or give --set downs_t=3,2,2 --set strides_t=2,2,2"
    )


def _level_name(where: str, number: int, levels: int, has_upper: bool) -> str:
    """Our name of the reference's level `number` of `levels`; the top is the one that reads no level above."""
    if not 0 <= number < levels:
        raise ValueError(
            f"{where} is a prior of level {number}, but its VQ-VAE has levels 0 to {levels - 1}"
        )
    if has_upper == (number == levels - 1):
        what = "reads the codes of a level above" if has_upper else "reads no level above"
        raise ValueError(
            f"{where} {what}, so it is not the prior of level {number} of {levels}; give the right --set level="
        )
    return "top" if not has_upper else "bottom" if number == 0 else "middle"


def _check_against_vqvae(
    where: str,
    config: PriorConfig,
    all_hops: tuple[int, ...],
    number: int,
    vqvae: VQVAEConfig | None,
) -> None:
    if (
        config.upsampler_conditioner
        and config.upsampler_conditioner.ratio * all_hops[number] != all_hops[number + 1]
    ):
        raise ValueError(
            f"{where} reads one code above for {config.upsampler_conditioner.ratio} of its own, but the VQ-VAE's hops are {all_hops}; "
            "they are of different models"
        )
    if vqvae is not None and (vqvae.codebook_size, vqvae.sample_rate) != (
        config.codebook_size,
        config.sample_rate,
    ):
        raise ValueError(
            f"{where} is for {config.codebook_size} codes at {config.sample_rate} Hz, its VQ-VAE has {vqvae.codebook_size} "
            f"at {vqvae.sample_rate} Hz; they are of different models"
        )


# ---- Every tensor once ----------------------------------------------------------------------------------------------


def empty_model(config: VQVAEConfig | PriorConfig) -> nn.Module:
    """The module on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return VQVAE(config) if isinstance(config, VQVAEConfig) else Prior(config)


def check_cover(part: Part) -> None:
    """The table names every tensor of the file once and every tensor of our model once, and their shapes agree."""
    theirs, table = part.checkpoint.shapes, part.table
    ours = {
        name: tuple(tensor.shape) for name, tensor in empty_model(part.config).state_dict().items()
    }
    wanted = {entry.theirs for entry in table}
    optional = {entry.theirs for entry in table if entry.ours is None}
    where = str(part.checkpoint.path)
    _refuse(where, "lacks", wanted - optional - theirs.keys())
    _refuse(where, "holds, beside what such a model has,", theirs.keys() - wanted)
    _check_ours(part.config, table, ours)
    for entry in table:
        if entry.ours is None:
            continue
        found = theirs[entry.theirs][::-1] if entry.change == "transpose" else theirs[entry.theirs]
        if found != ours[entry.ours]:
            raise ValueError(
                f"{where}: {entry.theirs} is {found} (as ours), the model wants {ours[entry.ours]}"
            )


def _check_ours(
    config: VQVAEConfig | PriorConfig, table: list[TensorMapping], ours: Mapping[str, Any]
) -> None:
    """The tables' own correctness: a failure here is ours, not the user's."""
    filled = [entry.ours for entry in table if entry.ours is not None]
    assert len(set(filled)) == len(filled), "a tensor of ours is filled twice"
    tied = (
        {"head.weight"} if isinstance(config, PriorConfig) and not config.separate_head else set()
    )
    made = {
        name for name in ours if ".codebook." in name and name.rpartition(".")[2] in CODEBOOK_MADE
    }
    assert set(filled) | tied | made == set(ours), (
        f"left out: {set(ours) - set(filled)}, unknown: {set(filled) - set(ours)}"
    )


def _refuse(where: str, verb: str, names: set[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(
            f"{where} {verb} {', '.join(sorted(names)[:3])}{more}; it is cut short or another kind of model"
        )


def converted(part: Part, read: Callable[[str], Tensor]) -> dict[str, PendingTensor]:
    """Our tensors by name, each read from the file when its turn comes; numbers and precision are the file's."""
    outlines = part.checkpoint.tensors
    pending = {
        entry.ours: _pending(entry, outlines[entry.theirs], read)
        for entry in part.table
        if entry.ours is not None
    }
    if isinstance(part.config, VQVAEConfig):
        for level in part.config.levels:
            pending |= _codebook_state(
                f"levels.{level}.codebook", pending[f"levels.{level}.codebook.vectors"]
            )
    return pending


def _pending(entry: TensorMapping, outline: Tensor, read: Callable[[str], Tensor]) -> PendingTensor:
    if entry.change == "transpose":
        return PendingTensor(
            outline.dtype, tuple(outline.shape)[::-1], lambda: read(entry.theirs).t()
        )
    return PendingTensor(outline.dtype, tuple(outline.shape), lambda: read(entry.theirs))


def _codebook_state(name: str, vectors: PendingTensor) -> dict[str, PendingTensor]:
    """The running sums that files do not keep: as after a first batch. Training on calls `restore_counts`."""
    codes = vectors.shape[0]
    return {
        f"{name}.sums": vectors,
        f"{name}.counts": PendingTensor(torch.float32, (codes,), lambda: torch.ones(codes)),
        f"{name}.started": PendingTensor(torch.bool, (), lambda: torch.tensor(True)),
    }
