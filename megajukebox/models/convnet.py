"""Dilated residual convolutions, and the encoder and decoder that they make. Inside, tensors are [B, C, T]."""

# B batch   C channels   T time
import torch.nn.functional as F
from torch import Tensor, nn


class EvenConv1d(nn.Conv1d):
    """A convolution that keeps the variance of its input at first.

    PyTorch's default shrinks it to a third; through the 17 layers from audio to top codes and back nothing is left, and
    the top level learns nothing for its first hundred steps (LOG.md, 2026-11-22). Jukebox used the default.
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=(self.in_channels * self.kernel_size[0]) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class EvenConvTranspose1d(nn.ConvTranspose1d):
    """The same for lengthening: each output is reached by kernel / stride inputs."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=(self.in_channels * self.kernel_size[0] / self.stride[0]) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroConv1d(nn.Conv1d):
    """A convolution that starts as zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ResidualUnit(nn.Module):
    """x + scale * conv1x1(relu(dilated conv3(relu(x))))."""

    def __init__(self, width: int, hidden: int, dilation: int, scale: float = 1.0, zero_out: bool = False):
        super().__init__()
        self.dilated = nn.Conv1d(width, hidden, 3, padding=dilation, dilation=dilation)
        self.mix = ZeroConv1d(hidden, width, 1) if zero_out else nn.Conv1d(hidden, width, 1)
        self.scale = scale

    def forward(self, x_BCT: Tensor) -> Tensor:
        change = self.mix(F.relu(self.dilated(F.relu(x_BCT))))
        return x_BCT + (change if self.scale == 1.0 else self.scale * change)


def residual_stack(
    width: int, depth: int, growth: int = 3, cycle: int | None = None, hidden_ratio: float = 1.0,
    reverse: bool = False, scale: float = 1.0, zero_out: bool = False,
) -> nn.Sequential:  # fmt: skip
    """`depth` residual units with dilations growth^d (d restarting every `cycle`), largest first if `reverse`."""
    dilations = [growth ** (d % cycle if cycle else d) for d in range(depth)]
    units = [ResidualUnit(width, int(hidden_ratio * width), dilation, scale, zero_out) for dilation in dilations]
    return nn.Sequential(*(reversed(units) if reverse else units))


def halving(inputs: int, outputs: int, stride: int) -> EvenConv1d:
    """A convolution that shortens time by `stride` (even strides keep lengths exact)."""
    return EvenConv1d(inputs, outputs, 2 * stride, stride=stride, padding=stride // 2)


def doubling(inputs: int, outputs: int, stride: int) -> EvenConvTranspose1d:
    """The transposed twin of `halving`: lengthens time by `stride`."""
    return EvenConvTranspose1d(inputs, outputs, 2 * stride, stride=stride, padding=stride // 2)


class Encoder(nn.Module):
    """[B, inputs, T] -> [B, outputs, T / prod(stride^down)], one stage for each (down, stride)."""

    def __init__(self, inputs: int, outputs: int, width: int, stages: list[tuple[int, int]], **stack):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (down, stride) in enumerate(stages):
            channels = inputs if i == 0 else outputs
            for _ in range(down):
                layers += [halving(channels, width, stride), residual_stack(width, **stack)]
                channels = width
            layers.append(EvenConv1d(channels, outputs, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.layers(x_BCT)


class Decoder(nn.Module):
    """The mirror of `Encoder`: stages in reverse, each a stack before its lengthening convolution."""

    def __init__(self, inputs: int, outputs: int, width: int, stages: list[tuple[int, int]], **stack):
        super().__init__()
        layers: list[nn.Module] = []
        for down, stride in reversed(stages):
            layers.append(EvenConv1d(inputs, width, 3, padding=1))
            for j in range(down):
                channels = inputs if j == down - 1 else width
                layers += [residual_stack(width, **stack), doubling(width, channels, stride)]
        layers.append(EvenConv1d(inputs, outputs, 3, padding=1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.layers(x_BCT)
