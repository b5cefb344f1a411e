"""Random, human and published Atari scores, each with the rules that it was measured under and where it was read.

The numbers are in `evaluation/data/`, whose README says how they were chosen. What makes two scores comparable follows
Machado et al. 2018, "Revisiting the Arcade Learning Environment" (https://arxiv.org/abs/1709.06009): what is seen, sticky
actions, what ends a game, the no-ops that open it and the cap. A rule that a source does not state is unknown, and a score
with an unknown rule is comparable to nothing.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from envs import atari
from envs.contract import GameProtocol

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class PublishedProtocol:
    """The rules of a score that others measured, as far as its source states them; None where it does not."""

    observation: str | None
    """`pixels` or `ram`."""
    sticky: float | None
    """Probability at each emulator frame that the previous action is repeated."""
    episode_end: str | None
    """`game over` or `life loss`."""
    noop_max: int | None
    """Up to this many emulator frames of doing nothing open a game; 0 for none."""
    max_episode_frames: int | None
    """Emulator frames after which a game is cut off."""


@dataclass(frozen=True)
class Baseline:
    """One score to stand beside ours."""

    name: str
    """Who played: `random`, `human`, `human world record` or the algorithm."""
    score: float
    """Mean score of a whole game, in the game's own points."""
    protocol: str
    """The rules in a few words."""
    source: str
    """Where the number was read."""
    comparable: bool
    """Whether it was measured under our rules, as far as they decide a score."""
    differences: tuple[str, ...]
    """What keeps it from being comparable, one phrase a rule; empty where it is."""
    std: float | None = None
    """Spread over seeds (over games where there is one seed), in points; None where the source gives none."""
    frames: int | None = None
    """Emulator frames of training."""
    seeds: int | None = None
    """Independent training runs behind the score."""
    action_set: str | None = None
    """`minimal` or `full`; shown beside the score, and never a reason against comparing."""
    score_kind: str | None = None
    """`training` (games played while learning), `evaluation` (of a frozen agent) or `best evaluation` (the best of several)."""


def game_of(env_id: str) -> str | None:
    """The game (`SpaceInvaders`) that an Atari id (`ALE/SpaceInvaders-ram-v5`) plays; None where it has no reference scores."""
    match = atari.ID.fullmatch(env_id)
    return match["game"] if match is not None and match["game"] in _reference() else None


def human_normalized(game: str, score: float) -> float | None:
    """(score - random) / (human - random): 0 is random play and 1 a professional tester's; None for a game without them.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning" (https://doi.org/10.1038/nature14236).
    """
    row = _reference().get(game)
    if row is None:
        return None
    random, human = float(row["random"]), float(row["human"])
    return (score - random) / (human - random)


def differences(ours: GameProtocol, theirs: PublishedProtocol) -> list[str]:
    """One phrase for each rule that decides a score and is not known to be the same; empty where all five agree.

    Frame skip, action set and the kind of score are no reason against comparing: they are shown beside the score.
    """
    # A cap in agent steps is a number of frames only for one skip, and no published score has one.
    cap = ours.max_episode_frames if ours.max_episode_steps is None else f"{ours.max_episode_steps:,} agent steps"
    rules = [
        ("observation", ours.observation, theirs.observation),
        ("sticky", ours.sticky, theirs.sticky),
        ("episode end", ours.episode_end, theirs.episode_end),
        ("no-ops", ours.noop_max, theirs.noop_max),
        ("cap", cap, theirs.max_episode_frames),
    ]
    return [
        f"{name} {'not stated' if their is None else _shown(their)}, ours {_shown(our)}"
        for name, our, their in rules
        if their is None or our != their
    ]


def comparable(ours: GameProtocol, theirs: PublishedProtocol) -> bool:
    """Whether observation, sticky probability, what ends a game, no-ops and cap are all known and all the same."""
    return not differences(ours, theirs)


def baselines_for(protocol: GameProtocol, game: str) -> list[Baseline]:
    """Random, human and the world record, then published scores from high to low; empty for a game that has none.

    Args:
        protocol: The rules of our own score.
        game: As `game_of` names it.
    """
    published = [_baseline(protocol, row["algorithm"], row) for row in _published() if row["game"] == game]
    return _reference_baselines(protocol, game) + sorted(published, key=lambda baseline: -baseline.score)


def _reference_baselines(protocol: GameProtocol, game: str) -> list[Baseline]:
    row = _reference().get(game)
    if row is None:
        return []
    players = [_baseline(protocol, name, {**row, "score": row[name]}) for name in ("random", "human")]
    if row["world_record"]:
        record = {"score": row["world_record"], "source": row["world_record_source"], "protocol": "not stated"}
        players.append(_baseline(protocol, "human world record", record))
    return players


def _baseline(ours: GameProtocol, name: str, row: Mapping[str, str]) -> Baseline:
    differing = differences(ours, _protocol(row))
    return Baseline(
        name=name,
        score=float(row["score"]),
        protocol=row["protocol"],
        source=row["source"],
        comparable=not differing,
        differences=tuple(differing),
        std=_number(row, "std"),
        frames=_count(row, "frames"),
        seeds=_count(row, "seeds"),
        action_set=row.get("action_set") or None,
        score_kind=row.get("score_kind") or None,
    )


def _protocol(row: Mapping[str, str]) -> PublishedProtocol:
    return PublishedProtocol(
        observation=row.get("observation") or None,
        sticky=_number(row, "sticky"),
        episode_end=row.get("episode_end") or None,
        noop_max=_count(row, "noop_max"),
        max_episode_frames=_count(row, "max_episode_frames"),
    )


def _number(row: Mapping[str, str], column: str) -> float | None:
    return float(row[column]) if row.get(column) else None


def _count(row: Mapping[str, str], column: str) -> int | None:
    return int(row[column]) if row.get(column) else None


def _shown(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "none" if value is None else str(value)


@cache
def _published() -> list[dict[str, str]]:
    return _rows("atari_published.csv")


@cache
def _reference() -> dict[str, dict[str, str]]:
    return {row["game"]: row for row in _rows("atari_reference.csv")}


def _rows(file: str) -> list[dict[str, str]]:
    with (DATA / file).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))
