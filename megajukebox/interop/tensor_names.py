"""Tables: what OpenAI's Jukebox calls each tensor and each schedule, what we call it, and how the tensor is changed.

`vqvae_table` and `prior_table` list every tensor of a model once. Our name `None` means left out on purpose.
The reference's dense layers keep `.w` as (in, out), ours are nn.Linear (out, in): "transpose".
"""

from collections.abc import Iterator
from typing import NamedTuple

from megajukebox.common.errors import UserError
from megajukebox.models.prior import PriorConfig
from megajukebox.models.vqvae import VQVAEConfig


class TensorMapping(NamedTuple):
    theirs: str
    ours: str | None
    change: str = "same"  # or "transpose"


# ---- Schedules: the reference's `attn_order` ------------------------------------------------------------------------

SCHEDULE_OF_ORDER = {
    0: "dense",
    1: "row_column",
    2: "factored",
    6: "factored_lyrics",
    7: "factored_lyrics_16",
    8: "factored_lyrics_10",
    9: "factored_dense",
    10: "lyrics_after_18",
    11: "lyrics_dense_16",
    12: "prefix_dense_16",
}
ORDER_OF_SCHEDULE = {name: order for order, name in SCHEDULE_OF_ORDER.items()}

# ---- The layers of a transformer ------------------------------------------------------------------------------------

DENSE = (("w", "weight", "transpose"), ("b", "bias", "same"))
AFFINE = (("weight", "weight", "same"), ("bias", "bias", "same"))

MUSIC_ATTENTION = (("attn.c_attn", "attention.project", DENSE),)
LYRICS_ATTENTION = (
    ("attn.c_attn", "attention.query", DENSE),
    ("attn.c_enc_kv", "attention.key_value", DENSE),
)
REST_OF_BLOCK = (
    ("attn.c_proj", "attention.merge", DENSE),
    ("ln_0", "norm_attention", AFFINE),
    ("mlp.c_fc", "mlp.widen", DENSE),
    ("mlp.c_proj", "mlp.narrow", DENSE),
    ("ln_1", "norm_mlp", AFFINE),
)

# ---- Conditions -----------------------------------------------------------------------------------------------------

LABEL_TABLES = {"artist": "y_emb.artist_emb.emb.weight", "genres": "y_emb.bow_genre_emb.emb.weight"}
TIMING_TABLES = {
    "total": "y_emb.total_length_emb.emb.weight",
    "position": "y_emb.absolute_pos_emb.emb.weight",
    "fraction": "y_emb.relative_pos_emb.emb.weight",
}
RESIDUAL_UNIT = (("model.1", "dilated", AFFINE), ("model.3", "mix", AFFINE))

# Our codebook keeps running sums that the reference's files lack; the importer makes them from the vectors.
CODEBOOK_MADE = ("sums", "counts", "started")


def prior_table(config: PriorConfig, stack: str = "blocks") -> list[TensorMapping]:
    """Every tensor of a prior. `stack` is what the conditioner's residual stacks are called: `blocks` or `model`."""
    entries = [
        *_input("prior", "input", not config.conditions),
        *_layers("prior", "", config.transformer.patterns),
    ]
    head = "head.weight" if config.separate_head else None
    entries.append(TensorMapping("prior.x_out.weight", head))
    for name in config.conditions:
        entries.append(TensorMapping(LABEL_TABLES[name], f"labels.tables.{name}.weight"))
    if config.timing:
        for name, theirs in TIMING_TABLES.items():
            entries.append(TensorMapping(theirs, f"timing.tables.{name}.weight"))
    if config.upsampler_conditioner:
        upper = config.upsampler_conditioner
        entries += _upper(upper.down, upper.depth, stack)
    if config.lyrics and config.lyrics.encoder:
        entries += _input("prime_prior", "lyrics.input", own_start=True)
        entries += _layers("prime_prior", "lyrics.", config.lyrics.encoder.patterns)
        entries += _leaves("prime_state_proj", "lyrics.project", DENSE)
        entries += _leaves("prime_state_ln", "lyrics.norm", AFFINE)
        entries.append(TensorMapping("prime_x_out.weight", "lyrics.head.weight"))
    return entries


def vqvae_table(config: VQVAEConfig) -> list[TensorMapping]:
    """Every tensor of a VQ-VAE that the reference's files hold.

    Raises:
        UserError: a level's target is `spectrum`, or the audio is stereo: the reference has neither.
    """
    if config.channels != 1:
        raise UserError(
            "the VQ-VAE is for stereo, which OpenAI's and Hugging Face's layouts cannot hold; export it"
            " with --layout megajukebox"
        )
    if config.spectrum_levels:
        raise UserError(
            f"the {config.spectrum_levels[-1]} level has target spectrum, which OpenAI's and Hugging Face's"
            " layouts cannot hold; export it with --layout megajukebox"
        )
    entries: list[TensorMapping] = []
    for i, level in enumerate(config.levels):
        depth = config.depth * config.multipliers[i]
        downs = config.down[: i + 1]
        ours = f"levels.{level}"
        entries += _encoder(f"encoders.{i}", f"{ours}.encoder.layers", downs, depth)
        entries += _decoder(f"decoders.{i}", f"{ours}.decoder.layers", downs, depth)
        entries.append(TensorMapping(f"bottleneck.level_blocks.{i}.k", f"{ours}.codebook.vectors"))
    return entries


def _leaves(theirs: str, ours: str, parts: tuple) -> Iterator[TensorMapping]:
    """The tensors of one layer by `parts`: (their last word, our last word, change)."""
    for their_leaf, our_leaf, change in parts:
        yield TensorMapping(f"{theirs}.{their_leaf}", f"{ours}.{our_leaf}", change)


def _parts(theirs: str, ours: str, table: tuple) -> Iterator[TensorMapping]:
    """The tensors of layers in `table`: (their name, our name, leaves)."""
    for their_part, our_part, leaves in table:
        yield from _leaves(f"{theirs}.{their_part}", f"{ours}.{our_part}", leaves)


def _input(theirs: str, ours: str, own_start: bool) -> Iterator[TensorMapping]:
    """The embeddings before the first block of a transformer."""
    if own_start:
        yield TensorMapping(f"{theirs}.start_token", f"{ours}.start.weight")
    yield TensorMapping(f"{theirs}.x_emb.weight", f"{ours}.tokens.weight")
    yield TensorMapping(f"{theirs}.pos_emb.pos_emb", f"{ours}.positions.weight")


def _layers(theirs: str, ours: str, patterns: list[str]) -> Iterator[TensorMapping]:
    """The blocks of a transformer, one for each pattern of its schedule."""
    for d, pattern in enumerate(patterns):
        table = (LYRICS_ATTENTION if pattern == "lyrics" else MUSIC_ATTENTION) + REST_OF_BLOCK
        yield from _parts(f"{theirs}.transformer._attn_mods.{d}", f"{ours}blocks.{d}", table)


def _upper(down: int, depth: int, stack: str) -> Iterator[TensorMapping]:
    theirs = "conditioner_blocks.0"
    yield TensorMapping(f"{theirs}.x_emb.weight", "upper.embedding.weight")
    yield from _leaves(f"{theirs}.cond.model.0", "upper.layers.0", AFFINE)
    for j in range(1, down + 1):
        yield from _stack(f"{theirs}.cond.model.{j}.0.{stack}", f"upper.layers.{2 * j - 1}", depth)
        yield from _leaves(f"{theirs}.cond.model.{j}.1", f"upper.layers.{2 * j}", AFFINE)
    yield from _leaves(f"{theirs}.ln", "upper.norm", AFFINE)


def _stack(theirs: str, ours: str, depth: int) -> Iterator[TensorMapping]:
    """A stack of `depth` residual units."""
    for d in range(depth):
        yield from _parts(f"{theirs}.{d}", f"{ours}.{d}", RESIDUAL_UNIT)


def _encoder(theirs: str, ours: str, downs: tuple[int, ...], depth: int) -> Iterator[TensorMapping]:
    n = 0
    for i, down in enumerate(downs):
        stage = f"{theirs}.level_blocks.{i}.model"
        for j in range(down):
            yield from _leaves(f"{stage}.{j}.0", f"{ours}.{n}", AFFINE)
            yield from _stack(f"{stage}.{j}.1.model", f"{ours}.{n + 1}", depth)
            n += 2
        yield from _leaves(f"{stage}.{down}", f"{ours}.{n}", AFFINE)
        n += 1


def _decoder(theirs: str, ours: str, downs: tuple[int, ...], depth: int) -> Iterator[TensorMapping]:
    """Our decoder lists its stages in the order they run, the reference by number; units are reversed alike in both."""
    n = 0
    for i, down in reversed(list(enumerate(downs))):
        stage = f"{theirs}.level_blocks.{i}.model"
        yield from _leaves(f"{stage}.0", f"{ours}.{n}", AFFINE)
        for j in range(1, down + 1):
            yield from _stack(f"{stage}.{j}.0.model", f"{ours}.{n + 1}", depth)
            yield from _leaves(f"{stage}.{j}.1", f"{ours}.{n + 2}", AFFINE)
            n += 2
        n += 1
    yield from _leaves(f"{theirs}.out", f"{ours}.{n}", AFFINE)
