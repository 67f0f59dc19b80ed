"""Kinds of sections, and the words that people write for them over lyrics and in label files, in thirteen languages."""

import re
import unicodedata

# The set that SongFormBench and Harmonix label with. The number of a kind is its row in a prior's table:
# a new one goes to the end.
SECTION_KINDS = ("unknown", "intro", "verse", "pre-chorus", "chorus", "bridge", "inst", "outro")
UNKNOWN_KIND = SECTION_KINDS[0]
# Marks of where a song ends, in label files of SongFormer and of the public sets: no section.
END_MARKS = frozenset({"end", "eof", "fine"})
MAX_HEADING = 60  # characters; longer brackets are sung

WORDS: dict[str, str] = {
    "intro": "intro introduction introducción introdução introduzione einleitung vorspiel inledning"
    " lead-in inleiding wstęp интро вступление イントロ 前奏 인트로 전주",
    "verse": "verse vers couplet strophe verso estrofa estrofe strofa zwrotka versi куплет ヴァース"
    " aメロ 主歌 벌스 절",
    "pre-chorus": "pre-chorus prechorus pré-refrain pre-refrain vorrefrain pre-estribillo pre-coro"
    " pré-refrão pre-ritornello pre-refrein pre-refren предприпев bメロ 导歌 導歌 预副歌 预副歌"
    " 프리코러스",
    "chorus": "chorus refrain hook kehrreim refrão estribillo coro ritornello refrein refren"
    " refräng post-chorus postchorus kertosäe припев хук サビ 大サビ コーラス 副歌 후렴 코러스 훅",
    "bridge": "bridge middle middle-eight pont brücke puente ponte brug mostek brygga stick"
    " бридж мост ブリッジ cメロ 桥段 橋段 브릿지 브리지",
    "inst": "instrumental inst solo interlude break breakdown drop build zwischenspiel intermezzo"
    " interlúdio interludio interludium mellanspel tussenspel instrumentaal strumentale"
    " проигрыш соло инструментал 間奏 间奏 ソロ 간주",
    "outro": "outro coda ending finale schluss nachspiel slut final einde zakończenie аутро кода"
    " концовка アウトロ 後奏 尾奏 尾声 아웃트로",
}
KIND_OF_WORD: dict[str, str] = {}
for _kind, _words in WORDS.items():
    for _word in _words.split():
        KIND_OF_WORD[unicodedata.normalize("NFKC", _word)] = _kind
# The longest first: 大サビ holds サビ, and a pre-chorus a chorus.
LONGEST_WORDS = sorted(KIND_OF_WORD, key=lambda word: (-len(word), word))
BRACKETED = re.compile(r"^\s*[\[(【〔<]([^\[\]()【】〔〕<>]+)[\])】〔〕>]\s*$")
# `Chorus:` and `Refrain 2:`, alone in its line.
WITH_COLON = re.compile(r"^\s*([^\W\d_][\w '’-]{0,40}?)\s*\d{0,2}\s*[:：]\s*$")


def kind_of(label: str) -> str:
    """The kind that a label or heading names: "Verse 2", "Refrain: Ada", "guitar solo"; `unknown` where none."""
    text = plain_label(label.replace("：", ":").partition(":")[0])
    if text in SECTION_KINDS:
        return text
    joined = re.sub(r"\s*[-–]\s*|\s+", "-", text)
    for word in LONGEST_WORDS:
        is_latin = word[0].isascii() or unicodedata.name(word[0]).startswith(("LATIN", "CYRILLIC"))
        # Scripts that write no blanks hold a word anywhere, others between blanks and dashes.
        if joined == word or (f"-{word}-" in f"-{joined}-" if is_latin else word in joined):
            return KIND_OF_WORD[word]
    return UNKNOWN_KIND


def plain_label(label: str) -> str:
    """A label in small letters, without its numbers and marks of repeats: "Chorus 2 (x2)" is "chorus"."""
    text = unicodedata.normalize("NFKC", label).casefold()
    text = re.sub(r"\(.*?\)|\b\d+\s*x\b|\bx\s*\d+\b|×\s*\d+|\d+\s*×", " ", text)
    text = re.sub(r"\s+(?:[ivx]+|[a-d])\s*$", " ", re.sub(r"(?<![\w-])\d+|\d+\s*$", " ", text))
    return " ".join(re.findall(r"[\w-]+", text)).strip("-_ ")


def heading_of(line: str) -> str | None:
    """The heading that a line of lyrics is, without its brackets; None for one that is sung.

    Square brackets hold headings, whatever they name. Round ones hold backing voices too, so that they need a known
    kind, as does a line that ends in a colon.
    """
    bracketed = BRACKETED.match(line)
    if bracketed:
        text = bracketed[1].strip()
        is_heading = line.strip()[0] in "[【〔" or kind_of(text) != UNKNOWN_KIND
        return text if is_heading and len(text) <= MAX_HEADING else None
    colon = WITH_COLON.match(line)
    if colon and kind_of(colon[1]) != UNKNOWN_KIND:
        return colon[1]
    return None
