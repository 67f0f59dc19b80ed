"""How fast the explorer's list is with thousands of samples: building it, its first paint, its filters.

python benchmarks/explorer.py --samples 5000 --out benchmarks/results/explorer.json    # needs chromium
"""

import json
import os
import platform
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fixtures import browser
from fixtures.explorer_samples import add_sample

from megajukebox.common.files import write_atomic
from megajukebox.common.provenance import made_by
from megajukebox.explorer.loaders.samples import read_samples
from megajukebox.explorer.site_builder import SampleSite, build_site, draw_all

DRAWN = 40  # samples that are really drawn; the others are links to them, for a list does not care
TIMES = 15
WORDS = (
    "moon",
    "river",
    "lantern",
    "water",
    "night",
    "voice",
    "stranger",
    "snow",
    "ember",
    "waltz",
    "road",
    "fire",
)
FILTERS = {
    "a word typed": "form.q.value = 'lantern'",
    "two words typed": "form.q.value = 'ember road'",
    "an artist chosen": "form.q.value = '', form.artist.value = 'Artist 7'",
    "artist, genre and run": "form.genres.value = 'genre 3', form.run.value = 'runs/2'",
    "all cleared": "form.artist.value = form.genres.value = form.run.value = ''",
}


def main(
    samples: Annotated[int, typer.Option(help="Samples in the list.")] = 5000,
    out: Annotated[Path | None, typer.Option(help="Where the figures go.")] = None,
) -> None:
    """Measure and print; with --out keep the figures."""
    # Processes of chromium may still write to its profile when it is gone.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        figures = {"samples": samples, **measured(Path(folder), samples)}
    machine = {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    figures = {"date": str(date.today()), **machine, "made_by": made_by(), **figures}
    print(json.dumps(figures, indent=1))
    if out:
        write_atomic(out, (json.dumps(figures, indent=1) + "\n").encode())


def measured(root: Path, count: int) -> dict[str, Any]:
    drawing = make_samples(root / "samples", root / "site", count)
    built, again = (
        timed(lambda: build_site([root / "samples"], [], root / "site")) for _ in range(2)
    )
    sizes = {
        name: (root / "site" / name).stat().st_size
        for name in ("index.html", "entries.js", "entries-words.js")
    }
    with browser.chromium(root / "profile") as tab:
        tab.call(
            "Emulation.setDeviceMetricsOverride",
            width=1280,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        opened = [paint(tab, (root / "site" / "index.html").as_uri()) for _ in range(5)]
        filters = {name: filtering(tab, action) for name, action in FILTERS.items()}
        scrolled = tab.run(SCROLL)
        cards = tab.run("document.querySelectorAll('.card').length")
    return {
        "draw_seconds_a_recording": round(drawing, 4),
        "pages_seconds": round(built, 2),
        "pages_again_seconds": round(again, 2),
        "bytes": sizes,
        "first_paint_ms": round(median(one[0] for one in opened)),
        "first_cards_ms": round(median(one[1] for one in opened)),
        "filter_ms": filters,
        "scroll_ms": round(scrolled, 1),
        "cards_in_the_page": cards,
    }


def make_samples(folder: Path, site: Path, count: int) -> float:
    """Samples of 20 artists, 8 genres, 4 runs; returns seconds to draw one recording."""
    for number in range(DRAWN):
        lyrics = "\n".join(
            " ".join(WORDS[(number + k * line) % len(WORDS)] for k in range(6))
            for line in range(12)
        )
        add_sample(folder, name(number), levels=("bottom",), lyrics=lyrics)
    sites = [SampleSite(sample, site, False) for sample in read_samples([folder])[0]]
    seconds = timed(lambda: draw_all(sites)) / DRAWN
    for number in range(count):
        copy_sample(folder, site, number)
    return seconds


def copy_sample(folder: Path, site: Path, number: int) -> None:
    record = json.loads((folder / f"{name(number % DRAWN)}.json").read_text())
    words = [WORDS[(number * k + k) % len(WORDS)] for k in range(1, 4)]
    record["request"] |= {
        "artist": f"Artist {number % 20}",
        "genres": [f"genre {number % 8}"],
        "year": 1970 + number % 50,
        "seed": number,
        "lyrics": record["request"]["lyrics"] + " ".join(words),
    }
    record |= {"runs": f"runs/{number % 4}", "steps": {"top": 1000 * (number % 5)}}
    record["levels"] = {"bottom": {"audio": f"{name(number)}.wav", "codes": 100}}
    (folder / f"{name(number)}.json").write_text(json.dumps(record))
    if number >= DRAWN:
        source = name(number % DRAWN)
        os.link(folder / f"{source}.wav", folder / f"{name(number)}.wav")
        for kind, ending in (("pictures", "png"), ("peaks", "js")):
            os.link(
                site / kind / f"{source}.bottom.{ending}",
                site / kind / f"{name(number)}.bottom.{ending}",
            )


def name(number: int) -> str:
    return f"song-{number:05d}"


def paint(tab: browser.Browser, url: str) -> tuple[float, float]:
    """ms from the request of the page to its first paint, and until its first cards are there."""
    tab.open(url)
    tab.wait(
        "performance.getEntriesByName('first-contentful-paint').length && document.body.dataset.words",
        60,
    )
    starts = "['first-contentful-paint', 'drawn'].map(name => performance.getEntriesByName(name)[0].startTime)"
    first, drawn = tab.run(starts)
    return first, drawn


def filtering(tab: browser.Browser, action: str) -> float:
    """Median ms from a change of the form to a page that is laid out anew."""
    times = [tab.run(f"(() => {{ {action}; {CLOCK} }})()") for _ in range(TIMES)]
    return round(median(times), 1)


CLOCK = (
    "const t = performance.now(); form.dispatchEvent(new Event('input')); list.offsetHeight;"
    " return performance.now() - t;"
)
SCROLL = """(() => { const times = [];
for (let n = 1; n <= 50; n += 1) {
  scrollTo({ top: n * 1000, behavior: 'instant' });
  const t = performance.now(); draw(); list.offsetHeight; times.push(performance.now() - t);
}
return times.sort((a, b) => a - b)[25]; })()"""


def timed(action: Any) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
