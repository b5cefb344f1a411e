"""The algorithms there are; the only table of them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from agents.a2c import A2C, A2CConfig
from agents.agent import Agent, Setting
from agents.dqn import DQN, DQNConfig
from agents.ppo import PPO, PPOConfig


class Algorithm(NamedTuple):
    """How to configure and build an agent."""

    config: type[Any]
    build: Callable[[Any, Setting], Agent]


ALGORITHMS: dict[str, Algorithm] = {
    "a2c": Algorithm(A2CConfig, A2C),
    "dqn": Algorithm(DQNConfig, DQN),
    "ppo": Algorithm(PPOConfig, PPO),
}
