"""What a newcomer touches: a filter is an entry of FILTERS and a setting of a request, a decoding is one of DECODINGS."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from fixtures.tiny_jukebox import write_runs
from torch import Tensor

from megajukebox.sampling.decoding.token_sampling import FILTERS, TokenFilter
from megajukebox.sampling.jukebox import DecodingPolicy, Jukebox
from megajukebox.sampling.levels.autoregressive import DECODINGS, Autoregressive, Decoding
from megajukebox.sampling.levels.level_sampler import LevelJob, Progress
from megajukebox.sampling.songs.requests import SongRequest, parse_requests, per_level

HOT = {"id": "song", "seconds": 0.6, "seed": 4, "temperature": 3.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("jukebox") / "runs")


# ---- A filter: min-p, which keeps codes of at least a share of the greatest probability -----------------------------


def min_p_filter(logits_MV: Tensor, share_M: Tensor) -> Tensor:
    outside = logits_MV - logits_MV.amax(1, keepdim=True) < share_M.log()[:, None]
    return logits_MV.masked_fill(outside, -torch.inf)


def min_p_boundary(logits_MV: Tensor, share_M: Tensor, error_M: Tensor) -> Tensor:
    margin = logits_MV - logits_MV.amax(1, keepdim=True) - share_M.log()[:, None]
    return margin.abs() < error_M[:, None]


class RequestWithMinP(SongRequest):
    min_p: Annotated[dict[str, float], per_level(1.0)] = {}  # noqa: RUF012  (pydantic copies it)


@pytest.fixture
def with_min_p(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILTERS, "min_p", TokenFilter(min_p_filter, min_p_boundary, off=0.0))


@pytest.mark.usefixtures("with_min_p")
def test_a_new_filter_is_a_table_entry_and_a_setting(runs: Path) -> None:
    jukebox = Jukebox(runs)
    likeliest = RequestWithMinP(**HOT, min_p=1.0)  # keeps only the code of the greatest probability
    greedy = RequestWithMinP(**HOT, top_k=1)
    plain = RequestWithMinP(**HOT)
    by_min_p, by_top_k, without = (jukebox.sample([r])[0] for r in (likeliest, greedy, plain))
    for level, codes in by_min_p.codes.items():
        np.testing.assert_array_equal(codes, by_top_k.codes[level])
        assert not np.array_equal(codes, without.codes[level])


@pytest.mark.usefixtures("with_min_p")
def test_a_new_filter_applies_to_one_level_and_to_one_song_of_a_batch(runs: Path) -> None:
    jukebox = Jukebox(runs)
    filtered = RequestWithMinP(**HOT | {"id": "filtered"}, min_p={"bottom": 1.0})
    plain = RequestWithMinP(**HOT)
    songs = jukebox.sample([filtered, plain])
    alone = jukebox.sample([plain])[0]
    for level, codes in alone.codes.items():
        np.testing.assert_array_equal(songs[1].codes[level], codes)
        assert np.array_equal(songs[0].codes[level], codes) == (level != "bottom")


# ---- A decoding -----------------------------------------------------------------------------------------------------


@dataclass
class SongBySong(Autoregressive):
    """Sequential, one song after another."""

    def sample(self, job: LevelJob, progress: Progress) -> None:
        for song in range(len(job.conditioning)):
            super().sample(job.for_song(song), progress)


def test_a_new_decoding_is_a_table_entry(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DECODINGS, "song_by_song", Decoding(SongBySong))
    jukebox = Jukebox(runs, policy=DecodingPolicy(decoding="song_by_song"))
    requests = [SongRequest(**HOT), SongRequest(**HOT | {"id": "other", "seed": 5})]
    songs = jukebox.sample(requests)
    for song, usual in zip(songs, Jukebox(runs).sample(requests)):
        assert {level["decoding"] for level in song.levels.values()} == {"song_by_song"}
        for level, codes in song.codes.items():
            np.testing.assert_array_equal(codes, usual.codes[level])
    assert jukebox.decoding_facts() == {"exact": True}


# ---- Names of version 0.1 -------------------------------------------------------------------------------------------

OLD_NAMES = [
    ("ahead", "speculative"),
    ("fixed_point", "jacobi"),
    ("across", "jacobi_windows"),
    ("rows", "cuda_graph"),
    ("windows", "parallel_windows"),
]


@pytest.mark.parametrize(("old", "new"), OLD_NAMES)
def test_old_names_of_decodings_are_accepted(old: str, new: str) -> None:
    assert DecodingPolicy(decoding=old) == DecodingPolicy(decoding=new)


def test_an_unknown_decoding_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="choose auto or one of sequential, speculative, jacobi"):
        DecodingPolicy(decoding="guessing")


def test_unknown_settings_are_still_refused() -> None:
    assert parse_requests([{"min_p": 0.5}])[1] == ["request 0: min_p is no setting"]
