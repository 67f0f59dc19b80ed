"""What the README and the other documents say exists: verbs, options, targets, files, links."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from megajukebox.cli import VERBS
from megajukebox.sampling.songs.requests import parse_requests

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GUIDES = [ROOT / "README.md", ROOT / "shards/README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = sorted({*GUIDES, *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")})
ALL = "\n".join(path.read_text() for path in GUIDES)
EXPLORER = (ROOT / "docs/explorer.md").read_text()


def code(language: str, text: str = README) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL))


def commands() -> list[list[str]]:
    lines = code("sh", ALL).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def entry_of(words: list[str]) -> str | None:
    """The entry's file that a command runs, if it runs one of ours."""
    if words[:1] == ["megajukebox"]:
        return f"{VERBS[words[1]].module.replace('.', '/')}.py"
    return next(
        (w.removeprefix("megajukebox/") for w in words if w.startswith("megajukebox/")), None
    )


def test_there_are_commands_to_paste():
    assert sum(entry_of(words) is not None for words in commands()) >= 8


def test_every_command_runs_an_entry_that_exists_with_options_that_exist():
    for words in commands():
        entry = entry_of(words)
        if entry:
            source = (ROOT / "megajukebox" / entry).read_text()
            ours = words[next(i for i, w in enumerate(words) if w.startswith("megajukebox")) + 1 :]
            for option in (w for w in ours if w.startswith("--")):
                name = option.removeprefix("--").replace("-", "_")
                assert re.search(rf"\b{name}: Annotated", source) or option in source, (
                    f"{entry} has no {option}"
                )


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {words[1] for words in commands() if words[0] == "make"} | set(
        re.findall(r"`make ([a-z-]+)", ALL)
    )
    assert named and named <= set(targets)


def test_every_verb_that_is_named_exists():
    assert set(re.findall(r"`megajukebox ([a-z-]+)", ALL)) <= set(VERBS)


def test_every_file_of_the_explorers_table_exists():
    rows = re.findall(r"^\| [^|]+ \| (`[^|]+`[^|]*) \|$", EXPLORER, re.MULTILINE)
    files = [name for row in rows for name in re.findall(r"`([^`]+\.(?:py|js))`", row)]
    assert len(files) > 10
    for name in files:
        assert (ROOT / "megajukebox/explorer" / name).exists(), name


def test_the_readme_is_a_shop_window():
    assert len(README.splitlines()) <= 120


def test_the_example_request_is_a_good_one():
    good, wrong = parse_requests(yaml.safe_load(code("yaml")))
    assert len(good) == 1 and not wrong


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        path, _, heading = link.partition("#")
        assert link.startswith("http") or (document.parent / path).exists(), link
        if heading:
            there = re.findall(
                r"^#+ (.+)$",
                (document.parent / path if path else document).read_text(),
                re.MULTILINE,
            )
            assert heading in {
                re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in there
            }, link
