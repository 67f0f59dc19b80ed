"""The windows of a level: where they start, which codes are theirs, how each is conditioned (spec section 12.2)."""

# B songs   M rows (a song and one of its windows)   T codes of the whole level   W codes of a window
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.conditioning.schema import SongConditioning, WindowPosition
from megajukebox.conditioning.section_conditions import MEMORY
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.models.prior import Conditioning, Prior, PriorConfig
from megajukebox.sampling.decoding.cuda_device import indices_on, upload
from megajukebox.sampling.decoding.token_sampling import (
    ClassifierFreeGuidance,
    TokenSamplerProtocol,
)
from megajukebox.sampling.decoding.window_sampler import SamplingWindow
from megajukebox.sampling.levels.level_sampler import LevelJob


@dataclass(frozen=True)
class WindowSpan:
    """A window of a level: it begins at code `start`, its own codes are `new` .. `end` - 1."""

    start: int
    new: int
    end: int


def window_starts(total: int, window: int, hop: int) -> list[int]:
    """Where windows start: every `hop` codes, the last one moved back to end with the level. [0] if one holds it all.

    window 8, hop 4, total 18   |----====|        known, new
                                    |----====|
                                        |----====|
                                          |------==|
    """
    if total <= window:
        return [0]
    return [min(start, total - window) for start in range(0, total - window + hop, hop)]


def window_spans(total: int, window: int, hop: int) -> list[WindowSpan]:
    """The windows in order: each code belongs to the first window that reaches it."""
    spans = []
    new = 0
    for start in window_starts(total, window, hop):
        end = min(start + window, total)
        spans.append(WindowSpan(start, new, end))
        new = end
    return spans


def conditioning_batch(
    config: PriorConfig,
    conditioning: list[SongConditioning],
    upper_MU: Tensor | None,
    starts: Sequence[int],
    samples: int,
    device: torch.device,
    codes_MT: Sequence[Tensor] | None = None,
) -> dict:
    """The batch that conditions M rows, each with its own window from code `starts` on.

    `codes_MT` are the codes of the level, of which those before a row's window may be asked.
    """
    rows: list[dict] = []
    for m, (song, start) in enumerate(zip(conditioning, starts)):
        length = config.window * config.hop
        earlier = partial(codes_between, codes_MT[m]) if codes_MT is not None else None
        position = WindowPosition(samples, start * config.hop, length, config.sample_rate, earlier)
        rows.append(song.window(position))
    batch = to_device(tensors(stack(rows)), device)
    if config.upsampler_conditioner:
        assert upper_MU is not None, f"the {config.level} level needs the codes above"
        ratio = config.upsampler_conditioner.ratio
        assert not any(start % ratio for start in starts), (
            f"windows at {starts} start inside a code of the level above"
        )
        above = []
        for upper_U, start in zip(upper_MU, starts):
            above.append(upper_window(upper_U, start // ratio, config.window // ratio))
        batch["upper_codes"] = upload(torch.stack(above), device)
    return batch


def codes_between(codes_T: Tensor, first: int, end: int) -> np.ndarray:
    """Codes [first, end) of a song, on the host."""
    return codes_T[first:end].cpu().numpy()


def upper_window(upper_XU: Tensor, start: int, length: int) -> Tensor:
    """`length` upper codes from `start`, [..., U]; past the end of the song the last code is held."""
    window = upper_XU[..., start : start + length]
    missing = length - window.shape[-1]
    if not missing:
        return window
    held = window[..., -1:].expand(*window.shape[:-1], missing)
    return torch.cat([window, held], dim=-1)


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch of tensors, some of them in dicts, on `device`."""
    moved: dict = {}
    for name, value in batch.items():
        move = to_device if isinstance(value, dict) else upload
        moved[name] = move(value, device)
    return moved


@dataclass(frozen=True)
class WindowRow:
    """A song and one of its windows; rows go in lockstep."""

    song: int
    span: WindowSpan


@torch.inference_mode()
def build_window(prior: Prior, job: LevelJob, rows: list[WindowRow]) -> SamplingWindow:
    """The window of those rows, with what the job knows by now; guided rows get an unconditional row each.

    rows        song 0 | song 1 | song 2 | song 1, unconditional     (where only song 1 is guided)
    """
    config = prior.config
    device = next(prior.parameters()).device
    songs = [row.song for row in rows]
    guided = [m for m, song in enumerate(songs) if job.guidance[song] != 1.0]
    every_row = [*range(len(rows)), *guided]
    conditioning = [job.conditioning[song] for song in songs]
    conditioning += [job.conditioning[0].null()] * len(guided)
    starts = []
    row_songs = []
    for m in every_row:
        starts.append(rows[m].span.start)
        row_songs.append(rows[m].song)
    upper = job.upper_BU
    if upper is not None:
        upper = upper[indices_on(upper.device, row_songs)]
    codes_MT = [job.codes_BT[song] for song in row_songs]
    batch = conditioning_batch(config, conditioning, upper, starts, job.samples, device, codes_MT)
    codes, known = _codes_and_known(config, job, rows, device)
    every_row_M = indices_on(device, every_row)
    batch["codes"] = codes[every_row_M]
    # Computed row by row: to the last bit, batch-mates do not matter.
    separate = [prior.conditioning(_row_of(batch, m)) for m in range(len(every_row))]
    parts = []
    for part in zip(*separate):
        parts.append(None if part[0] is None else torch.cat(part))
    sampler = job.token_sampler.select(indices_on(device, songs))
    guided_sampler: TokenSamplerProtocol = sampler
    if guided:
        strengths = torch.tensor([job.guidance[songs[m]] for m in guided])
        guided_sampler = ClassifierFreeGuidance(
            sampler, indices_on(device, guided), upload(strengths, device)
        )
    return SamplingWindow(
        prior,
        Conditioning(*parts),
        prior.tokens(batch),
        known[every_row_M],
        indices_on(device, starts),
        guided_sampler,
        _shared_prefixes(conditioning, starts, batch, known[every_row_M]),
    )


def _row_of(batch: dict, m: int) -> dict:
    """Row `m` of a batch of tensors, some of them in dicts, as a batch of one."""
    row: dict = {}
    for name, value in batch.items():
        row[name] = _row_of(value, m) if isinstance(value, dict) else value[m : m + 1]
    return row


def _codes_and_known(
    config: PriorConfig, job: LevelJob, rows: list[WindowRow], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Codes [M, W] and which positions [M, prefix + W] stay: the known ones, the prefix, and those past the span."""
    codes = []
    known = []
    for row in rows:
        span = row.span
        padding = (0, config.window - (span.end - span.start))
        codes.append(F.pad(job.codes_BT[row.song, span.start : span.end], padding))
        known.append(F.pad(job.known_BT[row.song, span.start : span.end], padding, value=True))
    known_MW = torch.stack(known).to(device)
    return torch.stack(codes).to(device), F.pad(known_MW, (config.prefix_tokens, 0), value=True)


def _shared_prefixes(
    conditioning: list[SongConditioning], starts: list[int], batch: dict, known_MT: Tensor
) -> Tensor | None:
    """Which rows have the same conditioning and known prefix, as variations of one request do; None: none have.

    Returns the number of its prefix for each row, [M] int64 on the host.
    """
    alike = [(id(song), start) for song, start in zip(conditioning, starts)]
    if len(set(alike)) == len(alike):  # so no GPU has to be asked
        return None
    unknown = (~known_MT).any(0).cpu().nonzero()
    known_length = int(unknown[0]) if len(unknown) else known_MT.shape[1]
    prefix_tokens = known_MT.shape[1] - batch["codes"].shape[1]
    num_codes = max(0, known_length - prefix_tokens)
    codes_MN = batch["codes"][:, :num_codes].cpu().numpy()
    # What differs between songs of one conditioning: it comes from their own codes.
    of_codes = [batch[name].cpu().numpy() for name in ("upper_codes", MEMORY) if name in batch]
    numbers: dict[tuple, int] = {}
    prefixes = []
    for m, row in enumerate(alike):
        above = b"".join(array[m].tobytes() for array in of_codes)
        prefixes.append(numbers.setdefault((row, above, codes_MN[m].tobytes()), len(numbers)))
    if not num_codes or len(numbers) == len(prefixes):
        return None
    return torch.tensor(prefixes)
