"""Builds the site: reads samples and runs, draws pictures, writes pages."""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soundfile
from rich.console import Console
from rich.progress import track

from megajukebox.common.redaction import redacted
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.build_cache import BuildCache
from megajukebox.explorer.loaders.corpus import CorpusSong, Excerpt, Reconstruct, read_corpus
from megajukebox.explorer.loaders.runs import ListedRun, read_runs, settings
from megajukebox.explorer.loaders.samples import ListedSample, UnreadableSample, read_samples
from megajukebox.explorer.loaders.search_index import Links, entry, words
from megajukebox.explorer.loaders.spectrograms import draw
from megajukebox.explorer.pages.compare import blind_page, compare_page
from megajukebox.explorer.pages.corpus import (
    corpus_entry,
    corpus_page,
    corpus_words,
    no_corpus_page,
    song_page,
    song_page_path,
)
from megajukebox.explorer.pages.run import run_page
from megajukebox.explorer.pages.run_list import runs_page
from megajukebox.explorer.pages.sample import sample_page
from megajukebox.explorer.pages.sample_list import list_page
from megajukebox.explorer.pages.studio import studio_page

STATIC = Path(__file__).parent / "static"
ALONE = 24  # recordings that are drawn sooner than other processes are started


@dataclass(frozen=True)
class Picture:
    """A recording and the two files that show it."""

    audio: Path
    spectrogram: Path
    peaks: Path
    name: str  # under which the page finds the peaks

    def draw(self) -> UnreadableSample | None:
        try:
            draw(self.audio, self.spectrogram, self.peaks, self.name)
        except soundfile.LibsndfileError as error:
            return UnreadableSample(self.audio.name, error.error_string)
        except OSError as error:
            return UnreadableSample(self.audio.name, error.strerror or str(error))
        return None

    def is_drawn(self) -> bool:
        return site_files.up_to_date(self.spectrogram, self.audio) and site_files.up_to_date(
            self.peaks, self.audio
        )


@dataclass
class SampleSite:
    """The files of one sample in the site at `out`."""

    sample: ListedSample
    out: Path
    copy_audio: bool
    problems: list[UnreadableSample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.name = site_files.safe_name(self.sample.name)
        self.page = self.out / "sample" / f"{self.name}.html"
        self.audio = dict(self.sample.audio)
        if self.copy_audio:
            self.audio = {
                t: self.out / "audio" / f"{self.name}.{t}{p.suffix}"
                for t, p in self.sample.audio.items()
            }
        self.pictures = {
            track: self._picture(track, path) for track, path in self.sample.audio.items()
        }

    def _picture(self, track: str, audio: Path) -> Picture:
        spectrogram = self.out / "pictures" / f"{self.name}.{track}.png"
        return Picture(
            audio,
            spectrogram,
            self.out / "peaks" / f"{self.name}.{track}.js",
            f"{self.name}.{track}",
        )

    def copy(self) -> None:
        if self.copy_audio:
            for track, audio in self.sample.audio.items():
                site_files.copy(audio, self.audio[track])

    def write(self, made: BuildCache) -> None:
        """The page, unless it is there as it should be."""
        sample, links = self.sample, self.links(self.page.parent)
        inputs = (sample.source, sample.lyrics, sample.audio, links, self.problems)
        made.page(self.page, inputs, lambda: sample_page(sample, links, self.problems))

    def lose(self, track: str, problem: UnreadableSample) -> None:
        """A recording that cannot be drawn is shown without pictures."""
        del self.pictures[track]
        self.problems.append(problem)

    def links(self, folder: Path) -> Links:
        """URLs from a page in `folder`."""

        def urls(paths: dict[str, Path]) -> dict[str, str]:
            return {track: site_files.relative_url(path, folder) for track, path in paths.items()}

        spectrograms = urls(
            {track: picture.spectrogram for track, picture in self.pictures.items()}
        )
        peaks = urls({track: picture.peaks for track, picture in self.pictures.items()})
        return Links(
            site_files.relative_url(self.page, folder), urls(self.audio), spectrograms, peaks
        )


@dataclass(frozen=True)
class CorpusSettings:
    """A shard set to show: which part of its songs, at most how many, and what a VQ-VAE makes of them."""

    shards: ShardSet
    excerpt: Excerpt
    most: int
    reconstruct: Reconstruct | None = None


def build(
    samples: list[Path],
    runs: list[Path],
    out: Path,
    copy_audio: bool = False,
    corpus: CorpusSettings | None = None,
) -> Path:
    """Write the site over `samples`, `runs` and `corpus` into the folder `out`; returns its first page."""
    write_static(out)
    write_samples(samples, out, copy_audio)
    write_runs(runs, out, copy_audio)
    write_corpus(corpus, out)
    return out / "index.html"


def write_runs(folders: list[Path], out: Path, copy_audio: bool = False) -> list[ListedRun]:
    """The list of runs, a page for each, and their settings for whoever compares two."""
    runs = read_runs(folders)
    write_page(out / "runs.html", runs_page(runs))
    for run in runs:
        page = out / "run" / f"{site_files.safe_name(run.name)}.html"
        recordings = [
            site_files.relative_url(path, page.parent)
            for path in recordings_of(run, out, copy_audio)
        ]
        write_page(
            page, run_page(run, [other.name for other in runs if other is not run], recordings)
        )
    configs = {run.name: settings(run.config) for run in runs}
    site_files.write(out / "configs.js", site_files.script("configs", as_text(configs)))
    return runs


def recordings_of(run: ListedRun, out: Path, copy_audio: bool) -> list[Path]:
    """Where the page finds the run's samples: where they lie, or copied into the site."""
    if not copy_audio:
        return [sample.path for sample in run.samples]
    folder, copied = out / "run" / site_files.safe_name(run.name), []
    for sample in run.samples:
        copied.append(
            folder
            / sample.path.parent.name
            / f"{site_files.safe_name(sample.path.stem)}{sample.path.suffix}"
        )
        site_files.copy(sample.path, copied[-1])
    return copied


def as_text(configs: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Without secrets, and without bytes that are not text."""
    return {
        name.encode("utf-8", "replace").decode(): redacted(found) for name, found in configs.items()
    }


def write_corpus(corpus: CorpusSettings | None, out: Path) -> list[CorpusSong]:
    """The list of songs and a page for each; without a corpus, the page that says how to show one."""
    if corpus is None:
        write_page(out / "corpus.html", no_corpus_page())
        return []
    songs = read_corpus(corpus.shards, out, corpus.excerpt, corpus.most, corpus.reconstruct)
    made = BuildCache(out, "corpus")
    for song in songs:
        made.page(song_page_path(song, out), (song,), partial(song_page, song, out))
    made.keep()
    site_files.write(
        out / "corpus.js", site_files.script("corpus", [corpus_entry(song, out) for song in songs])
    )
    site_files.write(
        out / "corpus-words.js",
        site_files.script("corpus-words", [corpus_words(song) for song in songs]),
    )
    write_page(out / "corpus.html", corpus_page(corpus.shards, songs, corpus.excerpt))
    return songs


def write_static(out: Path) -> None:
    """Scripts and styles, and the pages that are the same for all samples."""
    for asset in sorted(path for path in STATIC.rglob("*") if path.is_file()):
        site_files.write(out / "static" / asset.relative_to(STATIC), asset.read_bytes())
    for name, text in (
        ("compare", compare_page()),
        ("blind", blind_page()),
        ("studio", studio_page()),
    ):
        write_page(out / f"{name}.html", text)


@dataclass(frozen=True)
class Listed:
    """What is in the list: the samples, and the record of each."""

    samples: list[ListedSample]
    entries: list[dict[str, Any]]


def write_samples(samples: list[Path], out: Path, copy_audio: bool = False) -> Listed:
    """The list and a page for every sample."""
    found, problems = read_samples(samples)
    sites, made = (
        [SampleSite(sample, out, copy_audio) for sample in found],
        BuildCache(out, "samples"),
    )
    problems += draw_all(sites)
    for site in sites:
        site.copy()
        site.write(made)
    made.keep()
    entries = [entry(site.sample, site.links(out)) for site in sites]
    site_files.write(out / "entries.js", site_files.script("entries", entries))
    site_files.write(
        out / "entries-words.js",
        site_files.script("entries-words", [words(site.sample) for site in sites]),
    )
    write_page(out / "index.html", list_page(len(entries), problems))
    return Listed(found, entries)


def draw_all(sites: list[SampleSite]) -> list[UnreadableSample]:
    """Draws what is missing or old; returns what could not be read."""
    waiting = [
        (site, t, pic) for site in sites for t, pic in site.pictures.items() if not pic.is_drawn()
    ]
    drawn = drawing([picture for _, _, picture in waiting])
    problems = []
    for problem, (site, name, _) in zip(
        progress(drawn, len(waiting)), waiting
    ):  # in this order the bar comes to its end
        if problem:
            site.lose(name, problem)
            problems.append(problem)
    return problems


def drawing(pictures: list[Picture]) -> Iterator[UnreadableSample | None]:
    """Draw them, on all cores where there are many. Workers are spawned: the server that may call this has threads."""
    if len(pictures) <= ALONE:
        yield from map(Picture.draw, pictures)
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(Picture.draw, pictures, chunksize=8)


def progress(
    drawn: Iterable[UnreadableSample | None], total: int
) -> Iterable[UnreadableSample | None]:
    return track(drawn, "pictures", total, console=Console(stderr=True), disable=not total)


def write_page(path: Path, text: str) -> None:
    site_files.write(
        path, text.encode("utf-8", errors="replace")
    )  # a file name may hold bytes that are not text
