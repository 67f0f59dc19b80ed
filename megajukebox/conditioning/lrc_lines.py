"""LRC text to lines with times: what writers of the format have made of `[mm:ss.xx]words` since 1998.

    [ti:Title] [offset:-500]         header tags: not sung; times move by the offset (milliseconds, positive is earlier)
    [00:12.00][01:40.00]chorus       a line with its times, of which each may be mm:ss.xx, mm:ss,xxx, mm:ss:xx, hh:mm:ss.xx
    [00:12.00]<00:12.00>cho<00:12.40>rus <00:13.00>      word times (enhanced LRC); in square brackets too
    [00:12.00]F: she   [00:14.00]M: he                   who sings (Walaoke)

Nobody sings a bracket of digits: one that is no time is a remark and no part of the words.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

MAX_TIMES = 20  # of one line: a chorus; more copies of a long line would be a bomb
# A first word may be this much before its line (s), and this much behind it where a second bracket is that word's time.
FIRST_WORD_TOLERANCE = 1.0
BLANKS = r"[ \t]{0,9}"
STAMP = re.compile(
    rf"(?P<open>[\[<]){BLANKS}(?P<sign>[+-]?)(?P<first>\d{{1,6}}){BLANKS}:{BLANKS}"
    rf"(?P<inner>[+-]?)(?P<second>\d{{1,6}})(?:{BLANKS}:{BLANKS}(?P<third>\d{{1,6}}))?"
    rf"(?:{BLANKS}[.,]{BLANKS}(?P<fraction>\d{{1,9}}))?{BLANKS}[\]>]"
)
# Brackets of digits that are no time: any at the start of a line, elsewhere only what was meant for one.
LEADING_DIGITS = re.compile(r"\s*(\[[\s\d:.,;'+/-]{0,40}\d[\s\d:.,;'+/-]{0,40}\])")
INNER_DIGITS = re.compile(
    rf"\[[ \t+-]{{0,9}}\d{{1,9}}{BLANKS}[:.,;][ \t\d:.,;'+-]{{0,40}}\]"
    rf"|<[ \t+-]{{0,9}}\d{{1,9}}{BLANKS}[:.,;][ \t\d:.,;'+-]{{0,40}}>"
)
SPACES = re.compile(r"\s*")
SINGERS = re.compile(r"\s*(?:[FMD]:\s*)+")
KNOWN_TAGS = frozenset(
    [
        *("al", "app", "ar", "artist", "au", "by", "encoding", "hash", "id", "kana", "key", "la"),
        *("language", "length", "lr", "offset", "qq", "re", "sign", "source", "ti", "title"),
        *("tool", "total", "ve", "version", "#"),
    ]
)
# Parts of a song, which people write into brackets too, with who sings them behind a colon.
SECTIONS = frozenset(
    [
        *("break", "bridge", "build", "chant", "chorus", "coda", "couplet", "drop", "estribillo"),
        *("hook", "instrumental", "interlude", "intro", "outro", "part", "postchorus", "prechorus"),
        *("post-chorus", "pre-chorus", "puente", "refrain", "reprise", "section", "skit", "solo"),
        *("spoken", "strophe", "vers", "verse", "verso"),
    ]
)
TAG = re.compile(r"\s*\[([^\W\d_][\w-]{0,15}|#)?\s{0,9}:(.*)\]\s*$")
TAGS_OF_A_LINE = re.compile(r"\s*(?:\[(?:[^\W\d_][\w-]{0,15}|#)?:[^\[\]]*\]\s*)+$")
TAG_NAME = re.compile(r"\[([^\s:\[\]]*):")
OFFSET = re.compile(
    r"([+-]?[ \t]?\d{1,9})(?:[.,](\d{1,9}))?[ \t]{0,9}(ms|msecs?|milliseconds?|s|secs?|seconds?)?"
)
LINE_END = re.compile(r"\r\n?|\n")


class LrcRemarkKind(str, Enum):
    """Kinds of remarks; `prepare` notes them under the same names."""

    unreadable_lyrics_time = "unreadable_lyrics_time"
    ambiguous_lyrics_time = "ambiguous_lyrics_time"
    moved_lyrics_time = "moved_lyrics_time"
    lyrics_offset = "lyrics_offset"
    bad_lyrics_offset = "bad_lyrics_offset"
    lyrics_tag = "lyrics_tag"
    second_lyrics = "second_lyrics"
    cut_lyrics = "cut_lyrics"


class LrcRemark(NamedTuple):
    """Something in an LRC that was not understood, or that was read otherwise than it stands there."""

    line: int  # from 1
    kind: LrcRemarkKind
    detail: str


@dataclass(frozen=True)
class LrcLine:
    """A line of words: when it starts (s, may be before 0), whether that is its own time, and its pieces.

    Each piece is (when it starts, its text); the first one starts with the line. More than one: it has word times.
    """

    number: int  # in the text, from 1
    start: float
    has_time: bool
    pieces: tuple[tuple[float, str], ...]

    @property
    def text(self) -> str:
        return "".join(text for _, text in self.pieces)

    def moved(self, seconds: float) -> "LrcLine":
        """The line so much later."""
        pieces = tuple((time + seconds, text) for time, text in self.pieces)
        return LrcLine(self.number, self.start + seconds, self.has_time, pieces)


def is_lrc(text: str) -> bool:
    """Whether a text has times, or begins with a known header tag; plain lyrics have neither."""
    first_words = False
    for line in LINE_END.split(text.removeprefix("\ufeff")):
        if STAMP.search(line):
            return True
        leading = LEADING_DIGITS.match(line)
        if leading and INNER_DIGITS.match(leading[1]):
            return True
        if not first_words and line.strip():
            if tags_of(line) & KNOWN_TAGS:
                return True
            first_words = not tags_of(line)
    return False


def tags_of(line: str) -> frozenset[str]:
    """The lower-case names of the header tags that a line consists of; none where it may be sung."""
    names: list[str] = []
    if TAGS_OF_A_LINE.match(line):
        names = TAG_NAME.findall(line)
    elif tag := TAG.match(line):
        names = [tag[1] or "#"]  # [:] is a comment
    lower = [name.lower() or "#" for name in names]
    return frozenset() if SECTIONS.intersection(lower) else frozenset(lower)


@dataclass
class LrcLineReader:
    """Reads the lines of one LRC; what it does not understand it remarks upon."""

    text: str
    remarks: list[LrcRemark] = field(default_factory=list)
    offset: float | None = None  # seconds, positive is earlier
    third_is_fraction: bool = False  # mm:ss:xx; else hh:mm:ss

    def lines(self) -> list[LrcLine]:
        """The lines in order of time; one sung twice comes twice, one without a time follows the one before it."""
        rows = LINE_END.split(self.text.removeprefix("\ufeff"))
        if rows[-1] == "":
            rows.pop()
        self.third_is_fraction = self._third_is_fraction()
        read: list[LrcLine] = []
        last = 0.0
        sung = False
        for number, row in enumerate(rows, 1):
            if self._is_header(row, number, sung):
                continue
            for line in self._copies(row, number, last):
                read.append(line)
                last = line.start
                sung = sung or bool(line.text.strip())
        if self.offset and any(line.has_time for line in read):
            detail = f"all times are {abs(self.offset):g} s {'earlier' if self.offset > 0 else 'later'} by its offset"
            self.remarks.append(LrcRemark(1, LrcRemarkKind.lyrics_offset, detail))
            read = [line.moved(-self.offset) for line in read]
        return self._one_language(sorted(read, key=lambda line: line.start))

    def _remark(self, line: int, kind: LrcRemarkKind, detail: str) -> None:
        self.remarks.append(LrcRemark(line, kind, detail))

    # ---- header

    def _is_header(self, row: str, number: int, sung: bool) -> bool:
        """Whether a line is one of tags, and so no words. Before the first words any tag is, later a known one."""
        names = tags_of(row)
        if row.lstrip().startswith(("[:]", "[#:]")):
            return True  # a comment
        if not names:
            return False
        if "offset" in names:
            self._read_offset(row, number)
        if sung and not names & KNOWN_TAGS:
            if row != row.lower() or not row.isascii() or " " in row.strip():
                return False  # more likely a label of the words: [Both:la la]
            detail = f"{row.strip()[:60]} is taken for a header, not for words"
            self._remark(number, LrcRemarkKind.lyrics_tag, detail)
        return True

    def _read_offset(self, row: str, number: int) -> None:
        written = re.search(r"\[\s*offset\s*:([^\[\]]*)", row, re.IGNORECASE)
        value = written[1].strip().lower() if written else ""
        if not value:
            return
        match = OFFSET.fullmatch(value)
        if match is None:
            detail = f"offset {value[:40]!r} is no number of milliseconds; write as [offset:-500]"
            self._remark(number, LrcRemarkKind.bad_lyrics_offset, detail)
            return
        whole, fraction, unit = match.groups()
        amount = float(f"{''.join(whole.split())}.{fraction or 0}")
        seconds = amount if (unit or "ms").startswith("s") else amount / 1000
        if self.offset is not None and seconds != self.offset:
            detail = f"a second offset of {seconds:g} s is not applied; keep one of them"
            self._remark(number, LrcRemarkKind.bad_lyrics_offset, detail)
            return
        self.offset = seconds

    # ---- times

    def _third_is_fraction(self) -> bool:
        """Whether the third field of times without a fraction is hundredths, as in mm:ss:xx, or seconds, as in hh:mm:ss.

        Hundredths may be over 59 or have three digits. A song seldom lasts an hour, nor starts in its first second.
        """
        stamps = [stamp for stamp in STAMP.finditer(self.text) if stamp["third"]]
        if not stamps or any(stamp["fraction"] for stamp in stamps):
            return False
        thirds = [stamp["third"] for stamp in stamps]
        if any(len(third) > 2 or int(third) > 59 for third in thirds):
            return True
        long = any(int(stamp["first"]) for stamp in stamps)
        early = any(int(stamp["second"]) == 0 for stamp in stamps)
        hundredths = long or not early
        reading = "mm:ss:xx" if hundredths else "hh:mm:ss"
        detail = f"times of three fields are read as {reading}; write [mm:ss.xx] to be sure"
        line = self.text.count("\n", 0, stamps[0].start()) + 1
        self._remark(line, LrcRemarkKind.ambiguous_lyrics_time, detail)
        return hundredths

    def _seconds(self, stamp: re.Match[str]) -> float:
        """The time of a stamp in seconds."""
        first, second = int(stamp["first"]), int(stamp["second"])
        fraction = float(f"0.{stamp['fraction'] or 0}")
        third = stamp["third"]
        if third is None:
            seconds = 60 * first + second + fraction
        elif stamp["fraction"] is None and self.third_is_fraction:
            seconds = 60 * first + float(f"{second}.{third}")
        else:
            seconds = 3600 * first + 60 * second + int(third) + fraction
        return -seconds if "-" in (stamp["sign"], stamp["inner"]) else seconds

    def _leading_times(self, row: str, number: int) -> tuple[list[float], str]:
        """(times in square brackets before the words, the rest of the line)."""
        times: list[float] = []
        position = 0
        while True:
            spaces = SPACES.match(row, position)
            stamp = STAMP.match(row, spaces.end() if spaces else position)
            if stamp and stamp["open"] == "[":
                times.append(self._seconds(stamp))
                position = stamp.end()
                continue
            digits = LEADING_DIGITS.match(row, position)
            if digits is None or stamp:
                return times, row[position:]
            self._unreadable(digits[1], number)
            position = digits.end()

    def _unreadable(self, bracket: str, number: int) -> None:
        detail = f"{bracket[:60]} is no time; write [mm:ss.xx]"
        self._remark(number, LrcRemarkKind.unreadable_lyrics_time, detail)

    # ---- lines

    def _copies(self, row: str, number: int, last: float) -> Iterator[LrcLine]:
        """The line as often as it has times of its own; once, at `last`, without any."""
        times, rest = self._leading_times(row, number)
        stamps = list(STAMP.finditer(rest))
        texts = self._texts(rest, stamps, number)
        word_times = [self._seconds(stamp) for stamp in stamps]
        if len(times) > 1 and stamps and stamps[0]["open"] == "[":
            gap = times[-1] - times[-2]
            if texts[0].strip() and 0 <= gap <= FIRST_WORD_TOLERANCE and times[-1] <= word_times[0]:
                word_times.insert(0, times.pop())  # [00:01.00][00:01.00]la [00:01.50]li
                texts.insert(0, "")
        if not times and not word_times:
            yield LrcLine(number, last, False, ((last, texts[0]),))
            return
        if not times:  # words with times in a line without one
            times = [min(last, word_times[0]) if texts[0].strip() else word_times[0]]
        singers = SINGERS.match(texts[0])
        if singers:
            texts[0] = texts[0][singers.end() :]
        if len(times) > MAX_TIMES:
            detail = f"it has {len(times)} times; the first {MAX_TIMES} are taken"
            self._remark(number, LrcRemarkKind.cut_lyrics, detail)
        own = self._time_of_words(times, word_times, number)
        for start in times[:MAX_TIMES]:
            pieces = [(start, texts[0])]
            for time, text in zip(word_times, texts[1:]):
                pieces.append((time + start - own, text))
            yield LrcLine(number, start, True, tuple(pieces))

    def _texts(self, rest: str, stamps: Iterable[re.Match[str]], number: int) -> list[str]:
        """The texts before, between and behind the stamps of a line, without brackets of digits."""
        texts: list[str] = []
        position = 0
        for stamp in stamps:
            texts.append(rest[position : stamp.start()])
            position = stamp.end()
        texts.append(rest[position:])
        for index, text in enumerate(texts):
            for digits in INNER_DIGITS.findall(text):
                self._unreadable(digits, number)
            texts[index] = INNER_DIGITS.sub("", text)
        return texts

    def _time_of_words(self, times: list[float], word_times: list[float], number: int) -> float:
        """Which of a line's times its word times belong to: the last one that they do not come before.

        Where they come before all of them they count from the start of the line, or contradict it: they begin with it.
        """
        if not word_times:
            return times[0]
        earlier = [time for time in times if time <= word_times[0] + FIRST_WORD_TOLERANCE]
        if earlier:
            return max(earlier)
        detail = f"its words have times from {word_times[0]:g} s on, before their line at {times[0]:g} s; they begin with it"
        self._remark(number, LrcRemarkKind.moved_lyrics_time, detail)
        return word_times[0]

    # ---- several languages

    def _one_language(self, lines: list[LrcLine]) -> list[LrcLine]:
        """`lines` without translations: where most times have several lines, the first of each is sung.

        A line with word times is always kept: nobody writes them for a translation, and we write all lines so.
        """
        counts = Counter(
            round(line.start, 3) for line in lines if line.has_time and line.text.strip()
        )
        several = sum(count > 1 for count in counts.values())
        translated = 2 * several >= len(counts)
        kept: list[LrcLine] = []
        first: dict[float, LrcLine] = {}
        for line in lines:
            sung_with = first.get(round(line.start, 3)) if line.has_time else None
            if not line.has_time or not line.text.strip():
                kept.append(line)
            elif sung_with is None:
                first[round(line.start, 3)] = line
                kept.append(line)
            elif len(line.pieces) == 1 and (
                translated or line.text.split() == sung_with.text.split()
            ):
                detail = f"it has the time of line {sung_with.number}; that one is sung, this one left out"
                self._remark(line.number, LrcRemarkKind.second_lyrics, detail)
            else:
                kept.append(line)
        return kept
