"""Which measured scores may stand in one column, and which sum up to one figure."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from envs.lab_tasks import human_normalized_capped
from evaluation.estimates import FEWEST

Score = Mapping[str, Any]  # one object of scores.json

# Scores stand in one column only where all of these parts of the protocol agree.
RULES = (
    "observation",
    "extra",
    "level",
    "sticky",
    "episode_end",
    "noop_max",
    "max_episode_frames",
    "max_episode_steps",
    "mode",
    "difficulty",
)


def same_rules(scores: Iterable[Score]) -> list[list[Score]]:
    """Scores in groups that were made under the same rules, in the order in which they come."""
    groups: dict[str, list[Score]] = {}
    for score in scores:
        rules = [score["env"], *(score["protocol"].get(rule) for rule in RULES)]
        groups.setdefault(json.dumps(rules), []).append(score)
    return list(groups.values())


def kind_of(score: Score) -> str:
    """`agent`, `random`, `script` or `blind replay`."""
    return str(score.get("kind", "agent"))


def rules_in_words(protocol: Mapping[str, Any]) -> str:
    """A protocol in one line."""
    fewest, most = protocol["frame_skip"]
    cap, steps = protocol["max_episode_frames"], protocol["max_episode_steps"]
    end, uncapped = f"a game ends at {protocol['episode_end']}", "never cut off"
    if protocol["episode_end"] == "environment":
        end, uncapped = "a game ends where the environment says so", "cut off by it alone"
    return ", ".join(
        [
            f"plays from {' and '.join([str(protocol['observation']), *_beside(protocol)])}",
            f"frame skip {fewest}" if fewest == most else f"frame skip {fewest} to {most}",
            f"sticky actions {protocol['sticky']:g}",
            f"up to {protocol['noop_max']} no-op frames" if protocol["noop_max"] else "no no-ops",
            end,
            f"cut off after {cap:,} frames" if cap else f"cut off after {steps:,} steps" if steps else uncapped,
        ]
    )


def _beside(protocol: Mapping[str, Any]) -> list[str]:
    """What is seen beside the observation, in words."""
    names = [*protocol.get("extra", ())]
    numbers = [name for name in names if not name.startswith("word ")]
    return [*([", ".join(numbers)] if numbers else []), *(["an instruction"] if len(numbers) < len(names) else [])]


def by_references_of_other_rules(score: Score) -> bool:
    """Whether the random and the human player that `human_normalized` measures by played under other rules than the score."""
    references = [row["comparable"] for row in score["baselines"] if row["name"] in ("random", "human")]
    return score["human_normalized"] is not None and not all(references)


def why_no_interval(score: Score) -> str:
    """What keeps a score without `ci95` from having one."""
    games, distinct = len(score["episodes"]), score["distinct_games"]
    if games < FEWEST:
        return f"{games} {'game is' if games == 1 else 'games are'} too few for an interval"
    if distinct < games / 2:
        return f"{distinct} of {games} games are distinct, too few for an interval"
    return "all games have one score, over which an interval says nothing"


def suites_in_words(scores: Iterable[Score]) -> list[str]:
    """A line for each subject that played all tasks of DMLab-30: how much of human skill it has, `human_normalized_capped`."""
    suites: dict[str, dict[str, float]] = {}
    for score in scores:
        if score.get("suite"):
            suites.setdefault(score["suite"], {})[score["env"]] = float(score["mean"])
    figures = {suite: human_normalized_capped(means) for suite, means in suites.items()}
    return [
        f"DMLab-30, {suite}: {figure:.1f} % of human skill, the mean of all thirty tasks, each capped at 100 %"
        for suite, figure in figures.items()
        if figure is not None
    ]
