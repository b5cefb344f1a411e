"""What a person reads while a run trains."""

import pytest

from training.progress import score_text

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
