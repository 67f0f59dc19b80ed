"""LRC as people write it: times, headers, offsets, repeated lines, languages; and back again."""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megajukebox.conditioning.lrc import TimedWord, clock, parse_lrc, read_lrc, write_lrc


def sung(text: str) -> list[tuple[str, float]]:
    """(word, when it starts) of an LRC."""
    plain, words = parse_lrc(text)
    return [(plain[word.start_char : word.end_char], round(word.t0, 3)) for word in words]


def remarks(text: str) -> list[tuple[int, str]]:
    return [(remark.line, remark.kind.value) for remark in read_lrc(text).remarks]


ONE_TWO_THREE = ("one two\nthree", [("one", 1.0), ("two", 2.0), ("three", 3.5)])


@pytest.mark.parametrize(
    "text",
    [
        "[00:01.00]one two\n[00:03.50]three",
        "[00:00:01.00]one two\n[00:00:03.50]three",  # hours
        "[00:01,00]one two\n[00:03,50]three",
        "[ 00:01.00 ]one two\n[00:03.50 ]three",
        "[00:01.00]one two\n[00:00:03.50]three",  # both in one file
        "[0:1]one two\n[0:3.5]three",
        "[00:01.000]one two\n[00:03.500]three",
        "[00:01:00]one two\n[00:03:50]three",  # hundredths behind a colon
        "[00:01.00]one two\r[00:03.50]three\r",
        "\ufeff[00:01.00]one two\r\n[00:03.50]three\r\n",
        "[offset:0]\n[00:01.00]one two\n[00:03.50]three",
        "[offset:-500.0]\n[00:00.50]one two\n[00:03.00]three",
        "[offset:500ms]\n[00:01.50]one two\n[00:04.00]three",
        "[offset: +0,5 s]\n[00:01.50]one two\n[00:04.00]three",
        "[00:03.50]three\n[00:01.00]one two",
        "[00:01.00]F: one two\n[00:03.50]M:three",
        "[00:01.00][00:01.00]one [00:02.00]two[00:03.00]\n[00:03.50]three",  # word times in brackets
        "[00:01.00] <00:00:01.00> one <00:02,00> two\n[00:03.50]<00:03.50>three",
        "<00:01.00>one <00:02.00>two\n<00:03.50>three",
        "[00:01.00]one two\n[00:01.00]un deux\n[00:03.50]three\n[00:03.50]trois",
        "[ti:x][ar:y]\n[hash:abcdef]\n[total:6000]\n[sign:]\n[language:eyJ9]\n[#:note]\n[:] note\n"
        "[00:01.00]one two\n[00:03.50]three",
    ],
)
def test_every_dialect_says_the_same(text):
    assert (parse_lrc(text)[0].rstrip("\n"), sung(text)) == ONE_TWO_THREE


@pytest.mark.parametrize(
    ("text", "plain", "words", "noted"),
    [
        (
            "[-00:01.00]early words\n[00:03.50]three",
            "early words\nthree",
            [("early", 0.0), ("words", 1.0), ("three", 3.5)],
            [(1, "moved_lyrics_time")],
        ),
        (
            "[00:01.00][00:04.00]<00:01.00>la <00:01.50>li\n[00:03.00]<00:03.00>verse",
            "la li\nverse\nla li",
            [("la", 1.0), ("li", 1.5), ("verse", 3.0), ("la", 4.0), ("li", 4.5)],
            [],
        ),
        (
            "[00:04.00][00:01.00]<00:01.00>la <00:01.50>li",  # the later time first
            "la li\nla li",
            [("la", 1.0), ("li", 1.5), ("la", 4.0), ("li", 4.5)],
            [],
        ),
        (
            "[00:01.00][00:04.00]la [00:04.50]li",
            "la li\nla li",
            [("la", 1.0), ("li", 1.5), ("la", 4.0), ("li", 4.5)],
            [],
        ),
        (
            "[00:05.00]<00:05.00>a <00:04.00>b <00:06.00>c",
            "a b c",
            [("a", 5.0), ("b", 5.0), ("c", 6.0)],
            [(1, "moved_lyrics_time")],
        ),
        (
            "[00:01.00]one\n[0,1000]two\n[00-03]three [00:04]four",
            "one\ntwo\nthree four",
            [("one", 1.0), ("three", 1.0), ("four", 4.0)],
            [(2, "unreadable_lyrics_time"), (3, "unreadable_lyrics_time")],
        ),
        (
            "[1234]one\n[12:]two",
            "one\ntwo",
            [],
            [(1, "unreadable_lyrics_time"), (2, "unreadable_lyrics_time")],
        ),
        (
            "[00:00:01]a\n[00:00:03]b",
            "a\nb",
            [("a", 1.0), ("b", 3.0)],
            [(1, "ambiguous_lyrics_time")],
        ),
        (  # word times that count from their line
            "[00:05.00]<00:00.00>a <00:01.00>b",
            "a b",
            [("a", 5.0), ("b", 6.0)],
            [(1, "moved_lyrics_time")],
        ),
        ("[01:02:03]a", "a", [("a", 62.03)], [(1, "ambiguous_lyrics_time")]),
        ("[01:02:75]a\n[00:01:20]b", "b\na", [("b", 1.2), ("a", 62.75)], []),
        ("[01:00:00.5]a", "a", [("a", 3600.5)], []),
        ("[offset:soon]\n[00:01.00]a", "a", [("a", 1.0)], [(1, "bad_lyrics_offset")]),
        ("[offset:250]\n[00:01.00]a", "a", [("a", 0.75)], [(1, "lyrics_offset")]),
        (
            "[offset:250]\n[offset:500]\n[00:01.00]a",
            "a",
            [("a", 0.75)],
            [(1, "lyrics_offset"), (2, "bad_lyrics_offset")],
        ),
        (
            "[00:01.00]hello\n[00:01.00]bonjour\n[00:02.00]bye",
            "hello\nbye",
            [("hello", 1.0), ("bye", 2.0)],
            [(2, "second_lyrics")],
        ),
        (  # two who sing at once
            "[00:01.00]a\n[00:02.00]b\n[00:03.00]c\n[00:03.00]d\n",
            "a\nb\nc\nd",
            [("a", 1.0), ("b", 2.0), ("c", 3.0), ("d", 3.0)],
            [],
        ),
        ("[00:01.00]a\n[tool:x]\n[mood:sad]\nb", "a\nb", [("a", 1.0)], [(3, "lyrics_tag")]),
        ("[ar:Somebody]\n[ti:Something]\n[by:me]\nfirst\nsecond", "first\nsecond", [], []),
        (
            "[Verse 1: Both]\n[Chorus: All]\n[00:01.00]la\n[Verse 2: Both]\n[Both:la la]",
            "[Verse 1: Both]\n[Chorus: All]\nla\n[Verse 2: Both]\n[Both:la la]",
            [("la", 1.0)],
            [],
        ),
    ],
)
def test_what_is_not_understood_is_remarked_upon_and_never_sung(text, plain, words, noted):
    assert (parse_lrc(text)[0], sung(text), remarks(text)) == (plain, words, noted)


def test_a_line_of_very_many_times_is_taken_twenty_times():
    text = "".join(f"[00:{second:02d}.00]" for second in range(30)) + "la"
    assert len(sung(text)) == 20 and remarks(text) == [(1, "cut_lyrics")]


@pytest.mark.parametrize(
    "text",
    ["[Chorus: All]\n[2x] la\n[1999]\n<3", "[Anna:]\nhello [sighs: softly]", "", "\ufeffla\r\n"],
)
def test_plain_lyrics_come_back_to_the_character(text):
    assert parse_lrc(text) == (text, [])


SYLLABLES = st.text(string.ascii_letters + "éß日,'!<>()*", min_size=1, max_size=6)
SUNG_LINES = st.lists(st.lists(SYLLABLES, min_size=1, max_size=4), min_size=1, max_size=6)


@given(SUNG_LINES, st.data())
@settings(max_examples=60, deadline=None)
def test_words_written_in_any_dialect_are_read_with_their_times(lines, data):
    """Hours, commas, blanks and brackets are drawn for each time; the words and their times must come back."""
    now, rows, expected = 0, [], []
    hours = data.draw(st.booleans())
    comma = data.draw(st.sampled_from([".", ","]))
    blank = data.draw(st.sampled_from(["", " "]))
    offset = data.draw(st.integers(-300, 0))

    def stamp(hundredths: int, brackets: str) -> str:
        minutes, rest = divmod(hundredths, 6000)
        clock_text = f"{minutes:02d}:{rest // 100:02d}{comma}{rest % 100:02d}"
        return brackets[0] + blank + ("00:" if hours else "") + clock_text + blank + brackets[1]

    for line in lines:
        now += data.draw(st.integers(1, 500))
        row = stamp(now, "[]")
        for word in line:
            row += stamp(now, "<>") + word + " "
            expected.append((word, round((now - offset) / 100, 2)))
            now += data.draw(st.integers(1, 200))
        rows.append(row)
    end = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    text = end.join([f"[offset:{offset * 10}]", *rows])
    assert sung(text) == expected
    assert parse_lrc(text)[0] == "\n".join(" ".join(line) for line in lines)


@given(SUNG_LINES, st.data())
@settings(max_examples=60, deadline=None)
def test_what_was_read_is_written_and_read_again(lines, data):
    now, rows = 0, []
    for line in lines:
        now += data.draw(st.integers(1, 500))
        rows.append(f"[{clock(now / 100)}]{' '.join(line)}")
        if data.draw(st.booleans()):
            rows.append(data.draw(st.sampled_from(["", "(quietly)", "[Verse 2: Both]"])))
    text, words = parse_lrc("\n".join(rows))
    again, read = parse_lrc(write_lrc(words, text))
    assert again == text
    assert [(w.start_char, w.end_char) for w in read] == [(w.start_char, w.end_char) for w in words]
    for one, other in zip(words, read):
        assert abs(one.t0 - other.t0) <= 0.006 and abs(one.t1 - other.t1) <= 0.006


@given(st.text(string.printable + "é\u2028\ufeff日[]<>::..00119offset", max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_into_words_that_lie_in_it_and_do_not_end_before_they_start(text):
    plain, words, found = read_lrc(text)
    end = 0
    for word in words:
        assert end <= word.start_char < word.end_char <= len(plain) and 0 <= word.t0 <= word.t1
        end = word.end_char
    assert all(remark.line >= 1 and "\n" not in remark.detail for remark in found)


def test_words_before_the_first_timed_word_of_a_line_are_not_lost():
    written = write_lrc([TimedWord(4, 6, 1.0, 2.0)], "and la")
    assert parse_lrc(written)[0] == "and la"
