"""Lyrics: any script survives tokens, tokens know their characters, windows are Jukebox's or follow the singer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from fixtures.paths import SHARED
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.conditioning.lrc import TimedWord, parse_lrc, write_lrc
from megajukebox.conditioning.lyric_windows import (
    linear_centre,
    linear_centre_float32,
    lyric_window,
    sung_centre,
)
from megajukebox.conditioning.tokenizers import (
    JukeboxCharacters,
    SentencePieceTokenizer,
    TokenizedLyrics,
    train_sentencepiece,
)

FIXTURE = SHARED / "parity" / "misc" / "meta.json"
CORPUS = [
    "Sing to me, sing to me\nall night long",
    "and the night was long\n\nand the song was blue",
    "我们一起唱歌 la la la",
]
SCRIPTS = {
    "latin": "Naïve café, jalapeño & Ångström — ½ “quoted”",
    "vietnamese": "Trăm năm trong cõi người ta",
    "greek": "Τραγουδῶ τὴν θάλασσα",
    "cyrillic": "Катюша выходила на берег",
    "georgian": "სულიკო, სად ხარ",
    "armenian": "Սարի սիրուն յար",
    "hebrew": "שִׁיר הַשִּׁירִים",
    "arabic": "يا لَيْلُ يا عَيْنُ",
    "persian": "می‌خوانم برای تو",
    "devanagari": "गीत गाता हूँ मैं",
    "bengali": "আমার সোনার বাংলা",
    "tamil": "நீராரும் கடலுடுத்த",
    "telugu": "మా తెలుగు తల్లికి",
    "thai": "เพลงรักในสายลมหนาว",
    "khmer": "សូមស្តាប់ចម្រៀង",
    "tibetan": "གླུ་དབྱངས་",
    "amharic": "የፍቅር ዘፈን",
    "japanese": "さくら　サクラ　桜が咲く",
    "korean": "아리랑 아리랑 아라리요",
    "chinese": "茉莉花开满园香也香不过它",
    "gothic": "𐌲𐌿𐍄𐌰𐌽𐍃",
    "emoji": "🎵🎤👩‍🎤🇧🇷 👍🏽",
    "combining": "e\u0301 a\u0308\u0323 n\u0303",
    "whitespace": "  two  \t tabs\t\n\n new\r\n \u00a0\u3000 end  ",
    "controls": "nul\0 bell\a\u2028\ufeff",
    "pieces": "▁ a▁b ▁▁ <unk> <0x41> <s>",
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    path = tmp_path_factory.mktemp("lyrics") / "lyrics.model"
    train_sentencepiece(CORPUS, path, vocabulary=320)
    return SentencePieceTokenizer(path)


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """Inputs and outputs of the released code; not part of this repository."""
    if not FIXTURE.is_file():
        pytest.skip("the recordings in ../shared are not here")
    return json.loads(FIXTURE.read_text())


# ---- SentencePiece --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_text_of_any_script_comes_back_unchanged(
    tokenizer: SentencePieceTokenizer, text: str
) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
@settings(deadline=None)
def test_any_text_comes_back_and_spans_cover_it_in_order(
    tokenizer: SentencePieceTokenizer, text: str
) -> None:
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens.ids) == text
    covered = "".join(text[a:b] for a, b in dict.fromkeys(tokens.spans))
    assert covered == text
    assert 0 not in tokens.ids


def test_spans_of_known_words_are_their_characters(tokenizer: SentencePieceTokenizer) -> None:
    text = "the 🎵 night"
    tokens = tokenizer.encode(text)
    for token, (start, end) in zip(tokens.ids, tokens.spans):
        assert tokenizer.decode([token]) == text[start:end] or text[start:end] == "🎵"
    assert tokens.spans.count((4, 5)) == 4, "the four bytes of the note share its character"


def test_padding_prints_as_nothing(tokenizer: SentencePieceTokenizer) -> None:
    ids = tokenizer.encode("song").ids
    assert tokenizer.decode([0, 0, *ids, 0]) == "song"
    assert tokenizer.decode([]) == ""


def test_the_vocabulary_shrinks_to_what_the_corpus_supports(tmp_path: Path) -> None:
    train_sentencepiece(["la"], tmp_path / "tiny.model", vocabulary=4096)
    tiny = SentencePieceTokenizer(tmp_path / "tiny.model")
    assert tiny.size < 300
    assert tiny.decode(tiny.encode("la\nland").ids) == "la\nland"


def test_a_vocabulary_smaller_than_the_script_leaves_rare_characters_to_bytes(
    tmp_path: Path,
) -> None:
    train_sentencepiece(
        [SCRIPTS["chinese"] * 3, SCRIPTS["korean"]], tmp_path / "m.model", vocabulary=270
    )
    model = SentencePieceTokenizer(tmp_path / "m.model")
    assert model.size <= 270
    assert model.decode(model.encode(SCRIPTS["chinese"]).ids) == SCRIPTS["chinese"]


def test_training_again_gives_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_sentencepiece(CORPUS, tmp_path / name, vocabulary=300)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_no_text_and_no_room_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no lyrics to train"):
        train_sentencepiece(["", " \n"], tmp_path / "m", vocabulary=300)
    with pytest.raises(ValueError, match=r"vocabulary 100 has no room .* set at least 260"):
        train_sentencepiece(CORPUS, tmp_path / "m", vocabulary=100)


def test_a_model_that_changes_the_text_is_refused(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(tmp_path / "lossy"),
        vocab_size=64,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="does not keep text as it is"):
        SentencePieceTokenizer(tmp_path / "lossy.model")


# ---- Jukebox's characters -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v2", "v3"])
def test_characters_are_those_of_the_released_models(
    expected: dict[str, Any], version: Any
) -> None:
    tokenizer = JukeboxCharacters(version)
    assert tokenizer.size == expected["vocab"][version]["n_vocab"]
    for case in expected["text"]:
        tokens = tokenizer.encode(case["in"])
        assert tokens.ids == case[version]["tokens"]
        assert tokenizer.decode(tokens.ids) == case[version]["back"]


def test_spans_map_back_through_the_spelling() -> None:
    tokens = JukeboxCharacters("v2").encode("né 日\\…")
    assert [JukeboxCharacters("v2").decode([i]) for i in tokens.ids] == list("ne Ri \n...")
    assert tokens.spans == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (3, 4),
        (3, 4),
        (4, 5),
        (5, 6),
        (5, 6),
        (5, 6),
    ]


def test_an_unknown_version_of_the_characters_is_refused() -> None:
    with pytest.raises(ValueError, match="choose v2 or v3"):
        JukeboxCharacters("v1")  # type: ignore[arg-type]


# ---- LRC ------------------------------------------------------------------------------------------------------------


def test_word_times_and_tags_and_gaps_are_read() -> None:
    text, words = parse_lrc(
        "[ar:Somebody]\n"
        "[00:01.00] <00:01.00> Hello <00:01.50> world <00:02.00>\n"
        "[01:03.5]<01:03.50>syl<01:03.75>la<01:04>"
    )
    assert text == "Hello world\nsylla"
    assert words == [
        TimedWord(0, 5, 1.0, 1.5),
        TimedWord(6, 11, 1.5, 2.0),
        TimedWord(12, 15, 63.5, 63.75),
        TimedWord(15, 17, 63.75, 64.0),
    ]


def test_line_times_are_spread_evenly_but_not_over_pauses() -> None:
    text, words = parse_lrc("[00:01.00]one two\n[00:02.00]three\n[00:30.00]")
    assert text == "one two\nthree\n"
    assert [(w.t0, w.t1) for w in words] == [(1.0, 1.5), (1.5, 2.0), (2.0, 3.0)]


def test_a_chorus_written_once_is_sung_where_its_times_say() -> None:
    text, words = parse_lrc("[00:01.00][00:05.00]la\n[00:03.00]verse")
    assert text == "la\nverse\nla"
    assert [w.t0 for w in words] == [1.0, 3.0, 5.0]


def test_an_offset_tag_moves_all_times() -> None:
    assert [
        w.t0 for w in parse_lrc("[offset:+500]\n[00:01.00]<00:01.00>a <00:02.00>b<00:03.00>")[1]
    ] == [0.5, 1.5]


def test_plain_lyrics_are_kept_as_they_are() -> None:
    text = "[Verse 1]\n  indented: [not a time]\n\n<3"
    assert parse_lrc(text) == (text, [])


def test_windows_line_ends_and_a_byte_order_mark_are_no_lyrics() -> None:
    assert parse_lrc("\ufeff[ar:Me]\r\n[00:01.00]la\r\nna\r\n") == (
        "la\nna",
        [TimedWord(0, 2, 1.0, 2.0)],
    )


def test_lines_without_a_time_stay_untimed_text() -> None:
    text, words = parse_lrc("[Intro]\n[00:01.00]la\n(quietly)")
    assert text == "[Intro]\nla\n(quietly)"
    assert words == [TimedWord(8, 10, 1.0, 2.0)]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 300), st.integers(0, 200)), min_size=1, max_size=5),
        max_size=5,
    )
)
def test_written_lyrics_are_read_back_with_their_times(lines: list[list[tuple[int, int]]]) -> None:
    text, words, now = "", [], 0
    for line in lines:
        for n, (length, pause) in enumerate(line):
            start = len(text) + (n > 0)
            text += (" " if n else "") + "wörd,"
            words.append(TimedWord(start, start + 5, now / 100, (now + length) / 100))
            now += length + pause
        text += "\n"
    plain, read = parse_lrc(write_lrc(words, text))
    assert plain.rstrip("\n") == text.rstrip("\n")
    assert [(w.start_char, w.end_char) for w in read] == [(w.start_char, w.end_char) for w in words]
    assert np.allclose([(w.t0, w.t1) for w in read], [(w.t0, w.t1) for w in words], atol=0.006)


# ---- Windows --------------------------------------------------------------------------------------------------------


def test_the_linear_window_is_jukeboxs(expected: dict[str, Any]) -> None:
    for case in expected["lyric_windows_full_tokens_is_1..len"]:
        ids = range(1, case["len_full"] + 1)
        centre = linear_centre(len(ids), case["total_length"], case["offset"], case["duration"])
        window = lyric_window(ids, centre, case["n_tokens"])
        assert window.ids[:3].tolist() == case["tokens_first"]
        assert window.ids[-3:].tolist() == case["tokens_last"]
        assert (window.ids == 0).sum() == case["n_pad"]
        whole = len(case["indices"]) == case["n_tokens"]
        assert (window.index if whole else window.index[[0, -1]]).tolist() == case["indices"]


@given(
    st.integers(0, 5000),
    st.integers(2**20, 2**26),
    st.floats(0, 1),
    st.sampled_from([2**16, 2**18, 2**20, 393216]),
)
def test_the_float32_rule_is_what_tensors_compute(
    tokens: int, song: int, place: float, clip: int
) -> None:
    offset = int(place * song)
    as_tensors = int(
        tokens * (torch.tensor(offset) + torch.tensor(clip) / 2.0) / torch.tensor(song)
    )
    assert linear_centre_float32(tokens, song, offset, clip) == as_tensors
    assert abs(linear_centre(tokens, song, offset, clip) - as_tensors) <= 1


def test_index_tells_which_token_of_the_song_stands_where() -> None:
    window = lyric_window([5, 6, 7], centre=1, size=4)
    assert window.ids.tolist() == [0, 5, 6, 7]
    assert window.index.tolist() == [-1, 0, 1, 2]


def test_a_window_of_odd_size_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match="lyric window of 5 tokens cannot be centred; set an even number, such as 6",
    ):
        lyric_window([1, 2, 3], 1, 5)


def test_the_window_follows_the_singer_where_words_have_times() -> None:
    text = "aaaa bbbb cccc"  # one token a character
    tokens = TokenizedLyrics(list(range(1, 15)), [(i, i + 1) for i in range(14)])
    words = [
        TimedWord(0, 4, 10.0, 14.0),
        TimedWord(5, 9, 20.0, 21.0),
        TimedWord(10, 14, 30.0, 34.0),
    ]
    sung = {t: text[sung_centre(tokens, words, t)] for t in (0.0, 12.0, 20.5, 33.0, 99.0)}
    assert sung == {0.0: "a", 12.0: "a", 20.5: "b", 33.0: "c", 99.0: "c"}
    assert sung_centre(tokens, words, 11.5) == 1
    assert sung_centre(tokens, words, 17.0) == 4, (
        "in a pause the place moves from one word to the next"
    )
