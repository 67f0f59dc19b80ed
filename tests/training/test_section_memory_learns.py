"""A prior with memory needs fewer bits for what returns, and no more for what is new: on made-up songs, trained for a minute.

A code is a note and a texture (2 bits that nobody can know). Sections are longer than the window, and the way back to
the last one of their kind is longer still. What returns has the same notes with other textures.
"""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from megajukebox.conditioning.schema import (
    ConditionResources,
    SongConditioning,
    WindowPosition,
    conditions_of,
)
from megajukebox.conditioning.section_conditions import SongReturns
from megajukebox.conditioning.song_sections import LabelledSection, returns_of
from megajukebox.data.stream.batches import stack, tensors
from megajukebox.models.prior import Prior, PriorConfig

WINDOW, CODES, HOP, RATE = 64, 64, 10, 100
FORM = ("verse", "chorus", "verse", "chorus", "bridge", "chorus")
STEPS, BATCH, SONGS, HELD_OUT = 600, 16, 240, 24


def melody(rng: np.random.Generator) -> list[tuple[int, int]]:
    """Notes of 0 to 15 with the codes that each lasts; some 90 codes together."""
    notes = []
    note = int(rng.integers(16))
    while sum(length for _, length in notes) < 80:
        notes.append((note, int(rng.integers(2, 7))))
        note = (note + int(rng.choice((-5, -3, -2, -1, 1, 2, 3, 5)))) % 16
    return notes


def made_up_song(seed: int) -> tuple[np.ndarray, list[LabelledSection]]:
    """Codes [T] and sections; one note in twenty of what returns is another one."""
    rng = np.random.default_rng(seed)
    melodies = {kind: melody(rng) for kind in sorted(set(FORM))}
    codes: list[int] = []
    sections = []
    for kind in FORM:
        start = len(codes)
        is_new = kind not in [section.kind for section in sections]
        for note, length in melodies[kind]:
            played = note if is_new or rng.random() > 0.05 else int(rng.integers(16))
            codes += (4 * played + rng.integers(0, 4, length)).tolist()
        sections.append(LabelledSection(kind, start / 10, len(codes) / 10, "json"))
    return np.array(codes), sections


def config_of(aligned: dict[str, Any]) -> PriorConfig:
    transformer = {"width": 64, "depth": 6, "heads": 2, "blocks": 8, "init_scale": 3.0}
    return PriorConfig(
        level="top",
        sample_rate=RATE,
        hop=HOP,
        codebook_size=CODES,
        window=WINDOW,
        transformer=transformer,
        aligned=aligned,
    )


class MadeUpSongs:
    """Windows of the songs, as training and evaluation are given them."""

    def __init__(self, config: PriorConfig):
        dropout = dict.fromkeys(("sections", "memory"), 0.15)
        self.conditions = conditions_of(config, ConditionResources(dropout=dropout))
        self.songs = [made_up_song(seed) for seed in range(SONGS + HELD_OUT)]

    def window(
        self, song: int, start: int, rng: np.random.Generator | None, remembers: bool = True
    ) -> dict[str, Any]:
        codes, sections = self.songs[song]
        values = SongConditioning(self.conditions, {}).null().values | {"sections": tuple(sections)}
        if remembers:
            values["memory"] = SongReturns(tuple(returns_of(sections)))
        position = WindowPosition(
            len(codes) * HOP, start * HOP, WINDOW * HOP, RATE, lambda a, b: codes[a:b]
        )
        conditioning = SongConditioning(self.conditions, values)
        return {"codes": codes[start : start + WINDOW], **conditioning.window(position, rng)}

    def is_return(self, song: int, start: int) -> np.ndarray:
        """[WINDOW] whether each code is one that returns."""
        times = (start + np.arange(WINDOW)) / 10
        found = np.zeros(WINDOW, dtype=bool)
        for one in returns_of(self.songs[song][1]):
            found |= (times >= one.start) & (times < one.end)
        return found


def trained(config: PriorConfig, songs: MadeUpSongs) -> Prior:
    torch.manual_seed(0)
    prior = Prior(config)
    rng = np.random.default_rng(1)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=4e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS, pct_start=0.05)
    for _ in range(STEPS):
        rows = []
        for song in rng.integers(SONGS, size=BATCH).tolist():
            start = int(rng.integers(len(songs.songs[song][0]) - WINDOW))
            rows.append(songs.window(song, start, rng))
        loss, _ = prior(tensors(stack(rows)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(prior.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return prior.eval()


@torch.no_grad()
def bits(prior: Prior, songs: MadeUpSongs, remembers: bool) -> tuple[float, float]:
    """Bits a code of held-out songs: (of what is new, of what returns)."""
    new: list[float] = []
    again: list[float] = []
    for song in range(SONGS, SONGS + HELD_OUT):
        for start in range(0, len(songs.songs[song][0]) - WINDOW, WINDOW):
            batch = tensors(stack([songs.window(song, start, None, remembers)]))
            logits = prior.logits(batch["codes"], prior.conditioning(batch))[0]
            losses = F.cross_entropy(logits, batch["codes"][0], reduction="none") / np.log(2)
            returns = songs.is_return(song, start)
            again += losses[torch.from_numpy(returns)].tolist()
            new += losses[torch.from_numpy(~returns)].tolist()
    return float(np.mean(new)), float(np.mean(again))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_memory_saves_bits_where_a_section_returns_and_none_elsewhere() -> None:
    memory = {"codebook_size": CODES, "margin": 16, "width": 48, "depth": 3, "jitter_seconds": 0.1}
    sections = {"bins": 16, "max_seconds": 10.0}
    with_memory = config_of({"sections": sections, "memory": memory})
    songs = MadeUpSongs(with_memory)
    prior = trained(with_memory, songs)
    new, again = bits(prior, songs, remembers=True)
    _, forgotten = bits(prior, songs, remembers=False)
    labels = config_of({"sections": sections})
    songs_of_labels = MadeUpSongs(labels)
    labels_new, labels_again = bits(trained(labels, songs_of_labels), songs_of_labels, True)
    print(
        f"memory {new:.3f} {again:.3f}, left out {forgotten:.3f}; labels {labels_new:.3f} {labels_again:.3f}"
    )
    assert again < 0.9 * forgotten, "of which 2 bits cannot be known"
    assert again < 0.9 * labels_again and new < labels_new + 0.05
