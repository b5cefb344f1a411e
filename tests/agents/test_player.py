"""Frozen agents at play."""

import numpy as np
import pytest
import torch

from agents.registry import ALGORITHMS
from tests.agents.driving import build, configure, decide, describe, draw_tape, play_tape

GAME = describe((5,), "uint8")
DEPTH = 3


def trained(algorithm):
    """An agent that has learned a little, so that it does not think the same of everything."""
    settings = {"num_envs": 4, "rollout_steps": 6, "frame_stack": DEPTH, "learning_rate": 1e-2, "batch_size": 8}
    agent = build(algorithm, GAME, configure(algorithm, **settings), total_frames=1_000)
    play_tape(agent, draw_tape(61, 4, shape=(5,), dtype="uint8"))
    return agent


def player_of(algorithm, agent, num_envs, policy):
    weights = {name: weight.clone() for name, weight in agent.state_dict()["weights"].items()}
    return ALGORITHMS[algorithm].player(agent.config, GAME, weights, torch.device("cpu"), num_envs, policy)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_probabilities(algorithm):
    agent = trained(algorithm)
    tape = draw_tape(20, 4, shape=(5,), dtype="uint8", seed=5)
    policies = {name: player_of(algorithm, agent, 4, name) for name in ("greedy", ALGORITHMS[algorithm].policies[0])}
    for t in range(tape.length):
        greedy, usual = (decide(player, tape.at(t)) for player in policies.values())
        assert greedy.probabilities.shape == (4, 4)
        assert greedy.probabilities.dtype == usual.values.dtype == np.float32
        assert sorted(set(greedy.probabilities.flatten().tolist())) == [0, 1]
        assert usual.probabilities.sum(1) == pytest.approx(np.ones(4))
        assert (usual.probabilities > 0).all()
        assert (usual.probabilities.argmax(1) == greedy.probabilities.argmax(1)).all()
        assert np.array_equal(greedy.values, usual.values)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_player_sees_its_own_episode_and_no_other(algorithm):
    """In the middle of a tape it thinks what a player thinks who has seen nothing but this episode."""
    agent = trained(algorithm)
    policy = ALGORITHMS[algorithm].policies[0]
    player = player_of(algorithm, agent, 4, policy)
    tape = draw_tape(30, 4, shape=(5,), dtype="uint8", seed=5)
    fresh = [None] * 4
    compared = 0
    for t in range(tape.length):
        decision = decide(player, tape.at(t))
        for slot in range(4):
            if tape.steps.is_first[t, slot]:
                fresh[slot] = player_of(algorithm, agent, 1, policy)
                compared += t > 0
            alone = decide(fresh[slot], tape.at(t, slice(slot, slot + 1)))
            assert decision.probabilities[slot] == pytest.approx(alone.probabilities[0], abs=1e-5)
            assert decision.values[slot] == pytest.approx(alone.values[0], abs=1e-5)
    assert compared > 10


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_player_is_frozen(algorithm):
    agent = trained(algorithm)
    first = draw_tape(1, 4, shape=(5,), dtype="uint8", seed=5).at(0)
    player = player_of(algorithm, agent, 4, "greedy")
    before = decide(player, first).values
    play_tape(agent, draw_tape(61, 4, shape=(5,), dtype="uint8", seed=6))
    assert np.array_equal(decide(player, first).values, before)
    assert not np.array_equal(decide(player_of(algorithm, agent, 4, "greedy"), first).values, before)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_a_player_samples_with_the_probabilities_that_training_noted(algorithm):
    agent = trained(algorithm)
    player = player_of(algorithm, agent, 4, "sample")
    tape = draw_tape(6, 4, shape=(5,), dtype="uint8", seed=5)
    began = agent.state_dict()["times"][0] + 1
    play_tape(agent, tape)
    for t in range(5):
        decision = decide(player, tape.at(t))
        noted = agent.rollout.log_probs[began + t].exp().numpy()
        assert decision.probabilities[range(4), tape.actions[t]] == pytest.approx(noted, abs=1e-5)
        assert decision.values == pytest.approx(agent.rollout.values[began + t].numpy(), abs=1e-4)


def test_dqn_plays_one_action_in_a_thousand_at_random():
    agent = trained("dqn")
    decision = decide(player_of("dqn", agent, 4, "epsilon 0.001"), draw_tape(1, 4, shape=(5,), dtype="uint8").at(0))
    assert np.sort(decision.probabilities, 1) == pytest.approx(np.array([[0.00025] * 3 + [0.99925]] * 4))
