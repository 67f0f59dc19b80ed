"""One level of some songs: overlapping windows, each sampled after what is known of it (spec section 12.2)."""

# B songs of equal length   T codes of the whole level   W codes of a window
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megajukebox.data.lrc import Word
from megajukebox.data.lyrics import Tokens
from megajukebox.data.windows import window_of_lyrics
from megajukebox.models.prior import Prior, PriorConfig
from megajukebox.sampling.decoder import Drawing, Progress, sample_window

# Share of a window by which the next one moves on. The top moves little: it has no level above to hold it together.
HOPS = {"top": 0.125, "middle": 0.5, "bottom": 0.5}


@dataclass(frozen=True)
class Told:
    """What one song's prior is told beside codes and timing."""

    conditions: dict[str, np.ndarray]  # name -> [slots] ids
    tokens: Tokens  # of the whole lyrics
    words: list[Word]  # with times, if the lyrics came with them


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


def sample_level(
    prior: Prior, told: list[Told], upper_BU: Tensor | None, total: int, samples: int, draw: Drawing,
    hop_fraction: float, known_BK: Tensor | None = None, progress: Progress = lambda count: None,
) -> Tensor:  # fmt: skip
    """Codes [B, T] of one level, T = `total`, beginning with `known` [B, K].

    `upper` are the codes of the level above for at least the same time, `samples` the length of the song in audio
    samples (what the timing is told; the level may end earlier).
    """
    config, device = prior.config, next(prior.parameters()).device
    codes = torch.zeros(len(told), total, dtype=torch.long, device=device)
    done = 0
    if known_BK is not None:
        done = min(total, known_BK.shape[1])
        codes[:, :done] = known_BK[:, :done]
    for start in window_starts(total, config.window, hop_of(config, hop_fraction)):
        end = min(start + config.window, total)
        if end <= done:
            continue
        batch = conditions_at(config, told, upper_BU, start, samples, device)
        codes[:, done:end] = _new_codes(prior, batch, codes[:, start:end], done - start, draw, start, progress)
        done = end
    return codes


def hop_of(config: PriorConfig, fraction: float) -> int:
    """Codes by which windows move on: whole codes of the level above, or those would be of another time."""
    ratio = config.upper.ratio if config.upper else 1
    return max(1, int(fraction * config.window) // ratio) * ratio


def _new_codes(
    prior: Prior, batch: dict, window_BW: Tensor, known: int, draw: Drawing, start: int, progress: Progress
) -> Tensor:
    """The codes of one window after its `known` ones."""
    config = prior.config
    prefix, end = config.prefix_tokens, window_BW.shape[1]
    batch["codes"] = F.pad(window_BW, (0, config.window - end))
    with torch.inference_mode():
        given = prior.conditioning(batch)
        tokens = sample_window(prior, given, prior.tokens(batch), prefix + known, prefix + end, draw, start, progress)
    # A model of one sequence may emit a lyric token where music belongs; Jukebox reads that as code 0 (spec 7.5).
    return (tokens[:, prefix + known : prefix + end] - config.shift).clamp(min=0)


def conditions_at(
    config: PriorConfig, told: list[Told], upper_BU: Tensor | None, start: int, samples: int, device: torch.device
) -> dict:
    """The batch that conditions a window starting at code `start`, as the prior's `conditioning` wants it."""
    place = (samples, start * config.hop, config.window * config.hop)
    names = {n: torch.from_numpy(np.stack([t.conditions[n] for t in told])).to(device) for n in config.labels}
    batch: dict = {"timing": torch.tensor([place] * len(told), device=device), "conditions": names}
    if config.lyrics:
        rate, size = config.sample_rate, config.lyrics.tokens
        windows = [window_of_lyrics(t.tokens, t.words, *place, rate, size).ids for t in told]
        batch["lyrics"] = torch.from_numpy(np.stack(windows)).to(device)
    if config.upper:
        assert upper_BU is not None, f"the {config.level} level needs the codes above"
        assert start % config.upper.ratio == 0, f"a window at {start} starts inside a code of the level above"
        ratio = config.upper.ratio
        batch["upper_codes"] = upper_window(upper_BU.to(device), start // ratio, config.window // ratio)
    return batch


def upper_window(upper_BU: Tensor, start: int, length: int) -> Tensor:
    """`length` upper codes from `start`; past the end of the song the last code is held."""
    window = upper_BU[:, start : start + length]
    missing = length - window.shape[1]
    return torch.cat([window, window[:, -1:].expand(-1, missing)], dim=1) if missing else window
