"""Dilated residual convolutions, and the encoder and decoder that they make. Layers see pictures one row high.

        [B, C, T]  --Stack-->  [B, C, 1, T] in every layer  -->  [B, C, T]

On CPUs the channels of one moment lie together in memory, which torch offers for pictures only: encoding takes little
more than half the time, with the same numbers (docs/decisions/0008). On GPUs `set_channels_last` does the same.
"""

# B batch   C channels   T time   1 the height of a picture that is no picture   D dilation
from math import ceil

import torch.nn.functional as F
from torch import Tensor, nn

FOLD = 81  # wider dilations are folded away: at 729 the weights' gradient ran at a third of the undilated speed


def on_cpu(x: Tensor) -> bool:
    """Whether channels shall lie together and wide dilations be folded away."""
    return x.device.type == "cpu"


class Stack(nn.Sequential):
    """Layers one after another, from [B, C, T] to [B, C', T']."""

    channels_last: bool | None = None  # None: on CPUs alone

    def forward(self, x_BCT: Tensor) -> Tensor:
        channels_last = on_cpu(x_BCT) if self.channels_last is None else self.channels_last
        laid_out = (
            x_BCT.transpose(1, 2).contiguous().transpose(1, 2)
            if channels_last
            else x_BCT.contiguous()
        )
        return super().forward(laid_out.unsqueeze(2)).squeeze(2)


def set_channels_last(model: nn.Module, channels_last: bool | None) -> None:
    """How every Stack of `model` lays its channels out from now on; numbers stay what they are up to rounding."""
    for module in model.modules():
        if isinstance(module, Stack):
            module.channels_last = channels_last


class Conv1d(nn.Conv1d):
    """nn.Conv1d on [B, C, 1, T]."""

    def forward(self, x_BC1T: Tensor) -> Tensor:
        stride = (1, self.stride[0])
        padding = (0, int(self.padding[0]))
        dilation = (1, self.dilation[0])
        return F.conv2d(x_BC1T, self.weight.unsqueeze(2), self.bias, stride, padding, dilation)


class ConvTranspose1d(nn.ConvTranspose1d):
    """nn.ConvTranspose1d on [B, C, 1, T]."""

    def forward(self, x_BC1T: Tensor, output_size: list[int] | None = None) -> Tensor:
        assert output_size is None
        stride = (1, self.stride[0])
        padding = (0, int(self.padding[0]))
        return F.conv_transpose2d(x_BC1T, self.weight.unsqueeze(2), self.bias, stride, padding)


class DilatedConv1d(Conv1d):
    """A convolution of 3 taps that keeps the length. A wide dilation D becomes a picture D wide, without dilation:
    neighbours in its columns are D apart in time.

        0 1 2 3 4 5 6   D = 3   ->   0 1 2      each column on its own, taps above and below;
                                     3 4 5      zeros at the end complete the last row
                                     6 0 0
    """

    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__(inputs, outputs, 3, padding=dilation, dilation=dilation)

    def forward(self, x_BC1T: Tensor) -> Tensor:
        dilation = self.dilation[0]
        length = x_BC1T.shape[-1]
        if dilation < FOLD or not on_cpu(x_BC1T):
            return super().forward(x_BC1T)
        x_BTC = F.pad(x_BC1T.squeeze(2).transpose(1, 2), (0, 0, 0, -length % dilation))
        x_BCTD = x_BTC.unflatten(1, (-1, dilation)).permute(0, 3, 1, 2)
        y_BCTD = F.conv2d(x_BCTD, self.weight.unsqueeze(3), self.bias, padding=(1, 0))
        y_BTC = y_BCTD.permute(0, 2, 3, 1).flatten(1, 2)[:, :length].contiguous()
        return y_BTC.transpose(1, 2).unsqueeze(2)


class EvenConv1d(Conv1d):
    """A convolution that keeps the variance of its input at first.

    PyTorch's default shrinks it to a third; through the 17 layers from audio to top codes and back nothing is left, and
    the top level learns nothing for its first hundred steps (docs/decisions/0007). Jukebox used the default.
    """

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=(self.in_channels * self.kernel_size[0]) ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class EvenConvTranspose1d(ConvTranspose1d):
    """The same for lengthening: each output is reached by kernel / stride inputs."""

    def reset_parameters(self) -> None:
        nn.init.normal_(
            self.weight, std=(self.in_channels * self.kernel_size[0] / self.stride[0]) ** -0.5
        )
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ZeroConv1d(Conv1d):
    """A convolution that starts as zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ResidualUnit(nn.Module):
    """x + scale * conv1x1(relu(dilated conv3(relu(x))))."""

    def __init__(
        self, width: int, hidden: int, dilation: int, scale: float = 1.0, zero_out: bool = False
    ):
        super().__init__()
        self.dilated = DilatedConv1d(width, hidden, dilation)
        self.mix = ZeroConv1d(hidden, width, 1) if zero_out else Conv1d(hidden, width, 1)
        self.scale = scale

    def forward(self, x_BC1T: Tensor) -> Tensor:
        change = self.mix(F.relu(self.dilated(F.relu(x_BC1T)), inplace=True))
        return (change if self.scale == 1.0 else self.scale * change).add_(x_BC1T)


def residual_stack(
    width: int,
    depth: int,
    growth: int = 3,
    cycle: int | None = None,
    hidden_ratio: float = 1.0,
    reverse: bool = False,
    scale: float = 1.0,
    zero_out: bool = False,
) -> nn.Sequential:
    """`depth` residual units with dilations growth^d (d restarting every `cycle`), largest first if `reverse`."""
    hidden = int(hidden_ratio * width)
    units: list[nn.Module] = []
    for d in range(depth):
        dilation = growth ** (d % cycle if cycle else d)
        units.append(ResidualUnit(width, hidden, dilation, scale, zero_out))
    return nn.Sequential(*(reversed(units) if reverse else units))


def doubling(inputs: int, outputs: int, stride: int) -> EvenConvTranspose1d:
    """The transposed twin of the encoder's shortening: a convolution that lengthens time by `stride`."""
    return EvenConvTranspose1d(inputs, outputs, 2 * stride, stride=stride, padding=stride // 2)


class Encoder(nn.Module):
    """[B, inputs, T] -> [B, outputs, T / prod(stride^down)], one stage for each (down, stride)."""

    def __init__(
        self, inputs: int, outputs: int, width: int, stages: list[tuple[int, int]], **stack
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for i, (down, stride) in enumerate(stages):
            channels = inputs if i == 0 else outputs
            for _ in range(down):
                # Even strides keep lengths exact.
                shorten = EvenConv1d(
                    channels, width, 2 * stride, stride=stride, padding=stride // 2
                )
                layers += [shorten, residual_stack(width, **stack)]
                channels = width
            layers.append(EvenConv1d(channels, outputs, 3, padding=1))
        self.layers = Stack(*layers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.layers(x_BCT)


class Decoder(nn.Module):
    """The mirror of `Encoder`: stages in reverse, each a stack before its lengthening convolution."""

    def __init__(
        self, inputs: int, outputs: int, width: int, stages: list[tuple[int, int]], **stack
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for down, stride in reversed(stages):
            layers.append(EvenConv1d(inputs, width, 3, padding=1))
            for j in range(down):
                channels = inputs if j == down - 1 else width
                layers += [residual_stack(width, **stack), doubling(width, channels, stride)]
        layers.append(EvenConv1d(inputs, outputs, 3, padding=1))
        self.layers = Stack(*layers)

    def forward(self, x_BCT: Tensor) -> Tensor:
        return self.layers(x_BCT)


def reach(layers: nn.Module) -> int:
    """How many input steps away a stack of convolutions sees, to either side (an upper bound)."""
    steps = 1.0
    total = 0.0
    for layer in layers.modules():
        if isinstance(layer, nn.ConvTranspose1d):
            total += layer.kernel_size[0] / layer.stride[0] * steps
            steps /= layer.stride[0]
        elif isinstance(layer, nn.Conv1d):
            total += layer.kernel_size[0] // 2 * layer.dilation[0] * steps
            steps *= layer.stride[0]
    return ceil(total)
