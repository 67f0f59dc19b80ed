"""The plan of an import: which model each file holds, and a check that its tensors and ours are the same set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from megajukebox.common.errors import UserError
from megajukebox.common.levels import RUN_FOLDERS
from megajukebox.common.model_files import PendingTensor
from megajukebox.interop.checkpoints import ForeignCheckpoint
from megajukebox.interop.config_from_shapes import hops, prior_config, vqvae_config
from megajukebox.interop.hps import (
    HARMLESS,
    OF_SHAPES,
    OF_THE_VQVAE,
    OTHER_NAMES,
    UNSUPPORTED,
    Hps,
    refuse_unsupported,
)
from megajukebox.interop.reference_config import reference_hps
from megajukebox.interop.released_configs import (
    HOPS,
    PRIORS,
    like_released_prior,
    like_released_vqvae,
)
from megajukebox.interop.released_configs import VQVAE as RELEASED_VQVAE
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
    given: Hps  # what settings and files say of it
    is_released: bool = False  # of the shapes of a model that OpenAI released

    @property
    def folder(self) -> str:
        return RUN_FOLDERS[self.name]


def plan(
    checkpoints: list[ForeignCheckpoint],
    settings: Mapping[str, Any],
    vqvae: VQVAEConfig | None = None,
) -> list[Part]:
    """The parts of an import, the VQ-VAE first. `vqvae`: the one imported before, which one of `checkpoints` replaces.

    `settings`: hyper-parameters under OpenAI's names, for all parts (`heads`) or for one (`top.heads`).

    Raises:
        UserError: a tensor of the files or of our models is left over or has another shape, two files hold the same
            part, a prior does not belong to the VQ-VAE, or a setting is of no part.
    """
    _check_names(settings)
    parts: list[Part] = []
    for checkpoint in checkpoints:
        if checkpoint.kind == "vqvae":
            parts.append(vqvae_part(checkpoint, settings_of("vqvae", settings)))
    if parts:
        config = parts[0].config
        assert isinstance(config, VQVAEConfig)
        vqvae = config
    for checkpoint in checkpoints:
        if checkpoint.kind == "prior":
            parts.append(prior_part(numbered(checkpoint, vqvae), settings, vqvae))
    _refuse_unused(settings, parts)
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
    released = like_released_vqvae(shapes)
    given = Hps(str(checkpoint.path), settings, checkpoint.hps, released)
    refuse_unsupported(given)
    try:
        config = vqvae_config(shapes, given)
    except (ValidationError, TypeError, ArithmeticError) as error:
        raise _not_a_model(str(checkpoint.path), error) from None
    part = Part("vqvae", checkpoint, config, vqvae_table(config), given, bool(released))
    check_cover(part)
    _refuse_contradictions(config, settings)
    return part


def prior_part(
    checkpoint: ForeignCheckpoint, settings: Mapping[str, Any], vqvae: VQVAEConfig | None
) -> Part:
    shapes = checkpoint.shapes
    where = str(checkpoint.path)
    number = settings.get("level", checkpoint.level)
    if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
        raise UserError(f"--set level={number} is not 0 (bottom), 1 or 2")
    released = like_released_prior(shapes, number)
    if number is None:
        number = Hps(where, released)["level"]
    has_upper = "conditioner_blocks.0.x_emb.weight" in shapes
    settings = settings_of(_level_name(number, has_upper), settings)
    own_hps = dict(checkpoint.hps)
    from_transformers = checkpoint.layout == "hugging_face"
    if (
        vqvae is not None or not from_transformers
    ):  # transformers' priors have their own numbers here
        for name in OF_THE_VQVAE:
            own_hps.pop(name, None)
    if from_transformers and released:
        # transformers has one number of genres for all priors of a set, and masks the places that are too many.
        own_hps["max_bow_genre_size"] = released["max_bow_genre_size"]
    given = Hps(where, settings, own_hps, {"merged_decoder": not checkpoint.tied}, released)
    refuse_unsupported(given)
    all_hops = _hops(given, vqvae, bool(released))
    _check_level(where, number, len(all_hops), has_upper)
    level = _level_name(number, has_upper)
    try:
        config = prior_config(shapes, given, level, all_hops[number])
    except (ValidationError, TypeError, ArithmeticError) as error:
        raise _not_a_model(where, error) from None
    if vqvae is not None and config.timing is None:
        # Without timing the sample rate changes no number, and files often hold a default.
        config = config.model_copy(update={"sample_rate": vqvae.sample_rate})
    _check_against_vqvae(where, config, all_hops, number, vqvae)
    part = Part(level, checkpoint, config, prior_table(config), given, bool(released))
    check_cover(part)
    _refuse_contradictions(config, settings)
    if not config.separate_head and "prior.x_out.weight" in shapes and not checkpoint.tied:
        raise UserError(
            f"{where}: prior.x_out differs from prior.x_emb, but a model without merged_decoder has them as one"
        )
    return part


def numbered(checkpoint: ForeignCheckpoint, vqvae: VQVAEConfig | None) -> ForeignCheckpoint:
    """A prior with OpenAI's number of its level, which counts from the bottom, if files count from the top."""
    if checkpoint.from_top is None:
        return checkpoint
    levels = len(vqvae.levels) if vqvae else checkpoint.hps.get("levels", len(HOPS))
    from_top = checkpoint.from_top
    if from_top >= levels:
        # megajukebox 0.1.0 counted back from priors.2, also for jukeboxes of one or two levels.
        return replace(checkpoint, level=len(HOPS) - 1 - from_top)
    return replace(checkpoint, level=levels - 1 - from_top)


def _not_a_model(where: str, error: Exception) -> UserError:
    """A config that cannot be, of values that came with the files or by --set, as the user reads of it."""
    if not isinstance(error, ValidationError):
        return UserError(
            f"{where}: a setting of it is of no use ({error}); give it by --set NAME=VALUE"
        )
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"])) or "settings"
    return UserError(
        f"{where}: {field}: {first['msg']}; give the right value, as in --set NAME=VALUE"
    )


# ---- Settings -------------------------------------------------------------------------------------------------------


def settings_of(part: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for one part: those for all, then those of its own name."""
    chosen = {name: value for name, value in settings.items() if "." not in name}
    for name, value in settings.items():
        if name.startswith(f"{part}."):
            chosen[name.removeprefix(f"{part}.")] = value
    return chosen


def _check_names(settings: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that no model has."""
    known: set[str] = {*RELEASED_VQVAE, *HARMLESS, *UNSUPPORTED, *OTHER_NAMES}
    for preset in PRIORS.values():
        known |= preset.keys()
    for name in settings:
        part, dot, own = name.rpartition(".")
        if dot and part not in RUN_FOLDERS:
            raise UserError(
                f"--set {name}: {part!r} is no part; it is one of {', '.join(RUN_FOLDERS)}"
            )
        if own not in known or (dot and own == "level"):
            likely = get_close_matches(own, known, n=1)
            hint = f"; did you mean {likely[0]}?" if likely else "; give it under OpenAI's name"
            raise UserError(f"--set {name}: {own!r} is no setting of a part{hint}")


def _refuse_contradictions(config: VQVAEConfig | PriorConfig, settings: Mapping[str, Any]) -> None:
    """Raise UserError for a setting that the shapes of the tensors belie."""
    by_shapes = reference_hps(config, 0)
    for name in sorted(OF_SHAPES & settings.keys() & by_shapes.keys()):
        given = settings[name]
        given = tuple(given) if isinstance(given, list) else given
        if given != by_shapes[name]:
            raise UserError(
                f"--set {name}={given}: the tensors have {by_shapes[name]}; leave it out"
            )


def _refuse_unused(settings: Mapping[str, Any], parts: list[Part]) -> None:
    """Raise UserError for a setting of a part that is not imported."""
    names = [part.name for part in parts]
    for setting in settings:
        part, dot, _ = setting.rpartition(".")
        if dot and part not in names:
            raise UserError(f"--set {setting}: the files hold no {part}, but {', '.join(names)}")


# ---- Levels ---------------------------------------------------------------------------------------------------------


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


def _level_name(number: int, has_upper: bool) -> str:
    """Our name of the reference's level `number`; the top is the one that reads no level above."""
    if not has_upper:
        return "top"
    return "bottom" if number == 0 else "middle"


def _check_level(where: str, number: int, levels: int, has_upper: bool) -> None:
    """Raise UserError unless a prior can be that of level `number` of `levels`."""
    if not 0 <= number < levels:
        raise UserError(
            f"{where} is a prior of level {number}, but its VQ-VAE has levels 0 to {levels - 1}"
        )
    if has_upper == (number == levels - 1):
        what = "reads the codes of a level above" if has_upper else "reads no level above"
        raise UserError(
            f"{where} {what}, so it is not the prior of level {number} of {levels}; give the right --set level="
        )


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
