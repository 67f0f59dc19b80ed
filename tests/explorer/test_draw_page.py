"""The page Draw in a headless Chromium: by keys alone, by mouse, with and without its server."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import accessibility, browser
from fixtures.asgi import served_in_a_thread
from fixtures.browser import Browser

from megajukebox.explorer.server.access import AccessRules
from megajukebox.explorer.server.api import application
from megajukebox.explorer.server.draw_api import DrawServices
from megajukebox.explorer.server.static_files import Library
from megajukebox.explorer.site_builder import write_static
from megajukebox.explorer.site_files import own_folder

pytestmark = pytest.mark.skipif(
    browser.binary() is None, reason="no chromium on this machine: apt install chromium"
)
# Stands in for a composer: a third, a sixth and an octave below the soprano, in the bars and voices asked for.
STAND_IN = """
import json, sys
for line in sys.stdin:
    order = json.loads(line)
    piece = order["piece"]
    bar = piece["metre"][0] * 96 // piece["metre"][1]
    span = range((order["first_bar"] - 1) * bar, order["last_bar"] * bar)
    wanted = ["SATB".index(letter) for letter in order["voices"]]
    kept = [note for note in piece["notes"] if note[3] not in wanted or note[0] not in span]
    answers = []
    for number in range(order["keep"]):
        notes = list(kept)
        for onset, length, pitch, voice in piece["notes"]:
            if voice == 0 and onset in span:
                notes += [[onset, length, pitch - (0, 4, 9, 16)[v] - number, v] for v in wanted if v]
        figures = {"parallel_fifths_per_100_chords": 1.25, "triad_percent": 90}
        answers.append({"piece": {**piece, "notes": sorted(notes)}, "seed": order["seed"], "figures": figures})
    print(json.dumps({"state": "done", "answers": answers}), flush=True)
"""
NOTES = "piece.state.notes"
SAID = "document.getElementById('said').textContent"
FAULT = "document.getElementById('error').textContent"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("draw")
    (root / "samples").mkdir()
    own_folder(root / "site")
    write_static(root / "site")
    library = Library([root / "samples"], root / "site")
    library.refresh()
    command = [sys.executable, "-c", STAND_IN]
    services = DrawServices(root, root / "work", command=lambda _: command)
    app = application(library, root / "votes.jsonl", None, AccessRules(None, 80), services)
    with served_in_a_thread(app) as port:
        yield f"http://127.0.0.1:{port}/site/draw.html"
    services.close()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as tab:
        size(tab, 1280)
        yield tab


def size(tab: Browser, width: int) -> None:
    mobile = width < 500
    tab.call(
        "Emulation.setDeviceMetricsOverride",
        width=width,
        height=900,
        deviceScaleFactor=1,
        mobile=mobile,
    )


def fresh(tab: Browser, address: str) -> None:
    """The page without what an earlier test drew."""
    tab.open(address)
    tab.run("localStorage.clear()")
    tab.open(address)
    tab.wait("!document.getElementById('ask').hidden")
    assert tab.run(f"{NOTES}.length") == 0


def arrow(tab: Browser, key: str, times: int = 1, shift: bool = False) -> None:
    for _ in range(times):
        for kind in ("keyDown", "keyUp"):
            tab.call("Input.dispatchKeyEvent", type=kind, key=key, modifiers=8 if shift else 0)


def test_five_notes_by_keys_alone_are_harmonised_taken_and_heard(
    chromium: Browser, address: str
) -> None:
    fresh(chromium, address)
    chromium.run("document.getElementById('roll').focus()")
    arrow(chromium, "ArrowDown", 5)
    arrow(chromium, "Enter")  # G4, a quarter
    assert chromium.run(NOTES) == [[0, 24, 67, 0]]
    assert chromium.run(SAID) == "Soprano, G4, bar 1, beat 1, quarter"
    arrow(chromium, "ArrowRight", 2)
    for letter in "abc":
        chromium.press(letter)
    assert chromium.run(NOTES)[1:] == [[24, 24, 69, 0], [48, 24, 71, 0], [72, 24, 72, 0]]
    chromium.press("b")
    arrow(chromium, "ArrowLeft")
    arrow(chromium, "ArrowRight", 4, shift=True)
    assert chromium.run(f"{NOTES}.at(-1)") == [96, 48, 71, 0]
    chromium.run("document.activeElement.blur()")
    chromium.press("h")
    chromium.wait("document.querySelectorAll('.answer').length === 3")
    assert "1.3 parallel fifths" in chromium.run("document.querySelector('.answer p').textContent")
    chromium.run(
        "[...document.querySelectorAll('.answer button')].find(b => b.textContent === 'Take it').focus()"
    )
    chromium.run("document.activeElement.click()")
    assert chromium.run(f"{NOTES}.length") == 20
    assert chromium.run(f"[0, 1, 2, 3].map(v => {NOTES}.filter(n => n[3] === v).length)") == [5] * 4
    chromium.press("p")
    chromium.wait("document.querySelectorAll('#roll .sounding').length === 4")
    assert chromium.run("sound.context.state") == "running"
    chromium.press("p")
    chromium.wait("document.querySelectorAll('#roll .sounding').length === 0")
    chromium.run("document.getElementById('undo').click()")
    assert chromium.run(f"{NOTES}.length") == 5 and chromium.run(FAULT) == ""


def test_what_is_played_sounds_in_every_voice(chromium: Browser, address: str) -> None:
    fresh(chromium, address)
    loud = """(async () => {
      const levels = {};
      for (const name of Object.keys(SOUNDS)) {
        const context = new OfflineAudioContext(1, 22050, 44100);
        const offline = new DrawnSound();
        offline.context = context;
        offline.note(context.destination, name, 69, 0, 0.01, 0.3);
        const heard = (await context.startRendering()).getChannelData(0);
        levels[name] = [Math.max(...heard.slice(0, 15000)), Math.max(...heard.slice(20500))];
      }
      return levels;
    })()"""
    for name, (during, after) in chromium.run(loud).items():
        assert 0.02 < during < 0.5 and after < 0.2 * during, name


def test_a_click_sets_a_note_a_drag_lengthens_it_and_a_click_removes_it(
    chromium: Browser, address: str
) -> None:
    fresh(chromium, address)
    box = chromium.run(
        "(b => [b.left, b.top, b.width])(document.getElementById('roll').getBoundingClientRect())"
    )
    left, top, width = box
    quarter = (width - 44) / 8
    x, y = left + 44 + 2.3 * quarter, top + 8 + 16 * 4

    def mouse(kind: str, x: float) -> None:
        button = "none" if kind == "mouseMoved" else "left"
        chromium.call(
            "Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=1, clickCount=1
        )

    mouse("mousePressed", x)
    mouse("mouseMoved", x + quarter)
    mouse("mouseMoved", x + 2 * quarter)
    mouse("mouseReleased", x + 2 * quarter)
    (note,) = chromium.run(NOTES)
    assert note[:2] == [48, 72] and note[3] == 0
    chromium.run("piece.undo()")
    assert chromium.run(NOTES) == []  # the note and its drag are one change
    chromium.run("piece.redo()")
    mouse("mousePressed", x)
    mouse("mouseReleased", x)
    assert chromium.run(NOTES) == []


def test_the_list_changes_notes_without_a_pointer(chromium: Browser, address: str) -> None:
    fresh(chromium, address)
    chromium.run("document.getElementById('as-list').open = true")
    chromium.run("document.getElementById('add').click(); document.getElementById('add').click()")
    assert chromium.run(NOTES) == [[0, 24, 67, 0], [24, 24, 67, 0]]
    chromium.wait("document.querySelectorAll('#rows tr').length === 2")
    for field, value in (("pitch", 71), ("length", 48), ("beat", 3)):
        element = f"document.querySelector('[data-field=\"1-{field}\"]')"
        chromium.run(f"{element}.value = '{value}'")
        chromium.run(f"{element}.dispatchEvent(new Event('change'))")
    assert chromium.run(NOTES) == [[0, 24, 67, 0], [48, 48, 71, 0]]
    chromium.run("document.querySelector('#rows button').click()")
    assert chromium.run(NOTES) == [[48, 48, 71, 0]]


def test_locked_voices_stay_and_a_rectangle_alone_is_rewritten(
    chromium: Browser, address: str
) -> None:
    fresh(chromium, address)
    notes = [[0, 96, 72, 0], [96, 96, 74, 0], [0, 96, 60, 2], [96, 96, 62, 2]]
    chromium.run(f"piece.change({{notes: {notes}}})")
    chromium.run(
        "[...document.querySelectorAll('[name=lock]')].forEach((b, v) => { b.checked = v !== 3; })"
    )
    chromium.run(
        "askForm.first.value = 2; askForm.last.value = 2; document.getElementById('rewrite').click()"
    )
    chromium.wait("document.querySelectorAll('.answer').length === 3")
    chromium.run(
        "[...document.querySelectorAll('.answer button')].find(b => b.textContent === 'Take it').click()"
    )
    assert chromium.run(NOTES) == sorted([*notes, [96, 96, 58, 3]])
    chromium.run(
        "[...document.querySelectorAll('[name=lock]')].forEach(b => { b.checked = true; })"
    )
    chromium.run("document.getElementById('harmonise').click()")
    assert "All voices are locked" in chromium.run("document.getElementById('trouble').textContent")


def test_a_midi_keyboard_writes_at_the_cursor(chromium: Browser, address: str) -> None:
    fresh(chromium, address)
    for message in ([0x90, 64, 90], [0x80, 64, 0], [0x90, 65, 0], [0x91, 67, 1]):
        chromium.run(f"listen({{data: {message}}})")
    assert chromium.run(NOTES) == [[0, 24, 64, 0], [24, 24, 67, 0]]


def test_files_are_saved_and_opened(chromium: Browser, address: str) -> None:
    fresh(chromium, address)
    chromium.run(
        "piece.change({notes: [[0, 24, 67, 0], [24, 72, 66, 0]], key: 'G major', bars: 1})"
    )
    post = "fetch('/api/draw/files/mid', {method: 'POST', body: JSON.stringify(piece.state)})"
    opened = chromium.run(
        f"{post}.then(a => a.blob()).then(b => ask('draw/open/mid', b)).then(a => JSON.stringify(a))"
    )
    assert json.loads(opened)["piece"]["notes"] == [[0, 24, 67, 0], [24, 72, 66, 0]]
    chromium.run("document.querySelector('[data-file=abc]').click()")
    chromium.wait(f"{SAID} === 'drawn.abc was saved'")


def test_a_reload_keeps_the_piece_and_damaged_storage_costs_it_alone(
    chromium: Browser, address: str
) -> None:
    fresh(chromium, address)
    chromium.run("piece.change({notes: [[0, 24, 67, 0]], bars: 4, metre: [3, 4]})")
    chromium.open(address)
    assert chromium.run(NOTES) == [[0, 24, 67, 0]] and chromium.run("setup.metre.value") == "3/4"
    chromium.run("localStorage.setItem('drawn', '{\"notes\": 3}')")
    chromium.open(address)
    assert chromium.run(NOTES) == [] and chromium.run(FAULT) == ""


def test_from_disk_it_draws_and_plays_and_says_how_to_get_a_composer(
    chromium: Browser, tmp_path: Path
) -> None:
    write_static(tmp_path)
    chromium.open((tmp_path / "draw.html").as_uri())
    assert chromium.run(
        "document.getElementById('ask').hidden && !document.getElementById('unserved').hidden"
    )
    chromium.run("piece.change({notes: [[0, 96, 67, 0]]})")
    chromium.run("document.getElementById('play').click()")
    chromium.wait("document.querySelectorAll('#roll .sounding').length === 1")
    assert chromium.run(FAULT) == ""


def test_it_breaks_no_rule_of_wcag_and_fits_a_phone(chromium: Browser, address: str) -> None:
    fresh(chromium, address)
    chromium.run("piece.change({notes: [[0, 48, 67, 0], [48, 48, 71, 0], [0, 96, 43, 3]]})")
    chromium.run("document.getElementById('as-list').open = true; harmonise(1, 2)")
    chromium.wait("document.querySelectorAll('.answer').length === 3")
    assert accessibility.violations(chromium) == []
    for width in (320, 390):
        size(chromium, width)
        assert chromium.run("document.documentElement.scrollWidth") <= width
    size(chromium, 1280)
