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

    def gradients(self, results: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
        """Gradients of its weights, in the order of `parameters`, of all results and the features' gradient.

        None where a layer sees to its gradient itself.
        """


def look(torso: nn.Module, stacks: Tensor) -> Tensor:
    """Let a torso look at a batch."""
    features: Tensor = torso(stacks)
    return features


class Activations:
    """Results of a torso's layers over a rollout, in the order in which they are learned from.

    That is group by group, and step by step in each: what a group adds in a step lies together, and so does a thread's part.
    """

    def __init__(self, steps: int, groups: tuple[slice, ...]) -> None:
        """For so many steps of groups of one size."""
        self._steps, self._size = steps, groups[0].stop - groups[0].start
        grid = torch.arange(steps * len(groups) * self._size).view(steps, -1)
        self.units = torch.cat([grid[:, group].flatten() for group in groups])
        """Every step of every environment, `t * N + slot`, in that order: (T * N,)."""
        self._kept: set[int] = set()  # where the steps of groups begin that are there
        self._layers: list[Tensor] = []  # (T * N, ...), laid out in memory as each layer does
        self._rows: dict[int, list[Tensor]] = {}  # of the layers, as views, by where the step of a group begins

    @property
    def size(self) -> int:
        """Bytes that they take, once a torso has looked at something."""
        return sum(layer.nbytes for layer in self._layers)

    def begin(self, t: int, slots: slice) -> None:
        """What is looked at from now on belongs to step t of a group."""
        self._at = self._place(t, slots.start)

    def forget(self) -> None:
        """The weights change: nothing that was kept is of any use."""
        self._kept.clear()

    def __call__(self, torso: Layered, stacks: Tensor) -> Tensor:
        """Let a torso look at a batch, and keep what its layers make of it."""
        results = [*torso.results(stacks)]
        if not self._layers:
            self._layers = [self._room(result) for result in results]
        if self._at not in self._rows:
            self._rows[self._at] = [layer[self._at : self._at + len(stacks)] for layer in self._layers]
        torch._foreach_copy_(self._rows[self._at], results)
        self._kept.add(self._at)
        return results[-1]

    def _room(self, result: Tensor) -> Tensor:
        """For a whole rollout of a layer's results, each laid out as it is here."""
        assert len(result) == 1 or result.stride(0) == result[0].numel(), "samples do not lie one after the other"
        shape, strides = (len(self.units), *result.shape[1:]), (result[0].numel(), *result.stride()[1:])
        with torch.inference_mode(False):  # what is made for inference alone cannot be learned from
            return torch.empty_strided(shape, strides, dtype=result.dtype)

    def known(self, part: Tensor) -> "Known":
        """Results for some neighbours among `units`, (B,).

        Raises:
            KeyError: not all of them are there.
        """
        begin = self._place(*divmod(int(part[0]), len(self.units) // self._steps))
        rows = slice(begin, begin + len(part))
        assert torch.equal(part, self.units[rows])
        if missing := set(range(begin - begin % self._size, rows.stop, self._size)) - self._kept:
            raise KeyError(min(missing))
        return Known([layer[rows] for layer in self._layers])

    def _place(self, t: int, slot: int) -> int:
        """Where a step of an environment is among `units`."""
        group, within = divmod(slot, self._size)
        place: int = (group * self._steps + t) * self._size + within
        return place


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
