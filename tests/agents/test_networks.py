"""Networks: what goes in, what comes out, and the same from other code."""

import copy
import functools

import numpy as np
import pytest
import stable_baselines3.common.torch_layers as sb3
import torch
from gymnasium.spaces import Box
from torch import nn

from agents.adam import Adam
from agents.dense import Dense
from agents.networks import (
    MLP,
    ActorCritic,
    ImpalaResNet,
    NatureCNN,
    QNetwork,
    RamMLP,
    Tanh,
    _places_by_numpy,
    _places_by_torch,
    lowered,
    make_torso,
)
from tests.agents.driving import describe, inputs_of

DEPTH, BATCH, ACTIONS = 4, 3, 5
NOTHING = torch.zeros(BATCH, 0)
GAMES = {
    "nature": (describe((1, 84, 84), "uint8", ACTIONS), "auto", NatureCNN),
    "nature colour": (describe((3, 60, 80), "uint8", ACTIONS), "nature", NatureCNN),
    "impala": (describe((1, 84, 84), "uint8", ACTIONS), "impala", ImpalaResNet),
    "impala colour": (describe((3, 60, 80), "uint8", ACTIONS), "impala", ImpalaResNet),
    "ram": (describe((128,), "uint8", ACTIONS), "auto", RamMLP),
    "vector": (describe((6,), "float32", ACTIONS), "impala", MLP),
}


def stacks_of(game, batch=BATCH):
    rng = np.random.default_rng(0)
    size = (batch, DEPTH, *game.observation_shape)
    if game.observation_dtype == "uint8":
        return torch.from_numpy(rng.integers(0, 256, size, np.uint8))
    return torch.from_numpy(rng.normal(size=size).astype(np.float32))


@pytest.mark.parametrize("name", GAMES)
def test_shapes(name):
    game, kind, torso = GAMES[name]
    stacks = stacks_of(game)
    before = stacks.clone()
    critic, values_of = ActorCritic(game, DEPTH, kind), QNetwork(game, DEPTH, kind)
    assert type(critic.torso) is type(values_of.torso) is torso
    logits, values, state = critic(*inputs_of(stacks))
    logits, values = logits[0], values[0]
    assert state.shape == (BATCH, 0)
    assert (logits.shape, values.shape) == ((BATCH, ACTIONS), (BATCH,))
    assert values_of(stacks, NOTHING).shape == (BATCH, ACTIONS)
    assert {logits.dtype, values.dtype, values_of(stacks, NOTHING).dtype} == {torch.float32}
    assert torch.equal(stacks, before)
    # each sample for itself, and every frame of the stack is seen
    torch.testing.assert_close(critic(*inputs_of(stacks[1:2]))[1][0], values[1:2], atol=1e-3, rtol=1e-3)
    for frame in range(DEPTH):
        changed = stacks.clone()
        changed[:, frame] = 0
        assert not torch.allclose(critic(*inputs_of(changed))[1][0], values)


@pytest.mark.parametrize("name", GAMES)
def test_bfloat16_is_close(name):
    game, kind, _ = GAMES[name]
    torch.manual_seed(0)
    network = ActorCritic(game, DEPTH, kind)
    stacks = stacks_of(game)
    logits, values, _ = network(*inputs_of(stacks))
    low_logits, low_values, _ = lowered(network, torch.bfloat16)(*inputs_of(stacks))
    assert low_logits.dtype == low_values.dtype == torch.float32
    assert not torch.equal(low_logits, low_logits.bfloat16().float())  # heads do not round
    assert not torch.equal(low_values, values)  # it was another precision
    torch.testing.assert_close(low_logits, logits, atol=0.01, rtol=0.05)
    torch.testing.assert_close(low_values, values, atol=0.2 * values.abs().max().item(), rtol=0)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_memory_counts_in_float32(kind):
    """In bfloat16 too, with variables and an instruction beside the picture; so do what reads it, and its gradients."""
    torch.manual_seed(0)
    game = describe((1, 36, 36), "uint8", ACTIONS, extra=18, tokens=16)
    network = ActorCritic(game, DEPTH, "nature", kind)
    extra = torch.cat([torch.randn(BATCH, 2), torch.randint(0, 1000, (BATCH, 16))], 1)
    inputs, _ = inputs_of(stacks_of(game), extra)
    state = torch.randn(BATCH, network.state_size)
    with torch.no_grad():
        _, values, after = network(inputs, state)
    read = []
    low = lowered(network, torch.bfloat16)
    low.beside.reader.register_forward_hook(lambda _, inputs, outputs: read.append(outputs[0].dtype))
    low_logits, low_values, low_after = low(inputs, state)
    assert read == [torch.float32]  # in bfloat16 there is no such kernel without AVX-512
    assert {part.dtype for part in (low_logits, low_values, low_after)} == {torch.float32}
    torch.testing.assert_close(low_after, after, atol=0.02, rtol=0)
    torch.testing.assert_close(low_values, values, atol=0.05, rtol=0)
    assert not torch.equal(low_after, low_after.bfloat16().float())  # it was not rounded
    (low_values.sum() + low_logits.sum()).backward()
    assert all(weight.grad.isfinite().all() for weight in low.parameters())


@pytest.mark.parametrize("name", ["nature", "impala colour"])
def test_channels_last_changes_the_layout_alone(name):
    game, kind, _ = GAMES[name]
    torch.manual_seed(0)
    torso = make_torso(game, DEPTH, kind)
    plain = copy.deepcopy(torso).to(memory_format=torch.contiguous_format)
    convolutions = [layer for layer in torso.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.weight.is_contiguous(memory_format=torch.channels_last) for layer in convolutions)
    stacks = stacks_of(game)
    images = stacks.flatten(1, 2).float() / 255
    assert images.is_contiguous()
    expected = torch.relu(plain.dense(plain.convolutions(images).flatten(1)))
    torch.testing.assert_close(torso(stacks), expected, atol=1e-3, rtol=1e-3)


def test_nature_is_stable_baselines3s():
    game, kind, _ = GAMES["nature"]
    ours, theirs = make_torso(game, DEPTH, kind), sb3.NatureCNN(Box(0, 255, (DEPTH, 84, 84), np.uint8))
    with torch.no_grad():
        for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
            one.copy_(other)
    stacks = stacks_of(game)
    torch.testing.assert_close(ours(stacks), theirs(stacks[:, :, 0] / 255))


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("shape", [(1, 84, 84), (3, 37, 50)])
def test_blocks_are_the_same_convolution(shape, stored):
    """Sides that are no multiples of four too, and stacks that are views of what is stored; so are the gradients."""
    torch.manual_seed(0)
    torso = NatureCNN(DEPTH * shape[0], *shape[1:])
    plain = copy.deepcopy(torso)
    stacks = stacks_of(describe(shape, "uint8", ACTIONS))
    if stored:  # time first, and other games beside these
        rows = torch.zeros(DEPTH, BATCH + 2, *shape, dtype=torch.uint8)
        rows[:, 1:-1] = stacks.transpose(0, 1)
        stacks = rows[:, 1:-1].transpose(0, 1)
    features = torso(stacks)
    expected = plain.dense(plain.convolutions(stacks.flatten(1, 2) / 255).flatten(1)).relu()
    torch.testing.assert_close(features, expected)
    features.square().sum().backward()
    expected.square().sum().backward()
    for one, other in zip(torso.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 84, 84), (3, 37, 50), (2, 36, 41)])
def test_pixels_move_as_one_number_by_numpy_and_by_torch(shape):
    """Torch reads a number only where one may begin, numpy anywhere: here also of pictures cut out of wider ones."""
    wide = torch.randint(256, (BATCH, DEPTH, *shape[:-1], shape[-1] + 3), dtype=torch.uint8)
    for stacks in (wide, wide[..., 1:-2], wide[1:, ..., 3:], wide.transpose(0, 1)):
        places = _places_by_torch(stacks)
        assert places.shape == (len(stacks), shape[-2] // 4, stacks.shape[-1] // 4, stacks[0, :, :, 0, 0].numel() * 16)
        assert torch.equal(places, _places_by_numpy(stacks))


@pytest.mark.parametrize("batch", [0, 1, 2, 4, 7, 40])
@pytest.mark.parametrize("units", [512, 16, 9])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float64])
def test_a_dense_layer_is_torchs_own(precision, units, batch):
    """For acting and for learning, where a CPU makes other products of it; samples lie one after the other."""
    torch.manual_seed(0)
    layer = Dense(3136, units).to(precision)
    inputs = torch.rand(batch, 3136).to(precision)
    expected = nn.functional.linear(inputs, layer.weight, layer.bias)
    with torch.no_grad():
        acting = layer(inputs)
    layer.factors = []
    learning = layer(inputs)
    near = {"rtol": 2**-7, "atol": 2**-9} if precision == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-5}
    for ours in (acting, learning):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours, expected, **near)
    learning.relu_().sum().backward()  # in place, as torsos have it
    expected.relu_().sum().backward()
    ((left, right),) = layer.factors
    torch.testing.assert_close(left.T @ right, layer.weight.grad, **near)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_acting_follows_every_change_of_the_weights(precision):
    """What is made of them once for many forward passes is made anew, however they were changed, and in a copy too."""
    torch.manual_seed(0)
    game = describe((1, 84, 84), "uint8", ACTIONS)
    torso, other = (NatureCNN(DEPTH, 84, 84).to(precision) for _ in range(2))
    stacks = stacks_of(game)

    def features(torso, mode):
        with mode():
            return torso(stacks)

    seen = [features(torso, torch.inference_mode)]
    (weight, *_) = torso.parameters()
    rows = nn.Parameter(weight.detach()[:16], requires_grad=False)  # as a shared optimiser has them
    step = functools.partial(Adam([rows], lr=0.01, eps=1e-8).step_along, [torch.ones_like(rows)])
    changes = (
        step,
        step,  # which is another call than the first
        lambda: weight.data.mul_(2),
        lambda: torso.load_state_dict(other.state_dict()),
    )
    for change in changes:
        change()
        acting = features(torso, torch.inference_mode)
        torch.testing.assert_close(acting, features(torso, torch.enable_grad), rtol=2**-7, atol=2**-9)  # by other products
        assert torch.equal(acting, features(copy.deepcopy(torso), torch.no_grad))
        assert not any(torch.allclose(acting, before) for before in seen)
        seen.append(acting)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32, torch.float64])
def test_tanh_is_torchs_own(precision):
    inputs = torch.linspace(-6, 6, 1001, dtype=torch.float64).to(precision).requires_grad_()
    ours, theirs = Tanh()(inputs), torch.tanh(inputs)
    assert ours.dtype == precision
    assert torch.equal(ours, theirs)
    gradients = (torch.autograd.grad(outputs.sum(), inputs)[0] for outputs in (ours, theirs))
    torch.testing.assert_close(*gradients, atol=1e-2 if precision == torch.bfloat16 else 1e-12, rtol=0)


def test_impala_has_fifteen_convolutions():
    game, kind, _ = GAMES["impala"]
    torso = make_torso(game, DEPTH, kind)
    channels = [layer.out_channels for layer in torso.modules() if isinstance(layer, nn.Conv2d)]
    assert channels == [16] * 5 + [32] * 10
    assert torso.dense.in_features == 32 * 11 * 11  # 84 halved three times, rounded up
    # a residual block adds to what goes in
    block = next(module for module in torso.modules() if type(module).__name__ == "_Residual")
    nn.init.zeros_(block.body[-1].weight)
    images = torch.randn(1, 16, 8, 8)
    assert torch.equal(block(images), images)


def test_ram_is_seen_as_numbers_and_as_bits():
    torso = RamMLP(3)
    seen = []
    torso.mlp.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    torso(torch.tensor([[[0, 5, 255]]], dtype=torch.uint8))
    assert seen[0].tolist()[0] == pytest.approx([0] * 9 + [5 / 255, 1, 0, 1, 0, 0, 0, 0, 0] + [1] * 9)
    assert RamMLP(128).mlp.layers[0].in_features == 128 + 1024
    assert "views" not in RamMLP(3).state_dict()  # a table, not a weight


def test_initial_weights():
    game, kind, _ = GAMES["vector"]
    torch.manual_seed(0)
    network = ActorCritic(game, DEPTH, kind)
    for layer, gain in ((network.torso.layers[0], 2**0.5), (network.policy, 0.01), (network.value, 1.0)):
        rows = min(layer.weight.shape)
        short = layer.weight if layer.weight.shape[0] == rows else layer.weight.T
        torch.testing.assert_close(short @ short.T, gain**2 * torch.eye(rows), atol=1e-5, rtol=0)
        assert not layer.bias.any()
    logits, _, _ = network(*inputs_of(stacks_of(game)))
    assert logits.softmax(-1).min() > 1 / ACTIONS - 0.02  # it begins undecided
