"""Audio of a level while it is still being sampled: decoded as soon as its codes are known.

The pieces lie on a grid of their own, so the audio of a level is the same however its codes came.
"""

# T codes of a level, A channels of the audio
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from megajukebox.data.audio import quantised
from megajukebox.models.chunked_codec import decode_piece
from megajukebox.models.vqvae import VQVAE

PIECE_SECONDS = 2.0
PARTIAL_SUFFIX = ".part.wav"  # of an audio file that is not complete
HEADER = 44  # bytes of a wav file before its samples


def piece_size(vqvae: VQVAE, level: str) -> int:
    """Codes that are decoded at once.

    What a piece depends on at either side is decoded again with it: for spectra more than the two seconds
    themselves, so their pieces are longer.
    """
    config = vqvae.config
    size = max(1, int(PIECE_SECONDS * config.sample_rate) // config.hops[level])
    if level in config.spectrum_levels:
        size = max(size, 2 * vqvae.level(level).decoder_reach())
    return size


def decode_all(vqvae: VQVAE, codes_T: Tensor, level: str) -> Tensor:
    """Audio [T*hop], of stereo [T*hop, A], the same as a stream writes."""
    size = piece_size(vqvae, level)
    pieces = []
    for start in range(0, len(codes_T), size):
        pieces.append(decode_piece(vqvae, codes_T, level, start, size).clamp(-1, 1))
    return torch.cat(pieces)


class AudioStream:
    """Writes <name>.part.wav as codes come (16 bits; a player may open it at any moment), at last <name>.wav.

    A part that an interrupted attempt left is overwritten piece by piece: it never holds less audio than before.
    """

    def __init__(self, vqvae: VQVAE, level: str, path: Path):
        self.vqvae = vqvae
        self.level = level
        self.path = path
        self.size = piece_size(vqvae, level)  # codes
        # Codes on either side that a piece depends on.
        self.context = vqvae.level(level).decoder_reach()
        self.hop = vqvae.config.hops[level]
        self.rate = vqvae.config.sample_rate
        self.channels = vqvae.config.channels
        self.frame_bytes = 2 * self.channels  # of 16-bit samples
        self.part = path.with_suffix(PARTIAL_SUFFIX)
        self.decoded = 0  # codes
        self.file: BinaryIO | None = None

    def feed(self, codes_T: Tensor, done: int) -> None:
        """Decode what can be decoded of the first `done` codes, which are final."""
        while self.decoded < len(codes_T) and (
            done == len(codes_T) or self.decoded + self.size + self.context <= done
        ):
            audio = decode_piece(self.vqvae, codes_T, self.level, self.decoded, self.size).clamp(
                -1, 1
            )
            self._write(audio.float().cpu().numpy())
            self.decoded = min(self.decoded + self.size, len(codes_T))
        if done == len(codes_T) and self.file is not None:
            size = self.frame_bytes * self.decoded * self.hop
            self.file.truncate(HEADER + size)
            self._write_header(size)
            self.file.close()
            os.replace(self.part, self.path)
            self.file = None

    def _write(self, audio: np.ndarray) -> None:
        if self.file is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self.file = os.fdopen(os.open(self.part, flags, 0o666), "r+b")  # until the level ends
        self.file.seek(HEADER + self.frame_bytes * self.decoded * self.hop)
        self.file.write(quantised(audio, 16).astype("<i2").tobytes())
        self.file.flush()  # before the header counts it
        self._write_header(self.file.seek(0, os.SEEK_END) - HEADER)

    def _write_header(self, data: int) -> None:
        """Write the header for `data` bytes of samples."""
        assert self.file is not None
        self.file.seek(0)
        bytes_per_second = self.frame_bytes * self.rate
        pcm = 1
        form = (b"fmt ", 16, pcm, self.channels, self.rate, bytes_per_second, self.frame_bytes, 16)
        self.file.write(
            struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + data, b"WAVE", *form, b"data", data)
        )
        self.file.flush()
