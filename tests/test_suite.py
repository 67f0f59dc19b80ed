"""The tests themselves: what they count on of the tools that run them."""

import os

import pytest


@pytest.mark.xdist_group("suite")
def test_tests_of_one_group_are_run_by_one_worker(request: pytest.FixtureRequest) -> None:
    """pytest 9.2 takes the group away from pytest-xdist 3.8: two SLURM clusters then start and disturb each other."""
    if "PYTEST_XDIST_WORKER" not in os.environ or not request.config.getoption("loadgroup", False):
        pytest.skip("only asked where tests are dealt out by group: -n 2 --dist loadgroup")
    assert request.node.nodeid.endswith("@suite"), "pytest-xdist did not group: take another pytest"
