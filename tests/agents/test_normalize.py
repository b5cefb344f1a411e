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
    found = transform(step, EVERYONE)
    assert found.tolist() == expected
    assert found.dtype == np.float32
    assert step.reward.tolist() == [-3.0, -0.5, 0.0, 200.0]  # the game's score stays as it is


def test_normalised_by_hand():
    transform = RewardTransform("normalize", 1.0, 0.5, 2)
    # returns so far 4 and 0: deviation 2
    assert transform(rewards(4.0, 0.0), EVERYONE) == pytest.approx([2.0, 0.0])
    # then 4/2 + 2 = 4 and 0/2 + 8 = 8: 4 0 4 8 have mean 4 and deviation sqrt(8)
    assert transform(rewards(2.0, 8.0), EVERYONE) == pytest.approx([2 / 8**0.5, 8 / 8**0.5])
    # the second environment opens another episode: its return is 0 and is not counted. 4/2 + 2 = 4: 4 0 4 8 4
    step = rewards(2.0, 0.0)._replace(is_first=np.array([False, True]))
    assert transform(step, EVERYONE) == pytest.approx([2 / 6.4**0.5, 0.0])
    # 4/2 + 0 = 2 and 0/2 + 1 = 1
    assert transform(rewards(0.0, 1.0), EVERYONE)[1] == pytest.approx(1 / np.std([4, 0, 4, 8, 4, 2, 1]))


def test_normalised_against_all_returns_at_once():
    tape = draw_tape(200, 4, seed=1)
    transform = RewardTransform("normalize", 1.0, 0.9, 4)
    running, seen = np.zeros(4), []
    for t in range(tape.length):
        for slots in (slice(0, 2), slice(2, 4)):
            step = tape.at(t, slots)
            running[slots] = np.where(step.is_first, 0, 0.9 * running[slots] + step.reward)
            seen += running[slots][~step.is_first].tolist()
            found = transform(step, slots)
            if len(seen) > 1:
                assert found == pytest.approx(np.clip(step.reward / np.std(seen), -10, 10), rel=1e-4)


def test_what_is_far_out_is_cut_to_ten_deviations():
    transform = RewardTransform("normalize", 1.0, 0.5, 1_000)
    step = rewards(*[0.0] * 999, 1e6)
    found = transform(step, EVERYONE)
    assert found.max() == 10
    assert transform(rewards(*[0.0] * 999, -1e6), EVERYONE).min() == -10
    assert np.isfinite(RewardTransform("normalize", 1.0, 0.5, 2)(rewards(0.0, 0.0), EVERYONE)).all()


def test_state_goes_through_json_and_goes_on():
    tape = draw_tape(60, 3)
    transform = RewardTransform("normalize", 1.0, 0.9, 3)
    for t in range(40):
        transform(tape.at(t), EVERYONE)
    other = RewardTransform("normalize", 1.0, 0.9, 3)
    state = json.loads(json.dumps(transform.state_dict()))
    other.load_state_dict(state)
    for t in range(40, 60):
        assert np.array_equal(transform(tape.at(t), EVERYONE), other(tape.at(t), EVERYONE))
