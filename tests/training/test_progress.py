"""What a person reads while a run trains."""

import pytest

from training.progress import score_text


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"score/games_lost": 0}, "no game over yet"),
        ({"score/games_lost": 2}, "no game over yet, 2 games lost"),
        ({"score/mean_100": 12.34, "score/best": 20, "score/games_lost": 0}, "score 12.3, best 20.0"),
        ({"score/mean_100": 12.34, "score/best": 20, "score/games_lost": 1200}, "score 12.3, best 20.0, 1,200 games lost"),
    ],
)
def test_scores_and_lost_games(row: dict[str, float], text: str) -> None:
    assert score_text(row) == text
