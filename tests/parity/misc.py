"""Parity of the small rules: timing bins, filters, attention patterns, text, names, lyric windows, starts, chunks."""

import re
from collections.abc import Callable

import numpy as np
import torch
from parity.report import Case

from megajukebox.conditioning.jukebox_labels import jukebox_name
from megajukebox.conditioning.lyric_windows import linear_centre, lyric_window
from megajukebox.conditioning.tokenizers import CHARACTERS, JukeboxCharacters
from megajukebox.data.stream.song_dataset import moved_inside
from megajukebox.models.attention import attend
from megajukebox.models.conditioners import TimingConditioner, TimingConfig
from megajukebox.sampling.decoding.token_sampling import top_k_filter, top_p_filter
from megajukebox.sampling.levels.level_windows import window_starts

PATTERNS = {0: "dense", 1: "row", 2: "column", 3: "previous_row", 6: "lyrics", 7: "prefix"}
LEFT_OUT = {
    4: "summary",
    5: "summary spread",
}  # in no released or preset model, and the reference cannot sample them


def check_misc(case: Case) -> None:
    checks: dict[str, Callable[[Case], None]] = {
        "text": check_text,
        "vocab": check_vocabularies,
        "norm_v2": check_names,
        "lyric_windows_full_tokens_is_1..len": check_lyric_windows,
        "starts": check_starts,
        "pattern": check_patterns,
        "chunk_selection": check_chunks,
    }
    for name, check in checks.items():
        if case.has(name):
            check(case)
    for name in [name for name in case.meta if re.fullmatch(r"time_\w+", name)]:
        check_timing(case, name)
    check_filters(case)


def check_timing(case: Case, name: str) -> None:
    facts, places = case.fact(name), case.tensor(f"{name}_in")
    config = TimingConfig(
        bins=facts["t_bins"], min_seconds=facts["min_duration"], max_seconds=facts["max_duration"]
    )
    bins = TimingConditioner(config, facts["sr"], 1, 1.0).bins(places, facts["n_time"])
    every = int((re.search(r"every (\d+)", facts.get("note", "")) or [0, 1])[1])
    for table, ours in zip(("total", "abs", "rel"), bins):
        case.same(f"{name}_{table}", ours[:, ::every] if table != "total" else ours)


def check_filters(case: Case) -> None:
    for name in case.names("filter_top"):
        logits = case.tensor("filter_in").flatten(0, -2)
        given = torch.full((len(logits),), float(name[len("filter_topk") :]))
        kept = (
            top_k_filter(logits, given.long())
            if name.startswith("filter_topk")
            else top_p_filter(logits, given)
        )
        case.close(name, kept.view(case.tensor("filter_in").shape), tolerance=0.0)


def check_patterns(case: Case) -> None:
    """With equal scores attention is an average over what a position sees; one-hot values let it be read off."""
    facts = case.fact("pattern")
    length, rows, lyrics = facts["n_ctx"], facts["blocks"], facts["prime_len"]
    for name in case.names("pattern_func"):
        func = int(name.removeprefix("pattern_func"))
        if func in LEFT_OUT:
            theirs = case.array(name)
            case.report.lines.append(
                f"left out   {case.name}/{name} ({LEFT_OUT[func]}, {theirs.shape}): of no model"
            )
            print(case.report.lines.pop()) if not case.report.quiet else None
            continue
        if func not in PATTERNS:
            case.fail(name, "unknown pattern")
            continue
        keys = lyrics if func == 6 else length
        values = torch.eye(keys, length)[None, :, None]
        same = torch.zeros(1, length, 1, length)
        seen = attend(
            same, same[:, :keys], values, PATTERNS[func], rows, (lyrics // rows + 1) * rows
        )
        case.close(name, seen[0, :, 0], tolerance=1e-6)


def check_text(case: Case) -> None:
    for n, entry in enumerate(case.fact("text")):
        for version in sorted(set(entry) - {"in"}):
            text, theirs = JukeboxCharacters(version), entry[version]
            ids = text.encode(entry["in"]).ids
            case.same(f"text.{n}.{version}.tokens", ids, theirs["tokens"])
            case.same(f"text.{n}.{version}.clean", text.decode(ids), theirs["clean"])
            case.same(f"text.{n}.{version}.back", text.decode(theirs["tokens"]), theirs["back"])


def check_vocabularies(case: Case) -> None:
    for version, facts in case.fact("vocab").items():
        case.same(f"vocab.{version}", len(CHARACTERS[version]) + 1, facts["n_vocab"])


def check_names(case: Case) -> None:
    names = case.fact("norm_v2")
    case.same("norm_v2", {name: jukebox_name(name, "v2") for name in names}, names)


def check_lyric_windows(case: Case) -> None:
    name = "lyric_windows_full_tokens_is_1..len"
    wrong = []
    for n, facts in enumerate(case.fact(name)):
        tokens = np.arange(1, facts["len_full"] + 1)
        centre = linear_centre(
            len(tokens), facts["total_length"], facts["offset"], facts["duration"]
        )
        window = lyric_window(tokens, centre, facts["n_tokens"])
        indices = (
            window.index if len(facts["indices"]) == len(window.index) else window.index[[0, -1]]
        )
        ours = [*window.ids[:3], *window.ids[-3:], *indices, (window.index < 0).sum()]
        theirs = [*facts["tokens_first"], *facts["tokens_last"], *facts["indices"], facts["n_pad"]]
        wrong += [n] if [int(i) for i in ours] != theirs else []
    case.same("lyric_windows", wrong, np.zeros(0))


def check_starts(case: Case) -> None:
    """Where a level is shorter than a window the reference lists none and takes one partial window: ours is that."""
    for n, facts in enumerate(case.fact("starts")):
        ours = window_starts(facts["total"], facts["n_ctx"], facts["hop"])
        case.same(f"starts.{n}", ours, facts["starts"] if facts["total"] >= facts["n_ctx"] else [0])


def check_chunks(case: Case) -> None:
    """The reference numbers items over all songs laid end to end; the place inside a song follows the rule we share."""
    facts = case.fact("chunk_selection")
    length, durations = facts["sample_length"], facts["durations"]
    ends = np.cumsum(durations)
    case.same("chunk_selection.n_items", int(ends[-1]) // length, facts["n_items"])
    ours = []
    for entry in facts["cases"]:
        offset = entry["item"] * length + entry["shift"]
        song = int(np.searchsorted(ends, offset + length // 2))
        ours.append(
            [
                song,
                moved_inside(offset - int(ends[song] - durations[song]), length, durations[song]),
            ]
        )
    case.same(
        "chunk_selection", np.array(ours), np.array([entry["result"] for entry in facts["cases"]])
    )
