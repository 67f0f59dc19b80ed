"""Encoding and decoding of any length in overlapping chunks, at constant memory and with exact seams.

        chunk     |========|========|========|          what is kept
        computed  |===========|                         the chunk and its context on both sides, cut at the song's ends
                       |--============--|

Beyond its receptive field a convolution sees nothing, so with that much context the kept part is the same as in one
piece.
"""

# T samples or codes   A channels of the audio; mono audio is [T], without an axis for them
import torch
from torch import Tensor

from megajukebox.models.convnet import reach as reach
from megajukebox.models.refiner import Refiner
from megajukebox.models.vqvae import VQVAE


@torch.inference_mode()
def encode_long(vqvae: VQVAE, audio: Tensor, level: str, chunk_seconds: float = 20.0) -> Tensor:
    """Codes [T/hop] of audio [T] or [T, A]; a rest shorter than one top code is left out."""
    audio_TA = audio.unsqueeze(-1) if audio.ndim == 1 else audio
    hop = vqvae.config.hops[level]
    top = max(vqvae.config.hops.values())
    length = len(audio_TA) // top * top
    chunk = max(1, int(chunk_seconds * vqvae.config.sample_rate) // top) * top
    context = -(-vqvae.level(level).encoder_reach() // top) * top
    pieces = []
    for start in range(0, length, chunk):
        first = max(0, start - context)
        last = min(length, start + chunk + context)
        codes = vqvae.encode(audio_TA[None, first:last], level)[0]
        pieces.append(codes[(start - first) // hop : (min(start + chunk, length) - first) // hop])
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.long)


@torch.inference_mode()
def decode_long(vqvae: VQVAE, codes_T: Tensor, level: str, chunk_seconds: float = 20.0) -> Tensor:
    """Audio [T*hop], or [T*hop, A] of stereo, from codes [T] of one level."""
    chunk = max(1, int(chunk_seconds * vqvae.config.sample_rate) // vqvae.config.hops[level])
    pieces = []
    for start in range(0, len(codes_T), chunk):
        pieces.append(decode_piece(vqvae, codes_T, level, start, chunk))
    return torch.cat(pieces) if pieces else no_audio(vqvae)


def no_audio(vqvae: VQVAE) -> Tensor:
    """What no codes are decoded to, [0] or [0, A]."""
    channels = vqvae.config.channels
    return torch.zeros(0) if channels == 1 else torch.zeros(0, channels)


@torch.inference_mode()
def decode_piece(vqvae: VQVAE, codes_T: Tensor, level: str, start: int, size: int) -> Tensor:
    """The audio [size*hop], or [size*hop, A] of stereo, of `size` codes from `start` on.

    Only codes within `decoder_reach` of them matter.
    """
    hop = vqvae.config.hops[level]
    length = len(codes_T)
    context = vqvae.level(level).decoder_reach()
    first = max(0, start - context)
    last = min(length, start + size + context)
    audio_TA = vqvae.decode(codes_T[None, first:last], level, first)[0]
    audio = audio_TA[:, 0] if vqvae.config.channels == 1 else audio_TA
    return audio[(start - first) * hop : (min(start + size, length) - first) * hop]


@torch.inference_mode()
def refine_long(
    vqvae: VQVAE, refiner: Refiner, codes_T: Tensor, chunk_seconds: float = 20.0
) -> Tensor:
    """Refined audio [T*hop] float32 from codes [T] of the refiner's level, with exact seams at constant memory.

    Of stereo it is [T*hop, A]; each channel is refined as a mono song of the same codes would be. A piece is decoded
    and refined with `reach` samples of context on both sides, from whole frames and codes on.
    """
    config = refiner.config
    length = len(codes_T) * config.hop
    context = -(-config.reach // config.unit) * config.unit
    chunk = max(1, int(chunk_seconds * config.sample_rate) // config.unit) * config.unit
    pieces = []
    for start in range(0, length, chunk):
        end = min(start + chunk, length)
        first = max(0, start - context)
        last = min(length, end + context)
        codes = slice(first // config.hop, last // config.hop)
        decoded = decode_piece(vqvae, codes_T, config.level, codes.start, codes.stop - codes.start)
        waves_AT = decoded[None] if decoded.ndim == 1 else decoded.T
        refined_AT = refiner.refine(waves_AT, codes_T[None, codes].expand(len(waves_AT), -1))
        refined = refined_AT[0] if decoded.ndim == 1 else refined_AT.T
        pieces.append(refined[start - first : end - first])
    return torch.cat(pieces) if pieces else no_audio(vqvae)
