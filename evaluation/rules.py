"""Which measured scores may stand in one column."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

Score = Mapping[str, Any]  # one object of scores.json

# Scores stand in one column only where all of these parts of the protocol agree.
RULES = (
    "observation",
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


def rules_in_words(protocol: Mapping[str, Any]) -> str:
    """A protocol in one line."""
    fewest, most = protocol["frame_skip"]
    cap, steps = protocol["max_episode_frames"], protocol["max_episode_steps"]
    end, uncapped = f"a game ends at {protocol['episode_end']}", "never cut off"
    if protocol["episode_end"] == "environment":
        end, uncapped = "a game ends where the environment says so", "cut off by it alone"
    return ", ".join(
        [
            f"plays from {protocol['observation']}",
            f"frame skip {fewest}" if fewest == most else f"frame skip {fewest} to {most}",
            f"sticky actions {protocol['sticky']:g}",
            f"up to {protocol['noop_max']} no-op frames" if protocol["noop_max"] else "no no-ops",
            end,
            f"cut off after {cap:,} frames" if cap else f"cut off after {steps:,} steps" if steps else uncapped,
        ]
    )
