"""The page of one sample: its levels to see and to play, its lyrics, and how it was generated."""

import shlex

from megajukebox.common.levels import LEVELS, REFINED_TRACKS
from megajukebox.explorer.loaders.samples import ListedSample, UnreadableSample
from megajukebox.explorer.loaders.search_index import SampleLinks, entry, runs_folder, seed, title
from megajukebox.explorer.pages.layout import abbreviated, as_text, printable_json, render_page
from megajukebox.explorer.pages.waveforms import SCRIPTS, Track, scale


def sample_page(sample: ListedSample, links: SampleLinks, problems: list[UnreadableSample]) -> str:
    """The page of `sample`; `problems` are those of its recordings."""
    tracks = []
    for name, url in links.audio.items():
        tracks.append(Track(name, about_track(sample, name), url, links.spectrogram.get(name)))
    levels = [level for level in LEVELS if level in sample.record.levels] or LEVELS
    missing = [level for level in levels if level not in links.audio]
    record = sample.record
    weights = []
    for name, fingerprint in record.weights.items():
        if fingerprint is not None:
            weights.append((name, abbreviated(as_text(fingerprint))))
    records = {
        "Request as JSON": sample.request,
        "Runs": record.runs,
        "Steps": record.steps,
        "Software": record.made_by,
    }
    return render_page(
        "sample.html",
        title=f"{title(sample)} {sample.name}",
        tab="Samples",
        root="../",
        scripts=(*links.peaks.values(), *SCRIPTS, "sample.js"),
        heading=title(sample),
        subtitle=subtitle(sample),
        notes=record.notes,
        problems=problems,
        tracks=tracks,
        missing=", ".join(missing),
        scale=scale(record.sample_rate, record.seconds),
        lyrics=sample.lyrics,
        language=record.request.language,
        command=command(sample),
        weights=weights,
        records=records,
        as_text=as_text,
        played_tracks=tuple(links.audio) or ("bottom",),
        entry=entry(sample, links),
    )


def subtitle(sample: ListedSample) -> str:
    request = sample.record.request
    drawn_with = seed(sample)
    parts = [
        ", ".join(request.genres),
        "" if request.year is None else str(request.year),
        ", ".join(request.moods),
        request.language,
        f"{sample.record.seconds:.1f} s",
        "" if drawn_with is None else f"seed {drawn_with}",
        sample.name,
    ]
    return " · ".join(filter(None, parts))


def about_track(sample: ListedSample, track: str) -> str:
    """How many codes a level has and how fast they were sampled; which recordings are refined."""
    level = sample.record.levels[track]
    parts = []
    if track in REFINED_TRACKS.values():
        parts.append("the same codes, refined")
    if level.codes is not None:
        parts.append(f"{level.codes:,} codes")
    if level.tokens_per_second is not None:
        parts.append(f"{level.tokens_per_second:,.0f} tokens/s")
    if level.wall_seconds is not None:
        parts.append(f"{level.wall_seconds:,.1f} s to sample")
    return " · ".join(parts)


def command(sample: ListedSample) -> str:
    """Shell lines that ask for the same song again; quoted, so that no lyrics can become a command."""
    runs = shlex.quote(runs_folder(sample.record.runs))
    reconstruction = sample.record.reconstruction
    if isinstance(reconstruction, dict):
        shards = shlex.quote(str(reconstruction.get("of")))
        song = shlex.quote(str(reconstruction.get("song")))
        seconds = f"{sample.record.seconds:g}"
        return (
            f"megajukebox reconstruct {runs} --data {shards} --song {song}"
            f" --seconds {seconds} --out again"
        )
    # No line of the JSON is a bare word, so none can end the heredoc.
    request = printable_json([sample.request])
    return (
        f"cat > request.json <<'REQUEST'\n{request}\nREQUEST\n"
        f"megajukebox sample {runs} --requests request.json --out again"
    )
