"""The table of mutants fits the source: `make mutants` takes too long to be the first to say so."""

import pytest

from tests.mutants import MUTANTS, ROOT, Mutant


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_a_row_breaks_one_line_and_names_tests_that_there_are(mutant: Mutant):
    assert (ROOT / mutant.file).read_text().count(mutant.old) == 1
    assert mutant.new != mutant.old
    for test in mutant.tests:
        file, *names = test.split("::")
        assert (ROOT / file).exists()
        assert all(f"{name.partition('[')[0]}(" in (ROOT / file).read_text() for name in names)
