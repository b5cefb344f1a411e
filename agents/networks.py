"""Networks: a torso picked by what is observed, and heads for what is wanted of it.

A torso takes stacks (B, depth, *shape) as they are stored (uint8 images and RAM, float32 vectors) and returns features (B, F).

- `nature`: the convolutional network of Mnih et al. 2015, "Human-level control through deep reinforcement learning".
- `impala`: the residual network of Espeholt et al. 2018, "IMPALA" (arXiv 1802.01561), 15 convolutions.
- `ram`: a multi-layer perceptron that sees the console's bytes both as numbers and as bits.
- `mlp`: a multi-layer perceptron for vectors.
"""

import math

import torch
from torch import Tensor, nn

from envs.contract import GameDescription, InputError

HIDDEN = 512  # features of the image torsos
_SMALLEST_NATURE = 36  # pixels of a side that its three convolutions leave something of
MLP_HIDDEN = 64  # units a layer for vectors, as in PPO's and stable-baselines3's defaults


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Linear | nn.Conv2d:
    """Orthogonal weights and zero bias, in place."""
    nn.init.orthogonal_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


def hidden(layer: nn.Linear | nn.Conv2d) -> nn.Linear | nn.Conv2d:
    """A layer that a ReLU or tanh follows."""
    return orthogonal(layer, math.sqrt(2))


class NatureCNN(nn.Module):
    """Three convolutions and one dense layer."""

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
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dense = hidden(nn.Linear(_flat_size(self.convolutions, channels, height, width), HIDDEN))
        self.features = HIDDEN

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, C, H, W) uint8 -> (B, features)."""
        features: Tensor = self.dense(self.convolutions(_as_image(stacks)).flatten(1))
        return features.relu()


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
        self.convolutions = nn.Sequential(*layers, nn.ReLU()).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dense = hidden(nn.Linear(_flat_size(self.convolutions, channels, height, width), HIDDEN))
        self.features = HIDDEN

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, C, H, W) uint8 -> (B, features)."""
        features: Tensor = self.dense(self.convolutions(_as_image(stacks)).flatten(1))
        return features.relu()


class MLP(nn.Module):
    """Two dense layers with tanh."""

    def __init__(self, size: int, units: int) -> None:
        """Take vectors (size,)."""
        super().__init__()
        self.layers = nn.Sequential(hidden(nn.Linear(size, units)), nn.Tanh(), hidden(nn.Linear(units, units)), nn.Tanh())
        self.features = units

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, D) float32 -> (B, features)."""
        features: Tensor = self.layers(stacks.flatten(1))
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
        features: Tensor = self.mlp(self.views[stacks.flatten(1).int()].flatten(1))
        return features


def make_torso(game: GameDescription, depth: int, kind: str) -> NatureCNN | ImpalaResNet | RamMLP | MLP:
    """The torso that fits the game's observation; `kind` chooses between `nature` (also for `auto`) and `impala` for images.

    Raises:
        InputError: the images are too small.
    """
    shape = game.observation_shape
    if len(shape) == 3:
        torso = ImpalaResNet if kind == "impala" else NatureCNN
        if torso is NatureCNN and min(shape[1:]) < _SMALLEST_NATURE:
            raise InputError(f"images of {shape[1]} x {shape[2]} are too small for the default network; take --torso impala")
        return torso(depth * shape[0], shape[1], shape[2])
    if game.observation_dtype == "uint8":
        return RamMLP(depth * shape[0])
    return MLP(depth * shape[0], MLP_HIDDEN)


class ActorCritic(nn.Module):
    """A policy and a value on one torso."""

    def __init__(self, game: GameDescription, depth: int, torso: str) -> None:
        """Size the heads by the game's actions."""
        super().__init__()
        self.torso = make_torso(game, depth, torso)
        self.policy = orthogonal(nn.Linear(self.torso.features, game.num_actions), 0.01)
        self.value = orthogonal(nn.Linear(self.torso.features, 1), 1.0)

    def forward(self, stacks: Tensor) -> tuple[Tensor, Tensor]:
        """(B, depth, *shape) -> logits (B, A), values (B,); float32 under autocast too."""
        features = self.torso(stacks)
        return self.policy(features).float(), self.value(features).float().squeeze(-1)


class QNetwork(nn.Module):
    """A value for each action."""

    def __init__(self, game: GameDescription, depth: int, torso: str) -> None:
        """Size the head by the game's actions."""
        super().__init__()
        self.torso = make_torso(game, depth, torso)
        self.head = orthogonal(nn.Linear(self.torso.features, game.num_actions), 1.0)

    def forward(self, stacks: Tensor) -> Tensor:
        """(B, depth, *shape) -> action values (B, A); float32 under autocast too."""
        values: Tensor = self.head(self.torso(stacks))
        return values.float()


def _as_image(stacks: Tensor) -> Tensor:
    """(B, depth, C, H, W) uint8 -> (B, depth * C, H, W) float in 0..1, channels last in memory."""
    device = stacks.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    return stacks.flatten(1, 2).to(dtype, memory_format=torch.channels_last) / 255  # bf16 holds a byte exactly


def _flat_size(layers: nn.Module, channels: int, height: int, width: int) -> int:
    with torch.no_grad():
        size: int = layers(torch.zeros(1, channels, height, width)).numel()
    return size
