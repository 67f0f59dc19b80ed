"""Builds the site: reads samples and runs, draws pictures, writes pages.

index.html  entries.js  entries-words.js       the list of samples, its records, the lyrics it can search
sample/NAME.html                               a page for each sample
pictures/NAME.TRACK.png  peaks/NAME.TRACK.js   its spectrograms, and the numbers of its waveforms
audio/NAME.TRACK.wav                           its recordings, if they are copied; else pages link to where they are
compare.html  blind.html  rate.html            pages that are the same for all samples
studio.html  draw.html                         pages that need the server
runs.html  run/NAME.html  configs.js           the list of runs, a page for each, and their settings
corpus.html  corpus.js  corpus-words.js        the list of a shard set's songs
corpus/KEY.*                                   a page, pictures and an excerpt of each
static/                                        scripts and styles
.samples.json  .corpus.json                    what the pages were built from (build_cache.py)
"""

import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import soundfile

from megajukebox.common.progress import ProgressReporter
from megajukebox.common.redaction import redacted
from megajukebox.data.shards.shard_set import ShardSet
from megajukebox.explorer import site_files
from megajukebox.explorer.build_cache import BuildCache
from megajukebox.explorer.loaders.corpus import CorpusSong, Excerpt, Reconstruct, read_corpus
from megajukebox.explorer.loaders.runs import ListedRun, flat_settings, read_runs, unreadable
from megajukebox.explorer.loaders.samples import (
    ListedSample,
    UnreadableSample,
    describe_error,
    read_samples,
)
from megajukebox.explorer.loaders.search_index import MAX_SEARCHED_LETTERS, SampleLinks, entry
from megajukebox.explorer.loaders.spectrograms import write_pictures
from megajukebox.explorer.loaders.timed_lyrics import plain_text
from megajukebox.explorer.pages.compare import blind_page, compare_page, rate_page
from megajukebox.explorer.pages.corpus import (
    corpus_entry,
    corpus_page,
    no_corpus_page,
    song_page,
    song_page_path,
)
from megajukebox.explorer.pages.draw import draw_page
from megajukebox.explorer.pages.run import run_page
from megajukebox.explorer.pages.run_list import runs_page
from megajukebox.explorer.pages.sample import sample_page
from megajukebox.explorer.pages.sample_list import list_page
from megajukebox.explorer.pages.studio import studio_page
from megajukebox.explorer.site_files import ContainedFile

logger = logging.getLogger(__name__)

STATIC = Path(__file__).parent / "static"
MAX_SERIAL = 24  # recordings that are drawn sooner than other processes are started
PICTURES_PER_TASK = 8  # of a process


@dataclass(frozen=True)
class RecordingPictures:
    """A recording and the two files that show it, which must be as old as it is."""

    audio: ContainedFile
    spectrogram: Path
    peaks: Path
    name: str  # under which the page finds the peaks

    def up_to_date(self) -> bool:
        """Whether both files were drawn from the recording as it is now."""
        try:
            modified = self.audio.path.lstat().st_mtime_ns
        except OSError:
            return False
        drawn = (self.spectrogram, self.peaks)
        return all(site_files.up_to_date(file, modified) for file in drawn)

    def draw(self) -> UnreadableSample | None:
        """Draw both files; returns why that cannot be done, or None."""
        try:
            write_pictures(self.audio, self.spectrogram, self.peaks, self.name)
        except soundfile.LibsndfileError as error:
            return UnreadableSample(self.audio.path.name, error.error_string)
        except OSError as error:
            return UnreadableSample(self.audio.path.name, error.strerror or str(error))
        except (ValueError, MemoryError) as error:
            return UnreadableSample(self.audio.path.name, describe_error(error))
        return None


@dataclass
class SampleSite:
    """The files of one sample in the site at `out`."""

    sample: ListedSample
    out: Path
    copy_audio: bool
    problems: list[UnreadableSample] = field(default_factory=list)

    def __post_init__(self) -> None:
        name = site_files.safe_name(self.sample.name)
        self.page = self.out / "sample" / f"{name}.html"
        self.audio = dict(self.sample.audio)
        self.pictures = {}
        for track, audio in self.sample.audio.items():
            self.pictures[track] = RecordingPictures(
                self.sample.recording(track),
                spectrogram=self.out / "pictures" / f"{name}.{track}.png",
                peaks=self.out / "peaks" / f"{name}.{track}.js",
                name=f"{name}.{track}",
            )
            if self.copy_audio:
                self.audio[track] = self.out / "audio" / f"{name}.{track}{audio.suffix}"

    def write(self, cache: BuildCache) -> None:
        """With `copy_audio` copy the recordings, and write the page unless it is up to date."""
        sample = self.sample
        if self.copy_audio:
            self.copy_recordings()
        links = self.links(self.page.parent)
        inputs = (sample.digest, sample.lyrics, sample.audio, links, self.problems)
        cache.page(self.page, inputs, lambda: sample_page(sample, links, self.problems))

    def copy_recordings(self) -> None:
        """Copy the recordings into the site; one that was exchanged for a link meanwhile becomes a problem."""
        for track, audio in self.sample.audio.items():
            try:
                site_files.copy(self.sample.recording(track), self.audio[track])
            except OSError as error:
                del self.audio[track]
                self.problems.append(UnreadableSample(audio.name, error.strerror or str(error)))

    def links(self, folder: Path) -> SampleLinks:
        """URLs from a page in `folder`."""
        links = SampleLinks(site_files.relative_url(self.page, folder), {}, {}, {})
        for track, audio in self.audio.items():
            links.audio[track] = site_files.relative_url(audio, folder)
        for track, pictures in self.pictures.items():
            links.spectrogram[track] = site_files.relative_url(pictures.spectrogram, folder)
            links.peaks[track] = site_files.relative_url(pictures.peaks, folder)
        return links


@dataclass(frozen=True)
class CorpusSettings:
    """A shard set to show: which part of its songs, at most how many, and the reconstructions of a VQ-VAE."""

    shards: ShardSet
    excerpt: Excerpt
    max_songs: int
    reconstruct: Reconstruct | None = None


@dataclass(frozen=True)
class SampleList:
    """What is in the list: the samples, and the record of each."""

    samples: list[ListedSample]
    entries: list[dict[str, Any]]


def build_site(
    samples: list[Path],
    runs: list[Path],
    out: Path,
    copy_audio: bool = False,
    corpus: CorpusSettings | None = None,
) -> Path:
    """Write the site into the folder `out`, and only what has changed since the last time.

    Args:
        samples: folders that `megajukebox sample` wrote, with those below them.
        runs: folders of runs, with those below them.
        copy_audio: copy the recordings into the site; else the pages link to where they are.
        corpus: the shard set to show beside them.

    Returns:
        The page to open.

    Raises:
        UserError: one of the folders is none.
    """
    write_static(out)
    write_samples(samples, out, copy_audio)
    write_runs(runs, out, copy_audio)
    write_corpus(corpus, out)
    return out / "index.html"


def write_static(out: Path) -> None:
    """Scripts and styles, and the pages that are the same for all samples."""
    for asset in sorted(STATIC.rglob("*")):
        if asset.is_file():
            site_files.write(out / "static" / asset.relative_to(STATIC), asset.read_bytes())
    site_files.write_text(out / "compare.html", compare_page())
    site_files.write_text(out / "blind.html", blind_page())
    site_files.write_text(out / "rate.html", rate_page())
    site_files.write_text(out / "studio.html", studio_page())
    site_files.write_text(out / "draw.html", draw_page())


def write_samples(samples: list[Path], out: Path, copy_audio: bool = False) -> SampleList:
    """The list and a page for every sample."""
    listed, problems = read_samples(samples)
    sites = [SampleSite(sample, out, copy_audio) for sample in listed]
    problems += draw_all(sites)
    cache = BuildCache(out, "samples")
    shown = []
    entries = []
    lyrics = []
    for site in sites:
        try:
            site.write(cache)
            record = entry(site.sample, site.links(out))
            json.dumps(record, allow_nan=False)
        except Exception as error:  # whatever one sample holds, the others are shown
            logger.warning("sample %r cannot be shown", site.sample.name, exc_info=True)
            name = f"{site.sample.name}.json"
            problems.append(UnreadableSample(name, describe_error(error)))
            continue
        shown.append(site.sample)
        entries.append(record)
        lyrics.append(plain_text(site.sample.lyrics)[:MAX_SEARCHED_LETTERS])
    cache.save()
    write_data(out, "entries", entries)
    write_data(out, "entries-words", lyrics)
    site_files.write_text(out / "index.html", list_page(len(entries), problems))
    return SampleList(shown, entries)


def write_data(out: Path, name: str, data: object) -> None:
    """A script that hands `data` to the pages."""
    site_files.write(out / f"{name}.js", site_files.script(name, data))


def draw_all(sites: list[SampleSite]) -> list[UnreadableSample]:
    """Draw the pictures that are missing or old; returns what could not be read."""
    undrawn = []
    for site in sites:
        for track, pictures in site.pictures.items():
            if not pictures.up_to_date():
                undrawn.append((site, track, pictures))
    problems = []
    results = draw([pictures for _, _, pictures in undrawn])
    with ProgressReporter(enabled=bool(undrawn)) as progress:
        progress.add("pictures", total=len(undrawn))
        for problem, (site, track, _) in zip(results, undrawn):
            progress.advance("pictures")
            if problem:  # the recording is shown without pictures
                del site.pictures[track]
                site.problems.append(problem)
                problems.append(problem)
    return problems


def draw(pictures: list[RecordingPictures]) -> Iterator[UnreadableSample | None]:
    """Draw them, on all cores where there are many. Workers are spawned: the server that may call this has threads."""
    if len(pictures) <= MAX_SERIAL:
        yield from map(RecordingPictures.draw, pictures)
        return
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        yield from pool.map(RecordingPictures.draw, pictures, chunksize=PICTURES_PER_TASK)


def write_runs(folders: list[Path], out: Path, copy_audio: bool = False) -> list[ListedRun]:
    """The list of runs, a page for each, and their settings, which a page compares with another run's."""
    runs = read_runs(folders)
    site_files.write_text(out / "runs.html", runs_page(runs))
    configs = {}
    for run in runs:
        safe_name = site_files.safe_name(run.name)
        page = out / "run" / f"{safe_name}.html"
        recordings = []
        for preview in run.previews:
            recording = preview.path
            if copy_audio:
                folder = out / "run" / safe_name / preview.path.parent.name
                name = site_files.safe_name(preview.path.stem)
                recording = folder / f"{name}{preview.path.suffix}"
                copy_preview(preview.path, recording)
            recordings.append(site_files.relative_url(recording, page.parent))
        others = [other.name for other in runs if other is not run]
        try:
            text = run_page(run, others, recordings)
        except Exception as error:  # whatever a file of the run makes of our page
            logger.debug("the page of %s cannot be made", run.name, exc_info=True)
            text = run_page(unreadable(run.state.folder, run.name, error), others, [])
        site_files.write_text(page, text)
        # The name of a run may hold bytes that are not text; its settings may hold secrets.
        shown_name = run.name.encode("utf-8", "replace").decode()
        configs[shown_name] = redacted(flat_settings(run.config))
    write_data(out, "configs", configs)
    return runs


def preview_file(path: Path) -> ContainedFile:
    """A preview, <run>/samples/step-N/NAME, within its run, which others may write to."""
    run = path.parents[2]
    return ContainedFile(run, path.relative_to(run))


def copy_preview(path: Path, target: Path) -> None:
    """Copy a preview into the site; one that is a link by now is left out."""
    try:
        site_files.copy(preview_file(path), target)
    except OSError as error:
        logger.warning("preview %r is not copied: %s", str(path), error.strerror or error)


def write_corpus(corpus: CorpusSettings | None, out: Path) -> list[CorpusSong]:
    """The list of songs and a page for each; without a corpus, the page with the command to show one."""
    if corpus is None:
        site_files.write_text(out / "corpus.html", no_corpus_page())
        return []
    songs = read_corpus(corpus.shards, out, corpus.excerpt, corpus.max_songs, corpus.reconstruct)
    cache = BuildCache(out, "corpus")
    entries = []
    lyrics = []
    for song in songs:
        cache.page(song_page_path(song, out), (song,), partial(song_page, song, out))
        entries.append(corpus_entry(song, out))
        lyrics.append(plain_text(song.lyrics)[:MAX_SEARCHED_LETTERS])
    cache.save()
    write_data(out, "corpus", entries)
    write_data(out, "corpus-words", lyrics)
    site_files.write_text(out / "corpus.html", corpus_page(corpus.shards, songs, corpus.excerpt))
    return songs
