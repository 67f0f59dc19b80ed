"""The tests that are marked `gpu`, in this process: is it right there?"""

from collections import Counter

import pytest

from gpu_parts.figures import Figures

TEST_TIMEOUT_SECONDS = 100  # those that train start processes of their own


class Outcomes:
    """Counts outcomes, and keeps the names of what failed."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self.failed.append(report.nodeid)


def gpu_tests(figures: Figures) -> None:
    """Raises SystemExit if a test fails."""
    outcomes = Outcomes()
    words = ["tests", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--no-header", "--tb=short"]
    words += ["--timeout", str(TEST_TIMEOUT_SECONDS)]
    if (
        figures.small
    ):  # without a GPU they are only collected, and collecting all of tests takes a while
        words[0] = "tests/gpu"
    code = pytest.main(words, plugins=[outcomes])
    for outcome in ("passed", "skipped"):
        figures.add(f"tests {outcome}", "tests", outcomes.counts[outcome])
    figures.add("tests failed", "tests", outcomes.counts["failed"], target=0)
    figures.fact("failed", outcomes.failed)
    if code != pytest.ExitCode.OK:
        raise SystemExit(f"pytest ended with {code!r}; failed: {', '.join(outcomes.failed)}")
