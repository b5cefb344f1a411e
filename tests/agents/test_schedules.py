"""Values that change over a run."""

import pytest

from agents.schedules import linear
from tests.agents.driving import build, configure, describe, draw_tape, play_tape


@pytest.mark.parametrize(("progress", "value"), [(-1.0, 2.0), (0.0, 2.0), (0.25, 1.75), (1.0, 1.0), (3.0, 1.0)])
def test_linear(progress, value):
    assert linear(2.0, 1.0, progress) == value


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
@pytest.mark.parametrize("anneal", [True, False])
def test_the_learning_rate_falls_over_the_run(algorithm, anneal):
    config = configure(algorithm, num_envs=2, rollout_steps=5, frame_stack=1, learning_rate=0.5, anneal_learning_rate=anneal)
    agent = build(algorithm, describe(), config, total_frames=80)
    tape = draw_tape(21, 2, end=0.0, cut=0.0, lost=0.0, frames=2)
    rates = []
    step = agent.optimizer.step_rows

    def watched(*args):
        rates.append(agent.optimizer.learning_rate)
        return step(*args)

    agent.optimizer.step_rows = watched
    rows = play_tape(agent, tape)
    expected = [0.5, 0.375, 0.25, 0.125] if anneal else [0.5] * 4  # rollouts that begin at frame 0, 20, 40 and 60 of 80
    assert [row["learning_rate"] for row in rows] == pytest.approx(expected)
    per_update = len(rates) // 4
    assert rates[::per_update] == pytest.approx(expected)


def test_epsilon_falls_in_frames():
    config = configure("dqn", num_envs=2, frame_stack=1, epsilon_start=1.0, epsilon_end=0.2, epsilon_frames=100)
    agent = build("dqn", describe(), config, total_frames=1_000)
    tape = draw_tape(21, 2, end=0.0, cut=0.0, lost=0.0, frames=4)
    seen = [agent.epsilon]
    for t in range(16):
        agent.observe(tape.at(t), slice(0, 2))
        agent.learn()
        agent.act(tape.at(t), slice(0, 2))
        seen.append(agent.epsilon)
    # 8 frames a step behind the first
    assert seen == pytest.approx([1.0, *(max(0.2, 1 - 0.8 * 8 * t / 100) for t in range(16))])
