"""The page on which four voices are drawn, harmonised and played."""

from megajukebox.explorer.pages.layout import render_page
from megajukebox.records.drawn_piece import MAX_DRAWN_BARS, VOICES

HOW_TO_SERVE = "megajukebox explore serve --run runs/tiny"
METRES = ("2/4", "3/4", "4/4", "5/4", "2/2", "3/2", "3/8", "6/8", "9/8", "12/8")
MAJOR_KEYS = ("C", "G", "D", "A", "E", "B", "F", "Bb", "Eb", "Ab", "Db")
MINOR_KEYS = ("A", "E", "B", "F#", "C#", "D", "G", "C", "F", "Bb")
# Ticks, 24 a quarter, and what they are called.
LENGTHS = (
    (6, "Sixteenth"),
    (12, "Eighth"),
    (18, "Dotted eighth"),
    (24, "Quarter"),
    (36, "Dotted quarter"),
    (48, "Half"),
    (72, "Dotted half"),
    (96, "Whole"),
)
SCRIPTS = ("draw_piece.js", "draw_roll.js", "draw_sound.js", "draw.js")


def draw_page() -> str:
    """The roll, its list for those without a pointer, and the answers; without a server it draws and plays."""
    keys = [f"{tonic} major" for tonic in MAJOR_KEYS] + [f"{tonic} minor" for tonic in MINOR_KEYS]
    return render_page(
        "draw.html",
        "Draw",
        tab="Draw",
        scripts=SCRIPTS,
        commands=HOW_TO_SERVE,
        voices=VOICES,
        metres=METRES,
        song_keys=keys,
        lengths=LENGTHS,
        max_bars=MAX_DRAWN_BARS,
    )
