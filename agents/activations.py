"""A forward pass that is not made twice: what a torso's layers made of an observation is kept until it is learned from.

    act     torso.results(stacks) ── Activations ──▶ kept
    learn   Known ──▶ the last of them, the features; with gradients by torso.gradients(results, gradient)

A2C takes one gradient step a rollout, with the weights that it acted with: a forward pass would compute it all again.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Look = Callable[[Any, Tensor], Tensor]  # (torso, stacks) -> features, (B, F)


class Layered(Protocol):
    """A torso whose results can be kept."""

    def results(self, stacks: Tensor) -> Iterator[Tensor]:
        """What each layer makes of a batch; the last are the features."""

    def gradients(self, results: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Gradients of its weights, in the order of `parameters`, of all results and the features' gradient."""


def look(torso: nn.Module, stacks: Tensor) -> Tensor:
    """Let a torso look at a batch."""
    features: Tensor = torso(stacks)
    return features


class Activations:
    """Results of a torso's layers over a rollout, in pieces of one step of one group.

    What is learned from is in the order of the pieces: group by group, and step by step in each.
    """

    def __init__(self, steps: int, groups: tuple[slice, ...]) -> None:
        """For so many steps of groups of one size."""
        self._steps, self._groups = steps, groups
        self._size = groups[0].stop - groups[0].start
        self._pieces: dict[tuple[int, int], list[Tensor]] = {}
        grid = torch.arange(steps * len(groups) * self._size).view(steps, -1)
        self.units = torch.cat([grid[:, group].flatten() for group in groups])
        """Every step of every environment, `t * N + slot`, in the order of the pieces: (T * N,)."""

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return sum(result.nbytes for piece in self._pieces.values() for result in piece)

    def begin(self, t: int, slots: slice) -> None:
        """What is looked at from now on belongs to step t of a group."""
        self._at = slots.start, t

    def forget(self) -> None:
        """The weights change: nothing that was kept is of any use."""
        self._pieces.clear()

    def __call__(self, torso: Layered, stacks: Tensor) -> Tensor:
        """Let a torso look at a batch, and keep what its layers make of it."""
        results = self._pieces[self._at] = [*torso.results(stacks)]
        return results[-1]

    def known(self, part: Tensor) -> "Known":
        """Results for some neighbours among `units`, (B,).

        Raises:
            KeyError: they were forgotten.
        """
        t, slot = divmod(int(part[0]), self._size * len(self._groups))
        begin = slot // self._size * self._size * self._steps + t * self._size + slot % self._size  # among all units
        end = begin + len(part)
        assert torch.equal(part, self.units[begin:end])
        pieces = []
        for at in range(begin // self._size, -(-end // self._size)):
            group, step = divmod(at, self._steps)
            rows = slice(max(begin - at * self._size, 0), end - at * self._size)
            pieces.append([result[rows] for result in self._pieces[self._groups[group].start, step]])
        return Known([torch.cat(layer) for layer in zip(*pieces, strict=True)])


class Known:
    """Knows what a torso would make of a batch."""

    def __init__(self, results: list[Tensor]) -> None:
        """Take the results of its layers."""
        self._results = results

    def __call__(self, torso: Any, stacks: Tensor) -> Tensor:
        """The torso's features, with a gradient for its weights; the stacks need not be there."""
        return _features(torso, self._results, *torso.parameters())


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, torso: Layered, results: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.torso = torso
        ctx.save_for_backward(*results)  # not for itself on `ctx`: the last is what is returned, and would keep itself alive
        return results[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *ctx.torso.gradients(ctx.saved_tensors, gradient)


_features: Callable[..., Tensor] = _Features.apply
