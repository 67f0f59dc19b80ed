"""Builds the site: reads samples and runs, draws pictures, writes pages."""

from collections.abc import Iterable
from pathlib import Path

import soundfile
from rich.console import Console
from rich.progress import track

from megajukebox.explorer import files
from megajukebox.explorer.pictures import draw
from megajukebox.explorer.records import Problem, Sample, read_samples
from megajukebox.explorer.run_page import runs_page
from megajukebox.explorer.run_records import read_runs
from megajukebox.explorer.sample_pages import Links, entry, list_page, sample_page

STATIC = Path(__file__).parent / "static"


def build(samples: Path, runs: list[Path], out: Path, copy_audio: bool = False) -> Path:
    """Write the site over `samples` and `runs` into the folder `out`; returns its first page."""
    found, problems = read_samples(samples)
    trained = read_runs(runs)
    for asset in sorted(STATIC.iterdir()):
        files.write(out / "static" / asset.name, asset.read_bytes())
    entries = []
    for sample in progress(found):
        site = SampleSite(sample, out, copy_audio)
        problems += site.draw_pictures()
        site.write_page()
        entries.append(entry(sample, site.links(out)))
    write_page(out / "runs.html", runs_page(trained))
    write_page(out / "index.html", list_page(entries, problems))
    return out / "index.html"


def progress(samples: list[Sample]) -> Iterable[Sample]:
    return track(samples, "pictures and pages", console=Console(stderr=True), disable=not samples)


def write_page(path: Path, text: str) -> None:
    files.write(path, text.encode("utf-8", errors="replace"))  # a file name may hold bytes that are not text


class SampleSite:
    """The files of one sample in the site at `out`."""

    def __init__(self, sample: Sample, out: Path, copy_audio: bool) -> None:
        self.sample = sample
        self.copy_audio = copy_audio
        self.name = files.safe_name(sample.name)
        self.page = out / "sample" / f"{self.name}.html"
        self.audio = dict(sample.audio)
        if copy_audio:
            self.audio = {
                level: out / "audio" / f"{self.name}.{level}{path.suffix}" for level, path in sample.audio.items()
            }
        self.spectrograms = {level: out / "pictures" / f"{self.name}.{level}.png" for level in sample.audio}
        self.outlines = {level: out / "pictures" / f"{self.name}.{level}.svg" for level in sample.audio}
        self.problems: list[Problem] = []

    def draw_pictures(self) -> list[Problem]:
        """Draws what is missing or old; copies the audio if asked to. Returns what could not be read."""
        for level, audio in self.sample.audio.items():
            if self.copy_audio:
                files.copy(audio, self.audio[level])
            try:
                draw(audio, self.spectrograms[level], self.outlines[level])
            except soundfile.LibsndfileError as error:
                del self.spectrograms[level], self.outlines[level]
                self.problems.append(Problem(audio.name, error.error_string))
        return self.problems

    def write_page(self) -> None:
        write_page(self.page, sample_page(self.sample, self.links(self.page.parent), self.problems))

    def links(self, folder: Path) -> Links:
        """URLs from a page in `folder`."""
        groups = [self.audio, self.spectrograms, self.outlines]
        audio, spectrograms, outlines = (
            {level: files.relative_url(path, folder) for level, path in group.items()} for group in groups
        )
        return Links(files.relative_url(self.page, folder), audio, spectrograms, outlines)
