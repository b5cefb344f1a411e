"""Networks: a torso picked by what is observed, a memory where one is wanted, and heads for what is wanted of them.

    stacks ── torso ───┐
                       ├─ features ── memory ── policy, value
    extra ── beside ───┘                │ ▲
    last action, reward ────────────────┘ └ state of the step before, zero where an episode opens

A torso takes stacks (B, depth, *shape) as they are stored (uint8 images and RAM, float32 vectors) and returns features (B, F).
What stands before the memory computes in the precision of its weights, float32 or less; memory and heads in float32.

- `nature`: the convolutional network of Mnih et al. 2015, "Human-level control through deep reinforcement learning".
- `impala`: the residual network of Espeholt et al. 2018, "IMPALA" (arXiv 1802.01561), 15 convolutions.
- `ram`: a multi-layer perceptron that sees the console's bytes both as numbers and as bits.
- `mlp`: a multi-layer perceptron for vectors.
"""

import copy
import functools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.activations import Look, look
from agents.dense import Dense
from envs.contract import VOCABULARY, GameDescription, InputError

HIDDEN = 512  # features of the image torsos
_BLOCK = 4  # pixels; the stride of NatureCNN's first convolution
_SMALLEST_NATURE = 36  # pixels of a side that its three convolutions leave something of
MLP_HIDDEN = 64  # units a layer for vectors, as in PPO's and stable-baselines3's defaults
_BESIDE = 64  # features of the numbers beside the picture, and of an instruction; the latter as in IMPALA
_WORD = 20  # numbers that a word becomes, as in IMPALA
MEMORY_UNITS = 256  # as in IMPALA

_Layer = TypeVar("_Layer", bound=nn.Linear | nn.Conv2d)


def orthogonal(layer: _Layer, gain: float) -> _Layer:
    """Orthogonal weights and zero bias, in place."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def hidden(layer: _Layer) -> _Layer:
    """A layer that a ReLU or tanh follows."""
    return orthogonal(layer, math.sqrt(2))


class Head(nn.Linear):
    """A last layer: float32 whatever is before it, since so few outputs gain nothing by fewer digits."""

    def forward(self, features: Tensor) -> Tensor:
        """(..., F) of any precision -> (..., outputs) float32."""
        return super().forward(features.float())


def channels_last(module: nn.Module) -> None:
    """Lay a module's convolutions out as the CPU's and the tensor cores' kernels read them, in place."""
    for weight in module.parameters():
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=torch.channels_last)


def lowered(network: nn.Module, precision: torch.dtype) -> nn.Module:
    """A copy with its convolutions, dense layers and tables in `precision`, but for the heads; other weights are shared."""
    low = copy.deepcopy(network)
    for module in low.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and not isinstance(module, Head):
            module.to(precision)
    for weight, own in zip(network.parameters(), low.parameters(), strict=True):
        if own.dtype == weight.dtype:
            own.data = weight.data
    for table in low.buffers():
        table.data = table.data.to(precision)
    return low


class NatureCNN(nn.Module):
    """Three convolutions and one dense layer.

    The first convolution is 8 x 8 with a stride of 4. It is computed as one of 2 x 2 with a stride of 1 over blocks of 4 x 4
    pixels, which is the same sum: few channels of many pixels are what processors are slowest at.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        """Take images (channels, height, width)."""
        super().__init__()
        self.convolutions = nn.Sequential(
            hidden(nn.Conv2d(channels, 32, 8, stride=4)),
            nn.ReLU(),
            hidden(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            hidden(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
        )
        channels_last(self.convolutions)
        self.dense = hidden(Dense(_flat_size(self.convolutions, channels, height, width), HIDDEN))
        self.features = HIDDEN
        self._layers = tuple(each for each in self.convolutions if isinstance(each, nn.Conv2d))
        self._over_blocks: tuple[Tensor, Tensor] | None = None  # weights of the first, and the same over blocks

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, C, H, W) uint8 -> (B, features)."""
        return deque(self.results(stacks), maxlen=1).pop()  # the last alone, so that what is behind it can go

    def results(self, stacks: Tensor) -> Iterator[Tensor]:
        """The images as blocks, and what each layer makes of what is before it, behind its ReLU; the last are the features."""
        first, second, third = self._layers
        convolve = nn.functional.conv2d
        images = _as_blocks(stacks, first.weight.dtype)
        yield images
        images = convolve(images, self._weights_over_blocks(first.weight), first.bias).relu_()
        yield images
        images = convolve(images, second.weight, second.bias, second.stride).relu_()
        yield images
        # In rows, as the dense layer reads them, before the ReLU: so its gradient is in rows too
        images = convolve(images, third.weight, third.bias).contiguous().relu_()
        yield images
        yield self.dense(images.flatten(1)).relu_()

    def gradients(self, results: Sequence[Tensor], gradient: Tensor) -> list[Tensor | None]:
        """Gradients of its weights, in the order of `parameters`; autograd's, up to rounding.

        None where the dense layer keeps factors instead.

        Args:
            results: All of them.
            gradient: Of the features, (B, features).
        """
        first, second, third = self._layers
        blocks, one, two, three, features = results
        behind_relu = torch.ops.aten.threshold_backward
        gradient = behind_relu(gradient, features, 0)
        dense = self.dense.gradients(three.flatten(1), gradient)
        gradient = behind_relu((gradient @ self.dense.weight).view(three.shape), three, 0)
        gradient, *of_third = _convolution_gradients(gradient, two, third.weight)
        gradient, *of_second = _convolution_gradients(behind_relu(gradient, two, 0), one, second.weight, second.stride)
        weight = _over_blocks(first.weight)  # only its shape is read: the gradient of the pixels is not wanted
        _, over_blocks, bias = _convolution_gradients(behind_relu(gradient, one, 0), blocks, weight, of_images=False)
        return [_from_blocks(over_blocks / 255), bias, *of_second, *of_third, *dense]

    def _weights_over_blocks(self, weight: Tensor) -> Tensor:
        """The first convolution's; on a CPU, where no gradient is wanted, made once for many forward passes."""
        if torch.is_grad_enabled() or weight.device.type != "cpu":
            return _over_blocks(weight) / 255
        if self._over_blocks is None or not torch.equal(self._over_blocks[0], weight):
            self._over_blocks = weight.clone(), _over_blocks(weight) / 255
        return self._over_blocks[1]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            hidden(nn.Conv2d(channels, channels, 3, padding=1)),
            nn.ReLU(),
            hidden(nn.Conv2d(channels, channels, 3, padding=1)),
        )

    def forward(self, images: Tensor) -> Tensor:
        residual: Tensor = self.body(images)
        return images + residual


class ImpalaResNet(nn.Module):
    """Three stages of a convolution, a pooling and two residual blocks, then one dense layer."""

    def __init__(self, channels: int, height: int, width: int, stages: tuple[int, ...] = (16, 32, 32)) -> None:
        """Take images (channels, height, width); `stages` are the channels of each stage."""
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((channels, *stages[:-1]), stages, strict=True):
            layers += [
                hidden(nn.Conv2d(before, after, 3, padding=1)),
                nn.MaxPool2d(3, stride=2, padding=1),
                _Residual(after),
                _Residual(after),
            ]
        self.convolutions = nn.Sequential(*layers, nn.ReLU())
        channels_last(self.convolutions)
        self.dense = hidden(Dense(_flat_size(self.convolutions, channels, height, width), HIDDEN))
        self.features = HIDDEN

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, C, H, W) uint8 -> (B, features)."""
        images = _as_image(stacks, _precision(self.convolutions))
        features: Tensor = self.dense(self.convolutions(images).flatten(1))
        return features.relu()


class Tanh(nn.Module):
    """`nn.Tanh`, in float32 or better: the same bits, and in bfloat16 torch takes three times as long for them on a CPU."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Of any shape; the gradient is that of the output before it is rounded."""
        return inputs.to(torch.promote_types(inputs.dtype, torch.float32)).tanh().to(inputs.dtype)


class MLP(nn.Module):
    """Two dense layers with tanh."""

    def __init__(self, size: int, units: int) -> None:
        """Take vectors (size,)."""
        super().__init__()
        self.layers = nn.Sequential(hidden(nn.Linear(size, units)), Tanh(), hidden(nn.Linear(units, units)), Tanh())
        self.features = units

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, D) -> (B, features)."""
        features: Tensor = self.layers(stacks.flatten(1).to(_precision(self.layers)))
        return features


class RamMLP(nn.Module):
    """An MLP over the console's bytes, scaled to 0..1, and their bits.

    Counters and positions are numbers; switches and shapes are bits. Neither view has to be learned from the other.
    """

    def __init__(self, size: int, units: int = 256) -> None:
        """Take `size` bytes."""
        super().__init__()
        self.mlp = MLP(size * 9, units)
        self.features = units
        values = torch.arange(256)
        bits = values[:, None] >> torch.arange(8) & 1
        self.register_buffer("views", torch.cat([values[:, None] / 255, bits], dim=1), persistent=False)
        self.views: Tensor  # (256, 9): a byte as a number, and its bits from the lowest

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, 128) uint8 -> (B, features)."""
        features: Tensor = self.mlp(nn.functional.embedding(stacks.flatten(1).int(), self.views).flatten(1))
        return features


def make_torso(game: GameDescription, depth: int, kind: str) -> NatureCNN | ImpalaResNet | RamMLP | MLP:
    """The torso that fits the game's observation; `kind` chooses between `nature` (also for `auto`) and `impala` for images.

    Raises:
        InputError: the images are too small.
    """
    shape = game.observation_shape
    if game.sees_images:
        torso = ImpalaResNet if kind == "impala" else NatureCNN
        if torso is NatureCNN and min(shape[1:]) < _SMALLEST_NATURE:
            raise InputError(f"images of {shape[1]} x {shape[2]} are too small for the default network; take --torso impala")
        return torso(depth * shape[0], shape[1], shape[2])
    if game.observation_dtype == "uint8":
        return RamMLP(depth * shape[0])
    return MLP(depth * shape[0], MLP_HIDDEN)


class Inputs(NamedTuple):
    """What an agent sees in L steps in a row of B environments; L is 1 where nothing is remembered."""

    stacks: Tensor  # (L, B, depth, *shape); (L, B, 0) where what a torso makes of them is known
    extra: Tensor  # (L, B, E) the numbers beside the picture
    last_actions: Tensor  # (L, B) what was played before
    last_rewards: Tensor  # (L, B) what that brought, in the game's own units
    is_first: Tensor  # (L, B) bool, an episode opens: nothing was played before


class Beside(nn.Module):
    """The numbers beside a picture and the words of an instruction.

    Numbers (health, ammunition) are squashed to `sign(x) * log(1 + |x|)`, so that no range has to be known. Words are
    read by an LSTM, as in IMPALA.
    """

    def __init__(self, num_numbers: int, num_words: int) -> None:
        """Take so many numbers, and after them word ids below `VOCABULARY`, 0 for none."""
        super().__init__()
        self._num_numbers = num_numbers
        self.dense = hidden(nn.Linear(num_numbers, _BESIDE)) if num_numbers else None
        self.embedding = nn.Embedding(VOCABULARY, _WORD) if num_words else None
        self.reader = nn.LSTM(_WORD, _BESIDE, batch_first=True) if num_words else None
        self.features = _BESIDE * (bool(num_numbers) + bool(num_words))

    def forward(self, extra: Tensor) -> Tensor:
        """(B, E) float32 -> (B, features)."""
        numbers, words = extra[:, : self._num_numbers], extra[:, self._num_numbers :].long()
        parts = []
        if self.dense is not None:
            squashed = numbers.sign() * numbers.abs().log1p()
            parts.append(self.dense(squashed.to(self.dense.weight.dtype)).relu())
        if self.embedding is not None and self.reader is not None:
            read, _ = self.reader(self.embedding(words))
            length = (words > 0).sum(1)
            last = read[torch.arange(len(read), device=read.device), (length - 1).clamp(min=0)]
            parts.append(last * (length > 0)[:, None])
        return torch.cat(parts, -1)


class Memory(nn.Module):
    """A recurrent cell that sees the features, the last action and the last reward (within +-1): `gru` or `lstm`.

    Its state is one tensor (B, state_size); the LSTM's two parts lie side by side in it.
    """

    def __init__(self, kind: str, features: int, num_actions: int) -> None:
        """Take features (features,)."""
        super().__init__()
        self._num_actions = num_actions
        cell = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[kind]
        self.cell = cell(features + num_actions + 1, MEMORY_UNITS)
        self.features = MEMORY_UNITS
        self.state_size = MEMORY_UNITS if kind == "gru" else 2 * MEMORY_UNITS

    def forward(self, features: Tensor, inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor]:
        """(L, B, F), the same steps' inputs and the state before them (B, S) -> (L, B, features), the state after them."""
        goes_on = ~inputs.is_first[..., None]
        played = nn.functional.one_hot(inputs.last_actions, self._num_actions)
        before = torch.cat([played, inputs.last_rewards[..., None].clamp(-1, 1)], -1) * goes_on
        outputs = []
        for seen, kept in zip(torch.cat([features.float(), before], -1), goes_on, strict=True):
            state = self._step(seen, state * kept)
            outputs.append(state[:, : self.features])
        return torch.stack(outputs), state

    def _step(self, seen: Tensor, state: Tensor) -> Tensor:
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(self.cell(seen, state.chunk(2, -1)), -1)
        after: Tensor = self.cell(seen, state)
        return after


class Network(nn.Module):
    """What all have in common: they see the picture and what is beside it."""

    def __init__(self, game: GameDescription, depth: int, torso: str) -> None:
        """Pick the torso; the second part is there only for games that have such numbers."""
        super().__init__()
        self.torso = make_torso(game, depth, torso)
        self.beside = Beside(game.extra_size - game.num_tokens, game.num_tokens) if game.extra_size else None
        self.features = self.torso.features + (self.beside.features if self.beside else 0)

    def see(self, stacks: Tensor, extra: Tensor, look: Look = look) -> Tensor:
        """(B, depth, *shape), (B, E) -> (B, features); `look` lets the torso look at the stacks."""
        features = look(self.torso, stacks)
        return features if self.beside is None else torch.cat([features, self.beside(extra)], -1)


class ActorCritic(Network):
    """A policy and a value on one torso, with a memory between where `memory` is `gru` or `lstm`."""

    def __init__(self, game: GameDescription, depth: int, torso: str, memory: str = "none") -> None:
        """Size the heads by the game's actions."""
        super().__init__(game, depth, torso)
        self.memory = Memory(memory, self.features, game.num_actions) if memory != "none" else None
        self.state_size = self.memory.state_size if self.memory else 0
        features = self.memory.features if self.memory else self.features
        self.policy = orthogonal(Head(features, game.num_actions), 0.01)
        self.value = orthogonal(Head(features, 1), 1.0)

    def forward(self, inputs: Inputs, state: Tensor, look: Look = look) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs (L, B, ...) and the state before them (B, S) -> logits (L, B, A), values (L, B), the state after them (B, S).

        Without a memory S is 0, and each step is seen for itself. `look` lets the torso look at the stacks.
        """
        features = self.see(inputs.stacks.flatten(0, 1), inputs.extra.flatten(0, 1), look).view(*inputs.is_first.shape, -1)
        if self.memory is not None:
            features, state = self.memory(features, inputs, state)
        features = features.float()  # once for both heads
        return self.policy(features), self.value(features).squeeze(-1), state


class QNetwork(Network):
    """A value for each action."""

    def __init__(self, game: GameDescription, depth: int, torso: str) -> None:
        """Size the head by the game's actions."""
        super().__init__(game, depth, torso)
        self.head = orthogonal(Head(self.features, game.num_actions), 1.0)

    def forward(self, stacks: Tensor, extra: Tensor) -> Tensor:
        """(B, depth, *shape), (B, E) -> action values (B, A)."""
        values: Tensor = self.head(self.see(stacks, extra))
        return values


def _precision(layers: nn.Sequential) -> torch.dtype:
    """In what layers compute."""
    return layers.get_parameter("0.weight").dtype


def _as_image(stacks: Tensor, precision: torch.dtype) -> Tensor:
    """(B, depth, C, H, W) uint8 -> (B, depth * C, H, W) in 0..1, channels last in memory."""
    return stacks.flatten(1, 2).to(precision, memory_format=torch.channels_last) / 255


def _as_blocks(stacks: Tensor, precision: torch.dtype) -> Tensor:
    """(B, depth, C, H, W) uint8 -> (B, depth * C * 16, H // 4, W // 4) in 0..255, channels last in memory.

    The channels of a place are the pixels of its block, row by row; what is left over at the right and at the bottom goes.
    bfloat16 holds a byte exactly.
    """
    places = _places_by_numpy(stacks) if stacks.device.type == "cpu" else _places_by_torch(stacks)
    return places.to(precision).permute(0, 3, 1, 2)


def _places_by_numpy(stacks: Tensor) -> Tensor:
    """(B, depth, C, H, W) bytes -> (B, H // 4, W // 4, depth * C * 16), in a third of torch's time."""
    numbers = _cut(stacks.numpy()).view(np.int32)
    order = _order(*numbers.shape[1:])
    places = np.take(numbers.reshape(len(numbers), order.size), order.ravel(), axis=1, mode="clip")  # sooner than to raise
    return torch.from_numpy(places.view(np.uint8).reshape(len(numbers), *order.shape[:2], order[0, 0].size * 4))


@functools.cache
def _order(*shape: int) -> NDArray[np.intp]:
    """Where the numbers of one sample's places are among its pixels."""
    order: NDArray[np.intp] = _places(np.arange(math.prod(shape)).reshape(1, *shape))[0].copy()
    return order


def _places_by_torch(stacks: Tensor) -> Tensor:
    """The same, where numpy does not reach."""
    pixels = _cut(stacks)
    if any(step % torch.int32.itemsize for step in (pixels.storage_offset(), *pixels.stride()[:-1])):
        pixels = pixels.clone(memory_format=torch.contiguous_format)  # so that each row begins where a number of four bytes may
    places: Tensor = _places(pixels.view(torch.int32)).contiguous()
    return places.view(torch.uint8).flatten(3)


def _cut(stacks: Any) -> Any:
    """Pictures, of numpy or torch, without what no whole block holds."""
    height, width = stacks.shape[-2:]
    if height % _BLOCK or width % _BLOCK:  # else there is no need for a view, which takes 20 us behind a forward pass
        return stacks[..., : height // _BLOCK * _BLOCK, : width // _BLOCK * _BLOCK]
    return stacks


def _places(numbers: Any) -> Any:
    """(B, depth, C, H, W // 4) numbers of four pixels -> (B, H // 4, W // 4, depth, C, 4), a view, of numpy or torch alike."""
    rows = numbers.reshape(*numbers.shape[:3], numbers.shape[3] // _BLOCK, _BLOCK, numbers.shape[4])
    return rows.swapaxes(1, 3).swapaxes(2, 5).swapaxes(4, 5)


def _over_blocks(weight: Tensor) -> Tensor:
    """The same convolution's weights over blocks: (O, I, 8, 8) -> (O, I * 16, 2, 2), channels last in memory."""
    out, channels, size, _ = weight.shape
    blocks = weight.reshape(out, channels, size // _BLOCK, _BLOCK, size // _BLOCK, _BLOCK).permute(0, 2, 4, 1, 3, 5)
    return blocks.flatten(3).permute(0, 3, 1, 2)


def _from_blocks(weight: Tensor) -> Tensor:
    """The way back: (O, I * 16, 2, 2) -> (O, I, 8, 8)."""
    out, _, places, _ = weight.shape
    blocks = weight.permute(0, 2, 3, 1).reshape(out, places, places, -1, _BLOCK, _BLOCK)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(out, -1, places * _BLOCK, places * _BLOCK)


def _convolution_gradients(
    gradient: Tensor, images: Tensor, weight: Tensor, stride: tuple[int, ...] = (1, 1), *, of_images: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of images, weight and bias of a convolution without padding."""
    rest = [len(weight)], stride, [0, 0], [1, 1], False, [0, 0], 1  # no padding, no dilation, one group
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient, images, weight, *rest, (of_images, True, True)
    )
    return gradients


def _flat_size(layers: nn.Module, channels: int, height: int, width: int) -> int:
    with torch.no_grad():
        size: int = layers(torch.zeros(1, channels, height, width)).numel()
    return size
