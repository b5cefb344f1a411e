"""Replay, against a model that keeps everything in lists."""

import dataclasses
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import agents.replay
from agents.dqn import DQNConfig
from agents.replay import Replay, bytes_per_step
from envs.contract import InputError
from tests.agents.driving import build, configure, describe, draw_tape, play_tape, split

DISCOUNT = 0.5


class Moment(NamedTuple):
    """One step of one environment: a frame that no other step has, and what brought it."""

    frame: float
    reward: float
    is_first: bool
    life_lost: bool  # where that is chosen to end the return; the game goes on
    terminated: bool
    truncated: bool
    action: int


class Model:
    """Everything that one environment did."""

    def __init__(self) -> None:
        self.moments: list[Moment] = []

    def stack(self, t: int, depth: int) -> list[float]:
        frames: list[float] = []
        while len(frames) < depth:
            frames.insert(0, self.moments[t].frame)
            if self.moments[t].is_first:
                break
            t -= 1
        return [0.0] * (depth - len(frames)) + frames

    def transition(self, t: int, depth: int, n: int) -> tuple[int, float, float, list[float] | None, float]:
        """Action, reward, discount, next stack (None where it does not matter) and weight."""
        here = self.moments[t]
        if self.moments[t + 1].is_first:
            return here.action, 0.0, 0.0, None, 0.0
        total, factor, seen = 0.0, 1.0, t
        for k in range(t + 1, t + n + 1):
            moment = self.moments[k]
            if moment.is_first:  # lost: what came of the last action is not known
                break
            total, factor, seen = total + factor * moment.reward, factor * DISCOUNT, k
            if moment.terminated or moment.life_lost:
                return here.action, total, 0.0, None, 1.0
            if moment.truncated:
                break
        return here.action, total, factor, self.stack(seen, depth), 1.0


KINDS = st.lists(st.sampled_from(["go", "go", "go", "go", "life", "end", "cut", "lost"]), min_size=1, max_size=30)


class Filled:
    """A replay and the model, put the same, group by group."""

    def __init__(self, rows: int, num_envs: int, groups: int, depth: int) -> None:
        self.replay = Replay(rows * num_envs, num_envs, depth, describe((1,), extra=1))
        self.models = [Model() for _ in range(num_envs)]
        self.groups = split(num_envs, groups)
        self.times = [-1] * groups
        self.count = 0

    def put(self, group: int, kinds: list[str]) -> None:
        """One step of a group; before it the action of the last one, as an agent does."""
        slots, t = self.groups[group], self.times[group]
        moments = [self._moment(model, kind) for model, kind in zip(self.models[slots], kinds, strict=True)]
        column = {name: np.array([getattr(moment, name) for moment in moments]) for name in Moment._fields}
        if t >= 0:
            over = column["terminated"] | column["life_lost"]
            self.replay.put_outcome(t, slots, column["reward"], over, over | column["truncated"], ~column["is_first"])
        t = self.times[group] = t + 1
        frame = column["frame"][:, None]
        self.replay.put_frame(t, slots, frame, -frame, column["is_first"])
        self.replay.put_action(t, slots, column["action"])
        for model, moment in zip(self.models[slots], moments, strict=True):
            model.moments.append(moment)

    def _moment(self, model: Model, kind: str) -> Moment:
        self.count += 1
        last = model.moments[-1] if model.moments else None
        is_first = kind == "lost" or last is None or last.terminated or last.truncated
        flags = (not is_first and kind == name for name in ("life", "end", "cut"))
        return Moment(float(self.count), float(self.count % 7 - 3), is_first, *flags, self.count * 37 % 300)

    def check(self, n: int) -> int:
        """Compare every transition that may be sampled; returns how many there are."""
        newest, complete = max(self.times), min(self.times)
        self.replay.newest, self.replay.complete = newest, complete
        for t, slots in ((t, slots) for t, slots in zip(self.times, self.groups, strict=True) if t >= 0):
            stacks, extra = self.replay.seen_at(t, slots)  # first: looking changes nothing that is stored
            models = self.models[slots]
            assert stacks[..., 0].tolist() == [model.stack(t, self.replay.depth) for model in models]
            assert extra[:, 0].tolist() == [-model.moments[t].frame for model in models]
        span = self.replay.span(n)
        oldest = max(0, newest - self.replay.rows + 1)  # what is older is overwritten, for some environment
        whole = [t for t in range(complete + 1) if max(0, t - self.replay.depth + 1) >= oldest and t + n <= complete]
        assert list(range(*span)) == whole  # and not one step less
        times = [t for t in range(*span) for _ in self.models]
        slots = [slot for _ in range(*span) for slot in range(len(self.models))]
        if not times:
            return 0
        found = self.replay.transitions(torch.tensor(times), torch.tensor(slots), n, DISCOUNT)
        for i, (t, slot) in enumerate(zip(times, slots, strict=True)):
            model, depth = self.models[slot], self.replay.depth
            action, reward, discount, following, weight = model.transition(t, depth, n)
            assert found.weights[i] == weight
            assert found.stacks[i, :, 0].tolist() == model.stack(t, depth)
            assert found.extra[i].tolist() == [-model.moments[t].frame]
            assert found.actions[i] == action
            if weight:
                assert found.rewards[i] == reward
                assert found.discounts[i] == discount
            if following is not None:
                assert found.next_stacks[i, :, 0].tolist() == following
                assert found.next_extra[i].tolist() == [-following[-1]]
        return len(times)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(6, 12),
    steps=st.integers(1, 40),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 2),
    depth=st.integers(1, 4),
    n=st.integers(1, 4),
    kinds=KINDS,
)
def test_against_lists(rows, steps, groups, per_group, depth, n, kinds):
    """Ring wrap, n-step windows, stacks over the ends of episodes, lost episodes and groups at different times."""
    filled = Filled(rows, groups * per_group, groups, depth)
    turn = 0
    for step in range(steps):
        for group in range(groups):
            filled.put(group, [kinds[(step + 5 * (group * per_group + i)) % len(kinds)] for i in range(per_group)])
            turn += 1
            if turn % 4 == 0:
                filled.check(n)
    filled.check(n)


def test_every_row_of_a_full_ring_is_used():
    filled = Filled(rows=10, num_envs=2, groups=2, depth=3)
    for step in range(35):
        for group in range(2):
            filled.put(group, ["end" if step % 6 == 4 else "go"])
            checked = filled.check(2)
    assert checked == (10 - 2 - 2) * 2  # rows, without a stack's past and the window behind


def test_a_sample_comes_from_everywhere_and_nowhere_else():
    filled = Filled(rows=8, num_envs=3, groups=1, depth=2)
    for _ in range(20):
        filled.put(0, ["go"] * 3)
    filled.replay.newest = filled.replay.complete = 19
    span = filled.replay.span(1)
    generator = torch.Generator().manual_seed(0)
    batch = filled.replay.transitions(*filled.replay.draw(2_000, span, generator), 1, DISCOUNT)
    frames = [model.moments[t].frame for t in range(*span) for model in filled.models]
    seen, counts = np.unique(batch.stacks[:, -1, 0], return_counts=True)
    assert seen.tolist() == sorted(frames)
    assert counts.min() > 2_000 / len(frames) * 0.7  # 18 of them: 111 each, 8 sigma
    again = filled.replay.transitions(*filled.replay.draw(2_000, span, torch.Generator().manual_seed(0)), 1, DISCOUNT)
    assert all(torch.equal(one, other) for one, other in zip(batch, again, strict=True))


def test_three_steps_by_hand():
    #              0    1    2    3    4      frames 1 ... 5; the game is over at step 4
    filled = Filled(rows=8, num_envs=1, groups=1, depth=2)
    for kind in ("lost", "go", "go", "go", "end"):
        filled.put(0, [kind])
    rewards = [moment.reward for moment in filled.models[0].moments]
    assert rewards == [-2.0, -1.0, 0.0, 1.0, 2.0]  # the first is the opening's, which counts for nothing
    found = filled.replay.transitions(torch.tensor([0, 1]), torch.tensor([0, 0]), 3, 0.5)
    assert found.rewards.tolist() == [-1 + 0.5 * 0 + 0.25 * 1, 0 + 0.5 * 1 + 0.25 * 2]
    assert found.discounts.tolist() == [0.125, 0.0]
    assert found.stacks[..., 0].tolist() == [[0, 1], [1, 2]]
    assert found.next_stacks[0, :, 0].tolist() == [3, 4]


def test_rewards_are_normalised_when_they_are_learned_from():
    """By what is known then: those of the start would otherwise be of another size than the same ones of later."""
    tape = draw_tape(40, 4, shape=(5,))
    agent = build("dqn", describe((5,)), configure("dqn", num_envs=4, frame_stack=1, reward="normalize", n_step=2), groups=2)
    for _ in range(2):
        play_tape(agent, tape.rewind(2))
    replay, played = agent.replay, torch.from_numpy(tape.steps.reward[1:])
    assert torch.equal(replay.rewards[: len(played)], played)
    t, slots = torch.arange(30), torch.zeros(30, dtype=torch.int64)
    found = replay.transitions(t, slots, 1, 0.99)
    expected = np.where(replay.mask[t, slots], agent.rewards(tape.steps.reward[1:31, 0]), 0)
    assert np.array_equal(found.rewards.numpy(), expected)
    assert not np.array_equal(expected, tape.steps.reward[1:31, 0])


# -------------------------------------------------------------------------------------------------------------- memory


def test_a_million_pictures_fit_into_7_3_gigabytes():
    assert 1_000_000 * bytes_per_step((1, 84, 84), torch.uint8) <= 7.3e9


@pytest.mark.parametrize(("shape", "dtype", "extra"), [((1, 84, 84), "uint8", 0), ((128,), "uint8", 3), ((4,), "float32", 0)])
def test_the_bytes_counted_are_the_bytes_taken(shape, dtype, extra):
    replay = Replay(40, 4, 4, describe(shape, dtype, extra=extra))
    tensors = [value for value in vars(replay).values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    assert sum(storages.values()) == 40 * bytes_per_step(shape, getattr(torch, dtype), extra)


def test_a_replay_that_does_not_fit_is_refused_with_the_sum(monkeypatch):
    monkeypatch.setattr(agents.storage, "free_memory", lambda: 1_000_000_000)
    game = describe((1, 40, 40), "uint8", skip=4)
    config = DQNConfig(num_envs=8, capacity=800_000)
    size = bytes_per_step((1, 40, 40), torch.uint8)
    with pytest.raises(InputError) as refusal:
        build("dqn", game, config, total_frames=10_000_000)
    message = str(refusal.value)
    assert "\n" not in message
    assert f"800,000 steps ({size:,} bytes each) needs {800_000 * size / 1e9:.1f} GB and 1.0 GB are free" in message
    fits = int(message.split("--capacity ")[1].split()[0])
    assert fits * size <= 0.9e9 < (fits + 1_000) * size
    agent = build("dqn", game, dataclasses.replace(config, capacity=fits), total_frames=10_000_000)  # the way out is one
    assert agent.replay.rows * 8 == pytest.approx(fits, abs=8)


# ---------------------------------------------------------------------------------------------------- a short run learns


def test_replay_is_no_larger_than_the_run():
    game = describe((3,), skip=4)
    short = build("dqn", game, DQNConfig(num_envs=8, capacity=1_000_000), total_frames=40_000)
    assert short.replay.rows * 8 == 10_000  # 40,000 frames at 4 a step
    long = build("dqn", game, DQNConfig(num_envs=8, capacity=1_000), total_frames=40_000)
    assert long.replay.rows * 8 == 1_000


def updates_by(frames, total_frames):
    """How many updates a default DQN has made after some frames of a run."""
    agent = build("dqn", describe((3,)), DQNConfig(num_envs=4, frame_stack=1), total_frames=total_frames)
    play_tape(agent, draw_tape(-(-frames // 4) + 1, 4, end=0.0, cut=0.0, lost=0.0))
    assert agent.frames == -(-frames // 4) * 4
    return agent.updates


def test_learning_starts_after_a_twentieth_of_a_short_run():
    assert updates_by(190, total_frames=4_000) == 0
    assert updates_by(220, total_frames=4_000) > 0


def test_exploration_falls_over_a_quarter_of_a_short_run():
    agent = build("dqn", describe((3,)), DQNConfig(epsilon_frames=1_000_000), total_frames=1_000)
    seen = []
    for agent.frames in (0, 125, 250, 1_000):
        seen.append(agent.epsilon)
    assert seen == pytest.approx([1.0, 0.505, 0.01, 0.01])


def test_actions_are_stored_whole():
    """A game of any id may have more actions than a byte counts."""
    game = describe((3,), actions=1_000)
    agent = build("dqn", game, DQNConfig(num_envs=8, frame_stack=1), total_frames=1_000)
    tape = draw_tape(20, 8)
    play_tape(agent, tape)
    assert tape.actions.max() > 255
    assert (agent.replay.actions[:19].numpy() == tape.actions[:19]).all()
