"""From subjects to `scores.json`: what was played, how it went, and what it is to be compared with."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from envs import lab_tasks, registry
from envs.contract import GameDescription, GameProtocol
from evaluation import subjects
from evaluation.baselines import baselines_for, game_of, human_normalized
from evaluation.estimates import summarize
from evaluation.play import Episode, play_games
from evaluation.rules import Score
from evaluation.subjects import UNLEARNED, Subject
from evaluation.video import VideoWriter
from training.scores import points

BLIND_FIRST = 1_000_000  # the blind baseline's games have seeds that the agent's never have
_NEAR = 0.1  # share of the agent's score within which a blind score is called as good


class Recorder:
    """Makes a video of one game; implements `evaluation.play.Watcher`."""

    def __init__(self, path: Path, subject: Subject, describe: Callable[[], GameDescription]) -> None:
        """The file is opened at the first step, when the game's shape is known."""
        self._path, self._subject, self._describe = path, subject, describe
        self._writer: VideoWriter | None = None

    def watch(
        self, episode: Episode, frames: NDArray[np.uint8], action: int, probabilities: NDArray[np.float32], value: float
    ) -> None:
        """Draw one agent step, where the game can be drawn."""
        if self._describe().screen_shape is None:
            return
        if self._writer is None:
            self._writer = self._open(self._describe())
        self._writer.add(
            frames,
            score=episode.score,
            total_frames=episode.frames,
            action=action,
            value=None if math.isnan(value) else value,
            probabilities=probabilities,
        )

    def _open(self, game: GameDescription) -> VideoWriter:
        assert game.screen_shape is not None
        title = f"{self._subject.env}  {self._subject.algorithm}"
        smooth = registry.is_world(self._subject.env)
        return VideoWriter(self._path, game.screen_shape, game.frames_per_second, game.action_names, title, smooth=smooth)

    def finish(self, episode: Episode) -> None:
        """Close the file and write its card."""
        if self._writer is None:
            return
        self._writer.close(
            {
                "run": self._subject.name,
                "algorithm": self._subject.algorithm,
                "policy": self._subject.policy,
                "protocol": dataclasses.asdict(self._describe().protocol),
                "game": episode.index,
                "seed": episode.seed,
                "score": episode.score,
                "game_frames": episode.frames,
                "trained_frames": self._subject.frames,
                "commit": self._subject.commit,
            }
        )


def evaluate(
    subject: Subject, games: range, seed: int, videos: Sequence[Path] = (), over: Callable[[Episode], None] | None = None
) -> tuple[Score, list[Episode]]:
    """Play a subject's games and sum them up; the first games are recorded into `videos`, and `over` is told of each."""
    known: list[GameDescription] = []

    def make_player(game: GameDescription, num_envs: int) -> Any:
        known.append(game)
        return subject.make_player(game, num_envs)

    recorders = [Recorder(path, subject, lambda: known[0]) for path in videos]
    episodes, game = play_games(subject.env, subject.options, make_player, games, seed, recorders, over)
    return _score(subject, game.protocol, episodes, seed), episodes


def _score(subject: Subject, protocol: GameProtocol, episodes: list[Episode], seed: int) -> Score:
    estimates = summarize([episode.score for episode in episodes], [episode.digest for episode in episodes])
    game, task = game_of(subject.env), lab_tasks.BY_ID.get(subject.env)
    normalized = task.human_normalized(estimates.mean) if task else human_normalized(game, estimates.mean) if game else None
    return {
        "run": subject.name,
        "suite": subject.suite,
        "kind": subject.algorithm if subject.algorithm in UNLEARNED else "agent",
        "algorithm": subject.algorithm,
        "env": subject.env,
        "protocol": dataclasses.asdict(protocol),
        "policy": subject.policy,
        "score_kind": "evaluation",
        "seed": seed,
        "frames": subject.frames,
        "checkpoint": subject.checkpoint,
        "commit": subject.commit,
        "episodes": [
            {"return": episode.score, "frames": episode.frames, "seed": episode.seed, "terminated": episode.terminated}
            for episode in episodes
        ],
        **dataclasses.asdict(estimates),
        "human_normalized": normalized,
        "baselines": [dataclasses.asdict(baseline) for baseline in baselines_for(protocol, game)] if game else [],
    }


def blind_players(subject: Subject, episodes: Sequence[Episode]) -> list[Subject]:
    """What never looks: the agent's best game repeated, and the game's scripts."""
    best = max(episodes, key=lambda episode: episode.score)
    return [subjects.blind_replay(subject, best.actions), *subjects.scripts_like(subject)]


def blind_score(player: Subject, games: int, seed: int, over: Callable[[Episode], None] | None = None) -> Score:
    """What a player that never looks scores in so many games that the agent has not seen; `over` is told of each."""
    return evaluate(player, range(BLIND_FIRST, BLIND_FIRST + games), seed, over=over)[0]


def blind_note(agent: Score, blind: Sequence[Score]) -> str | None:
    """What to say of an agent that a player who never looks comes near to; None where none does."""
    best = max(blind, key=lambda score: float(score["mean"]))
    if best["mean"] < agent["mean"] - _NEAR * abs(agent["mean"]):
        return None
    return (
        f"{best['run']} reaches {points(best['mean'])} in {len(best['episodes'])} games without ever looking, "
        f"and the agent {points(agent['mean'])}: its score says little about what it sees"
    )


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file whole or not at all."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(aside, path)
