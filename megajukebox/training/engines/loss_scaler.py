"""The loss scale of float16 under `torch_autocast`, as a VQ-VAE trains on V100s (ZeRO-0).

DeepSpeed takes torch's GradScaler there, which keeps to itself what the other ways of fp16 report:

    gradients   x scale         in `backward`, so that small ones are not rounded to zero
    overflow    scale / 2       the optimizer's step is left out, and nobody is asked or told
    2000 steps  scale x 2       gradients double from one step to the next

The scale is a power of two: to divide by it is exact.
"""

from typing import Any

from torch import Tensor
from torch.amp import GradScaler

MIN_LOSS_SCALE = 1.0  # as `fp16.min_loss_scale` of the other stages


class AutocastLossScaler(GradScaler):
    """torch's GradScaler, whose overflows are counted, which has a floor and goes into checkpoints.

    DeepSpeed calls `scale`, `unscale_`, `step` and `update`; ZeroEngine calls what is added here.
    The state is the same on every rank: all of them see the same averaged gradients.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__(device_type)
        self.overflows = 0  # steps of the run that were left out

    def unscaled(self, norm: Tensor) -> Tensor:
        """What `norm` is without the scale by which gradients are multiplied before `step`."""
        assert self._scale is not None, "it is made by the first loss"
        return norm / self._scale

    def note_overflow(self) -> bool:
        """Count a step that was left out. Returns whether the scale has fallen below its floor."""
        self.overflows += 1
        return self.get_scale() < MIN_LOSS_SCALE

    def undo_backoff(self) -> None:
        """Give back the scale that the last overflow cost.

        A forward pass that is not finite is nothing that a smaller scale would mend.
        """
        self.update(self.get_scale() / self.get_backoff_factor())

    def state(self) -> dict[str, Any]:
        """For a checkpoint: plain numbers."""
        return {**self.state_dict(), "overflows": self.overflows}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state`."""
        self.load_state_dict(state)
        self.overflows = state["overflows"]
