"""The order of test files, and the length of those that can be made longer."""

import os

import pytest

os.environ.setdefault("ALSOFT_DRIVERS", "null")  # games that tests play themselves make no sound, as in a worker


def pytest_addoption(parser: pytest.Parser) -> None:
    """How long the long versions are; `make chaos` gives other numbers."""
    parser.addoption("--kills", type=int, default=20, help="kills in all, shared out between six runs")
    parser.addoption("--inputs", type=int, default=500, help="broken files that each of eight readers is given")
    parser.addoption("--command-lines", type=int, default=300, help="command lines that are drawn")


LONGEST = "tests/test_resume.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: where files are shared out between processes, it would end alone.

    pytest-xdist would sort them by their number of tests; `--no-loadscope-reorder` keeps it from that.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
