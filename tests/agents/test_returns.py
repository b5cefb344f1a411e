"""Generalised advantages: numbers to check by hand, stable-baselines3's code, and a sum written out per episode."""

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.buffers import RolloutBuffer

from agents.rollout import generalized_advantages

#             step   0     1     2     3     4     5     6     7
#                         end open        cut open        lost open (8 steps of one environment; `lost`: no end was seen)
REWARDS = [1.0, 2.0, 0.0, 4.0, 8.0, 0.0, 16.0, 0.0]
VALUES = [2.0, 4.0, 100.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]
TERMINATED = [0, 1, 0, 0, 0, 0, 0, 0]
TRUNCATED = [0, 0, 0, 0, 1, 0, 0, 0]
MASK = [1, 1, 0, 1, 1, 0, 1, 0]
# discount 1/2, trace 1/2: delta = reward + value' / 2 - value, advantage = delta + advantage' / 4
#   7: is masked: the game of step 6 was lost                        0
#   6: 16 + 14/2 - 12 = 11, nothing behind it                       11
#   5: is masked                                                     0
#   4: 8 + 10/2 - 8 = 5, the truncated game's value goes on          5
#   3: 4 + 8/2 - 6 = 2, and 5/4                                      3.25
#   2: is masked                                                     0
#   1: 2 + 0 - 4 = -2, the game is over: 100 does not count         -2
#   0: 1 + 4/2 - 2 = 1, and -2/4                                     0.5
ADVANTAGES = [0.5, -2.0, 0.0, 3.25, 5.0, 0.0, 11.0, 0.0]


def column(numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype)[:, None]


def by_hand(terminated=TERMINATED, ends=None, mask=MASK):
    ends = np.logical_or(TERMINATED, TRUNCATED) if ends is None else ends
    flags = (column(np.asarray(flag), torch.bool) for flag in (terminated, ends, mask))
    return generalized_advantages(column(REWARDS), column(VALUES), *flags, 0.5, 0.5)[:, 0].tolist()


def test_hand_numbers():
    assert by_hand() == ADVANTAGES


def test_hand_numbers_are_wrong_with_each_part_off():
    """What each rule is for: without it, this step's number would be another."""
    no = [0] * 8
    assert by_hand(terminated=no)[1] == 2 + 100 / 2 - 4  # a value behind the end
    assert by_hand(terminated=np.logical_or(TERMINATED, TRUNCATED))[4] == 8 - 8  # no value behind the cut
    assert (
        by_hand(ends=no, mask=[1] * 8)[4] == 5 + (0 + 12 / 2 - 10 + (11 + (16 / 2 - 14) / 4) / 4) / 4
    )  # a trace into another game
    assert by_hand(mask=[1] * 8)[6] == 11 + (16 / 2 - 14) / 4  # the same, where the end was not seen
    assert by_hand(mask=[1] * 8)[2] != 0


def test_a_lost_life_ends_the_return_and_no_new_game_follows():
    """Where it is chosen to: the next step counts, so that only `ends` keeps it out of this life."""
    rewards, values = column([1.0, 4.0]), column([4.0, 6.0, 8.0])
    life, nothing, counts = (torch.tensor(flags)[:, None] for flags in ([True, False], [False, False], [True, True]))
    found = generalized_advantages(rewards, values, life, life, counts, 0.5, 0.5)
    assert found[:, 0].tolist() == [1 - 4, 4 + 8 / 2 - 6]
    assert generalized_advantages(rewards, values, life, nothing, counts, 0.5, 0.5)[0].item() == 1 - 4 + 2 / 4


def test_the_trace_goes_from_one_step_to_the_whole_return():
    flags = (torch.zeros(3, 1, dtype=torch.bool), torch.zeros(3, 1, dtype=torch.bool), torch.ones(3, 1, dtype=torch.bool))
    rewards, values = column([1.0, 2.0, 4.0]), column([10.0, 20.0, 30.0, 40.0])
    one_step = generalized_advantages(rewards, values, *flags, 0.5, 0.0)
    assert one_step[:, 0].tolist() == [1 + 10 - 10, 2 + 15 - 20, 4 + 20 - 30]
    whole = generalized_advantages(rewards, values, *flags, 0.5, 1.0) + values[:-1]
    assert whole[:, 0].tolist() == [1 + 1 + 1 + 5, 2 + 2 + 10, 4 + 20]


KINDS = st.sampled_from(["go", "go", "go", "end", "cut", "lost", "life"])
NUMBERS = st.floats(-10, 10, width=32)


@st.composite
def streams(draw, kinds=KINDS):
    """What happened to one environment, as a rollout stores it: rewards, values, terminated, ends, mask."""
    length = draw(st.integers(1, 20))
    terminated, ends, mask = np.zeros((3, length), bool)
    after_end = draw(st.booleans())
    for t in range(length):
        kind = "lost" if after_end else draw(kinds)  # an ended episode's next step opens another, as a lost one's does
        mask[t] = kind != "lost"
        terminated[t] = kind in ("end", "life")
        ends[t] = terminated[t] or kind == "cut"
        after_end = kind in ("end", "cut")  # behind a lost life the game goes on
    rewards = np.array(draw(st.lists(NUMBERS, min_size=length, max_size=length)))
    values = np.array(draw(st.lists(NUMBERS, min_size=length + 1, max_size=length + 1)))
    return rewards, values, terminated, ends, mask


FACTORS = st.sampled_from([0.0, 0.5, 0.95, 1.0])


@settings(deadline=None)
@given(streams(), FACTORS, FACTORS)
def test_against_a_sum_per_episode(stream, discount, trace):
    rewards, values, terminated, ends, mask = stream
    found = generalized_advantages(*(torch.from_numpy(part)[:, None] for part in stream), discount, trace)
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(rewards)):
            if not mask[k]:
                break
            total += weight * (rewards[k] + (0 if terminated[k] else discount * values[k + 1]) - values[k])
            weight *= discount * trace
            if ends[k]:
                break
        assert found[t, 0].item() == pytest.approx(total, abs=1e-9)


@settings(deadline=None)
@given(streams(st.sampled_from(["go", "go", "go", "end", "cut", "life"])), FACTORS, FACTORS)
def test_against_stable_baselines3(stream, discount, trace):
    """Its environments reset themselves within a step, so that the masked steps are not there for it.

    It has one flag for both ends; where an episode was cut it adds the value of the last observation to the reward.
    """
    rewards, values, terminated, ends, mask = stream
    length = int(mask.sum())
    if not length:
        return
    buffer = RolloutBuffer(length, Box(-1, 1, (1,)), Discrete(2), gamma=discount, gae_lambda=trace)
    buffer.advantages = np.zeros((length, 1))  # in float64, as ours here
    buffer.rewards = (rewards + np.where(ends & ~terminated, discount * values[1:], 0))[mask, None]
    buffer.values = values[:-1][mask, None]
    done = ends[mask, None]
    buffer.episode_starts = np.concatenate([np.ones((1, 1)), done[:-1]])
    # The value behind the last step that counts; behind an end any would do.
    last = values[np.flatnonzero(mask)[-1] + 1]
    buffer.compute_returns_and_advantage(torch.tensor([last]), done[-1])

    found = generalized_advantages(*(torch.from_numpy(part)[:, None] for part in stream), discount, trace)[mask, 0].numpy()
    np.testing.assert_allclose(found, buffer.advantages[:, 0], atol=1e-6, rtol=0)
    np.testing.assert_allclose(found + values[:-1][mask], buffer.returns[:, 0], atol=1e-6, rtol=0)


def test_environments_do_not_touch_each_other():
    rng = np.random.default_rng(0)
    terminated, truncated = rng.random((2, 30, 5)) < 0.1
    parts = [
        torch.from_numpy(part)
        for part in (
            rng.normal(size=(30, 5)),
            rng.normal(size=(31, 5)),
            terminated,
            terminated | truncated,
            rng.random((30, 5)) > 0.1,
        )
    ]
    together = generalized_advantages(*parts, 0.9, 0.9)
    alone = [generalized_advantages(*(part[:, i : i + 1] for part in parts), 0.9, 0.9) for i in range(5)]
    assert torch.equal(together, torch.cat(alone, 1))
