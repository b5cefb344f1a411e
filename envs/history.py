"""From where each game can be played again to where it stands: a seed or a copy of its emulator, and the actions since then.

A checkpoint holds this instead of the game. Slots begin anew at different steps, so each has its own first action:

    step      0  1  2  3  4  5
    slot 0    .  .  a  a  a  a     a game opened, or was copied, at step 2
    slot 1    a  a  a  a  a  a     steps that no slot needs any more are dropped, half of the list at a time
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


class History:
    """Of a group of slots: where each game begins, and every action since then."""

    def __init__(self, size: int) -> None:
        """Of `size` slots, whose games have not begun."""
        self.clones: list[str | None] = [None] * size  # JSON; None where the next step opens a game with its seed
        self.over = np.ones(size, np.bool_)  # whether that game had ended
        self.seeds = np.full(size, -1, np.int64)
        self._actions: list[NDArray[np.int64]] = []  # of each step, of all slots of the group
        self._since = np.zeros(size, np.int64)  # of each slot, its first action

    def add(self, actions: NDArray[np.integer[Any]]) -> None:
        """A step of every slot of the group; actions (slots,)."""
        self._actions.append(np.array(actions, np.int64))

    def begin(self, at: int, seed: int, clone: str | None = None, *, over: bool = True, started: bool = False) -> None:
        """A slot begins anew: the next action is the first that is kept, or the last one where a step has `started`."""
        self.clones[at], self.over[at], self.seeds[at] = clone, over, seed
        self._since[at] = len(self._actions) - started
        old = self._since.min()
        if old > len(self._actions) // 2:
            del self._actions[:old]
            self._since -= old

    @classmethod
    def of(cls, games: Sequence[dict[str, Any]], actions: Sequence[NDArray[np.integer[Any]]]) -> Self:
        """As `WorkerEnvs.state_dict` saved it: of each slot its game, and its actions (steps,)."""
        history, length = cls(len(games)), max(map(len, actions))
        table = np.zeros((length, len(games)), np.int64)
        for at, (game, own) in enumerate(zip(games, actions, strict=True)):
            history.begin(at, game["seed"], game["clone"], over=game["over"])
            history._since[at] = length - len(own)
            table[history._since[at] :, at] = own
        history._actions = list(table)
        return history

    def actions(self, at: int) -> NDArray[np.int64]:
        """Those of a slot since its game's seed or copy, (steps,)."""
        return np.array([actions[at] for actions in self._actions[self._since[at] :]], np.int64)
