"""What a reconstruction is judged by: distances of the wave and of its short-time spectra (spec section 4.3)."""

# B batch   T samples of mono audio
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

LOG_FLOOR_DB = 80.0  # below the loudest bin nothing counts in a distance of logarithms
SILENT = 1e-5  # of a magnitude: an item of silence has no loudest bin


class STFT(BaseModel):
    """One setting of the short-time Fourier transform, in samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fft: int = 2048
    hop: int = 256
    window: int = 1536

    def magnitude(self, x_BT: Tensor) -> Tensor:
        """|STFT| [B, fft/2 + 1, frames], centred, with a periodic Hann window."""
        window = torch.hann_window(self.window, device=x_BT.device, dtype=x_BT.dtype)
        centred = not torch.are_deterministic_algorithms_enabled()
        if not centred:
            x_BT = reflected(x_BT, self.fft // 2)
        spectrum = torch.stft(
            x_BT, self.fft, self.hop, self.window, window, center=centred, return_complex=True
        )
        return spectrum.abs()


def reflected(x_BT: Tensor, pad: int) -> Tensor:
    """`x_BT` with `pad` mirrored samples at either end, as torch.stft centres it.

    Torch's own padding has no deterministic gradient on GPUs.
    """
    before = x_BT[:, 1 : pad + 1].flip(1)
    after = x_BT[:, -pad - 1 : -1].flip(1)
    return torch.cat([before, x_BT, after], dim=1)


class Bandwidth(BaseModel):
    """Scale of the training audio, by which losses are divided: variance, mean |x|, mean norm of a clip's spectrum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    l2: float = 1.0
    l1: float = 1.0
    spectral: float = 1.0


class ReconstructionLoss(BaseModel):
    """Weights of the terms; a term of weight 0 is not computed. `linf_samples` is k of the k worst samples."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    l1: float = 0.0
    l2: float = 1.0
    linf: float = 0.02
    linf_samples: int = 2048
    spectral: float = 0.0
    multispectral: float = 1.0
    log_spectral: float = 0.0  # Jukebox had none
    stft: STFT = STFT()
    stfts: tuple[STFT, ...] = (
        STFT(fft=2048, hop=240, window=1200),
        STFT(fft=1024, hop=120, window=600),
        STFT(fft=512, hop=50, window=240),
    )


def distance(
    config: ReconstructionLoss, term: str, x_BT: Tensor, y_BT: Tensor, bandwidth: Bandwidth
) -> Tensor:
    """One term of the loss between the truth x and the reconstruction y, already divided by its bandwidth."""
    if term == "l1":
        return (y_BT - x_BT).abs().mean() / bandwidth.l1
    if term == "l2":
        return (y_BT - x_BT).square().mean() / bandwidth.l2
    if term == "linf":
        worst = (y_BT - x_BT).square().topk(min(config.linf_samples, x_BT.shape[1]), dim=1).values
        return worst.mean() / bandwidth.l2
    if term == "spectral":
        return _spectral(config.stft, x_BT, y_BT).mean() / bandwidth.spectral
    if term == "log_spectral":  # of ratios: no scale of the audio to divide by
        return torch.stack([log_spectral(stft, x_BT, y_BT) for stft in config.stfts]).mean()
    assert term == "multispectral", term
    distances = [_spectral(stft, x_BT, y_BT) for stft in config.stfts]
    return torch.stack(distances).mean() / bandwidth.spectral


def _spectral(stft: STFT, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """|M(x) - M(y)| of each item [B]; no gradient flows through the truth x."""
    with torch.no_grad():
        target = stft.magnitude(x_BT)
    return (target - stft.magnitude(y_BT)).flatten(1).norm(dim=1)


def log_spectral(stft: STFT, x_BT: Tensor, y_BT: Tensor) -> Tensor:
    """Mean |ln M(x) - ln M(y)| [], nepers; both floored LOG_FLOOR_DB below the loudest bin of an item of x.

    Norms of linear magnitudes are ruled by the loudest bins; this term hears noise between harmonics too. The floor
    keeps digital silence from ruling it.
    """
    with torch.no_grad():
        target = stft.magnitude(x_BT)
        floor = 10 ** (-LOG_FLOOR_DB / 20) * target.amax(dim=(1, 2), keepdim=True) + SILENT
    return (torch.log(stft.magnitude(y_BT) + floor) - torch.log(target + floor)).abs().mean()


def reconstruction(
    config: ReconstructionLoss, x_BT: Tensor, y_BT: Tensor, bandwidth: Bandwidth
) -> Tensor:
    """The weighted sum of the terms whose weight is not 0."""
    total = x_BT.new_zeros(())
    for term in ("l1", "l2", "linf", "spectral", "multispectral", "log_spectral"):
        weight = getattr(config, term)
        if weight:
            total = total + weight * distance(config, term, x_BT, y_BT, bandwidth)
    return total


def spectral_convergence(stft: STFT, x_BT: Tensor, y_BT: Tensor, floor: float = 0.002) -> Tensor:
    """Mean over the batch of |M(x) - M(y)| / |M(x)|; an item quieter than `floor` counts as 0."""
    truth = stft.magnitude(x_BT)
    size = truth.flatten(1).norm(dim=1)
    error = (truth - stft.magnitude(y_BT)).flatten(1).norm(dim=1)
    return torch.where(size > floor, error / size.clamp(min=floor), 0.0).mean()
