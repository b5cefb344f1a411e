"""What a person reads while a run trains."""

import io
import re

import pytest
from rich.console import Console

from training.progress import Display, score_text, speed_text

SCORES = {"score/mean_100": 12.34, "score/best": 20.0}


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"score/games_lost": 0}, "no game over yet"),
        ({"score/games_lost": 2}, "no game over yet, 2 games lost"),
        ({**SCORES, "score/games": 100, "score/games_lost": 0}, "score 12.3, best 20.0"),
        ({**SCORES, "score/games": 100, "score/games_lost": 1200}, "score 12.3, best 20.0, 1,200 games lost"),
        ({**SCORES, "score/games": 1, "score/games_lost": 0}, "score 12.3 in 1 game, best 20.0"),
        ({**SCORES, "score/games": 99, "score/games_lost": 0}, "score 12.3 in 99 games, best 20.0"),
    ],
)
def test_scores_and_lost_games(row: dict[str, float], text: str) -> None:
    assert score_text(row) == text


def test_no_speed_where_no_frame_was_played() -> None:
    row = {"speed/frames_per_second": 1234.0, "time/environment": 0.5, "time/forward": 0.25, "time/learning": 0.2}
    assert speed_text(row, shares=True) == "1.23k/s (play 50%, act 25%, learn 20%)"
    assert speed_text(row, shares=False) == "1.23k/s"
    assert speed_text({**row, "speed/frames_per_second": 0.0}, shares=True) == ""


@pytest.mark.parametrize(
    ("play", "act", "learn", "text"),
    [
        (0.2, 0.3, 0.4, "play 20%, act 30%, learn 40%"),
        (0.6, 0.1, 0.1, "play 60%, act 10%, learn 10%; most of it was waiting for games: more CPU cores help"),
        (0.1, 0.6, 0.1, "play 10%, act 60%, learn 10%; most of it was acting: .*--num-envs"),
        (0.0, 0.1, 0.85, "play 0%, act 10%, learn 85%; most of it was learning: .*--epochs.*"),
    ],
)
def test_where_the_time_went(play: float, act: float, learn: float, text: str) -> None:
    """The mean over two rows, and what would help."""
    display = Display(100, Console(quiet=True))
    shares = {"time/environment": play, "time/forward": act, "time/learning": learn}
    for frames, change in ((50, 0.05), (100, -0.05)):
        row = {name: share + change for name, share in shares.items()}
        display.show({"frames": frames, "speed/frames_per_second": 1.0, "score/games_lost": 0, **row})
    assert re.fullmatch(text, display.where_time_went())


MOST = (2**53, 0, 1.0)  # frames that a run may be asked for, those that it has, and its speed


def test_without_a_terminal_a_line_says_how_long_it_takes() -> None:
    """By the speed of its row; the last one, and one of no speed, do not."""
    lines = io.StringIO()
    row = {"score/games_lost": 0, "time/environment": 0.5, "time/forward": 0.25, "time/learning": 0.2}
    for total, frames, speed in ((1_000_000, 250_000, 200.0), (1_000_000, 250_000, 0.0), (1_000_000, 1_000_000, 200.0), MOST):
        display = Display(total, Console(file=lines, width=200))
        display.show({"frames": frames, "speed/frames_per_second": speed, **row})
    first, second, last, most = lines.getvalue().splitlines()
    assert first == "   250k frames  25%  200/s (play 50%, act 25%, learn 20%)  1:02:30 left  no game over yet"
    assert second == "   250k frames  25%  no game over yet"
    assert last == "     1M frames 100%  200/s (play 50%, act 25%, learn 20%)  no game over yet"
    assert "  2,501,999,792,983:36:32 left  " in most
