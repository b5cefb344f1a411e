"""What agents make of rewards."""

import json

import numpy as np
import pytest

from agents.normalize import RewardTransform
from tests.agents.driving import draw_tape, look

EVERYONE = slice(None)


def rewards(*numbers):
    return look(np.zeros((len(numbers), 1), np.float32))._replace(
        reward=np.array(numbers, np.float32), is_first=np.zeros(len(numbers), np.bool_)
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("clip", [-1.0, -0.5, 0.0, 1.0]), ("scale", [-0.75, -0.125, 0.0, 50.0]), ("none", [-3.0, -0.5, 0.0, 200.0])],
)
def test_by_hand(kind, expected):
    transform = RewardTransform(kind, 0.25, 0.99, 4)
    step = rewards(-3.0, -0.5, 0.0, 200.0)
    transform.watch(step, EVERYONE)
    found = transform(step.reward)
    assert found.tolist() == expected
    assert found.dtype == np.float32
    assert step.reward.tolist() == [-3.0, -0.5, 0.0, 200.0]  # the game's score stays as it is


def test_normalised_by_hand():
    transform = RewardTransform("normalize", 1.0, 0.5, 2)

    def normalised(step):
        transform.watch(step, EVERYONE)
        return transform(step.reward)

    # a return of 0 before the first step of each, then 4 and 0: 0 0 4 0 have mean 1 and deviation sqrt(3)
    assert normalised(rewards(4.0, 0.0)) == pytest.approx([4 / 3**0.5, 0.0])
    # then 4/2 + 2 = 4 and 0/2 + 8 = 8
    assert normalised(rewards(2.0, 8.0)) == pytest.approx(np.array([2, 8]) / np.std([0, 0, 4, 0, 4, 8]))
    # the second environment opens another episode: its return is 0 and is not counted. 4/2 + 2 = 4
    step = rewards(2.0, 0.0)._replace(is_first=np.array([False, True]))
    assert normalised(step) == pytest.approx([2 / np.std([0, 0, 4, 0, 4, 8, 4]), 0.0])
    # 4/2 + 0 = 2 and 0/2 + 1 = 1
    assert normalised(rewards(0.0, 1.0))[1] == pytest.approx(1 / np.std([0, 0, 4, 0, 4, 8, 4, 2, 1]))
    # what was seen before is looked at with what is known now
    assert transform(np.array([4.0], np.float32)) == pytest.approx(4 / np.std([0, 0, 4, 0, 4, 8, 4, 2, 1]))


def test_a_first_reward_is_about_one_deviation():
    """Were nothing known before it, the first rewards of environments that play alike would all be ten of them."""
    transform = RewardTransform("normalize", 1.0, 0.99, 8)
    transform.watch(rewards(*[0.01] * 8), EVERYONE)
    assert transform(np.array([0.01], np.float32)) == pytest.approx(2, rel=1e-3)


def test_normalised_against_all_returns_at_once():
    tape = draw_tape(200, 4, seed=1)
    transform = RewardTransform("normalize", 1.0, 0.9, 4)
    running, seen = np.zeros(4), [0.0] * 4
    for t in range(tape.length):
        for slots in (slice(0, 2), slice(2, 4)):
            step = tape.at(t, slots)
            running[slots] = np.where(step.is_first, 0, 0.9 * running[slots] + step.reward)
            seen += running[slots][~step.is_first].tolist()
            transform.watch(step, slots)
            if np.any(seen):
                assert transform(step.reward) == pytest.approx(np.clip(step.reward / np.std(seen), -10, 10), rel=1e-4)


def test_what_is_far_out_is_cut_to_ten_deviations():
    transform = RewardTransform("normalize", 1.0, 0.5, 1_000)
    transform.watch(rewards(*[0.0] * 999, 1e6), EVERYONE)
    assert transform(np.array([1e6, 0, -1e6], np.float32)).tolist() == [10, 0, -10]
    nothing = RewardTransform("normalize", 1.0, 0.5, 2)
    nothing.watch(rewards(0.0, 0.0), EVERYONE)
    assert np.isfinite(nothing(np.zeros(2, np.float32))).all()


def test_state_goes_through_json_and_goes_on():
    tape = draw_tape(60, 3)
    transform = RewardTransform("normalize", 1.0, 0.9, 3)
    for t in range(40):
        transform.watch(tape.at(t), EVERYONE)
    other = RewardTransform("normalize", 1.0, 0.9, 3)
    state = json.loads(json.dumps(transform.state_dict()))
    other.load_state_dict(state)
    for t in range(40, 60):
        for each in (transform, other):
            each.watch(tape.at(t), EVERYONE)
        assert np.array_equal(transform(tape.at(t).reward), other(tape.at(t).reward))
