"""Pages are made again when what they show has changed, and only then."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.explorer_samples import add_sample

from megajukebox.explorer import build_cache, site_builder


@pytest.fixture
def rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Builds the site over samples/ again; which pages had to be rendered."""
    names: list[str] = []
    render = site_builder.sample_page
    monkeypatch.setattr(
        site_builder,
        "sample_page",
        lambda sample, *rest: (names.append(sample.name), render(sample, *rest))[1],
    )

    def again() -> list[str]:
        names.clear()
        site_builder.build_site([tmp_path / "samples"], [], tmp_path / "site")
        return sorted(names)

    for name in ("one", "two"):
        add_sample(tmp_path / "samples", name)
    assert again() == ["one", "two"]
    return again


CHANGES: dict[str, Callable[[Path, Path], object]] = {
    "other words": lambda samples, page: add_sample(samples, "one", lyrics="other words"),
    "times for the words": lambda samples, page: (samples / "one.lrc").write_text(
        "[00:00.50] <00:00.50> la\n"
    ),
    "a level that is gone": lambda samples, page: (samples / "one.top.wav").unlink(),
    "a recording that cannot be read": lambda samples, page: (samples / "one.wav").write_bytes(
        b"no sound"
    ),
    "a page that is gone": lambda samples, page: page.unlink(),
    "a page that was cut": lambda samples, page: os.truncate(page, 100),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_makes_its_own_page_again(
    tmp_path: Path, rendered: Callable[[], list[str]], change: str
) -> None:
    page = tmp_path / "site" / "sample" / "one.html"
    assert rendered() == []
    CHANGES[change](tmp_path / "samples", page)
    assert rendered() == ["one"]
    assert rendered() == [] and page.stat().st_size > 1000


def test_another_version_makes_all_pages_again(
    tmp_path: Path, rendered: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_cache, "renderer_version", lambda: "another version")
    assert rendered() == ["one", "two"] and rendered() == []


@pytest.mark.parametrize("content", ["", "[1]", '{"sample/one.html": 5}', "\0"])
def test_a_damaged_memory_only_costs_time(
    tmp_path: Path, rendered: Callable[[], list[str]], content: str
) -> None:
    (tmp_path / "site" / ".samples.json").write_text(content)
    assert rendered() == ["one", "two"] and rendered() == []
