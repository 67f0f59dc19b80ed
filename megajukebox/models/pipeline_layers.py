"""A prior as a list of layers that hand each other tuples: what a pipeline cuts into stages.

The list is entrance, blocks, exit. `Prior.forward` and the cached decoder walk the same blocks; tests keep them equal.
Between two layers travel only what the rest still reads, in this order:

    h [B, T, W]   added [B, T, W], where the exit adds it again   lyrics [B, N, W], until the last layer that reads them
    words [], the loss of the lyric encoder
"""

# B batch   T positions   W width   N lyric tokens   V vocabulary
from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from megajukebox.common.levels import COMPOSER_FOLDER
from megajukebox.models.conditioners import Table
from megajukebox.models.prior import PriorConfig, PriorStem, loss_and_metrics, tokens_of
from megajukebox.models.transformer import TransformerBlock

State = tuple[Tensor, ...]
NOT_PREDICTED = -1  # a code that counts neither in the loss nor in the metrics
TIED = "input.tokens.weight"  # what entrance and exit share, where the head is not separate


def carried(config: PriorConfig, layer: int) -> list[str]:
    """The names of what travels into block `layer` (0-based; the number of blocks: into the exit)."""
    patterns = config.transformer.patterns
    encoded = config.lyrics is not None and config.lyrics.mode == "encoder"
    kept = {
        "h": True,
        "added": config.adds_to_codes and not config.separate_head,
        "lyrics": "lyrics" in patterns[layer:],
        "words": encoded,
    }
    return [name for name, travels in kept.items() if travels]


def inputs(config: PriorConfig, batch: dict) -> State:
    """A batch of `Prior.forward` as the tuple that the entrance takes apart again."""
    given: list[Tensor] = []
    for name in config.conditions:
        given.append(batch["conditions"][name])
    for name in _fields(config):
        given.append(batch[name])
    return tuple(given)


def _fields(config: PriorConfig) -> list[str]:
    """The names of what a batch holds beside its labels, in the order of the tuple."""
    wanted = {
        "codes": True,
        "timing": config.timing,
        "upper_codes": config.upsampler_conditioner,
        "lyrics": config.lyrics,
    }
    fields = [name for name, is_wanted in wanted.items() if is_wanted]
    return [*fields, *config.aligned]


class StemLayer(PriorStem):
    """The entrance: from the tuple of a batch to the first state."""

    def forward(self, given: State) -> State:
        names = list(self.config.conditions)
        fields = dict(zip(_fields(self.config), given[len(names) :]))
        batch = {"conditions": dict(zip(names, given)), **fields}
        conditioning = self.conditioning(batch)
        h = self.input(self.tokens(batch), conditioning.start, conditioning.added)
        state: dict[str, Tensor | None] = {
            "h": h,
            "added": conditioning.added,
            "lyrics": conditioning.lyrics,
            "words": self.encoder_bits(batch, conditioning),
        }
        carried_on: list[Tensor] = []
        for name in carried(self.config, 0):
            tensor = state[name]
            if tensor is not None:
                carried_on.append(tensor)
        return tuple(carried_on)


class BlockLayer(nn.Module):
    """Block number `layer`."""

    def __init__(self, config: PriorConfig, layer: int):
        super().__init__()
        self.block = TransformerBlock(
            config.transformer, config.transformer.patterns[layer], config.attended_prefix
        )
        self.takes = carried(config, layer)
        self.gives = carried(config, layer + 1)

    def forward(self, given: State) -> State:
        state = dict(zip(self.takes, given))
        reads = self.block.attention.pattern == "lyrics"
        state["h"] = self.block(state["h"], state["lyrics"]) if reads else self.block(state["h"])
        return tuple(state[name] for name in self.gives)


class HeadLayer(nn.Module):
    """The exit: logits in float32, from its own matrix (`separate_head`) or from the embedding of the tokens."""

    def __init__(self, config: PriorConfig):
        super().__init__()
        shape = config.transformer
        self.config = config
        if config.separate_head:
            self.head = nn.Linear(shape.width, config.vocabulary, bias=False)
        else:
            self.input = nn.Module()  # the tied matrix under the name that it has in the entrance
            self.input.tokens = Table(config.vocabulary, shape.width, 0.02 * shape.init_scale)

    def forward(self, given: State) -> State:
        return read_out(self, given)


def read_out(tied: nn.Module, given: State) -> State:
    """(logits [B, T, V], words) with the matrix of `tied`: the exit, or the entrance where both are on one stage."""
    config = cast(PriorConfig, tied.config)
    state = dict(zip(carried(config, config.transformer.depth), given))
    h = state["h"] + state["added"] if "added" in state else state["h"]
    matrix = tied.get_parameter("head.weight" if config.separate_head else TIED)
    logits = nn.functional.linear(h, matrix).float()
    return (logits, state["words"]) if "words" in state else (logits,)


def targets_of(config: PriorConfig, batch: dict) -> Tensor:
    """What the exit's logits are compared with: tokens [B, T], NOT_PREDICTED where `predicted` says so."""
    tokens = tokens_of(config, batch)
    predicted = batch.get("predicted")
    return tokens if predicted is None else tokens.masked_fill(~predicted, NOT_PREDICTED)


def loss_of(
    config: PriorConfig, given: State, targets_BT: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss [] and metrics as `Prior.forward` gives them, from what the exit gave."""
    words = given[1] if len(given) > 1 else None
    if config.level != COMPOSER_FOLDER:
        return loss_and_metrics(config, given[0], targets_BT, words)
    predicted = targets_BT != NOT_PREDICTED
    return loss_and_metrics(config, given[0], targets_BT.clamp(min=0), words, predicted)


def layers(config: PriorConfig) -> list[Callable[[], nn.Module]]:
    """What builds each layer, in the order in which `Prior` draws its first weights."""
    blocks = [
        lambda layer=layer: BlockLayer(config, layer) for layer in range(config.transformer.depth)
    ]
    return [lambda: StemLayer(config), *blocks, lambda: HeadLayer(config)]


def name_in_prior(layer: int, name: str) -> str:
    """What `Prior` calls the parameter `name` of layer number `layer` of the list."""
    return name.replace("block.", f"blocks.{layer - 1}.", 1) if name.startswith("block.") else name
