"""PPO that learns from a rollout while the next one is played."""

import copy
import itertools
import time

import pytest
import torch

from agents.agent import BrokenOff
from agents.networks import ActorCritic
from agents.on_policy import policy_terms
from tests.agents.driving import build, configure, describe, draw_tape, drive, play_tape, same

GAME = describe((16,), "uint8")
STEPS, ROLLOUTS = 16, 5
SETTINGS = {"num_envs": 4, "rollout_steps": STEPS, "minibatches": 2, "epochs": 2, "learning_rate": 1e-2, "frame_stack": 2}


def make(lag=1, **changes):
    config = configure("ppo", **{**SETTINGS, "lag": lag, **changes})
    return build("ppo", GAME, config, groups=2, total_frames=10 * STEPS * 4)


def tape(rollouts=ROLLOUTS):
    return draw_tape(STEPS * rollouts + 1, 4, shape=(16,), dtype="uint8").rewind(2)


def watched(agent):
    """What is there at the end of each rollout: what was learned by then, and the rollout."""
    seen, take = [], agent.learner._take

    def watch():
        take()
        seen.append((copy.deepcopy(agent.learned()), copy.deepcopy(agent.learner.past), agent._began))

    agent.learner._take = watch
    return seen


@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_rollout_is_played_with_what_was_learned_one_update_earlier(memory):
    agent = make(memory=memory, memory_steps=STEPS)
    initial = copy.deepcopy(agent.network.state_dict())
    seen = watched(agent)
    play_tape(agent, tape())
    assert len(seen) == ROLLOUTS
    network = ActorCritic(GAME, 2, "auto", memory)
    played_with = [initial, *(learned["weights"] for learned, _, _ in seen[:-1])]
    for number, (weights, (_, past, _)) in enumerate(zip(played_with, seen, strict=True)):
        network.load_state_dict(weights)
        steps, slots, state = past.unit(torch.arange(past.num_units))
        with torch.no_grad():
            logits, values, _ = network(past.inputs(steps, slots), state)
        log_probs, _ = policy_terms(logits, past.actions[steps, slots])
        torch.testing.assert_close(log_probs, past.log_probs[steps, slots])
        torch.testing.assert_close(values, past.values[steps, slots])
        assert same(weights, initial) == (number < 2)


def test_an_update_is_the_one_without_a_lag():
    agent = make()
    seen = watched(agent)
    play_tape(agent, tape())
    for (learned, past, began), (then, _, _) in itertools.pairwise(seen):
        plain = make(lag=0)
        plain.load_learned(learned)
        plain.rollout.copy_(past)
        plain._began = began
        plain._update(plain.learning_rate)
        assert same(plain.learned(), then)


def test_metrics_are_those_of_the_update_before_and_come_with_the_next():
    agent, plain = (make(lag=lag, minibatches=1, epochs=1) for lag in (1, 0))  # nothing to shuffle
    rows, others = play_tape(agent, tape()), play_tape(plain, tape())
    assert len(rows) == ROLLOUTS - 1
    assert agent.updates == ROLLOUTS - 1
    assert rows[0] == pytest.approx(others[0], rel=1e-4, abs=1e-6)  # the first rollout is played and learned from alike
    assert rows[1] != pytest.approx(others[1], rel=1e-4, abs=1e-6)


def slowed(agent, where):
    function = getattr(agent, where)

    def slow(*args):
        time.sleep(0.01)
        return function(*args)

    setattr(agent, where, slow)
    return agent


@pytest.mark.parametrize("slow", ["gradient_step", "act"])
def test_timing_decides_nothing(slow):
    agent, other = make(), slowed(make(), slow)
    play_tape(agent, tape())
    play_tape(other, tape())
    assert same(agent.state_dict(), other.state_dict())


def test_it_plays_while_it_learns():
    """An update of a thousand waits holds up no step of the next rollout, but for its last."""
    agent = slowed(make(epochs=500), "gradient_step")
    drive(agent, tape(), 2 * STEPS - 1)
    assert not agent.learner._running.done()
    agent.hurry = True
    assert agent.learner._wait() is None


def test_an_update_that_is_broken_off_is_made_again():
    whole, broken, steps = make(), slowed(make(), "gradient_step"), (STEPS + 2, STEPS * (ROLLOUTS - 1) - 1)
    envs = tape()
    for part in steps:
        drive(whole, envs, part)
    envs.rewind(2)
    drive(broken, envs, steps[0])
    broken.hurry = True
    state = copy.deepcopy(broken.state_dict())
    assert state["lag"]["waits"]
    assert state["counters"]["updates"] == 0
    with pytest.raises(BrokenOff):
        broken.learner._end()
    again = make()
    again.load_state_dict(state)
    assert again.learner._running is None  # it begins where its end is wanted
    drive(again, envs, steps[1])
    assert again.updates == whole.updates == ROLLOUTS - 1
    assert same(again.state_dict(), whole.state_dict())


def test_what_was_broken_off_goes_on_in_the_same_agent_too():
    agent, envs = slowed(make(), "gradient_step"), tape()
    drive(agent, envs, STEPS + 2)
    agent.hurry = True
    with pytest.raises(BrokenOff):
        drive(agent, envs, STEPS)
    assert agent.updates == 0
    agent.hurry = False
    metrics = agent.learn()
    assert agent.updates == 1
    assert metrics["learning_rate"] == SETTINGS["learning_rate"]  # of the first rollout


def test_a_state_holds_an_update_whose_metrics_are_still_to_come():
    agent, other = make(), make()
    envs = tape()
    drive(agent, envs, 2 * STEPS + 2)  # from here on what plays has learned
    state = copy.deepcopy(agent.state_dict())
    assert state["lag"]["metrics"]
    other.load_state_dict(state)
    times = list(envs.times)
    rows = drive(agent, envs, STEPS)
    envs.times = times
    assert drive(other, envs, STEPS) == rows
    assert same(other.state_dict(), agent.state_dict())


def test_the_last_rollout_is_learned_from_too():
    agent = make()
    agent.setting = agent.setting.__class__(**{**vars(agent.setting), "total_frames": 3 * STEPS * 4 - 40})
    rows = play_tape(agent, tape(3))
    assert agent.frames >= agent.setting.total_frames
    assert agent.updates == 3
    assert agent.learner._running is None
    assert len(rows) == 2
