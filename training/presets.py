"""Settings to start from, for an algorithm on a kind of game. A flag on the command line changes each."""

import dataclasses
from typing import Any

from agents import registry as agents
from envs import atari, registry

_IMAGES: dict[str, dict[str, Any]] = {}
_RAM: dict[str, dict[str, Any]] = {
    "ppo": {
        "num_envs": 64,
        "frame_stack": 1,
        "learning_rate": 5e-4,
        "discount": 0.997,
        "gae_lambda": 0.97,
        "clip": 0.2,
        "entropy_coefficient": 0.005,
        "minibatches": 8,
        "reward": "normalize",
    },
    "a2c": {"frame_stack": 1, "discount": 0.997, "reward": "normalize"},
    "dqn": {"frame_stack": 1},
}
# Doom pays 106 points for a hit and takes 5 for a miss, a maze pays 1 at its end: rewards are brought to one size. What pays
# may lie some hundred steps ahead. Larger steps than Atari's learn in fewer games (docs/log.md).
_WORLDS: dict[str, dict[str, Any]] = {
    "ppo": {"num_envs": 16, "learning_rate": 5e-4, "clip": 0.2, "discount": 0.995, "reward": "normalize"},
    "a2c": {"reward": "normalize"},
    "dqn": {"reward": "normalize"},
}
_OTHERS: dict[str, dict[str, Any]] = {
    "ppo": {"frame_stack": 1, "reward": "normalize", "clip": 0.2, "entropy_coefficient": 0.0},
    "a2c": {"frame_stack": 1, "reward": "none", "entropy_coefficient": 0.0},
    "dqn": {"frame_stack": 1, "reward": "none"},
}
# Bowling pays for a ball some 320 emulator frames after it is thrown, and for a strike ten times as much as for a pin; nearly
# all of Berzerk's points come in fifties. Both are scaled to about one rather than clipped.
_GAMES: dict[str, dict[str, Any]] = {
    "bowling": {"discount": 0.999, "reward": "scale", "reward_scale": 0.1},
    "berzerk": {"discount": 0.997, "reward": "scale", "reward_scale": 0.02},
}


def preset(algorithm: str, env_id: str) -> Any:
    """The algorithm's config for a game: its defaults, changed for the kind of observation and then for the game.

    An algorithm that stands in none of the tables has its defaults, and what a game itself wants of the settings that it has.
    """
    rom = atari.rom_of(env_id)
    if rom is not None:
        kind, own = _IMAGES if registry.sees_images(env_id) else _RAM, _GAMES.get(rom, {})
    else:
        tasks = len(registry.tasks_of(env_id))
        kind, own = _WORLDS if registry.is_world(env_id) else _OTHERS, {"num_envs": tasks} if tasks > 1 else {}
    config = agents.ALGORITHMS[algorithm].config
    known = {field.name for field in dataclasses.fields(config)}
    return config(**(kind.get(algorithm, {}) | {name: value for name, value in own.items() if name in known}))
