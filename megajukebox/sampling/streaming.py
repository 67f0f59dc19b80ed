"""Audio that can be heard while its level is still being sampled: decoded as soon as its codes are there.

The pieces lie on a grid of their own, so the audio of a level is the same however its codes came.
"""

# T codes of a level
import os
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from megajukebox.data.audio import quantised
from megajukebox.models.long_audio import decode_piece, reach
from megajukebox.models.vqvae import VQVAE

PIECE_SECONDS = 2.0


def piece_size(vqvae: VQVAE, level: str) -> int:
    return max(1, int(PIECE_SECONDS * vqvae.config.sample_rate) // vqvae.config.hops[level])


def decode_all(vqvae: VQVAE, codes_T: Tensor, level: str) -> Tensor:
    """Mono audio [T*hop], the same as a stream writes."""
    size = piece_size(vqvae, level)
    pieces = [decode_piece(vqvae, codes_T, level, start, size).clamp(-1, 1) for start in range(0, len(codes_T), size)]
    return torch.cat(pieces)


class AudioStream:
    """Writes <name>.part.wav as codes come (16 bits, mono; a player may open it at any moment), at last <name>.wav."""

    def __init__(self, vqvae: VQVAE, level: str, path: Path):
        self.vqvae, self.level, self.path = vqvae, level, path
        self.size, self.context = piece_size(vqvae, level), reach(vqvae.level(level).decoder)
        self.part = path.with_suffix(".part.wav")
        self.at = 0  # codes that are decoded
        self.writer: wave.Wave_write | None = None

    def feed(self, codes_T: Tensor, done: int) -> None:
        """`done` codes from the beginning are final; decode what can be decoded of them."""
        while self.at < len(codes_T) and (done == len(codes_T) or self.at + self.size + self.context <= done):
            audio = decode_piece(self.vqvae, codes_T, self.level, self.at, self.size).clamp(-1, 1)
            self._write(audio.float().cpu().numpy())
            self.at = min(self.at + self.size, len(codes_T))
        if done == len(codes_T):
            self._finish()

    def _write(self, audio: np.ndarray) -> None:
        if self.writer is None:
            self.writer = wave.open(str(self.part), "wb")  # noqa: SIM115  (open for as long as the level takes)
            self.writer.setnchannels(1)
            self.writer.setsampwidth(2)
            self.writer.setframerate(self.vqvae.config.sample_rate)
        self.writer.writeframes(quantised(audio, 16).astype("<i2").tobytes())
        self.writer._file.flush()  # type: ignore[attr-defined]  # the header is patched by now; a player sees whole frames

    def _finish(self) -> None:
        if self.writer is not None:
            self.writer.close()
            os.replace(self.part, self.path)
            self.writer = None


def finished(known_T: Tensor) -> int:
    """How many codes from the beginning are known."""
    unknown = (~known_T).nonzero()
    return int(unknown[0]) if len(unknown) else len(known_T)


def as_tensor(codes_T: np.ndarray) -> Tensor:
    return torch.from_numpy(codes_T.astype(np.int64))
