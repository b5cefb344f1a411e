"""A dense layer whose weights get their gradient from a whole batch, even where parts of it are several threads'.

    of one part      left.T @ right      left (B, O) the gradient behind the layer, right (B, I) what it was given
    of all parts     the same product of all their rows: a thread makes a share of the rows of the weights

A product for each part would be O * I numbers written and read again for each, to be added up; for small batches that takes
longer than to multiply. Nor is it written before it is shortened: how long it is, the factors of few samples know.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_FEW = 96  # samples, behind which a layer's factors know its gradient's length sooner than the gradient itself
_HANDFUL = range(3, 8)  # samples, for which a CPU makes several small products of float32 sooner than a large one
_PIECES = 16  # of a layer's outputs, a product each


class Dense(nn.Linear):
    """`nn.Linear`, whose weights can leave their gradient as factors."""

    factors: list[tuple[Tensor, Tensor]] | None = None
    """A list to which each backward pass adds (left, right), and `weight.grad` stays as it is; None: as in `nn.Linear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        if not torch.is_grad_enabled():
            return _linear(inputs, self.weight, self.bias)
        if self.factors is None:
            return super().forward(inputs)  # whose backward pass is torch's own
        return _collected(self, inputs, self.weight, self.bias)

    def gradients(self, inputs: Tensor, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        """Gradients of weights (None where factors are collected) and bias, by what it was given and the gradient behind it."""
        if self.factors is None:
            return gradient.T @ inputs, gradient.sum(0)
        self.factors.append((gradient, inputs.detach()))  # what is before the layer is another node's
        return None, gradient.sum(0)


class Product:
    """The gradient of a dense layer's weights, of all factors that copies of the layer have collected."""

    def __init__(self, layers: Sequence[Dense]) -> None:
        """Take the factors, N samples in all."""
        self._pairs = [pair for layer in layers for pair in layer.factors or ()]
        assert self._pairs, "a weight that no output depends on"
        self.few = sum(len(left) for left, _ in self._pairs) <= _FEW
        """Whether its length is sooner known from the factors than from what they make."""

    def square(self) -> Tensor:
        """The square of its length: of `left @ left.T` and `right @ right.T`, N * N numbers each in place of its O * I."""
        left, right = self._whole
        square: Tensor = ((left @ left.T) * (right @ right.T)).sum()
        return square

    def write(self, rows: slice, gradient: Tensor) -> None:
        """Some rows of it, into `gradient`."""
        if gradient.dtype == self._pairs[0][0].dtype:
            for at, (left, right) in enumerate(self._pairs):
                gradient.addmm_(left[:, rows].T, right, beta=min(at, 1))  # the first takes the place of what is there
        else:  # a sum in fewer digits would round with each
            left, right = map(torch.cat, zip(*self._pairs, strict=True))
            gradient.copy_(left[:, rows].T @ right)

    def write_scaled(self, rows: slice, gradient: Tensor, scale: Tensor) -> None:
        """The same, times `scale`; sooner where samples are few."""
        left, right = self._whole
        torch.mm((left[:, rows] * scale).T, right, out=gradient)

    @cached_property
    def _whole(self) -> tuple[Tensor, Tensor]:
        """All factors, in float32 or better."""
        left, right = map(torch.cat, zip(*self._pairs, strict=True))
        precision = torch.promote_types(left.dtype, torch.float32)
        return left.to(precision), right.to(precision)


def _linear(inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`nn.functional.linear` of (B, I), as the products that a CPU is sooner done with (`docs/log.md`).

    Returns:
        (B, O), one sample after the other, and no view, even of one sample: a ReLU writes into it.
    """
    if inputs.device.type != "cpu" or inputs.dtype not in (torch.bfloat16, torch.float32):
        return nn.functional.linear(inputs, weight, bias)
    if inputs.dtype == torch.float32 and len(inputs) in _HANDFUL and len(weight) % _PIECES == 0:
        pieces = weight.view(_PIECES, -1, weight.shape[1]).transpose(1, 2)
        products = torch.baddbmm(bias.view(_PIECES, 1, -1), inputs.expand(_PIECES, -1, -1), pieces)
        outputs = products.transpose(0, 1).flatten(1)
    else:
        outputs = torch.addmm(bias[:, None], weight, inputs.T).T
    return outputs.clone(memory_format=torch.contiguous_format)


class _Collected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Dense, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(inputs, weight)
        return _linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        return None, gradient @ weight, *ctx.layer.gradients(inputs, gradient)


_collected: Callable[..., Tensor] = _Collected.apply
