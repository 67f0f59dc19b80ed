"""The plan of an import: which model each file holds, and a check that its tensors and ours are the same set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megajukebox.common.errors import UserError
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
    """The parts of an import, the VQ-VAE first. `vqvae`: the one imported before, which one of `checkpoints` replaces.

    Raises:
        UserError: a tensor of the files or of our models is left over or has another shape, two files hold the same
            part, or a prior does not belong to the VQ-VAE.
    """
    parts: list[Part] = []
    for checkpoint in checkpoints:
        if checkpoint.kind == "vqvae":
            parts.append(vqvae_part(checkpoint, settings))
    if parts:
        config = parts[0].config
        assert isinstance(config, VQVAEConfig)
        vqvae = config
    for checkpoint in checkpoints:
        if checkpoint.kind == "prior":
            parts.append(prior_part(checkpoint, settings, vqvae))
    by_name: dict[str, Part] = {}
    for part in parts:
        first = by_name.setdefault(part.name, part)
        if first is not part:
            raise UserError(
                f"{first.checkpoint.path} and {part.checkpoint.path} both hold the {part.name};"
                " give one of them"
            )
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
    shapes = checkpoint.shapes
    where = str(checkpoint.path)
    number = settings.get("level", checkpoint.level)
    released = like_released_prior(shapes, number)
    own_hps = dict(checkpoint.hps)
    for name in OF_THE_VQVAE:
        own_hps.pop(name, None)
    given = Hps(where, settings, own_hps, {"merged_decoder": not checkpoint.tied}, released)
    if number is None:
        number = given["level"]
    refuse_unsupported(given)
    all_hops = _hops(given, vqvae, bool(released))
    level = _level_name(where, number, len(all_hops), "conditioner_blocks.0.x_emb.weight" in shapes)
    config = prior_config(shapes, given, level, all_hops[number])
    if vqvae is not None and config.timing is None:
        # Without timing the sample rate changes no number, and files often hold a default.
        config = config.model_copy(update={"sample_rate": vqvae.sample_rate})
    _check_against_vqvae(where, config, all_hops, number, vqvae)
    part = Part(level, checkpoint, config, prior_table(config))
    check_cover(part)
    if not config.separate_head and "prior.x_out.weight" in shapes and not checkpoint.tied:
        raise UserError(
            f"{where}: prior.x_out differs from prior.x_emb, but a model without merged_decoder has them as one"
        )
    return part


def _hops(given: Hps, vqvae: VQVAEConfig | None, released: bool) -> tuple[int, ...]:
    """Audio samples per code of each level, finest first."""
    if vqvae is not None:
        return tuple(vqvae.hops.values())
    if "downs_t" in given and "strides_t" in given:
        return hops(given["downs_t"], given["strides_t"])
    if released:
        return HOPS
    raise UserError(
        f"{given.where} does not tell how many samples a code stands for; import its VQ-VAE with it, "
        "or give --set downs_t=3,2,2 --set strides_t=2,2,2"
    )


def _level_name(where: str, number: int, levels: int, has_upper: bool) -> str:
    """Our name of the reference's level `number` of `levels`; the top is the one that reads no level above."""
    if not 0 <= number < levels:
        raise UserError(
            f"{where} is a prior of level {number}, but its VQ-VAE has levels 0 to {levels - 1}"
        )
    if has_upper == (number == levels - 1):
        what = "reads the codes of a level above" if has_upper else "reads no level above"
        raise UserError(
            f"{where} {what}, so it is not the prior of level {number} of {levels}; give the right --set level="
        )
    if not has_upper:
        return "top"
    return "bottom" if number == 0 else "middle"


def _check_against_vqvae(
    where: str,
    config: PriorConfig,
    all_hops: tuple[int, ...],
    number: int,
    vqvae: VQVAEConfig | None,
) -> None:
    upper = config.upsampler_conditioner
    if upper and upper.ratio * all_hops[number] != all_hops[number + 1]:
        raise UserError(
            f"{where} reads one code above for {upper.ratio} of its own,"
            f" but the VQ-VAE's hops are {all_hops}; they are of different models"
        )
    if vqvae is None:
        return
    ours = (config.codebook_size, config.sample_rate)
    theirs = (vqvae.codebook_size, vqvae.sample_rate)
    if ours != theirs:
        raise UserError(
            f"{where} is for {ours[0]} codes at {ours[1]} Hz, its VQ-VAE has {theirs[0]}"
            f" at {theirs[1]} Hz; they are of different models"
        )


# ---- Every tensor once ----------------------------------------------------------------------------------------------


def check_cover(part: Part) -> None:
    """Check that the table names every tensor of the file once and every tensor of our model once, in one shape."""
    theirs = part.checkpoint.shapes
    where = str(part.checkpoint.path)
    wanted: set[str] = set()
    optional: set[str] = set()
    for entry in part.table:
        wanted.add(entry.theirs)
        if entry.ours is None:
            optional.add(entry.theirs)
    _refuse_names(where, "lacks", wanted - optional - theirs.keys())
    _refuse_names(where, "holds, beside what such a model has,", theirs.keys() - wanted)
    config = part.config
    with torch.device("meta"):  # names and shapes without memory
        model = VQVAE(config) if isinstance(config, VQVAEConfig) else Prior(config)
    ours = model.state_dict()
    _check_table(config, part.table, set(ours))
    for entry in part.table:
        if entry.ours is None:
            continue
        shape = theirs[entry.theirs]
        if entry.change == "transpose":
            shape = shape[::-1]
        expected = tuple(ours[entry.ours].shape)
        if shape != expected:
            raise UserError(
                f"{where}: {entry.theirs} is {shape} (as ours), the model needs {expected}"
            )


def _check_table(
    config: VQVAEConfig | PriorConfig, table: list[TensorMapping], ours: set[str]
) -> None:
    """Assert that the table fills each of our tensors once: a failure here is ours, not the user's."""
    filled = [entry.ours for entry in table if entry.ours is not None]
    assert len(set(filled)) == len(filled), "a tensor of ours is filled twice"
    others = set()
    if isinstance(config, PriorConfig) and not config.separate_head:
        others.add("head.weight")  # tied to the embedding
    for name in ours:
        if ".codebook." in name and name.rpartition(".")[2] in CODEBOOK_MADE:
            others.add(name)
    left_out = ours - others - set(filled)
    assert set(filled) | others == ours, f"left out: {left_out}, unknown: {set(filled) - ours}"


def _refuse_names(where: str, verb: str, names: set[str]) -> None:
    """Raise UserError if there are any `names`, with the first of them."""
    if names:
        shown = ", ".join(sorted(names)[:3])
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(f"{where} {verb} {shown}{more}; it is cut short or another kind of model")


def converted(part: Part, read: Callable[[str], Tensor]) -> dict[str, PendingTensor]:
    """Our tensors by name, each read from the file when its turn comes; numbers and precision are the file's."""
    outlines = part.checkpoint.tensors
    pending: dict[str, PendingTensor] = {}
    for entry in part.table:
        if entry.ours is not None:
            pending[entry.ours] = _pending(entry, outlines[entry.theirs], read)
    if isinstance(part.config, VQVAEConfig):
        for level in part.config.levels:
            codebook = f"levels.{level}.codebook"
            pending |= _codebook_state(codebook, pending[f"{codebook}.vectors"])
    return pending


def _pending(entry: TensorMapping, outline: Tensor, read: Callable[[str], Tensor]) -> PendingTensor:
    shape = tuple(outline.shape)
    if entry.change == "transpose":
        return PendingTensor(outline.dtype, shape[::-1], lambda: read(entry.theirs).t())
    return PendingTensor(outline.dtype, shape, lambda: read(entry.theirs))


def _codebook_state(name: str, vectors: PendingTensor) -> dict[str, PendingTensor]:
    """The running sums that files do not keep: as after a first batch. Training on calls `restore_counts`."""
    codes = vectors.shape[0]
    return {
        f"{name}.sums": vectors,
        f"{name}.counts": PendingTensor(torch.float32, (codes,), lambda: torch.ones(codes)),
        f"{name}.started": PendingTensor(torch.bool, (), lambda: torch.tensor(True)),
    }
