"""Players that never look at the game. A score that they reach too says little about an agent.

Bowling is nearly deterministic even with sticky actions: a fixed list of button presses scores more than most published agents.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, repeat

import numpy as np
from numpy.typing import NDArray

from agents.agent import Decision
from envs.contract import GameDescription, TimeStep

_OPENING = 30  # agent steps of doing nothing before the first ball
_FOLLOW_THROUGH = 12  # agent steps of UP behind the ball
_PERIOD = 140  # agent steps after a FIRE until the next ball's turn


Actions = Iterator[int]
Script = Callable[[GameDescription], Actions]  # opens an endless list of actions


class ScriptPlayer:
    """Plays the same list of actions in every game, from its beginning; implements `agents.agent.Player`."""

    def __init__(self, script: Script, game: GameDescription, num_envs: int) -> None:
        """Play `script` in each of `num_envs` environments."""
        self._script, self._game = script, game
        self._running = [script(game) for _ in range(num_envs)]

    def decide(self, timestep: TimeStep, played: NDArray[np.integer]) -> Decision:
        """The script's next action, for certain."""
        probabilities = np.zeros((len(self._running), self._game.num_actions), np.float32)
        for slot, is_first in enumerate(timestep.is_first):
            if is_first:
                self._running[slot] = self._script(self._game)
            probabilities[slot, next(self._running[slot])] = 1
        return Decision(probabilities, np.full(len(self._running), np.nan, np.float32))


def script_player(script: Script) -> Callable[[GameDescription, int], ScriptPlayer]:
    """From a script to what makes a player of it."""
    return lambda game, num_envs: ScriptPlayer(script, game, num_envs)


def replay(actions: Sequence[int]) -> Actions:
    """Actions that were once played; at their end they start over."""
    return cycle(actions)


def scripts_for(rom: str | None) -> dict[str, Script]:
    """The scripts there are for a game, by name; empty for most."""
    if rom != "bowling":
        return {}
    return {"A": lambda game: _bowling(game, down=0, wait=29), "B": lambda game: _bowling(game, down=9, wait=28)}


def _bowling(game: GameDescription, down: int, wait: int) -> Actions:
    """Wait; then for every ball step down, throw, wait, and curve it up.

    The waits were found for steps of four emulator frames; shorter steps take more of them.
    """
    noop, fire, up, step_down = map(game.action_names.index, ("NOOP", "FIRE", "UP", "DOWN"))
    wait = round(wait * 4 / float(np.mean(game.protocol.frame_skip)))
    rest = _PERIOD - wait - _FOLLOW_THROUGH
    ball = [*repeat(step_down, down), fire, *repeat(noop, wait), *repeat(up, _FOLLOW_THROUGH), *repeat(noop, rest)]
    return chain(repeat(noop, _OPENING), cycle(ball))
