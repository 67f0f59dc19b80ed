"""The explorer's pages in a headless Chromium, from disk and from a simple web server, with real keys and clicks."""

from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import browser
import pytest
from browser import Browser
from explorer_samples import add_run, add_sample, metrics

from megajukebox.explorer.building import build

pytestmark = pytest.mark.skipif(browser.binary() is None, reason="no chromium on this machine: apt install chromium")

HOSTILE = "</script><img src=x onerror=\"window.owned='yes'\"> & 'q'"
NAMES = "[...document.querySelectorAll('.card h2')].map(title => title.textContent)"
FAULT = "document.getElementById('error').textContent"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of samples/, runs/ and site/; one song's name and words are hostile, one lacks its middle level."""
    root = tmp_path_factory.mktemp("explorer")
    add_sample(root / "samples", "one", seconds=8.0)
    (root / "samples" / "one.lrc").write_text("[00:01.00] <00:01.00> hello <00:05.00> world <00:07.00>\n")
    add_sample(root / "samples", "two", artist="Чайка", genres=["march", "live"], levels=("top", "bottom"), lyrics="")
    add_sample(root / "samples", "<img src=x onerror=alert(1)>", artist=HOSTILE, genres=[HOSTILE * 3], lyrics=HOSTILE)
    add_run(root / "runs" / "vqvae", metrics(40), [{"time": 1e9, "event": "save", "step": 20, "reason": HOSTILE}])
    build(root / "samples", [root / "runs"], root / "site")
    return root


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as tab:
        size(tab, 1280, 900)
        yield tab


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of a web server that, like many, cannot send a part of a file."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def size(tab: Browser, width: int, height: int) -> None:
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)


def click(tab: Browser, selector: str, share: float = 0.5) -> None:
    """Click at a share of an element's width."""
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    tab.click(*tab.run(f"(box => [box.left + box.width * {share}, box.top + 9])({box})"))


def test_the_address_filters_the_list_and_the_filters_write_the_address(chromium: Browser, site: Path) -> None:
    page = (site / "site" / "index.html").as_uri()
    chromium.open(page)
    assert sorted(chromium.run(NAMES)) == sorted(["Ada", "Чайка", HOSTILE])
    chromium.open(f"{page}#artist=%D0%A7%D0%B0%D0%B9%D0%BA%D0%B0")
    assert chromium.run(NAMES) == ["Чайка"]
    chromium.open(f"{page}#genres=waltz&q=world+hello")
    assert chromium.run(NAMES) == ["Ada"]
    chromium.run("form.genres.value = 'live', form.q.value = '', form.dispatchEvent(new Event('input'))")
    assert chromium.run(NAMES) == ["Чайка"] and chromium.run("location.hash") == "#genres=live"
    click(chromium, "button[type=reset]")
    chromium.wait(f"{NAMES}.length === 3")
    chromium.run("form.q.value = 'no such word', form.dispatchEvent(new Event('input'))")
    assert chromium.run("!document.getElementById('none').hidden") and chromium.run(FAULT) == ""


def test_hostile_words_are_shown_and_never_run(chromium: Browser, site: Path) -> None:
    for page in (site / "site").rglob("*.html"):
        chromium.open(page.as_uri())
        assert chromium.run("typeof owned") == "undefined" and chromium.run(FAULT) == "", page
        assert not chromium.run("document.querySelector('img[src=x]')"), page
        assert page.name in ("one.html", "two.html") or "onerror=" in chromium.run("document.body.textContent"), page


def test_nothing_is_loaded_before_it_is_played(chromium: Browser, site: Path) -> None:
    for page in ("index.html", "sample/one.html"):
        chromium.open((site / "site" / page).as_uri())
        assert chromium.run("[...document.querySelectorAll('audio')].every(audio => audio.preload === 'none')")
        assert chromium.run("[...document.querySelectorAll('audio')].every(audio => audio.readyState === 0)")


@pytest.mark.parametrize("way", ["from disk", "from a simple web server"])
def test_keys_play_seek_and_change_the_level_at_the_same_moment(
    chromium: Browser, site: Path, served: str, way: str
) -> None:
    root = site.as_uri() if way == "from disk" else served
    chromium.open(f"{root}/site/sample/one.html")
    chromium.press(" ")
    chromium.wait("player.playing && player.moment > 0.1")
    chromium.press("ArrowRight")
    chromium.wait("player.moment > 5.1 && document.querySelector('.sung').textContent === 'world'")
    chromium.press("1")
    chromium.wait("player.playing && player.level === 'top' && player.audio.currentTime > 5.1")
    chromium.press(" ")
    assert not chromium.run("player.playing")
    moment = chromium.run("player.moment")
    chromium.press("3")
    assert chromium.run("player.level") == "bottom" and chromium.run("player.moment") == pytest.approx(moment, abs=0.1)
    chromium.press("ArrowLeft")
    assert chromium.run("player.moment") == pytest.approx(moment - 5, abs=0.1)
    assert chromium.run(FAULT) == "" and chromium.run("document.querySelector('.trouble').textContent") == ""


def test_a_click_on_a_picture_plays_that_level_from_there(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "sample" / "one.html").as_uri())
    click(chromium, ".bar[data-level=middle]", share=0.75)
    chromium.wait("player.playing && player.level === 'middle' && player.audio.currentTime >= 5.9")
    assert chromium.run("document.querySelector('.strip.current').dataset.level") == "middle"


def test_a_song_without_the_chosen_level_plays_its_finest(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "index.html").as_uri() + "#artist=%D0%A7%D0%B0%D0%B9%D0%BA%D0%B0")
    chromium.press("2")
    click(chromium, ".card .play")
    chromium.wait("player.playing")
    assert chromium.run("[player.wanted, player.level]") == ["middle", "bottom"]
    assert chromium.run("document.querySelector('.levels [data-level=middle]').disabled")


def test_a_fault_of_a_script_is_shown(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "index.html").as_uri())
    chromium.run("setTimeout(() => { throw new Error('as a test') })")
    chromium.wait(f"{FAULT}.includes('as a test') && !document.getElementById('error').hidden")


def test_the_pointer_reads_a_curve(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "runs.html").as_uri())
    x, y = chromium.run(
        "(box => [box.right - 1, box.top + 20])(document.querySelector('.curve svg').getBoundingClientRect())"
    )
    chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    chromium.wait("document.querySelector('.curve .keys').textContent.includes('0.075 at 40')")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_page_is_wider_than_its_window(chromium: Browser, site: Path, width: int) -> None:
    size(chromium, width, 900)
    for page in (site / "site").rglob("*.html"):
        chromium.open(page.as_uri())
        assert chromium.run("document.documentElement.scrollWidth") <= width, page
    size(chromium, 1280, 900)
