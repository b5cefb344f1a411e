"""The order of test files."""

import pytest

LONGEST = "tests/test_resume.py"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The file that takes longest comes first: where files are shared out between processes, it would end alone."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))
