"""The thirty tasks of DMLab-30: which level is trained on, which is evaluated on, and the scores between 0 and 100 percent.

Levels, order and scores are those of IMPALA (Espeholt et al. 2018, <https://arxiv.org/abs/1802.01561>) as its authors published
them in google-deepmind/scalable_agent, `dmlab30.py` at commit 6c0c8a7: a random agent's mean score a game and a human player's.
The test versions of two tasks show what training never shows; of the others training and evaluation play the same level.
"""

from collections.abc import Mapping
from typing import NamedTuple

FOLDER = "contributed/dmlab30"  # of the tasks' levels among the engine's own


class LabTask(NamedTuple):
    """One task of DMLab-30."""

    name: str
    """As in the id `dmlab30/<name>`."""
    train_level: str
    """What training plays, as the engine names it."""
    test_level: str
    """What evaluation plays."""
    random: float
    """Mean score a game of a random agent: 0 percent."""
    human: float
    """Mean score a game of a human player: 100 percent."""
    has_instructions: bool
    """Whether the agent is told what to do in words."""

    def human_normalized(self, score: float) -> float:
        """(score - random) / (human - random)."""
        return (score - self.random) / (self.human - self.random)


def _task(name: str, random: float, human: float, *, two_versions: bool = False) -> LabTask:
    train, test = ("_train", "_test") if two_versions else ("", "")
    return LabTask(name, f"{FOLDER}/{name}{train}", f"{FOLDER}/{name}{test}", random, human, name.startswith("language_"))


TASKS = (
    _task("rooms_collect_good_objects", 0.073, 10, two_versions=True),
    _task("rooms_exploit_deferred_effects", 8.501, 85.65, two_versions=True),
    _task("rooms_select_nonmatching_object", 0.312, 65.9),
    _task("rooms_watermaze", 4.065, 54),
    _task("rooms_keys_doors_puzzle", 4.135, 53.8),
    _task("language_select_described_object", -0.07, 389.5),
    _task("language_select_located_object", 1.929, 280.7),
    _task("language_execute_random_task", -5.913, 254.05),
    _task("language_answer_quantitative_question", -0.33, 184.5),
    _task("lasertag_one_opponent_small", -0.224, 12.65),
    _task("lasertag_three_opponents_small", -0.214, 18.55),
    _task("lasertag_one_opponent_large", -0.083, 18.6),
    _task("lasertag_three_opponents_large", -0.102, 31.5),
    _task("natlab_fixed_large_map", 2.173, 36.9),
    _task("natlab_varying_map_regrowth", 2.989, 24.45),
    _task("natlab_varying_map_randomized", 7.346, 42.35),
    _task("skymaze_irreversible_path_hard", 0.1, 100),
    _task("skymaze_irreversible_path_varied", 14.4, 100),
    _task("psychlab_arbitrary_visuomotor_mapping", 0.163, 58.75),
    _task("psychlab_continuous_recognition", 0.224, 58.3),
    _task("psychlab_sequential_comparison", 0.129, 39.5),
    _task("psychlab_visual_search", 0.085, 78.5),
    _task("explore_object_locations_small", 3.575, 74.45),
    _task("explore_object_locations_large", 4.673, 65.65),
    _task("explore_obstructed_goals_small", 6.76, 206),
    _task("explore_obstructed_goals_large", 2.61, 119.5),
    _task("explore_goal_locations_small", 7.66, 267.5),
    _task("explore_goal_locations_large", 3.14, 194.5),
    _task("explore_object_rewards_few", 2.073, 77.7),
    _task("explore_object_rewards_many", 2.438, 106.7),
)
BY_ID = {f"dmlab30/{task.name}": task for task in TASKS}


def human_normalized_capped(scores: Mapping[str, float]) -> float | None:
    """How much of human skill an agent has on the thirty tasks, in percent.

    Args:
        scores: Mean score a game, by id (`dmlab30/<name>`).

    Returns:
        The mean over tasks of (score - random) / (human - random), each capped at 1 so that no task makes up for another. None
        where the scores are not of all thirty and nothing else: that would be another measurement.
    """
    if scores.keys() != BY_ID.keys():
        return None
    shares = [min(1.0, task.human_normalized(scores[env])) for env, task in BY_ID.items()]
    return 100.0 * sum(shares) / len(shares)
