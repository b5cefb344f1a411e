"""A forward pass that is not made twice: what layers made of an observation is kept until it is learned from.

    act     layer(x, w) ── Activations ──▶ result, kept
    learn   layer(x, w) ──── Known ──────▶ the kept result; its gradients are what torch's own kernels make of them

A2C takes one gradient step a rollout, with the weights that it acted with: a forward pass would compute it all again.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

Layer = Callable[..., Tensor]  # `nn.functional.conv2d` or `linear`
Compute = Callable[..., Tensor]  # takes one and its arguments, and calls it or knows what it would return


def compute(function: Layer, *arguments: Any) -> Tensor:
    """Call it."""
    return function(*arguments)


class Activations:
    """Results of layers over a rollout, in pieces of one step of one group.

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
        """What is called from now on belongs to step t of a group."""
        self._piece = self._pieces[slots.start, t] = []

    def forget(self) -> None:
        """The weights change: nothing that was kept is of any use."""
        self._pieces.clear()

    def __call__(self, function: Layer, *arguments: Any) -> Tensor:
        """Call a layer's function and keep the result, from before or behind a ReLU in place: a second one changes nothing."""
        result = function(*arguments)
        self._piece.append(result)
        return result

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
        return Known(torch.cat(layer) for layer in zip(*pieces, strict=True))


class Known:
    """Gives layers results that are known, one after the other."""

    def __init__(self, results: Iterator[Tensor]) -> None:
        """Take them in the order in which the layers are called."""
        self._results = results

    def __call__(self, function: Layer, *arguments: Any) -> Tensor:
        """What a layer's function would return, with a gradient for its arguments."""
        result: Tensor = _KNOWN[function].apply(self._results, *arguments)
        return result


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, results: Iterator[Tensor], images: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, ...] = (1, 1)
    ) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.stride = stride
        return next(results)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        shape = [len(weight)], ctx.stride, [0, 0], [1, 1], False, [0, 0], 1  # no padding, no dilation, one group
        gradients = torch.ops.aten.convolution_backward(gradient, images, weight, *shape, ctx.needs_input_grad[1:4])
        return None, *gradients, None


class _Dense(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, results: Iterator[Tensor], features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight)
        return next(results)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        features, weight = ctx.saved_tensors
        return None, gradient @ weight, gradient.T @ features, gradient.sum(0)


_KNOWN: dict[Layer, Any] = {nn.functional.conv2d: _Convolution, nn.functional.linear: _Dense}
