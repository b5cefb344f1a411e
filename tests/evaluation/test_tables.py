"""What `evaluate.py` prints."""

import io

import pytest
from rich.console import Console

from evaluation import tables
from tests.evaluation.test_report import baseline_of, score_of


@pytest.mark.parametrize("columns", [80, 100])
def test_no_score_is_cut_off(columns: int) -> None:
    """The human record of Berzerk has seven figures; the other columns are as long as they get."""
    differences = ["observation pixels", "sticky none", "episode life", "no-ops 30", "cap 108000"]
    scores = {"human world record": 1_057_940.0, "a name as long as an algorithm's": 123.7}
    baselines = [{**baseline_of(name, score, comparable=False), "differences": differences} for name, score in scores.items()]
    written = io.StringIO()
    tables.show([score_of(baselines=baselines)], Console(file=written, width=columns))
    said = written.getvalue()
    assert " 1,057,940.0 " in said
    assert " 123.7 " in said
    assert max(map(len, said.splitlines())) <= columns
