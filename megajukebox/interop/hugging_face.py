"""A table of what Hugging Face calls the tensors of OpenAI's Jukebox; dense weights stay (in, out) there.

`{j}` stands for a number, `{2j-1}` for a number made of it, `{leaf}` for the last word. The first row that fits counts.
"""

import re
from collections.abc import Iterable

VQVAE = (
    (
        "encoders.{l}.level_blocks.{i}.model.{j}.0.{leaf}",
        "encoders.{l}.level_blocks.{i}.downsample_block.{2j}.{leaf}",
    ),
    (
        "encoders.{l}.level_blocks.{i}.model.{j}.1.model.{d}.model.1.{leaf}",
        "encoders.{l}.level_blocks.{i}.downsample_block.{2j+1}.resnet_block.{d}.conv1d_1.{leaf}",
    ),
    (
        "encoders.{l}.level_blocks.{i}.model.{j}.1.model.{d}.model.3.{leaf}",
        "encoders.{l}.level_blocks.{i}.downsample_block.{2j+1}.resnet_block.{d}.conv1d_2.{leaf}",
    ),
    (
        "encoders.{l}.level_blocks.{i}.model.{last}.{leaf}",
        "encoders.{l}.level_blocks.{i}.proj_out.{leaf}",
    ),
    (
        "decoders.{l}.level_blocks.{i}.model.0.{leaf}",
        "decoders.{l}.level_blocks.{i}.proj_in.{leaf}",
    ),
    (
        "decoders.{l}.level_blocks.{i}.model.{j}.0.model.{d}.model.1.{leaf}",
        "decoders.{l}.level_blocks.{i}.upsample_block.{2j-2}.resnet_block.{d}.conv1d_1.{leaf}",
    ),
    (
        "decoders.{l}.level_blocks.{i}.model.{j}.0.model.{d}.model.3.{leaf}",
        "decoders.{l}.level_blocks.{i}.upsample_block.{2j-2}.resnet_block.{d}.conv1d_2.{leaf}",
    ),
    (
        "decoders.{l}.level_blocks.{i}.model.{j}.1.{leaf}",
        "decoders.{l}.level_blocks.{i}.upsample_block.{2j-1}.{leaf}",
    ),
    ("decoders.{l}.out.{leaf}", "decoders.{l}.out.{leaf}"),
    ("bottleneck.level_blocks.{l}.k", "bottleneck.level_blocks.{l}.codebook"),
)


def _transformer(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    layer = f"{theirs}.transformer._attn_mods.{{d}}"
    same = f"{ours}.transformer._attn_mods.{{d}}"
    dense: list[tuple[str, str]] = []
    for name in ("attn.c_attn", "attn.c_enc_kv", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        dense.append((f"{layer}.{name}.w", f"{same}.{name}.weight"))
        dense.append((f"{layer}.{name}.b", f"{same}.{name}.bias"))
    return (
        (f"{theirs}.x_emb.weight", f"{ours}.embed_tokens.weight"),
        (f"{theirs}.pos_emb.pos_emb", f"{ours}.pos_emb.pos_emb"),
        (f"{theirs}.start_token", f"{ours}.start_token"),
        *dense,
        (f"{layer}.ln_{{k}}.{{leaf}}", f"{same}.layer_norm_{{k}}.{{leaf}}"),
    )


PRIOR = (
    *_transformer("prior", "prior"),
    *_transformer("prime_prior", "encoder"),
    ("prior.x_out.weight", "prior.fc_proj_out.weight"),
    ("prime_state_proj.w", "encoder.proj_in.weight"),
    ("prime_state_proj.b", "encoder.proj_in.bias"),
    ("prime_state_ln.{leaf}", "encoder.final_layer_norm.{leaf}"),
    ("prime_x_out.weight", "encoder.lm_head.weight"),
    ("y_emb.artist_emb.emb.weight", "metadata_embedding.artist_emb.weight"),
    ("y_emb.bow_genre_emb.emb.weight", "metadata_embedding.bow_genre_emb.weight"),
    ("y_emb.total_length_emb.emb.weight", "metadata_embedding.total_length_emb.emb.weight"),
    ("y_emb.absolute_pos_emb.emb.weight", "metadata_embedding.absolute_pos_emb.emb.weight"),
    ("y_emb.relative_pos_emb.emb.weight", "metadata_embedding.relative_pos_emb.emb.weight"),
    ("conditioner_blocks.0.x_emb.weight", "conditioner_blocks.embed_tokens.weight"),
    ("conditioner_blocks.0.cond.model.0.{leaf}", "conditioner_blocks.upsampler.proj_in.{leaf}"),
    (
        "conditioner_blocks.0.cond.model.{j}.0.blocks.{d}.model.1.{leaf}",
        "conditioner_blocks.upsampler.upsample_block.{2j-2}.resnet_block.{d}.conv1d_1.{leaf}",
    ),
    (
        "conditioner_blocks.0.cond.model.{j}.0.blocks.{d}.model.3.{leaf}",
        "conditioner_blocks.upsampler.upsample_block.{2j-2}.resnet_block.{d}.conv1d_2.{leaf}",
    ),
    (
        "conditioner_blocks.0.cond.model.{j}.1.{leaf}",
        "conditioner_blocks.upsampler.upsample_block.{2j-1}.{leaf}",
    ),
    ("conditioner_blocks.0.ln.{leaf}", "conditioner_blocks.layer_norm.{leaf}"),
)

LINEAR = re.compile(r"2([a-z])([+-]\d+)?")


def to_hugging_face(name: str) -> str:
    """What Hugging Face calls one of OpenAI's tensors, without the prefix of the model."""
    for openai, theirs in VQVAE + PRIOR:
        values = _match(openai, name)
        if values is not None:
            return _write(theirs, values)
    raise ValueError(f"{name} is not a tensor of Jukebox")


def from_hugging_face(name: str, lasts: dict[tuple[int, int], int]) -> str | None:
    """OpenAI's name of a tensor, or None. `lasts`: the number of the last convolution of an encoder's stage."""
    for openai, theirs in VQVAE + PRIOR:
        values = _match(theirs, name)
        if values is not None:
            if "{last}" in openai:
                values["last"] = lasts.get((int(values["l"]), int(values["i"])), 0)
            return _write(openai, values)
    return None


def last_convolutions(names: Iterable[str]) -> dict[tuple[int, int], int]:
    """How often each stage (level, stage) of the encoders halves, read from Hugging Face's names."""
    lasts: dict[tuple[int, int], int] = {}
    for name in names:
        match = re.match(r"encoders\.(\d+)\.level_blocks\.(\d+)\.downsample_block\.(\d+)\.", name)
        if match:
            level, stage, n = map(int, match.groups())
            lasts[level, stage] = max(lasts.get((level, stage), 0), n // 2 + 1)
    return lasts


def _match(pattern: str, name: str) -> dict[str, int | str] | None:
    """The values of the pattern's variables if `name` fits it."""
    values: dict[str, int | str] = {}
    words = pattern.split(".")
    parts = name.split(".")
    if len(words) != len(parts):
        return None
    for word, part in zip(words, parts):
        if not _fits(word, part, values):
            return None
    return values


def _fits(word: str, part: str, values: dict[str, int | str]) -> bool:
    """Whether a part of a name fits a word of a pattern; its variable's value goes into `values`."""
    head, brace, variable = word.partition("{")
    if not brace:
        return word == part
    variable = variable[:-1]
    text = part[len(head) :]
    if not part.startswith(head) or not text:
        return False
    if variable == "leaf":
        values["leaf"] = text
        return text in ("weight", "bias")
    if not text.isdigit():
        return False
    linear = LINEAR.fullmatch(variable)
    if linear is None:
        values[variable] = int(text)
        return True
    number = int(text) - int(linear[2] or 0)
    values[linear[1]] = number // 2
    return number % 2 == 0


def _write(pattern: str, values: dict[str, int | str]) -> str:
    """The pattern with the values of its variables."""

    def value(match: re.Match) -> str:
        linear = LINEAR.fullmatch(match[1])
        if linear is None:
            return str(values[match[1]])
        return str(2 * int(values[linear[1]]) + int(linear[2] or 0))

    return re.sub(r"\{([^}]+)\}", value, pattern)
