"""Whole games, each with a seed of its own, played by a frozen player.

Game i has seed `SeedSequence((1, seed, i))`, and its actions are drawn from a generator of its own, so that its result does not
depend on which games are played beside it. That generator's seed begins with another number: many environments toss their own
coins with `default_rng(seed)`, and a player with the same would know them. Each slot plays a fixed list of games: taking
whatever game ends first would count short games too often.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agents.agent import Decision, Player
from envs.contract import Envs, GameDescription, ProtocolOptions, TimeStep, game_seeds
from envs.workers import WorkerEnvs

MOST_SLOTS = 16  # games side by side
_EVALUATION = 1  # purpose of the seeds; training's is 0
_DRAWS = 2  # purpose of what actions are drawn with


@dataclass
class Episode:
    """One game."""

    index: int
    """Which of the evaluation's games."""
    seed: int
    """What the game was opened with."""
    score: float = 0.0
    """Sum of the game's own rewards."""
    frames: int = 0
    """Emulator frames."""
    terminated: bool = False
    """Whether the game was over, rather than cut off."""
    actions: list[int] = field(default_factory=list)
    """What was played."""
    digest: str = ""
    """Of every step's action, reward and frames, when it has ended: the same game has the same."""


class Watcher(Protocol):
    """Looks on while a game is played: a video, say."""

    def watch(
        self, episode: Episode, frames: NDArray[np.uint8], action: int, probabilities: NDArray[np.float32], value: float
    ) -> None:
        """One agent step, with what led to it: emulator frames (k, H, W, 3), action, its probabilities (A,) and the value."""

    def finish(self, episode: Episode) -> None:
        """The game has ended."""


def slots_for(games: int) -> int:
    """Games to play side by side: as many as divide the games evenly."""
    rounds = -(-games // MOST_SLOTS)
    return -(-games // rounds)


def play_games(
    env_id: str,
    options: ProtocolOptions,
    make_player: Callable[[GameDescription, int], Player],
    games: range,
    seed: int,
    watchers: Sequence[Watcher] = (),
    over: Callable[[Episode], None] | None = None,
) -> tuple[list[Episode], GameDescription]:
    """Play some games of an evaluation to their ends.

    Args:
        env_id: What to play.
        options: Changes to its protocol.
        make_player: From a game and a number of environments to a player.
        games: Which games; their numbers decide their seeds.
        seed: Of the whole evaluation.
        watchers: The k-th looks on at the k-th game.
        over: Told of each game when it ends.

    Returns:
        The games in order, and the description of what was played.
    """
    num_slots = slots_for(len(games))
    seeds = game_seeds(_EVALUATION, seed, games)
    options = replace(options, held_out=True)  # what training never played, where a game has such
    queues = [list(range(slot, len(games), num_slots)) for slot in range(num_slots)]
    with ExitStack() as stack:
        envs = stack.enter_context(WorkerEnvs(env_id, num_slots, options=options, record=range(min(len(watchers), num_slots))))
        envs.reset([[seeds[game] for game in queue] for queue in queues])
        tables = [_Table([Episode(games[game], seeds[game]) for game in queue]) for queue in queues]
        watching = {games[game]: watcher for game, watcher in enumerate(watchers)}
        for ended in _play(envs, make_player(envs.description, num_slots), tables, watching):
            if over is not None:
                over(ended)
        episodes = sorted((episode for table in tables for episode in table.episodes), key=lambda episode: episode.index)
        return episodes, envs.description


class _Table:
    """A slot's games, one after the other."""

    def __init__(self, episodes: list[Episode]) -> None:
        self.episodes = episodes
        self._at = -1
        self._over = True

    @property
    def done(self) -> bool:
        return self._over and self._at + 1 >= len(self.episodes)

    @property
    def running(self) -> Episode | None:
        return None if self._over else self.episodes[self._at]

    def open(self) -> None:
        """The slot has opened a game; beyond the list, one that does not count."""
        if self._at + 1 < len(self.episodes):
            self._at += 1
            self._over = False
            self._generator = np.random.default_rng((_DRAWS, self.episodes[self._at].seed))
            self._digest = blake2b(digest_size=16)

    def draw(self, probabilities: NDArray[np.float32]) -> int:
        """An action from the game's own generator."""
        if self._over:
            return 0
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        drawn = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right")
        action = int(min(drawn, len(probabilities) - 1))
        self.episodes[self._at].actions.append(action)
        return action

    def count(self, reward: float, frames: int) -> Episode | None:
        """Take in a step; returns the running game."""
        episode = self.running
        if episode is not None:
            episode.score += reward
            episode.frames += frames
            self._digest.update(f"{episode.actions[-1]} {reward} {frames}\n".encode())
        return episode

    def close(self) -> None:
        self.episodes[self._at].digest = self._digest.hexdigest()
        self._over = True


def _play(envs: Envs, player: Player, tables: list[_Table], watching: dict[int, Watcher]) -> Iterator[Episode]:
    """Play until every slot has played its games; each comes when it has ended."""
    decision: Decision | None = None
    actions = np.zeros(len(tables), np.int64)
    while True:
        timestep = envs.recv(0)
        for slot, table in enumerate(tables):
            ended = _count(slot, table, timestep, envs, decision, watching)
            if ended is not None:
                yield ended
        if all(table.done for table in tables):
            return
        decision = player.decide(timestep, actions)
        drawn = [table.draw(probabilities) for table, probabilities in zip(tables, decision.probabilities, strict=True)]
        actions = np.asarray(drawn, np.int64)
        envs.send(actions, 0)


def _count(
    slot: int, table: _Table, timestep: TimeStep, envs: Envs, decision: Decision | None, watching: dict[int, Watcher]
) -> Episode | None:
    """Take one slot's step into its game; returns the game where it has ended."""
    if timestep.is_first[slot]:
        table.open()
        return None
    episode = table.count(float(timestep.reward[slot]), int(timestep.frames[slot]))
    if episode is None or decision is None:
        return None
    watcher = watching.get(episode.index)
    if watcher:
        probabilities, value = decision.probabilities[slot], float(decision.values[slot])
        watcher.watch(episode, envs.last_frames(slot), episode.actions[-1], probabilities, value)
    if not (timestep.terminated[slot] or timestep.truncated[slot]):
        return None
    episode.terminated = bool(timestep.terminated[slot])
    table.close()
    if watcher:
        watcher.finish(episode)
    return episode
