"""The algorithms there are; the only table of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from agents import dqn, on_policy
from agents.a2c import A2C, A2CConfig
from agents.agent import Agent, Player, Setting
from agents.dqn import DQN, DQNConfig
from agents.ppo import PPO, PPOConfig
from envs.contract import GameDescription

MakePlayer = Callable[[Any, GameDescription, dict[str, torch.Tensor], torch.device, int, str], Player]


class Algorithm(NamedTuple):
    """How to configure an agent, build it, and play with what it has learned."""

    config: type[Any]
    build: Callable[[Any, Setting], Agent]
    player: MakePlayer  # (config, game, weights, device, num_envs, policy)
    policies: tuple[str, ...]  # how a frozen agent can play; the first unless told otherwise


ALGORITHMS: dict[str, Algorithm] = {
    "a2c": Algorithm(A2CConfig, A2C, on_policy.frozen_player, ("sample", "greedy")),
    "dqn": Algorithm(DQNConfig, DQN, dqn.frozen_player, (f"epsilon {dqn.PLAY_EPSILON}", "greedy")),
    "ppo": Algorithm(PPOConfig, PPO, on_policy.frozen_player, ("sample", "greedy")),
}
