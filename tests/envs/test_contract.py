"""One contract for every family of environments, and what is refused."""

import functools
import sys
from collections.abc import Sequence
from typing import NamedTuple

import gymnasium
import numpy as np
import pytest

from envs import registry
from envs.contract import RULE_FLAGS, GameDescription, InputError, Outcome, ProtocolOptions, TimeStep, game_seeds
from envs.worker_handle import WorkerError
from envs.workers import WorkerEnvs, shares_of

SQUARES = "tests.envs.own_games:Squares-v0"
DOOM, WORLD, LAB = "VizdoomBasic-v1", "MiniWorld-OneRoomS6Fast-v0", "dmlab/lt_chasm"
WORDS = "dmlab30/language_execute_random_task"
FAMILIES = ("Breakout-v0", "ALE/Breakout-ram-v5", "CartPole-v1", SQUARES, DOOM, WORLD, LAB, WORDS)
SLOTS, STEPS = 4, 160
SEEDS = tuple(tuple(game_seeds(0, slot, range(2))) for slot in range(SLOTS))  # two games a slot, later ones not seeded


def why_not(env_id: str) -> str:
    """Why a family cannot be played here; empty where it can."""
    try:
        registry.family_of(env_id)
    except InputError as error:
        return str(error)
    return ""


def families(*slow: str) -> pytest.MarkDecorator:
    """A case for each family, those of some ids in the long suite alone."""
    marks = {each: [pytest.mark.skipif(bool(why := why_not(each)), reason=why)] for each in FAMILIES}
    marks |= {each: [*marks[each], pytest.mark.slow] for each in slow}
    return pytest.mark.parametrize("env_id", [pytest.param(each, marks=own) for each, own in marks.items()])


every_family = families()


@pytest.mark.parametrize(
    ("games", "groups", "workers"), [(8, 2, 2), (8, 2, 3), (128, 2, 15), (128, 4, 15), (12, 3, 16), (7, 1, 3)]
)
def test_games_are_shared_out_evenly(games, groups, workers):
    size = games // groups
    own = [slice(group * size, (group + 1) * size) for group in range(groups)]
    shares = shares_of(own, workers)
    assert len(shares) == min(workers, size)
    for group, slots in enumerate(own):
        assert [slot for share in shares for slot in share[group]] == [*range(slots.start, slots.stop)]
        assert len({len(share[group]) for share in shares}) <= 2
    totals = [sum(map(len, share)) for share in shares]
    assert max(totals) - min(totals) <= 1


class Played(NamedTuple):
    """Every step of a vector, [step, slot, ...]."""

    step: TimeStep
    seeds: np.ndarray  # of the game that each step belongs to
    actions: np.ndarray  # that each step was followed by


def options_for(env_id: str) -> ProtocolOptions:
    """Games of Atari that are cut off while the test looks on, where they have not ended before."""
    return ProtocolOptions(max_episode_frames=400) if "Breakout" in env_id else ProtocolOptions()


@functools.cache
def description_of(env_id: str) -> GameDescription:
    return registry.make_game(env_id, options_for(env_id)).description


def actions_for(env_id: str) -> np.ndarray:
    return np.random.default_rng(0).integers(description_of(env_id).num_actions, size=(STEPS, SLOTS))


def play(
    env_id: str, actions: np.ndarray, seeds: Sequence[Sequence[int]] = SEEDS, num_groups: int = 1, num_workers: int = 1
) -> Played:
    steps, of_games = [], []
    with WorkerEnvs(env_id, len(seeds), options=options_for(env_id), num_groups=num_groups, num_workers=num_workers) as envs:
        envs.reset(seeds)
        for row in actions:
            parts = []
            for group, slots in enumerate(envs.groups):
                parts.append([np.copy(field) for field in envs.recv(group)])
                envs.send(row[slots], group)
            steps.append([np.concatenate(fields) for fields in zip(*parts, strict=True)])
            of_games.append(envs.seeds.copy())
    return Played(TimeStep(*(np.stack(fields) for fields in zip(*steps, strict=True))), np.stack(of_games), actions)


@functools.cache
def played(env_id: str) -> Played:
    """One run of a family that several tests look at."""
    return play(env_id, actions_for(env_id))


def assert_equal(one: TimeStep, other: TimeStep) -> None:
    for name in TimeStep._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


@every_family
def test_shapes_and_types(env_id):
    game, step = description_of(env_id), played(env_id).step
    assert (
        step.observation.shape == (STEPS, SLOTS, *game.observation_shape) and step.observation.dtype == game.observation_dtype
    )
    assert step.extra.shape == (STEPS, SLOTS, game.extra_size)
    assert [field.dtype for field in step[1:]] == [np.float32] * 2 + [np.bool_] * 4 + [np.int32]
    assert all(field.shape == (STEPS, SLOTS) for field in step[2:])
    assert game.protocol.size == game.observation_shape
    image = {"Breakout-v0": (1, 84, 84), SQUARES: (3, 12, 16), DOOM: (3, 72, 128), WORLD: (3, 60, 80), LAB: (3, 72, 96)}
    assert game.observation_shape == image.get(env_id, game.observation_shape)
    assert len(game.observation_shape) in (1, 3)


@every_family
def test_the_step_after_an_end_opens_the_next_game(env_id):
    step = played(env_id).step
    ended = step.terminated | step.truncated
    assert step.is_first[0].all()
    np.testing.assert_array_equal(step.is_first[1:], ended[:-1])
    assert ended[:-1].any(axis=0).all()  # every slot has come so far
    assert not (step.terminated & step.truncated).any()
    for field in (step.reward, step.frames, step.terminated, step.truncated, step.life_lost):
        assert not field[step.is_first].any()
    fewest, most = description_of(env_id).protocol.frame_skip
    assert (step.frames[~step.is_first & ~ended] >= fewest).all()
    assert (step.frames[~step.is_first] >= 1).all() and (step.frames <= most).all()


class ByHand:
    """A game of a family, opened and stepped in the order of the contract without a vector."""

    def __init__(self, env_id: str, options: ProtocolOptions, seeds: Sequence[int]) -> None:
        self.game = registry.make_game(env_id, options)
        self.seeds = iter(seeds)
        self.over = True
        self.seed = -1

    def next(self, action: int) -> tuple[np.ndarray, Outcome, bool]:
        """Observation, outcome, and whether it opened a game."""
        game = self.game.description
        observation = np.zeros(game.observation_shape, game.observation_dtype)
        extra = np.zeros(game.extra_size, np.float32)
        if is_first := self.over:
            self.seed = next(self.seeds, -1)
            self.game.reset(None if self.seed == -1 else self.seed, observation, extra)
            outcome = Outcome(0.0, False, False, False, 0)
        else:
            outcome = self.game.step(action, observation, extra)
        self.over = outcome.terminated or outcome.truncated
        return observation, outcome, is_first


@every_family
def test_every_observation_appears_once_and_in_order(env_id):
    run = played(env_id)
    for slot in (0, SLOTS - 1):
        game = ByHand(env_id, options_for(env_id), SEEDS[slot])
        for t in range(STEPS):
            observation, outcome, is_first = game.next(int(run.actions[t - 1, slot]))
            np.testing.assert_array_equal(run.step.observation[t, slot], observation, f"step {t}")
            assert (*(field[t, slot] for field in run.step[2:]),) == (*outcome[:3], is_first, *outcome[3:]), f"step {t}"
            assert run.seeds[t, slot] == game.seed


@pytest.mark.parametrize("env_id", ["CartPole-v1", SQUARES])
def test_registered_games_equal_gymnasium(env_id):
    run = played(env_id)
    env = gymnasium.make(env_id)
    start = int(env.action_space.start)
    over, seeds = True, iter(SEEDS[1])
    for t in range(STEPS):
        if over:
            value, _ = env.reset(seed=next(seeds, None))
            reward = terminated = truncated = 0
        else:
            value, reward, terminated, truncated, _ = env.step(start + run.actions[t - 1, 1])
        over = terminated or truncated
        picture = run.step.observation[t, 1]
        np.testing.assert_array_equal(np.moveaxis(picture, 0, -1) if env_id == SQUARES else picture, value)
        assert run.step.reward[t, 1] == reward
        # Both at once is an end: what the limit cut off was over.
        assert (run.step.terminated[t, 1], run.step.truncated[t, 1]) == (terminated, truncated and not terminated)


def test_own_game_in_full():
    """Read off its pictures: which game, which step, after which action; a picture is (channel, row, column)."""
    step, _, actions = played(SQUARES)
    name, count, action = np.moveaxis(step.observation[:, :, :, 0, 1], -1, 0).astype(int)
    np.testing.assert_array_equal(count == 0, step.is_first)
    going_on = ~step.is_first[1:]
    np.testing.assert_array_equal(count[1:][going_on], count[:-1][going_on] + 1)
    np.testing.assert_array_equal(name[1:][going_on], name[:-1][going_on])
    np.testing.assert_array_equal(action[1:][going_on], actions[:-1][going_on] + 5)  # its actions are 5, 6 and 7
    np.testing.assert_array_equal(step.reward[~step.is_first], action[~step.is_first] / 2)
    assert step.terminated.any() and step.truncated.any()


@every_family
def test_the_action_that_opens_a_game_is_ignored(env_id):
    run = played(env_id)
    ended = run.step.terminated | run.step.truncated
    others = np.where(ended, (run.actions + 1) % description_of(env_id).num_actions, run.actions)
    assert (others != run.actions).any()
    assert_equal(play(env_id, others).step, run.step)


@families(WORLD)
def test_groups_and_workers_do_not_change_the_data(env_id):
    """Two groups that take turns, and then four slots over three workers."""
    for layout in ({"num_groups": 2, "num_workers": 2}, {"num_workers": 3}):
        again = play(env_id, actions_for(env_id), **layout)
        assert_equal(again.step, played(env_id).step)
        np.testing.assert_array_equal(again.seeds, played(env_id).seeds)


@every_family
def test_a_game_follows_from_its_seed_and_its_actions(env_id):
    """The same game in two slots at once, as another slot's second game, and another game from another seed."""
    a, b = SEEDS[0]
    num_actions = description_of(env_id).num_actions
    plan = np.random.default_rng(1).integers(num_actions, size=STEPS)
    seeds = ((a, b), (b, a), (a,), (b,))
    games: list[list[tuple[int, bytes]]] = [[] for _ in seeds]  # of each slot: seed, and all that was seen
    with WorkerEnvs(env_id, len(seeds), options=options_for(env_id), num_workers=1) as envs:
        envs.reset(seeds)
        age = np.zeros(len(seeds), int)
        seen = [b""] * len(seeds)
        for _ in range(2 * STEPS):
            step = envs.recv(0)
            age = np.where(step.is_first, 0, age + 1)
            for slot in range(len(seeds)):
                seen[slot] = (b"" if step.is_first[slot] else seen[slot]) + b"".join(field[slot].tobytes() for field in step)
                if step.terminated[slot] or step.truncated[slot]:
                    games[slot].append((int(envs.seeds[slot]), seen[slot]))
            envs.send(plan[np.minimum(age, STEPS - 1)], 0)
    assert [[seed for seed, _ in slot_games[:2]] for slot_games in games] == [[a, b], [b, a], [a, -1], [b, -1]]
    first, second = games[0][:2]
    assert first != second
    assert games[1][:2] == [second, first]
    assert games[2][0] == first and games[3][0] == second


@families(WORLD)
def test_recorded_slots_hand_out_every_frame(env_id):
    """Two slots of three, in an order of their own, over several games."""
    options = ProtocolOptions(max_episode_frames=60) if "Breakout" in env_id else ProtocolOptions()
    steps = 30 if env_id == WORLD else 60  # a picture of 800 x 600 takes long to draw
    actions = np.random.default_rng(2).integers(description_of(env_id).num_actions, size=(steps, 3))
    counts = set()
    with WorkerEnvs(env_id, 3, options=options, record=[2, 0], num_workers=2) as envs:
        envs.reset(SEEDS[:3])
        by_hand = {slot: ByHand(env_id, options, SEEDS[slot]) for slot in (2, 0)}
        for game in by_hand.values():
            game.game.record()
        for t in range(len(actions)):
            step = envs.recv(0)
            for slot, game in by_hand.items():
                game.next(int(actions[t - 1, slot]))
                frames = envs.last_frames(slot)
                counts.add(len(frames))
                assert frames.shape == (step.frames[slot], *envs.description.screen_shape) and frames.dtype == np.uint8
                np.testing.assert_array_equal(frames, np.reshape(game.game.last_frames(), frames.shape), f"step {t}")
                assert not len(frames) or frames.max() > 0
            envs.send(actions[t], 0)
    fewest, most = envs.description.protocol.frame_skip
    assert counts >= {0, *range(fewest, most + 1)}


def test_recorded_picture_is_the_drawn_one():
    with WorkerEnvs(SQUARES, 1, record=[0]) as envs:
        envs.reset([[1]])
        assert envs.recv(0).is_first[0] and envs.last_frames(0).shape == (0, 6, 8, 3)
        for count in (1, 2, 3):
            envs.send(np.zeros(1, int), 0)
            envs.recv(0)
            np.testing.assert_array_equal(envs.last_frames(0), np.full((1, 6, 8, 3), 10 * count))


def test_long_skips_can_be_recorded():
    with WorkerEnvs("Bowling-ram-v0", 1, options=ProtocolOptions(frame_skip=(20, 20)), record=[0]) as envs:
        envs.reset([[1]])
        envs.recv(0)
        envs.send(np.zeros(1, int), 0)
        assert envs.recv(0).frames[0] == 20 and len(envs.last_frames(0)) == 20


def test_an_observation_that_is_not_of_its_space_is_refused():
    with WorkerEnvs("tests.envs.own_games:Growing-v0", 1) as envs:
        envs.reset([[1]])
        with pytest.raises(WorkerError, match=r"Growing-v0 returned an observation of shape \(24, 16, 3\), and its"):
            for _ in range(4):
                envs.recv(0)
                envs.send(np.zeros(1, int), 0)


def test_close_twice():
    envs = WorkerEnvs("CartPole-v1", 2, num_workers=2)
    envs.close()
    envs.close()


def test_a_game_that_raises_tells_the_trainer():
    with WorkerEnvs("tests.envs.own_games:Failing-v0", 4, num_groups=2, num_workers=2) as envs:
        envs.reset([[1]] * 4)
        with pytest.raises(WorkerError, match="the third square is missing") as caught:
            for _ in range(5):
                for group in (0, 1):
                    envs.recv(group)
                    envs.send(np.zeros(2, int), group)
        assert str(caught.value) == "ValueError: the third square is missing"
        assert "own_games.py" in caught.value.__notes__[0]  # where it happened


@pytest.mark.parametrize(
    ("env_id", "said"),
    [
        ("Bowlin-v0", "unknown environment 'Bowlin-v0'; nearest: Bowling-v0"),
        ("bowling-ram-v0", "nearest: Bowling-ram-v0"),
        ("pong", "nearest: Pong-v0, ALE/Pong-v5, Pong-ram-v0$"),
        ("montezuma", "nearest: MontezumaRevenge-v0, ALE/MontezumaRevenge-v5, MontezumaRevenge-ram-v0$"),
        ("Breakout-v5", "nearest: ALE/Breakout-v5, Breakout-v0, Breakout-ram-v0$"),
        ("breakout-ram", "nearest: Breakout-ram-v0, "),
        ("Breakout-ram-v5", "nearest: ALE/Breakout-ram-v5, Breakout-ram-v0, "),
        ("boling-v0 ", "nearest: Bowling-v0, ALE/Bowling-v5, Bowling-ram-v0$"),
        ("CartPol-v1", "nearest: CartPole-v1, CartPole-v0, "),
        ("cartpole", "nearest: CartPole-v1, CartPole-v0, "),
        ("VizdoomBasics-v1", "nearest: VizdoomBasic-v1, VizdoomBasicAudio-v1, "),
        ("%&/", "no id comes near it"),
        ("oo", "no id comes near it"),
        ("rooms", "nearest: .*rooms_watermaze"),
        ("Pendulum-v1", r"Pendulum-v1: its actions are Box\(.*expected Discrete"),
        ("FrozenLake-v1", r"FrozenLake-v1: its observation is Discrete\(16\); expected an image"),
        ("no_such_module:Thing-v0", f"no module 'no_such_module' is found, .* {sys.executable} -m pip install what holds it"),
        ("tests.envs.no_such.module:Thing-v0", "no module 'tests.envs.no_such' is found"),
        ("tests.envs.own_games:Uninstalled-v0", rf'not installed, run `{sys.executable} -m pip install "gymnasium\[slopes\]"`'),
        ("tests.envs.own_games:Crowded-v0", r"its actions are Discrete\(32769\); expected 32,768 at most"),
        ("tests.envs.own_games:Squares-v7", "Squares"),
        ("tests.envs.own_games:Circles-v0", "Circles"),
        ("a:b:c", "a:b"),
    ],
)
def test_refused_with_one_line(env_id, said):
    with pytest.raises(InputError, match=said) as caught:
        registry.make_game(env_id, ProtocolOptions())
    assert "\n" not in str(caught.value)


def test_refusals_come_through_workers(monkeypatch, tmp_path, capfd):
    """From two workers at once, of which the slower one has nobody to tell any more."""
    monkeypatch.setenv("REFUSED", str(tmp_path))
    with pytest.raises(InputError, match="Refused-v0: its actions are Box"):
        WorkerEnvs("tests.envs.own_games:Refused-v0", 2, num_workers=2)
    assert capfd.readouterr().err == ""


@every_family
def test_a_family_says_which_flags_change_it_and_refuses_the_others(env_id):
    flags = registry.game_class(env_id).flags
    assert set(flags) <= set(RULE_FLAGS)
    for flag in set(RULE_FLAGS) - set(flags):
        with pytest.raises(InputError, match="cannot change it"):
            registry.make_game(env_id, ProtocolOptions(**{flag: True}))


@pytest.mark.parametrize("options", [ProtocolOptions(sticky=0.0), ProtocolOptions(full_action_space=True)])
def test_atari_flags_are_refused_elsewhere(options):
    with pytest.raises(InputError, match=r"CartPole-v1: --(sticky|full-action-space) cannot change it; flags that can: none"):
        registry.make_game("CartPole-v1", options)


def test_groups_divide_the_environments():
    with pytest.raises(InputError, match="num_envs 6 does not divide into 4 groups; take a multiple of 4"):
        WorkerEnvs("CartPole-v1", 6, num_groups=4)


def test_drawing_needs_no_display(monkeypatch, capfd):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    with WorkerEnvs("CartPole-v1", 1) as envs:
        assert envs.description.screen_shape == (400, 600, 3)
    assert capfd.readouterr().err == ""


def test_games_that_cannot_be_drawn_are_played_without_pictures():
    with WorkerEnvs("tests.envs.own_games:Unseen-v0", 1, record=[0]) as envs:
        assert envs.description.screen_shape is None
        envs.reset([[1]])
        envs.recv(0)
        envs.send(np.zeros(1, int), 0)
        assert envs.recv(0).frames[0] == 1 and len(envs.last_frames(0)) == 0


def test_seeds_of_games():
    """Apart for purposes, runs and games, and the same tomorrow."""
    assert game_seeds(1, 0, range(3)) == [
        int(np.random.SeedSequence((1, 0, game)).generate_state(1)[0]) % 2**31 for game in range(3)
    ]
    every = [game_seeds(purpose, seed, range(10)) for purpose in (0, 1) for seed in (0, 1)]
    assert len({seed for seeds in every for seed in seeds}) == 40
    assert game_seeds(0, 5, range(8))[3:] == game_seeds(0, 5, range(3, 8))
