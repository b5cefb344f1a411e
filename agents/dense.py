"""A dense layer whose weights get their gradient from a whole batch, even where parts of it are several threads'.

    of one part      left.T @ right      left (B, O) the gradient behind the layer, right (B, I) what it was given
    of all parts     the same product of all their rows: a thread makes a share of the rows of the weights

A product for each part would be O * I numbers written and read again for each, to be added up; for small batches that takes
longer than to multiply.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class Dense(nn.Linear):
    """`nn.Linear`, whose weights can leave their gradient as factors."""

    factors: list[tuple[Tensor, Tensor]] | None = None
    """A list to which each backward pass adds (left, right), and `weight.grad` stays as it is; None: as in `nn.Linear`."""

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, I) -> (B, O)."""
        if self.factors is None or not torch.is_grad_enabled():
            return super().forward(inputs)
        return _collected(self, inputs, self.weight, self.bias)

    def gradients(self, inputs: Tensor, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        """Gradients of weights (None where factors are collected) and bias, by what it was given and the gradient behind it."""
        if self.factors is None:
            return gradient.T @ inputs, gradient.sum(0)
        self.factors.append((gradient, inputs.detach()))  # what is before the layer is another node's
        return None, gradient.sum(0)


def write_gradient(layers: Sequence[Dense], rows: slice, gradient: Tensor) -> None:
    """Some rows of the weights' gradient, of all factors that copies of a layer have collected, into `gradient`."""
    pairs = [pair for layer in layers for pair in layer.factors or ()]
    assert pairs, "a weight that no output depends on"
    if gradient.dtype == pairs[0][0].dtype:
        for at, (left, right) in enumerate(pairs):
            gradient.addmm_(left[:, rows].T, right, beta=min(at, 1))  # the first takes the place of what is there
    else:  # a sum in fewer digits would round with each
        gradient.copy_(torch.cat([left[:, rows] for left, _ in pairs]).T @ torch.cat([right for _, right in pairs]))


class _Collected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, layer: Dense, inputs: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(inputs, weight)
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        return None, gradient @ weight, *ctx.layer.gradients(inputs, gradient)


_collected: Callable[..., Tensor] = _Collected.apply
