"""Where games stand can be saved and gone on from: other workers play on as the first would have, in every family."""

import itertools
import json
import os
import signal

import numpy as np
import pytest

from envs import atari, registry
from envs.contract import TimeStep, game_seeds
from envs.workers import WorkerEnvs
from tests.envs.test_contract import FAMILIES, WORLD, every_family, options_for, why_not
from tests.envs.test_processes import alive, children, soon
from training.start import training_seeds

GAMES = [*FAMILIES, "Berzerk-v0", "Bowling-ram-v0", "ALE/Qbert-v5"]  # sticky and drawn; not cloned
SLOTS, CLONES = 4, (40, 80)


def opened(env_id: str) -> WorkerEnvs:
    return WorkerEnvs(env_id, SLOTS, options=options_for(env_id), num_groups=2, num_workers=2, restart=True)


def seeds_of(env_id: str):
    return [training_seeds(7, slot, env_id) for slot in range(SLOTS)]


def parameter(env_id: str):
    """A world draws for half a minute."""
    slow = [pytest.mark.slow] if env_id == WORLD else []
    return pytest.param(env_id, marks=[*slow, pytest.mark.skipif(bool(why := why_not(env_id)), reason=why)])


class Play:
    """Plays actions that depend on the step alone, and remembers what it sees."""

    def __init__(self, env_id: str) -> None:
        self.env_id, self.envs, self.time = env_id, opened(env_id), 0
        self.envs.reset(seeds_of(env_id))
        self.seen: list[TimeStep] = []

    def until(self, end: int) -> None:
        while self.time < end:
            for group, slots in enumerate(self.envs.groups):
                self.seen.append(TimeStep(*(field.copy() for field in self.envs.recv(group))))
                rng = np.random.default_rng((self.time, group))
                self.envs.send(rng.integers(self.envs.description.num_actions, size=slots.stop - slots.start), group)
            if self.time in CLONES:
                self.clone = self.envs.state_dict(clone=True), len(self.seen)
            self.time += 1

    def move(self, state: dict) -> None:
        """To workers of another process."""
        self.envs.close()
        self.envs = opened(self.env_id)
        self.envs.load_state_dict(state, seeds_of(self.env_id))
        assert self.envs.strays == []


def same(left: list[TimeStep], right: list[TimeStep]) -> bool:
    fields = zip(itertools.chain(*left), itertools.chain(*right), strict=True)
    return all(np.array_equal(one, other) for one, other in fields)


@pytest.mark.parametrize("env_id", [parameter(each) for each in GAMES])
def test_games_go_on_where_they_stood(env_id):
    """Once after a signal, before there was a copy and behind one, and once after a kill: from the copy itself."""
    end = 170 if env_id == "Breakout-v0" else 120  # a game of Breakout ends within that
    whole, stopped = Play(env_id), Play(env_id)
    try:
        whole.until(end)
        for stop in (17, 60):
            stopped.until(stop)
            stopped.move(stopped.envs.state_dict(clone=False))
        stopped.until(100)
        state, length = stopped.clone
        del stopped.seen[length:]
        stopped.move(state)
        stopped.time = CLONES[-1] + 1
        stopped.until(end)
        assert same(whole.seen, stopped.seen)
        assert any(step.is_first.any() for step in whole.seen[2:]) or env_id != "Breakout-v0"
        assert whole.envs.seeds.tolist() == stopped.envs.seeds.tolist()
    finally:
        whole.envs.close()
        stopped.envs.close()


def test_a_state_can_be_saved_behind_any_groups_turn():
    """Steps that are under way come in the order in which they were started, which is not always that of the groups."""

    def opened() -> WorkerEnvs:
        return WorkerEnvs("CartPole-v1", 4, num_groups=4, num_workers=1)

    def play(envs: WorkerEnvs, turn: int) -> TimeStep:
        step = TimeStep(*(field.copy() for field in envs.recv(turn % 4)))
        envs.send(np.array([turn // 4 % 2]), turn % 4)
        return step

    with opened() as envs:
        envs.reset(seeds_of("CartPole-v1"))
        whole = [play(envs, turn) for turn in range(60)]
    with opened() as saved:
        saved.reset(seeds_of("CartPole-v1"))
        seen, states = [], []
        for turn in range(40):
            seen.append(play(saved, turn))
            states.append(saved.state_dict(clone=False))
    assert same(whole[:40], seen)
    for turns in (37, 38, 39, 40):
        with opened() as envs:
            envs.load_state_dict(states[turns - 1], seeds_of("CartPole-v1"))
            assert same(whole[turns:], [play(envs, turn) for turn in range(turns, 60)])


@every_family
def test_games_are_seeded_so_that_they_can_be_opened_again(env_id):
    first = next(training_seeds(3, 1, env_id))
    assert first == game_seeds(0, 3, range(2))[1]
    seeds = list(itertools.islice(training_seeds(3, 1, env_id), 5))
    assert len(set(seeds)) == (1 if registry.clones(env_id) else 5)


def test_a_saved_state_knows_of_a_worker_that_was_lost():
    """It is killed between two steps: its games open others at their next step, here and after the state was loaded."""
    play = Play("Breakout-v0")
    try:
        play.until(30)
        first = children(os.getpid())[0]
        os.kill(first, signal.SIGKILL)
        assert soon(lambda: not alive(first))
        state = play.envs.state_dict(clone=True)
        assert state["lost_games"] == 2
        there = play.seen
        play.seen = []
        play.until(60)
        on, play.seen = play.seen, []
        play.move(state)
        play.time = 30
        play.until(60)
        assert same(on, play.seen)
        assert len(there) == 60 and sum(int(step.is_first[0]) for step in on) >= 2  # one a group
        assert play.envs.lost_games == 2
    finally:
        play.envs.close()


def test_a_game_that_does_not_repeat_itself_is_named():
    """It is by the clock, or of another version: its slot goes on from what was seen, and the difference is said."""
    play = Play("CartPole-v1")
    try:
        play.until(5)
        state = play.envs.state_dict(clone=False)
        state["step"]["observation"][2] += 1
        play.envs.close()
        play.envs = opened("CartPole-v1")
        play.envs.load_state_dict(state, seeds_of("CartPole-v1"))
        assert play.envs.strays == [2]
        np.testing.assert_array_equal(play.envs.recv(1).observation, state["step"]["observation"][2:])
    finally:
        play.envs.close()


def test_a_copy_that_grows_without_end_or_ends_early_is_refused():
    largest = atari._packed(bytes(atari._MOST))
    assert atari._unpacked(largest) == bytes(atari._MOST)
    for other in (atari._packed(bytes(atari._MOST + 1)), largest[:-8]):
        with pytest.raises(ValueError, match="the copy of a game ends early, or not within 1,048,576 bytes"):
            atari._unpacked(other)


def test_a_copy_is_read_where_older_checkpoints_have_it_and_has_the_length_that_is_said():
    """Before format 4 a game had its copy itself; now it has the length of its part of one array."""
    play = Play("Bowling-ram-v0")
    try:
        play.until(CLONES[0] + 1)
        state, _ = play.clone
        play.seen.clear()
        play.until(60)
        expected = play.seen
        joined, stops = state["clones"].tobytes(), np.cumsum([game["clone"] for game in state["games"]])
        copies = [joined[stop - game["clone"] : stop] for game, stop in zip(state["games"], stops, strict=True)]
        old = [{**game, "clone": json.loads(copy)} for game, copy in zip(state["games"], copies, strict=True)]
        play.move({name: value for name, value in state.items() if name != "clones"} | {"games": old})
        play.seen, play.time = [], CLONES[0] + 1
        play.until(60)
        assert same(expected, play.seen)
        for length in (0, -1, len(joined) + 1):
            state["games"][0]["clone"] = length
            with pytest.raises(ValueError, match=f"the copy of a game has {length} of {len(joined)} bytes"):
                play.envs.load_state_dict(state, seeds_of(play.env_id))
    finally:
        play.envs.close()
