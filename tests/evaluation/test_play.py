"""Whole games, judged by a plain loop over Gymnasium's own environment."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from agents.agent import Decision
from agents.random_agent import RandomPlayer
from envs.contract import GameDescription, ProtocolOptions, TimeStep, game_seeds
from evaluation.blind import ScriptPlayer, replay, script_player, scripts_for
from evaluation.play import MOST_SLOTS, Episode, play_games, slots_for

NONE = ProtocolOptions()
COINS = """
import gymnasium
from gymnasium import spaces

class Coins(gymnasium.Env):
    action_space = spaces.Discrete(2)
    observation_space = spaces.Box(0, 1, (1,))

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 100
        return self.observation_space.low, {}

    def step(self, action):
        self.left -= 1
        guessed = action == (self.np_random.random() < 0.5)
        return self.observation_space.low, float(guessed), self.left == 0, False, {}

gymnasium.register("Coins-v0", Coins)
"""


def random_player(game: GameDescription, num_envs: int) -> RandomPlayer:
    return RandomPlayer(game.num_actions)


def test_games_are_those_of_a_plain_loop_with_the_same_seeds() -> None:
    episodes, game = play_games("CartPole-v1", NONE, random_player, range(5), seed=3)
    env = gymnasium.make("CartPole-v1")
    for index, episode in enumerate(episodes):
        seed = int(np.random.SeedSequence((1, 3, index)).generate_state(1)[0] & 0x7FFFFFFF)
        assert (episode.index, episode.seed) == (index, seed)
        env.reset(seed=seed)
        total, over = 0.0, False
        for action in episode.actions:
            assert not over
            _, reward, over, cut, _ = env.step(action)
            total += float(reward)
        assert over and not cut
        assert (episode.score, episode.frames, episode.terminated) == (total, len(episode.actions), True)
    assert game.protocol.env == "CartPole-v1"


def test_each_game_is_told_of_when_it_has_ended() -> None:
    told: list[tuple[int, float, bool]] = []
    episodes, _ = play_games(
        "CartPole-v1",
        NONE,
        random_player,
        range(20),
        seed=3,
        over=lambda each: told.append((each.index, each.score, each.terminated)),
    )
    assert sorted(told) == [(each.index, each.score, each.terminated) for each in episodes]
    assert [index for index, *_ in told] != list(range(20))  # but in the order of their ends


def test_a_game_does_not_depend_on_the_games_beside_it() -> None:
    many, _ = play_games("CartPole-v1", NONE, random_player, range(7), seed=0)
    alone, _ = play_games("CartPole-v1", NONE, random_player, range(4, 5), seed=0)
    assert many[4] == alone[0]
    assert len({episode.digest for episode in many}) == 7
    assert len({tuple(episode.actions) for episode in many}) == 7


def test_a_player_does_not_know_the_coins_of_an_environment(monkeypatch, tmp_path) -> None:
    """Environments draw from Gymnasium's generator of the game's seed, which is numpy's default."""
    (tmp_path / "coins.py").write_text(COINS)
    monkeypatch.syspath_prepend(str(tmp_path))
    episodes, _ = play_games("coins:Coins-v0", NONE, random_player, range(30), seed=0)
    assert np.mean([episode.score for episode in episodes]) == pytest.approx(50, abs=4)  # four standard errors


def test_games_of_the_same_actions_differ_by_what_these_brought(monkeypatch, tmp_path) -> None:
    (tmp_path / "coins.py").write_text(COINS)
    monkeypatch.syspath_prepend(str(tmp_path))
    still = script_player(lambda _: replay([0]))
    tossed, _ = play_games("coins:Coins-v0", NONE, still, range(2), seed=0)
    assert tossed[0].actions == tossed[1].actions
    assert tossed[0].digest != tossed[1].digest
    same, _ = play_games("ALE/Bowling-ram-v5", ProtocolOptions(max_episode_frames=150, noop_max=0), still, range(2), seed=0)
    assert same[0].digest == same[1].digest


def test_evaluation_never_plays_a_game_of_training() -> None:
    assert not set(game_seeds(0, 1, range(1000))) & set(game_seeds(1, 1, range(1000)))


def test_levels_that_training_never_plays_are_evaluated_where_there_are_such(monkeypatch, tmp_path) -> None:
    """Against the stand-in of the engine, whose place workers find in the path that they take over."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "envs" / "stand_ins"))
    monkeypatch.setenv("PLAYFIELD_CACHE", str(tmp_path))
    _, game = play_games("dmlab30/rooms_collect_good_objects", NONE, random_player, range(1), seed=0)
    assert game.protocol.level == "contributed/dmlab30/rooms_collect_good_objects_test"


class Listening(RandomPlayer):
    """Keeps what it is told was played, and which games had just opened."""

    told: list[int]
    opened: list[bool]

    def decide(self, timestep: TimeStep, played: NDArray[np.integer[Any]]) -> Decision:
        self.told.append(int(played[0]))
        self.opened.append(bool(timestep.is_first[0]))
        return super().decide(timestep, played)


def test_a_player_is_told_what_was_played() -> None:
    player = Listening(2)
    player.told, player.opened = [], []
    episodes, _ = play_games("CartPole-v1", NONE, lambda *_: player, range(1), seed=0)
    assert player.opened == [True] + [False] * (len(player.told) - 1)
    assert player.told[1:] == episodes[0].actions[:-1]  # nobody decides behind the end
    assert len(set(player.told)) == 2


def test_a_game_that_is_cut_off_is_not_terminated() -> None:
    capped = ProtocolOptions(max_episode_frames=200)
    episodes, _ = play_games("Bowling-ram-v4", capped, random_player, range(2), seed=0)
    assert [episode.terminated for episode in episodes] == [False, False]
    assert all(200 <= episode.frames <= 204 for episode in episodes)


def test_slots_share_the_games_evenly() -> None:
    assert [slots_for(games) for games in (1, 16, 17, 20, 30, 50)] == [1, 16, 9, 10, 15, 13]
    assert all(slots_for(games) <= MOST_SLOTS for games in range(1, 200))


class Tape:
    """Looks on and writes down."""

    def __init__(self) -> None:
        self.scores: list[float] = []
        self.frames = 0
        self.finished: list[Episode] = []

    def watch(self, episode: Episode, frames: np.ndarray, action: int, probabilities: np.ndarray, value: float) -> None:
        self.scores.append(episode.score)
        self.frames += len(frames)
        assert action == episode.actions[-1]
        assert probabilities.sum() == pytest.approx(1)

    def finish(self, episode: Episode) -> None:
        self.finished.append(episode)


def test_a_watcher_sees_every_frame_of_its_game_and_no_other() -> None:
    tapes = [Tape(), Tape()]
    capped = ProtocolOptions(max_episode_frames=150)
    episodes, _ = play_games("Bowling-ram-v0", capped, random_player, range(3), seed=1, watchers=tapes)
    for tape, episode in zip(tapes, episodes[:2], strict=True):
        assert tape.finished == [episode]
        assert tape.frames == episode.frames
        assert tape.scores[-1] == episode.score
        assert len(tape.scores) == len(episode.actions)


def test_a_replay_repeats_the_actions_and_starts_over(game_of_three: GameDescription) -> None:
    player = ScriptPlayer(lambda _: replay([2, 0, 1]), game_of_three, 2)
    first = [np.argmax(decide(player, [step == 0, False]).probabilities, axis=1).tolist() for step in range(5)]
    assert first == [[2, 2], [0, 0], [1, 1], [2, 2], [0, 0]]
    assert np.argmax(decide(player, [True, False]).probabilities, axis=1).tolist() == [2, 1]


def decide(player: ScriptPlayer, is_first: list[bool]) -> Decision:
    n = len(is_first)
    zeros = np.zeros(n, np.float32)
    flags = np.zeros(n, bool)
    extra = np.zeros((n, 0), np.float32)
    step = TimeStep(zeros, extra, zeros, flags, flags, np.array(is_first), flags, np.zeros(n, np.int32))
    return player.decide(step, np.zeros(n, np.int64))


@pytest.fixture
def game_of_three() -> GameDescription:
    _, game = play_games("CartPole-v1", NONE, random_player, range(1), seed=0)
    return GameDescription(game.protocol, (4,), "float32", 0, 0, ("a", "b", "c"), None, 30.0)


def test_the_scripts_bowl_as_measured() -> None:
    """Scripts A and B reached 160 and 164 over 12 games of v5 without no-ops; a stray press anywhere ruins them."""
    means = {}
    for name, script in scripts_for("bowling").items():
        episodes, _ = play_games("ALE/Bowling-ram-v5", ProtocolOptions(noop_max=0), script_player(script), range(2), seed=0)
        means[name] = np.mean([episode.score for episode in episodes])
    assert means["A"] == pytest.approx(160, abs=5)
    assert means["B"] == pytest.approx(164, abs=5)
    assert scripts_for("berzerk") == {}
