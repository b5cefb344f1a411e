"""What `evaluate.py` prints."""

import io
from typing import Any

import pytest
from rich.console import Console

from evaluation import tables
from evaluation.rules import rules_in_words
from tests.evaluation.test_report import baseline_of, protocol_of, score_of


def shown(scores: list[dict[str, Any]], columns: int = 80) -> str:
    written = io.StringIO()
    tables.show(scores, Console(file=written, width=columns))
    assert max(map(len, written.getvalue().splitlines())) <= columns
    return written.getvalue()


@pytest.mark.parametrize("comparable", [True, False])
@pytest.mark.parametrize("columns", [80, 100])
def test_no_score_is_cut_off(columns: int, comparable: bool) -> None:
    """The human record of Berzerk has seven figures; the other columns are as long as they get."""
    differences = ["observation pixels", "sticky none", "episode life", "no-ops 30", "cap 108000"]
    scores = {"human world record": 1_057_940.0, "a name as long as an algorithm's": 123.7}
    more = {"differences": differences, "frames": 200_000_000, "source": "https://arxiv.org/abs/1709.06009, table 5, " * 4}
    baselines = [{**baseline_of(name, score, comparable), **more} for name, score in scores.items()]
    said = shown([score_of(baselines=baselines)], columns)
    assert " 1,057,940.0 " in said
    assert " 123.7 " in said


def test_names_are_no_markup() -> None:
    said = shown([score_of("lr[red]x", ci95=None, baselines=[baseline_of("[bold]Fair", 1.0, True)])])
    assert "lr[red]x" in said.replace(" ", "").replace("\n", "") and "[bold]Fair" in said
    assert "Note: lr[red]x: 4 games are too few for an interval." in said


def test_zero_has_no_sign() -> None:
    assert " 0% " in shown([score_of(human_normalized=-0.004)]) and " -1% " in shown([score_of(human_normalized=-0.006)])


def test_how_an_agent_chose_stands_beside_it() -> None:
    """What has learned nothing has no choice."""
    said = shown([score_of("mine", policy="epsilon 0.001"), score_of("other", kind="random", policy="uniform")])
    assert " mine (epsilon 0.001) " in said and "uniform" not in said


def test_references_of_other_rules_are_said_to_be_so() -> None:
    for comparable in (True, False):
        said = shown([score_of(baselines=[baseline_of("human", 160.7, comparable)])])
        assert ("human: by published scores of random and human play under other rules" in said) == (not comparable)


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ([], "plays from pixels, "),
        (["AMMO2", "HEALTH"], "plays from pixels and AMMO2, HEALTH, "),
        (["word 1", "word 2"], "plays from pixels and an instruction, "),
    ],
)
def test_what_is_seen_beside_the_picture_is_said(extra: list[str], words: str) -> None:
    assert words in rules_in_words(protocol_of(extra=extra))
