import numpy as np

from envs.contract import TimeStep
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
    scores = Scores(4)
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
    scores = Scores(1)
    for score in range(150):
        scores.watch(step([0], over=[False], first=[True]), slice(0, 1))
        scores.watch(step([score], over=[True]), slice(0, 1))
    assert scores.mean_100 == np.mean(range(50, 150))
    assert (scores.games, scores.best) == (150, 149)


def test_finished_games_survive_a_resume() -> None:
    scores, again = Scores(1), Scores(1)
    scores.watch(step([7], over=[True]), slice(0, 1))
    again.load_state_dict(scores.state_dict())
    assert again.metrics() == scores.metrics()
