import numpy as np
import pytest

from envs.contract import TimeStep
from envs.lab_tasks import BY_ID
from training.scores import Scores


def step(reward: list[float], *, over: list[bool], cut: list[bool] | None = None, first: list[bool] | None = None) -> TimeStep:
    n = len(reward)
    is_first = np.array(first or [False] * n)
    return TimeStep(
        observation=np.zeros((n, 1), np.uint8),
        extra=np.zeros((n, 0), np.float32),
        reward=np.array(reward, np.float32),
        terminated=np.array(over),
        truncated=np.array(cut or [False] * n),
        is_first=is_first,
        life_lost=np.zeros(n, bool),
        frames=np.where(is_first, 0, 4).astype(np.int32),
    )


def test_games_are_added_up_slot_by_slot_and_never_clipped() -> None:
    scores = Scores(["Bowling-v0"] * 4)
    both = slice(2, 4)
    scores.watch(step([0, 0], over=[False, False], first=[True, True]), both)
    scores.watch(step([50, 1], over=[False, False]), both)
    assert scores.mean_100 is None
    scores.watch(step([50, 1], over=[True, False]), both)
    scores.watch(step([0, -5], over=[False, False], cut=[False, True], first=[True, False]), both)
    assert scores.metrics() == {
        "score/mean_100": (100 - 3) / 2,
        "score/best": 100,
        "score/games": 2,
        "score/frames_per_game": 10,
    }


def test_the_mean_is_of_the_last_hundred_games() -> None:
    scores = Scores(["Bowling-v0"])
    for score in range(150):
        scores.watch(step([0], over=[False], first=[True]), slice(0, 1))
        scores.watch(step([score], over=[True]), slice(0, 1))
    assert scores.mean_100 == np.mean(range(50, 150))
    assert (scores.games, scores.best) == (150, 149)


def test_games_survive_a_resume() -> None:
    scores, again = Scores(["Bowling-v0"]), Scores(["Bowling-v0"])
    scores.watch(step([7], over=[True]), slice(0, 1))
    scores.watch(step([0], over=[False], first=[True]), slice(0, 1))
    scores.watch(step([3], over=[False]), slice(0, 1))
    again.load_state_dict(scores.state_dict())
    assert again.metrics() == scores.metrics()
    for each in (scores, again):
        each.watch(step([2], over=[True]), slice(0, 1))
    assert again.metrics() == scores.metrics()
    assert scores.mean_100 == (7 + 5) / 2


def test_several_tasks_have_a_mean_each_and_count_alike() -> None:
    """Thirty tasks in 60 slots; the first plays more games than all others."""
    tasks = [*BY_ID, *BY_ID]
    scores = Scores(tasks)
    everyone = slice(0, 60)
    human = [BY_ID[task].human for task in tasks]
    for _ in range(5):
        scores.watch(step([0], over=[False], first=[True]), slice(0, 1))
        scores.watch(step([human[0]], over=[True]), slice(0, 1))
    row = scores.metrics()
    assert row["score/mean_100/dmlab30/rooms_collect_good_objects"] == row["score/mean_100"] == 10
    assert "score/human_normalized_capped" not in row  # 29 tasks have not been played yet
    scores.watch(step([0] * 60, over=[False] * 60, first=[True] * 60), everyone)
    scores.watch(step([2 * score for score in human[:30]] + human[30:] + human[60:], over=[True] * 60), everyone)
    row = scores.metrics()
    assert row["score/mean_100/dmlab30/rooms_watermaze"] == 1.5 * 54
    assert row["score/mean_100"] == pytest.approx(
        np.mean([(5 * 10 + 30) / 7, *(1.5 * score for score in human[1:30])]), rel=1e-6
    )
    assert row["score/human_normalized_capped"] == pytest.approx(100)
    again = Scores(tasks)
    again.load_state_dict(scores.state_dict())
    assert again.metrics() == row
