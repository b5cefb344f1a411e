"""What a person reads while games are played."""

import io

import pytest
from rich.console import Console

from evaluation import progress
from evaluation.play import Episode
from evaluation.progress import Progressing


def shown(scores: list[float], *, terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, color_system=None)
    with Progressing("{lr}[b]", len(scores), console) as progressing:
        for index, score in enumerate(scores):
            progressing.over(Episode(index, index, score))
    return out.getvalue()


def test_a_terminal_shows_how_many_games_are_over() -> None:
    text = shown([1.0, 4.0, 7.0], terminal=True)
    assert "{lr}[b] 3/3" in text
    assert "mean 4.00" in text
    assert text.endswith("\x1b[2K")  # the bar is gone at the end


def test_elsewhere_a_line_comes_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second game is over behind twenty seconds, the third behind forty; the last is told by what follows."""
    seconds = iter([0.0, 0.0, 20.0, 40.0, 40.0, 60.0])
    monkeypatch.setattr(progress, "monotonic", lambda: next(seconds))
    assert shown([1.0, 4.0, 7.0, 0.0, 9.0], terminal=False) == "{lr}[b]: 3 of 5 games, mean 4.00\n"
