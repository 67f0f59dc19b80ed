"""The windows of a level: where they start, which codes are theirs, what each is told (spec section 12.2)."""

# B songs   M rows (a song and one of its windows)   T codes of the whole level   W codes of a window
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.conditioning.schema import SongConditioning, WindowPosition
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.models.prior import Conditioning, Prior, PriorConfig
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
    ends = [min(start + window, total) for start in window_starts(total, window, hop)]
    return [
        WindowSpan(start, new, end)
        for start, new, end in zip(window_starts(total, window, hop), [0, *ends[:-1]], ends)
    ]


def conditioning_batch_at(
    config: PriorConfig,
    conditioning: list[SongConditioning],
    upper_BU: Tensor | None,
    start: int,
    samples: int,
    device: torch.device,
) -> dict:
    """The batch that conditions a window starting at code `start`, as the prior's `conditioning` wants it."""
    return conditioning_batch(
        config, conditioning, upper_BU, [start] * len(conditioning), samples, device
    )


def conditioning_batch(
    config: PriorConfig, conditioning: list[SongConditioning], upper_MU: Tensor | None, starts: Sequence[int], samples: int,
    device: torch.device,
) -> dict:  # fmt: skip
    """The batch that conditions M rows, each with its own window from code `starts` on."""
    rows: list[dict] = []
    for song, start in zip(conditioning, starts):
        length = config.window * config.hop
        position = WindowPosition(samples, start * config.hop, length, config.sample_rate)
        rows.append(song.window(position))
    batch = to_device(tensors(stack(rows)), device)
    if config.upsampler_conditioner:
        assert upper_MU is not None, f"the {config.level} level needs the codes above"
        ratio = config.upsampler_conditioner.ratio
        assert not any(start % ratio for start in starts), (
            f"windows at {starts} start inside a code of the level above"
        )
        above = [
            upper_window(u, start // ratio, config.window // ratio)
            for u, start in zip(upper_MU, starts)
        ]
        batch["upper_codes"] = torch.stack(above).to(device)
    return batch


def upper_window(upper_XU: Tensor, start: int, length: int) -> Tensor:
    """`length` upper codes from `start`, [..., U]; past the end of the song the last code is held."""
    window = upper_XU[..., start : start + length]
    missing = length - window.shape[-1]
    return (
        torch.cat([window, window[..., -1:].expand(*window.shape[:-1], missing)], dim=-1)
        if missing
        else window
    )


def to_device(batch: dict, device: torch.device) -> dict:
    """A batch of tensors, some of them in dicts, on `device`."""
    moved: dict = {}
    for name, value in batch.items():
        moved[name] = to_device(value, device) if isinstance(value, dict) else value.to(device)
    return moved


@dataclass(frozen=True)
class WindowRow:
    """A song and one of its windows; rows go in lockstep."""

    song: int
    span: WindowSpan


@torch.inference_mode()
def build_window(prior: Prior, job: LevelJob, rows: list[WindowRow]) -> SamplingWindow:
    """Those rows, and a twin of every guided one, as one `Window` with the codes and clamps that the job has now."""
    config, device = prior.config, next(prior.parameters()).device
    songs = [row.song for row in rows]
    guided = [n for n, song in enumerate(songs) if job.guidance[song] != 1.0]
    everyone = [*range(len(rows)), *guided]
    told = [job.conditioning[song] for song in songs] + [job.conditioning[0].null()] * len(guided)
    starts = [rows[n].span.start for n in everyone]
    upper = None if job.upper_BU is None else job.upper_BU[[songs[n] for n in everyone]]
    batch = conditioning_batch(config, told, upper, starts, job.samples, device)
    codes, known = _codes_of(config, job, rows, device)
    batch["codes"] = codes[everyone]
    draw: TokenSamplerProtocol = job.token_sampler.select(torch.tensor(songs, device=device))
    if guided:
        strengths = torch.tensor([job.guidance[songs[n]] for n in guided], device=device)
        draw = ClassifierFreeGuidance(
            job.token_sampler.select(torch.tensor(songs, device=device)),
            torch.tensor(guided, device=device),
            strengths,
        )
    return SamplingWindow(
        prior, _conditioning_apart(prior, batch), prior.tokens(batch), known[everyone],
        torch.tensor(starts, device=device), draw, _sharing(told, starts, batch, known[everyone]),
    )  # fmt: skip


def _conditioning_apart(prior: Prior, batch: dict) -> Conditioning:
    """What each row is given, computed for it alone: to the last bit, batch-mates do not matter."""
    alone = [prior.conditioning(_row_of(batch, m)) for m in range(len(batch["codes"]))]
    return Conditioning(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*alone)))


def _row_of(batch: dict, m: int) -> dict:
    return {k: _row_of(v, m) if isinstance(v, dict) else v[m : m + 1] for k, v in batch.items()}


def _codes_of(
    config: PriorConfig, job: LevelJob, rows: list[WindowRow], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Codes [M, W] and which positions [M, prefix + W] stay: what is known, and what is none of the row's business."""
    codes, known = [], []
    for row in rows:
        span, room = row.span, (0, config.window - (row.span.end - row.span.start))
        codes.append(F.pad(job.codes_BT[row.song, span.start : span.end], room))
        known.append(F.pad(job.known_BT[row.song, span.start : span.end], room, value=True))
    stay = torch.stack(known).to(device)
    return torch.stack(codes).to(device), F.pad(stay, (config.prefix_tokens, 0), value=True)


def _sharing(
    told: list[SongConditioning], starts: list[int], batch: dict, known_MT: Tensor
) -> Tensor | None:
    """Which rows share what they are told and their known beginning: variations of one request. None: none do."""
    unknown = (~known_MT).any(0).nonzero()
    prefix, length = known_MT.shape[1] - batch["codes"].shape[1], known_MT.shape[1]
    begin = max(0, (int(unknown[0]) if len(unknown) else length) - prefix)
    upper = batch.get("upper_codes")
    kinds: dict[tuple, int] = {}
    songs = []
    for m, (who, start) in enumerate(zip(told, starts)):
        above = b"" if upper is None else upper[m].cpu().numpy().tobytes()
        key = (id(who), start, above, batch["codes"][m, :begin].cpu().numpy().tobytes())
        songs.append(kinds.setdefault(key, len(kinds)))
    return (
        torch.tensor(songs, device=known_MT.device) if begin and len(kinds) < len(songs) else None
    )
