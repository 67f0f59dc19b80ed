"""Short-time spectra whose frames lie over the codes: frame n is centred on the n-th run of `hop` samples."""

# B batch   F frames   K frequency bins   W samples of a window   T samples = F * hop
import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 1e-8  # keeps silence from dividing by zero


def frame_spectra(x_BT: Tensor, window: int, hop: int) -> Tensor:
    """Spectra [B, F, K] of Hann windows centred on each run of `hop` samples, silence beyond the ends; T is F * hop.

    A sine of amplitude a has magnitude a / 2 whatever the window.
    """
    pad = (window - hop) // 2
    shape = torch.hann_window(window, device=x_BT.device)
    padded = F.pad(x_BT.float(), (pad, pad))
    spectra = torch.stft(padded, window, hop, window, shape, center=False, return_complex=True)
    return spectra.transpose(1, 2) / (window / 2)


def overlap_add(spectra_BFK: Tensor, window: int, hop: int) -> Tensor:
    """The wave [B, F * hop] whose `frame_spectra` are nearest to these: the inverse, where one exists."""
    shape = torch.hann_window(window, device=spectra_BFK.device)
    frames_BFW = torch.fft.irfft(spectra_BFK * (window / 2), n=window) * shape
    frames = spectra_BFK.shape[1]
    length = (frames - 1) * hop + window
    wave = added(frames_BFW, length, hop)
    weight = added((shape * shape).expand(1, frames, window), length, hop)
    pad = (window - hop) // 2
    return (wave / weight.clamp(min=SMALL))[:, pad : pad + frames * hop]


def added(frames_BFW: Tensor, length: int, hop: int) -> Tensor:
    """The sum [B, length] of frames that begin `hop` samples apart."""
    window = frames_BFW.shape[-1]
    columns = frames_BFW.transpose(1, 2)
    return F.fold(columns, (1, length), (1, window), stride=(1, hop))[:, 0, 0]
