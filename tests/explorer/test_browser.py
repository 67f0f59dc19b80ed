"""The explorer's pages in a headless Chromium, from disk and from a simple web server, with real keys and clicks."""

import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import urlencode

import pytest
from fixtures import accessibility, browser
from fixtures.browser import Browser
from fixtures.explorer_samples import add_run, add_sample, metrics

from megajukebox.explorer.site_builder import build_site

pytestmark = pytest.mark.skipif(
    browser.binary() is None, reason="no chromium on this machine: apt install chromium"
)

HOSTILE = "</script><img src=x onerror=\"window.owned='yes'\"> & 'q'"
NAMES = "[...document.querySelectorAll('.card h2')].map(title => title.textContent)"
FAULT = "document.getElementById('error').textContent"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of samples/, runs/ and site/; one song's name and words are hostile, one lacks its middle level."""
    root = tmp_path_factory.mktemp("explorer")
    add_sample(root / "samples", "one", seconds=8.0)
    (root / "samples" / "one.lrc").write_text(
        "[00:01.00] <00:01.00> hello <00:05.00> world <00:07.00>\n"
    )
    other = {"year": 1999, "sampler": "student", "seed": 8}
    two = {"artist": "Чайка", "genres": ["march", "live"], "lyrics": ""}
    add_sample(
        root / "samples",
        "two",
        levels=("top", "bottom"),
        steps={"top": 300},
        loudness=0.562,
        **two,
        **other,
    )
    add_sample(
        root / "samples",
        "<img src=x onerror=alert(1)>",
        artist=HOSTILE,
        genres=[HOSTILE * 3],
        lyrics=HOSTILE,
    )
    add_run(
        root / "runs" / "vqvae",
        metrics(40),
        [{"time": 1e9, "event": "save", "step": 20, "reason": HOSTILE}],
    )
    build_site([root / "samples"], [root / "runs"], root / "site")
    return root


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as tab:
        size(tab, 1280, 900)
        yield tab


@pytest.fixture(scope="module")
def served(site: Path) -> Iterator[str]:
    """The address of a web server that, like many, cannot send a part of a file."""
    with ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(QuietHandler, directory=str(site))
    ) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def size(tab: Browser, width: int, height: int) -> None:
    tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=height,
        deviceScaleFactor=1,
        mobile=width < 500,
    )


def click(tab: Browser, selector: str, share: float = 0.5) -> None:
    """Click at a share of an element's width."""
    tab.run(
        f"document.querySelector({selector!r}).scrollIntoView({{block: 'nearest', behavior: 'instant'}})"
    )
    box = f"document.querySelector({selector!r}).getBoundingClientRect()"
    tab.click(*tab.run(f"(box => [box.left + box.width * {share}, box.top + 9])({box})"))


def search(tab: Browser, **fields: str) -> None:
    """Fill fields of the filters, as typing and choosing would."""
    for name, value in fields.items():
        tab.run(
            f"form[{name!r}].value = {json.dumps(value)}, form.dispatchEvent(new Event('input'))"
        )


def test_the_address_filters_the_list_and_the_filters_write_the_address(
    chromium: Browser, site: Path
) -> None:
    page = (site / "site" / "index.html").as_uri()
    chromium.open(page)
    assert sorted(chromium.run(NAMES)) == sorted(["Ada", "Чайка", HOSTILE])
    chromium.open(f"{page}#artist=%D0%A7%D0%B0%D0%B9%D0%BA%D0%B0")
    assert chromium.run(NAMES) == ["Чайка"]
    chromium.open(f"{page}#genres=waltz&q=world+hello")
    chromium.wait(f"{NAMES}.join() === 'Ada'")
    search(chromium, q="", genres="live")
    assert chromium.run(NAMES) == ["Чайка"] and chromium.run("location.hash") == "#genres=live"
    click(chromium, "button[type=reset]")
    chromium.wait(f"{NAMES}.length === 3")
    search(chromium, q="no such word")
    assert chromium.run("!document.getElementById('none').hidden") and chromium.run(FAULT) == ""


def test_every_field_filters_and_only_those_with_a_choice_are_offered(
    chromium: Browser, site: Path
) -> None:
    chromium.open((site / "site" / "index.html").as_uri())
    offered = "selects.filter(select => !select.closest('label').hidden).map(select => select.name)"
    assert chromium.run(offered) == ["artist", "genres", "year", "checkpoint", "levels", "sampler"]
    wanted = {
        "year": "1999",
        "checkpoint": "step 300",
        "levels": "middle",
        "sampler": "student",
        "seed": "7",
    }
    found = {}
    for name, value in wanted.items():
        search(chromium, **{name: value})
        found[name] = sorted(chromium.run("shown.map(entry => entry.name)"))
        search(chromium, **{name: ""})
    hostile, one, two = "<img src=x onerror=alert(1)>", "one", "two"
    rest = sorted([hostile, one])
    assert found == {
        "year": [two],
        "checkpoint": [two],
        "levels": rest,
        "sampler": [two],
        "seed": rest,
    }
    search(chromium, artist="Ada")
    assert chromium.run("[...form.genres.options].map(option => option.text)") == [
        "all",
        "waltz (1)",
    ]
    assert (
        chromium.run("[...form.artist.options].length") == 4
    )  # the other artists are still there to be chosen


def test_of_thousands_only_what_is_in_view_is_drawn(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "index.html").as_uri())
    chromium.run(
        "shown = Array.from({length: 5000}, (_, n) => ({...entries[0], name: `copy-${n}`})), clear(), draw()"
    )
    assert chromium.run("list.children.length") < 60
    chromium.run("scrollTo({top: 1e7, behavior: 'instant'})")
    chromium.wait("cards.has(4999) && list.children.length < 60")
    assert chromium.run("list.lastElementChild.getAttribute('aria-posinset')") == "5000"
    chromium.run("scrollTo({top: 0, behavior: 'instant'})")
    chromium.wait("cards.has(0) && !cards.has(4999)")


def test_keys_walk_the_list_play_and_open(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "index.html").as_uri())
    chromium.wait("document.body.dataset.words")  # a late list of words filters once more
    for key in "jjk":
        chromium.press(key)
    assert chromium.run("[at, document.querySelectorAll('.card.at').length]") == [0, 1]
    chromium.press(" ")
    chromium.wait("player.playing && player.song === shown[0]")
    chromium.press(" ")
    chromium.press("/")
    assert chromium.run("document.activeElement === form.q")
    chromium.press("j")
    assert chromium.run("[form.q.value, at]") == ["j", -1]  # typed, not obeyed
    search(chromium, q="")
    chromium.press("Escape")
    chromium.press("j")
    chromium.press("?")
    assert chromium.run("help.open")
    chromium.press("Escape")
    chromium.wait("!help.open")
    chromium.wait("at === 0 && document.activeElement === document.body")
    wanted = chromium.run("shown[0].page")
    chromium.press("Enter")
    chromium.wait(f"location.href.endsWith({json.dumps(wanted)})")


def test_hostile_words_are_shown_and_never_run(chromium: Browser, site: Path) -> None:
    for page in (site / "site").rglob("*.html"):
        chromium.open(page.as_uri())
        assert chromium.run("typeof owned") == "undefined" and chromium.run(FAULT) == "", page
        assert not chromium.run("document.querySelector('img[src=x]')"), page
        if page.name == "index.html" or page.parent.name == "run" or "img" in page.name:
            assert "onerror=" in chromium.run("document.body.textContent"), page


def test_hostile_words_are_compared_as_text(chromium: Browser, site: Path) -> None:
    address = (site / "site" / "compare.html").as_uri()
    chromium.open(f"{address}#{urlencode({'a': '<img src=x onerror=alert(1)>', 'b': 'one'})}")
    chromium.wait("document.querySelectorAll('.which')[0].textContent.includes('onerror=')")
    assert chromium.run("typeof owned") == "undefined" and not chromium.run(
        "!!document.querySelector('img[src=x]')"
    )
    assert chromium.run("document.querySelector('tr.different td').textContent") == HOSTILE


def test_nothing_is_loaded_before_it_is_played(chromium: Browser, site: Path) -> None:
    for page in ("index.html", "sample/one.html"):
        chromium.open((site / "site" / page).as_uri())
        assert chromium.run(
            "[...document.querySelectorAll('audio')].every(audio => audio.preload === 'none')"
        )
        assert chromium.run(
            "[...document.querySelectorAll('audio')].every(audio => audio.readyState === 0)"
        )


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
    chromium.wait("player.playing && player.track === 'top' && player.audio.currentTime > 5.1")
    chromium.press(" ")
    assert not chromium.run("player.playing")
    moment = chromium.run("player.moment")
    chromium.press("3")
    assert chromium.run("player.track") == "bottom" and chromium.run(
        "player.moment"
    ) == pytest.approx(moment, abs=0.1)
    chromium.press("ArrowLeft")
    assert chromium.run("player.moment") == pytest.approx(moment - 5, abs=0.1)
    assert (
        chromium.run(FAULT) == ""
        and chromium.run("document.querySelector('.trouble').textContent") == ""
    )


def test_each_word_lights_up_while_it_is_sung(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "sample" / "one.html").as_uri())
    lit = "[...document.querySelectorAll('.sung')].map(word => word.textContent).join()"
    for moment, words in (
        (0.5, ""),
        (1.0, "hello"),
        (4.9, "hello"),
        (5.1, "world"),
        (6.9, "world"),
        (7.5, ""),
    ):
        chromium.run(f"player.seek({moment})")
        assert chromium.run(lit) == words, moment
    click(chromium, "#lyrics [data-start]")
    chromium.wait("player.playing && player.audio.currentTime >= 1 && player.audio.currentTime < 3")


def test_reconstruction_and_original_are_switched_to_at_the_same_moment(
    chromium: Browser, tmp_path: Path
) -> None:
    tracks = ("top", "middle", "bottom", "reconstruction", "original")
    add_sample(tmp_path / "samples", "primed", seconds=4.0, levels=tracks)
    build_site([tmp_path / "samples"], [], tmp_path / "site")
    chromium.open((tmp_path / "site" / "sample" / "primed.html").as_uri())
    chromium.press(" ")
    chromium.wait("player.playing && player.moment > 0.1")
    chromium.run("player.seek(2)")
    for key, track in (("4", "reconstruction"), ("5", "original"), ("3", "bottom")):
        chromium.press(key)
        chromium.wait(
            f"player.playing && player.track === {track!r} && player.audio.currentTime > 1.9"
        )
        assert chromium.run(f"player.audio.src.endsWith('primed.{track}.wav')") or track == "bottom"
        assert chromium.run("document.querySelector('.strip.current').dataset.track") == track


def test_a_click_on_a_picture_plays_that_level_from_there(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "sample" / "one.html").as_uri())
    click(chromium, ".bar[data-track=middle] .inner", share=0.75)
    chromium.wait("player.playing && player.track === 'middle' && player.audio.currentTime >= 5.9")
    assert chromium.run("document.querySelector('.strip.current').dataset.track") == "middle"


def test_waveforms_are_drawn_clicked_and_zoomed_together(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "sample" / "one.html").as_uri())
    chromium.wait("strips.strips.every(strip => strip.wave && strip.wave.getDuration() === 8)")
    drawn = "strips.strips[2].wave.getWrapper().querySelector('canvas')"
    chromium.wait(f"Boolean({drawn})")
    ink = f"{drawn}.getContext('2d').getImageData(0, 0, {drawn}.width, {drawn}.height).data.some(value => value > 0)"
    assert chromium.run(ink)
    click(chromium, ".bar[data-track=bottom] .wave", share=0.5)
    chromium.wait("player.playing && player.track === 'bottom' && player.audio.currentTime >= 3.9")
    chromium.press(" ")
    chromium.press("+")
    widths = (
        "strips.strips.map(strip => [strip.inner.clientWidth, strip.wave.getWrapper().clientWidth])"
    )
    single = chromium.run("strips.strips[0].scrolled.clientWidth")
    assert all(
        width == pytest.approx(2 * single, abs=2) for pair in chromium.run(widths) for width in pair
    )
    scroll = "strips.strips[0].scrolled.scrollLeft = 100"  # again each time: a waveform drawn late goes back to its place
    together = (
        "s => Math.abs(s.scrolled.scrollLeft - 100) < 2 && Math.abs(s.wave.getScroll() - 100) < 2"
    )
    chromium.wait(f"({scroll}, strips.strips.every({together}))")
    chromium.press("0")
    assert chromium.run("strips.strips[0].inner.clientWidth") == pytest.approx(single, abs=2)


def test_a_song_without_the_chosen_level_plays_its_finest(chromium: Browser, site: Path) -> None:
    chromium.open(
        (site / "site" / "index.html").as_uri() + "#artist=%D0%A7%D0%B0%D0%B9%D0%BA%D0%B0"
    )
    chromium.press("2")
    click(chromium, ".card .play")
    chromium.wait("player.playing")
    assert chromium.run("[player.wanted, player.track]") == ["middle", "bottom"]
    assert chromium.run("document.querySelector('.tracks [data-track=middle]').disabled")


def test_two_samples_are_compared_at_the_same_moment_and_equally_loud(
    chromium: Browser, site: Path
) -> None:
    chromium.open((site / "site" / "index.html").as_uri())
    chromium.run(
        "for (const name of ['one', 'two']) pick(entries.find(entry => entry.name === name))"
    )
    click(chromium, "#chosen a")
    chromium.wait(
        "typeof strips !== 'undefined' && player.song && document.querySelectorAll('.strip h2').length === 2"
    )
    assert chromium.run("both.map(entry => entry.name)") == ["one", "two"]
    assert chromium.run(
        "[...document.querySelectorAll('tr.different th')].map(name => name.textContent)"
    ) == ["artist", "genres", "year", "checkpoint", "sampler", "seed", "seconds", "name"]
    assert sorted(chromium.run("Object.values(player.song.gain)")) == pytest.approx(
        [2 / 3 * 0.562, 1.0], abs=0.02
    )
    chromium.press(" ")
    chromium.wait("player.playing && player.moment > 0.3")
    chromium.press("2")
    chromium.wait("player.track === 'B' && player.playing && player.audio.currentTime > 0.3")
    assert chromium.run(
        "player.audio.src.endsWith('/two.wav') && player.audio.volume < 0.99 !== player.song.gain.B > 0.99"
    )
    assert chromium.run(FAULT) == ""


def test_two_runs_are_compared_by_the_requests_they_share(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "compare.html").as_uri())
    chromium.run(
        "form.field.value = 'checkpoint', form.field.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    chromium.wait("!document.getElementById('say').hidden")  # the checkpoints share no request
    assert "no request in common" in chromium.run("document.getElementById('say').textContent")


def test_the_reader_chooses_light_or_dark(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "index.html").as_uri())
    paper = "getComputedStyle(document.body).backgroundColor"
    click(chromium, "#theme")
    first = chromium.run(paper)
    click(chromium, "#theme")
    assert chromium.run(paper) != first
    chromium.run("localStorage.clear()")


def test_a_fault_of_a_script_is_shown(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "index.html").as_uri())
    chromium.run("setTimeout(() => { throw new Error('as a test') })")
    chromium.wait(f"{FAULT}.includes('as a test') && !document.getElementById('error').hidden")


def test_the_pointer_reads_a_curve(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "run" / "vqvae.html").as_uri())
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


def test_no_page_breaks_wcag_in_either_theme(chromium: Browser, site: Path) -> None:
    pages = (
        "index",
        "sample/one",
        "sample/two",
        "compare",
        "runs",
        "run/vqvae",
        "corpus",
        "studio",
        "draw",
        "blind",
        "rate",
    )
    wrong = {}
    for page in pages:
        chromium.open((site / "site" / f"{page}.html").as_uri())
        wrong[page] = accessibility.violations(chromium)
    chromium.open((site / "site" / "index.html").as_uri())
    chromium.press("?")
    wrong["keys"] = accessibility.violations(chromium)
    assert not any(wrong.values()), wrong


def test_the_audit_finds_what_is_wrong(chromium: Browser, site: Path) -> None:
    chromium.open((site / "site" / "runs.html").as_uri())
    chromium.run(
        "document.querySelector('main').append(make('input'), make('p', 'pale', { id: 'pale' }))"
    )
    chromium.run("document.getElementById('pale').style.color = '#888'")
    found = [one.split(": ")[:2] for one in accessibility.violations(chromium)]
    assert ["light", "label"] in found and ["light", "color-contrast"] in found
