"""From an environment id to the family that plays it. A family's game is imported only when one of its ids is asked for."""

import difflib
import importlib

import gymnasium

from envs.contract import Game, InputError, ProtocolOptions

FAMILIES = {
    "atari": "envs.atari:AtariGame",
    "registered": "envs.registered:RegisteredGame",
}


def family_of(env_id: str) -> str:
    """Name of the family that plays an id.

    Raises:
        InputError: no family knows the id; the message names the nearest ones that exist.
    """
    from envs import atari

    if atari.rom_of(env_id) is not None:
        return "atari"
    module, _, name = env_id.rpartition(":")
    if module in ("ale_py", "gymnasium") and atari.rom_of(name) is not None:
        raise InputError(f"{env_id!r}: this game is known without its module; write {name}")
    if module in ("random", "script"):
        raise InputError(f"{env_id!r} is a player for evaluate.py, not an environment; write {name}")
    if ":" in env_id or env_id in gymnasium.registry:
        return "registered"
    raise InputError(f"unknown environment {env_id!r}; {_nearest(env_id, [*atari.ids(), *gymnasium.registry])}")


def _nearest(env_id: str, known: list[str]) -> str:
    by_folded = {name.lower(): name for name in sorted(known, reverse=True)}
    matches = difflib.get_close_matches(env_id.lower(), by_folded, n=3, cutoff=0.5)
    return f"nearest: {', '.join(by_folded[match] for match in matches)}" if matches else "no id comes near it"


def game_class(env_id: str) -> type[Game]:
    """The class of the family that plays an id.

    Raises:
        InputError: no family knows the id.
    """
    module, _, name = FAMILIES[family_of(env_id)].partition(":")
    kind: type[Game] = getattr(importlib.import_module(module), name)
    return kind


def tasks_of(env_id: str, num_envs: int) -> tuple[str, ...]:
    """What each slot plays: the id itself, or by turns the games that it stands for."""
    return (env_id,) * num_envs


def make_game(env_id: str, options: ProtocolOptions) -> Game:
    """Make one game of any family.

    Raises:
        InputError: unknown id, or a game that no agent of ours can play.
    """
    return game_class(env_id)(env_id, options)
