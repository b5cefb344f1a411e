"""Every algorithm learns each probe to its known value."""

import numpy as np
import pytest
import torch

from agents.registry import ALGORITHMS
from envs.workers import WorkerEnvs
from tests.agents.driving import Games, build, configure, decide, drive, look
from tests.agents.probes import DISCOUNT, PROBES, Known

# For each algorithm the settings that it has: plain, small and quick. A new algorithm finds its own among them or in OWN.
COMMON = {
    "num_envs": 8,
    "rollout_steps": 8,
    "discount": DISCOUNT,
    "frame_stack": 1,
    "reward": "none",
    "entropy_coefficient": 0.0,
    "learning_rate": 3e-3,
    "minibatches": 1,
    "batch_size": 32,
    "update_steps": 8,
    "target_frames": 80,
    "epsilon_end": 0.1,
}
OWN = {
    "a2c": {"normalize_advantages": False},
    "ppo": {"clip": 0.2},
}
FRAMES = 5_000
TOLERANCE = 0.05


def settings_of(algorithm):
    return configure(algorithm, **{**COMMON, **OWN.get(algorithm, {})})


def assert_knows(algorithm, agent, game, known: Known):
    row = ALGORITHMS[algorithm]
    weights = agent.state_dict()["weights"]
    player = row.player(agent.config, game, weights, torch.device("cpu"), len(known.seen), row.policies[0])
    decision = decide(player, look(np.array(known.seen, np.float32)[:, None]))
    if known.values is not None:
        assert decision.values == pytest.approx(known.values, abs=TOLERANCE)
    if known.actions is not None:
        right = decision.probabilities[range(len(known.seen)), known.actions]
        assert (right > 0.9).all(), decision.probabilities


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learns_the_known_value(algorithm, probe):
    config = settings_of(algorithm)
    envs = Games(f"tests.agents.probes:{probe}-v0", config.num_envs)
    agent = build(algorithm, envs.description, config, total_frames=FRAMES)
    drive(agent, envs, FRAMES // config.num_envs)
    assert_knows(algorithm, agent, envs.description, PROBES[probe])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learns_through_worker_processes_in_groups(algorithm):
    config = settings_of(algorithm)
    with WorkerEnvs("tests.agents.probes:Endless-v0", config.num_envs, num_groups=2, num_workers=1) as envs:
        agent = build(algorithm, envs.description, config, groups=2, total_frames=FRAMES)
        envs.reset([[]] * config.num_envs)
        drive(agent, envs, FRAMES // config.num_envs)
        assert_knows(algorithm, agent, envs.description, PROBES["Endless"])
