"""A run over the wall clock: its attempts, what happened between and in them, and what the seconds went into."""

from megajukebox.explorer.pages.html import Markup, element
from megajukebox.monitoring.alerts import format_duration
from megajukebox.monitoring.collect.run_state import RunState
from megajukebox.records.productive_time import number

WIDTH, HEIGHT = 1000, 46
MOST = 200  # marks
WORDS = {
    "productive": "training steps that were kept", "data_wait": "waiting for data", "ckpt_save": "saving",
    "ckpt_restore": "loading checkpoints", "init": "starting", "eval": "evaluating",
    "recompute": "steps trained again", "other": "other", "down": "no process",
}  # fmt: skip


def time_line(run: RunState) -> Markup:
    account = run.account
    if not account.attempts or account.wall <= 0:
        return element("p", "Nothing yet.", class_="small")
    return element("div", picture(run), bar(run), class_="timeline")


def picture(run: RunState) -> Markup:
    """A box for every attempt, a line for every event; the pointer tells which."""
    first, wall = run.account.attempts[0][0], run.account.wall

    def across(when: float) -> float:
        return round(min(1.0, max(0.0, (when - first) / wall)) * WIDTH, 1)

    boxes = [
        element(
            "rect", element("title", f"attempt {n}: {format_duration(end - begin)}"), x=across(begin), y=14,
            width=max(1.0, across(end) - across(begin)), height=18, class_="attempt",
        )
        for n, (begin, end) in enumerate(run.account.attempts, start=1)
    ]  # fmt: skip
    timed = [(when, e) for e in run.events if (when := number(e.get("time"))) is not None]
    lines = [
        element(
            "path", element("title", f"{e.get('event')} at step {e.get('step', '?')}: {e.get('reason', '')}"[:300]),
            d=f"M{across(when)} {24 if e.get('event') == 'save' else 12}V44", class_=f"mark {e.get('event')}",
        )
        for when, e in timed[-MOST:]
    ]  # fmt: skip
    ends = [
        element("text", "first start", x=0, y=9),
        element("text", format_duration(wall), x=WIDTH, y=9, text_anchor="end"),
    ]
    return element(
        "svg",
        ends,
        boxes,
        lines,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label="Time line",
    )


def bar(run: RunState) -> Markup:
    """Shares of the wall clock, the useful one first. Drawn: the server's policy forbids style attributes."""
    shares = {
        phase: seconds / run.account.wall
        for phase, seconds in run.account.seconds.items()
        if seconds > 0
    }
    starts = [sum(list(shares.values())[:n]) for n in range(len(shares))]
    pieces = [
        element(
            "rect", element("title", f"{WORDS.get(phase, phase)} {share:.1%}"),
            x=f"{start:.3%}", width=f"{share:.3%}", height="100%", class_=f"phase {phase}",
        )
        for start, (phase, share) in zip(starts, shares.items())
    ]  # fmt: skip
    words = [
        element(
            "span",
            element("i", class_=f"phase {phase}"),
            f"{WORDS.get(phase, phase)} {share:.1%}",
            class_="key",
        )
        for phase, share in shares.items()
        if share >= 0.001
    ]
    drawn = element(
        "svg",
        pieces,
        class_="bar-of-time",
        role="img",
        aria_label="Shares of its time; in words below",
    )
    return element("div", drawn, element("p", words, class_="small keys"))
