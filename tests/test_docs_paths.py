"""The architecture and the glossary name files that exist."""

import re

import pytest
from fixtures.paths import ROOT

PACKAGE = ROOT / "megajukebox"
# Files that a recipe tells the reader to write.
TO_BE_WRITTEN = re.compile(
    r"NAME|my_|min_p|albums|RECIPE|VERB|decoder_task|<name>|FILE\.py|VERB\.py"
)
PATH = re.compile(r"`((?:[\w.<>-]+/)*[\w.<>-]+\.(?:py|yaml|yml|json|sh|md|html)|(?:[\w-]+/)+)`")


@pytest.mark.parametrize(
    "document", ["docs/architecture.md", "docs/glossary.md", "CONTRIBUTING.md"]
)
def test_every_file_that_a_document_names_exists(document: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    named = {name for name in PATH.findall(text) if "/" in name.rstrip("/")}
    names = {name for name in named if not TO_BE_WRITTEN.search(name)}
    assert len(names) > 3
    folders = [ROOT, PACKAGE, *(path for path in PACKAGE.iterdir() if path.is_dir())]
    missing = [name for name in sorted(names) if not any((f / name).exists() for f in folders)]
    assert not missing
