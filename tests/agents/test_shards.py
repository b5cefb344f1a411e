"""An update shared between threads is the whole update."""

import pytest
import torch
from torch import nn

from agents.networks import MLP
from agents.on_policy import masked_mean
from agents.shards import SMALLEST, Shards
from tests.agents.driving import build, configure, describe, draw_tape, play_tape

COUNT = 3 * SMALLEST + 7  # enough for three parts, and not an even split


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(MLP(3, 8), nn.Linear(8, 1)).double()


RNG = torch.Generator().manual_seed(1)
INPUTS = torch.randn(COUNT, 3, dtype=torch.float64, generator=RNG)
WEIGHTS = (torch.rand(COUNT, generator=RNG) < 0.7).double()
INDICES = torch.randperm(COUNT, generator=RNG)


def work(network, part):
    """A masked mean, in shares of the whole weight."""
    share = WEIGHTS[part].sum() / WEIGHTS.sum()
    loss = masked_mean(network(INPUTS[part])[:, 0] ** 2, WEIGHTS[part]) * share
    loss.backward()
    return {"loss": loss.detach(), "count": torch.tensor(len(part))}


def gradients(shards, network):
    metrics = shards.gradients(work, INDICES)
    return metrics, [parameter.grad.clone() for parameter in network.parameters()]


def whole(network):
    network.zero_grad()
    loss = masked_mean(network(INPUTS)[:, 0] ** 2, WEIGHTS)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_add_up_to_the_whole_and_repeat_bit_for_bit(count):
    network = make_network()
    shards = Shards(network, count)
    metrics, found = gradients(shards, network)
    assert metrics["count"].item() == COUNT
    again = gradients(shards, network)[1]
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))  # the last gradient is gone, too
    loss, expected = whole(network)
    assert metrics["loss"].item() == pytest.approx(loss, abs=1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("count", [2, 3])
def test_all_threads_see_each_step_of_the_optimiser_and_a_loaded_state(count):
    network = make_network()
    shards = Shards(network, count)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    first = make_network().state_dict()
    for _ in range(3):
        gradients(shards, network)
        optimizer.step()
    moved = gradients(shards, network)[1]
    for one, other in zip(moved, whole(network)[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    network.load_state_dict(first)
    for one, other, before in zip(gradients(shards, network)[1], whole(make_network())[1], moved, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
        assert not torch.allclose(one, before, atol=1e-6)


def test_a_small_batch_is_not_split():
    network = make_network()
    parts = []

    def watched(network, part):
        parts.append(len(part))
        return work(network, part)

    Shards(network, 3).gradients(watched, INDICES[: 2 * SMALLEST - 1])
    assert parts == [2 * SMALLEST - 1]
    Shards(network, 3).gradients(watched, INDICES[: 2 * SMALLEST])
    assert parts[1:] == [SMALLEST] * 2


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_an_agents_update_is_the_same_with_any_number_of_threads(algorithm):
    """With steps that count for nothing, unevenly spread over the parts."""
    tape = draw_tape(33, 8, end=0.2, cut=0.2, lost=0.2)
    config = configure(algorithm, num_envs=8, rollout_steps=32, frame_stack=1, reward="none", minibatches=1, epochs=2)
    found = {}
    for threads in (1, 2, 3, 3):
        agent = build(algorithm, describe(), config, learn_threads=threads)
        agent.optimizer = torch.optim.SGD(agent.network.parameters())
        (metrics,) = play_tape(agent, tape)
        weights = torch.cat([weight.flatten() for weight in agent.network.state_dict().values()])
        if threads in found:
            assert torch.equal(weights, found[threads][0])
            assert metrics == found[threads][1]
        found[threads] = weights, metrics
    for threads in (2, 3):
        torch.testing.assert_close(found[threads][0], found[1][0], atol=1e-6, rtol=0)
        assert found[threads][1] == pytest.approx(found[1][1], abs=1e-5)
