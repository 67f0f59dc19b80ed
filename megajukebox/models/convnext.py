"""ConvNeXt blocks over time (Siuzdak 2023, Vocos, after Liu et al. 2022)."""

# B batch   C channels   F frames
import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 7  # frames; as in Vocos
LAYER_SCALE = 0.1  # of what a block adds at first


class ConvNeXtBlock(nn.Module):
    """x + g * mlp(norm(depthwise conv(x))) on [B, C, F]."""

    def __init__(self, width: int, hidden: int, dilation: int):
        super().__init__()
        self.depthwise = nn.Conv1d(
            width, width, KERNEL, padding=dilation * (KERNEL // 2), groups=width, dilation=dilation
        )
        self.norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, hidden)
        self.narrow = nn.Linear(hidden, width)
        self.scale = nn.Parameter(torch.full((width,), LAYER_SCALE))

    def forward(self, x_BCF: Tensor) -> Tensor:
        h_BFC = self.norm(self.depthwise(x_BCF).transpose(1, 2))
        change_BFC = self.scale * self.narrow(F.gelu(self.widen(h_BFC)))
        return x_BCF + change_BFC.transpose(1, 2)
