"""What the README and the other documents say exists: verbs, options, targets, files, links."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from megajukebox.cli import VERBS, load_command
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


def verb_and_arguments(words: list[str]) -> tuple[str, list[str]] | None:
    """The verb that a command runs, by `megajukebox VERB` or by its file, and its arguments up to a `--`."""
    for index, word in enumerate(words):
        rest = words[index + 1 :]
        if "--" in rest:  # supervise: another command follows
            rest = rest[: rest.index("--")]
        if word == "megajukebox":
            while rest and rest[0].startswith("--"):  # --quiet
                rest = rest[1:]
            return (rest[0], rest[1:]) if rest else None
        if word.startswith("megajukebox/"):
            return Path(word).stem, rest
    return None


def options_of(verb: str, arguments: list[str]) -> set[str]:
    command = load_command(VERBS[verb])
    if hasattr(command, "commands"):
        command = command.commands[arguments[0]]
    options = {"--help"}
    for parameter in command.params:
        options |= {*parameter.opts, *parameter.secondary_opts}
    return options


def test_there_are_commands_to_paste():
    assert sum(verb_and_arguments(words) is not None for words in commands()) >= 8


def test_every_command_runs_a_verb_that_exists_with_options_that_exist():
    wrong = []
    for words in commands():
        found = verb_and_arguments(words)
        if found is None or found[0] == "help":
            continue
        verb, arguments = found
        known = options_of(verb, arguments)
        for word in arguments:
            if word.startswith("--") and word.partition("=")[0] not in known:
                wrong.append(f"{verb} has no {word}: {' '.join(words)}")
    assert not wrong


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {words[1] for words in commands() if words[0] == "make"} | set(
        re.findall(r"`make ([a-z-]+)", ALL)
    )
    assert named and named <= set(targets)


def test_every_verb_that_is_named_exists():
    assert set(re.findall(r"`megajukebox ([a-z][a-z-]*)", ALL)) <= set(VERBS)


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
