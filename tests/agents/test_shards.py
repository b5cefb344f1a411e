"""An update shared between threads is the whole update."""

import math

import pytest
import torch
from torch import nn

from agents.adam import Adam
from agents.dense import Dense
from agents.networks import MLP, ActorCritic
from agents.on_policy import mean_over
from agents.rmsprop import RMSprop
from agents.shards import SMALLEST, Shards, SharedOptimizer, Threads
from tests.agents.driving import build, configure, describe, draw_tape, inputs_of, play_tape, sgd, step_along

COUNT = 3 * SMALLEST + 7  # enough for three parts, and not an even split


def make_network():
    torch.manual_seed(0)
    return nn.Sequential(MLP(3, 8), Dense(8, 9), nn.Tanh(), nn.Linear(9, 1)).double()


RNG = torch.Generator().manual_seed(1)
INPUTS = torch.randn(COUNT, 3, dtype=torch.float64, generator=RNG)
WEIGHTS = (torch.rand(COUNT, generator=RNG) < 0.7).double()
INDICES = torch.randperm(COUNT, generator=RNG)


def work(network, part):
    """A masked mean, in shares of the whole weight."""
    share = WEIGHTS[part].sum() / WEIGHTS.sum()
    loss = mean_over(WEIGHTS[part])(network(INPUTS[part])[:, 0] ** 2) * share
    loss.backward()
    return {"loss": loss.detach(), "count": torch.tensor(len(part))}


HOW = {  # samples whose gradient is written once, at the end; numbers of weights whose rows are shared
    "sums": (0, 0),
    "products": (COUNT, 0),
    "one thread's": (COUNT, 2**19),
    "the dense layer's are shared": (COUNT, 72),
    "the dense layer's are shared, sums": (0, 72),
}


@pytest.fixture(params=HOW.values(), ids=HOW)
def _how(request, monkeypatch):
    """What the size of layers and batches decides."""
    few, shared = request.param
    monkeypatch.setattr("agents.dense._FEW", few)
    monkeypatch.setattr("agents.shards._SHARED", shared)


def gradients(shards, network, threads):
    metrics = shards.gradients(work, INDICES)
    shards.step(sgd(network, 0.0, threads), math.inf)
    return metrics, [parameter.grad.clone() for parameter in network.parameters()]


def whole(network):
    network.zero_grad()
    loss = mean_over(WEIGHTS)(network(INPUTS)[:, 0] ** 2)
    loss.backward()
    return loss.item(), [parameter.grad.clone() for parameter in network.parameters()]


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_parts_add_up_to_the_whole_and_repeat_bit_for_bit(count):
    network = make_network()
    shards = Shards(network, Threads(count))
    metrics, found = gradients(shards, network, count)
    assert metrics["count"].item() == COUNT
    again = gradients(shards, network, count)[1]
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))  # the last gradient is gone, too
    loss, expected = whole(network)
    assert metrics["loss"].item() == pytest.approx(loss, abs=1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("count", [2, 3])
def test_all_threads_see_each_step_of_the_optimiser_and_a_loaded_state(count):
    network = make_network()
    shards = Shards(network, Threads(count))
    optimizer = SharedOptimizer(OPTIMIZERS["adam"][1], network, Threads(count))
    first = make_network().state_dict()
    for _ in range(30):
        shards.gradients(work, INDICES)
        shards.step(optimizer, math.inf)
    moved = gradients(shards, network, count)[1]
    for one, other in zip(moved, whole(network)[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    network.load_state_dict(first)
    for one, other, before in zip(gradients(shards, network, count)[1], whole(make_network())[1], moved, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
        assert not torch.allclose(one, before, atol=1e-6)


OPTIMIZERS = {  # torch's own, and what is shared
    "adam": (
        lambda weights: torch.optim.Adam(weights, lr=0.01),
        lambda weights: Adam(weights, lr=0.01, eps=1e-8),
    ),
    "rmsprop": (
        lambda weights: torch.optim.RMSprop(weights, lr=0.01, alpha=0.95, eps=1e-5),
        lambda weights: RMSprop(weights, lr=0.01, decay=0.95, eps=1e-5),
    ),
}


def make_critic():
    torch.manual_seed(0)
    return ActorCritic(describe((1, 36, 36), "uint8", actions=3), 2, "nature")


def step(network, optimizer, count):
    """Steps along random gradients."""
    rng = torch.Generator().manual_seed(2)
    for _ in range(count):
        for weight in network.parameters():
            weight.grad = torch.empty_like(weight).copy_(torch.randn(weight.shape, generator=rng))  # laid out as backward does
        step_along(optimizer, network) if isinstance(optimizer, SharedOptimizer) else optimizer.step()


def flat(network):
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize(("torchs", "ours"), OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_shared_step_is_torchs_own(torchs, ours, count):
    """With weights that have fewer rows than there are threads, and with convolutions that lie channels last."""
    one, other = make_critic(), make_critic()
    step(one, torchs(list(one.parameters())), 3)
    step(other, SharedOptimizer(ours, other, Threads(count)), 3)
    torch.testing.assert_close(flat(other), flat(one), atol=1e-7, rtol=0)
    assert not torch.allclose(flat(one), flat(make_critic()), atol=1e-3)


@pytest.mark.parametrize(("torchs", "ours"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_changed_step_size_is_taken(torchs, ours):
    one, other = make_critic(), make_critic()
    optimizers = torchs(list(one.parameters())), SharedOptimizer(ours, other, Threads(2))
    for rate in (0.01, 0.001):
        optimizers[1].learning_rate = rate
        optimizers[0].param_groups[0]["lr"] = rate
        step(one, optimizers[0], 2)
        step(other, optimizers[1], 2)
    torch.testing.assert_close(flat(other), flat(one), atol=1e-7, rtol=0)


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize(("torchs", "ours"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimisers_state_does_not_know_the_number_of_threads(torchs, ours):
    """It is that of torch's own over whole weights, and either goes on with another number of threads."""
    networks = [make_critic() for _ in range(3)]
    optimizers = [torchs(list(networks[0].parameters())), *(SharedOptimizer(ours, networks[n], Threads(n)) for n in (1, 2))]
    for network, optimizer in zip(networks, optimizers, strict=True):
        step(network, optimizer, 2)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    for state in states[1:]:
        assert state.keys() == states[0].keys()
        for index, moments in state.items():
            for name, value in moments.items():
                torch.testing.assert_close(value, states[0][index][name], atol=1e-7, rtol=1e-6)
    for number in (0, 2):
        resumed = make_critic()
        resumed.load_state_dict(networks[number].state_dict())
        optimizer = SharedOptimizer(ours, resumed, Threads(3))
        optimizer.load_state_dict(optimizers[number].state_dict())
        step(resumed, optimizer, 2)
        step(networks[number], optimizers[number], 2)
        torch.testing.assert_close(flat(resumed), flat(networks[number]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimiser_goes_on_from_torchs_own_that_has_made_no_step(kind):
    """Checkpoints of older versions, from before the first update; what it remembers itself counts no more."""
    torchs, ours = OPTIMIZERS[kind]
    one, other = make_critic(), make_critic()
    expected, optimizer = torchs(list(one.parameters())), SharedOptimizer(ours, other, Threads(2))
    step(other, optimizer, 1)
    other.load_state_dict(one.state_dict())
    optimizer.load_state_dict(expected.state_dict())
    step(one, expected, 1)
    step(other, optimizer, 1)
    torch.testing.assert_close(flat(other), flat(one), atol=1e-7, rtol=0)


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("longest", [0.01, 1e6])
def test_a_shared_clip_is_torchs_own(longest, count):
    """Of a third of the gradient that is there, too."""
    one, other = make_network(), make_network()
    whole(one)
    for weight in one.parameters():
        weight.grad /= 3
    expected = nn.utils.clip_grad_norm_(one.parameters(), longest)
    assert longest == 1e6 or expected > longest
    torch.optim.SGD(one.parameters(), lr=0.1).step()
    shards = Shards(other, Threads(count))
    shards.gradients(work, INDICES)
    torch.testing.assert_close(shards.step(sgd(other, 0.1, count), longest, 1 / 3), expected)
    torch.testing.assert_close(flat(other), flat(one))


def test_a_step_size_is_taken_back():
    network = make_critic()
    optimizer = SharedOptimizer(OPTIMIZERS["adam"][1], network, Threads(2))
    state = optimizer.state_dict()
    optimizer.learning_rate = 3.0
    optimizer.load_state_dict(state)
    assert optimizer.learning_rate == 0.01


def test_a_state_of_other_weights_is_refused():
    network = make_critic()
    optimizer = SharedOptimizer(OPTIMIZERS["adam"][1], network, Threads(2))
    step(network, optimizer, 1)
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = state["state"][0]["exp_avg"][:-2]
    with pytest.raises(ValueError, match="is of weights"):
        optimizer.load_state_dict(state)
    state["state"][0]["exp_avg"] = torch.tensor(0.0)  # would be one number for all
    with pytest.raises(ValueError, match="is of weights"):
        optimizer.load_state_dict(state)
    del state["state"][0]
    with pytest.raises(ValueError, match="is of 11 weights"):
        optimizer.load_state_dict(state)


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("count", [1, 2])
def test_bfloat16_replicas_are_what_autocast_computes(count):
    """The same gradients as from float32 weights under torch's autocast, before and after a step."""
    network, plain = make_critic(), make_critic()
    shards = Shards(network, Threads(count), torch.bfloat16)
    assert shards.network.torso.dense.weight.dtype == torch.bfloat16
    stacks = torch.randint(0, 256, (COUNT, 2, 1, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))

    def work(critic, part):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=critic is plain):
            logits, values, _ = critic(inputs_of(stacks[part])[0], torch.zeros(len(part), 0))
        loss = (values.square().sum() + logits.sum()) / COUNT
        loss.backward()
        return {"loss": loss.detach()}

    for _ in range(2):
        plain.zero_grad()
        expected = work(plain, torch.arange(COUNT))
        found = shards.gradients(work, torch.arange(COUNT))
        norm = shards.step(sgd(network, 0.0, count), 0.5)
        torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(plain.parameters(), 0.5), rtol=0.02, atol=0)
        assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=0.02)
        for one, other in zip(network.parameters(), plain.parameters(), strict=True):
            assert one.grad.dtype == torch.float32
            assert (one.grad - other.grad).norm() < 0.04 * other.grad.norm()
        with torch.no_grad():
            for one, other in zip(network.parameters(), plain.parameters(), strict=True):
                one += 0.1 * other.grad
                other.copy_(one)
        shards.refresh()


def test_a_small_batch_is_not_split():
    network = make_network()
    parts = []

    def watched(network, part):
        parts.append(len(part))
        return work(network, part)

    Shards(network, Threads(3)).gradients(watched, INDICES[: 2 * SMALLEST - 1])
    assert parts == [2 * SMALLEST - 1]
    Shards(network, Threads(3)).gradients(watched, INDICES[: 2 * SMALLEST])
    assert parts[1:] == [SMALLEST] * 2


@pytest.mark.usefixtures("_how")
@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_an_agents_update_is_the_same_with_any_number_of_threads(algorithm):
    """With steps that count for nothing, unevenly spread over the parts."""
    tape = draw_tape(33, 8, end=0.2, cut=0.2, lost=0.2)
    config = configure(algorithm, num_envs=8, rollout_steps=32, frame_stack=1, reward="none", minibatches=1, epochs=2)
    found = {}
    for threads in (1, 2, 3, 3):
        agent = build(algorithm, describe(), config, learn_threads=threads)
        agent.optimizer = sgd(agent.network, 1e-3, threads)
        (metrics,) = play_tape(agent, tape)
        weights = torch.cat([weight.flatten() for weight in agent.network.state_dict().values()])
        if threads in found:
            assert torch.equal(weights, found[threads][0])
            assert metrics == found[threads][1]
        found[threads] = weights, metrics
    for threads in (2, 3):
        torch.testing.assert_close(found[threads][0], found[1][0], atol=1e-6, rtol=0)
        assert found[threads][1] == pytest.approx(found[1][1], abs=1e-5)


@pytest.mark.usefixtures("_how")
def test_a_batch_from_replay_is_shared_out():
    """DQN's loss is a mean over the transitions that count, however they fall into parts."""
    tape = draw_tape(60, 4, end=0.2, cut=0.2, lost=0.3)
    config = configure("dqn", num_envs=4, frame_stack=1, start_frames=0, batch_size=3 * SMALLEST, reward="none")
    weights = []
    for threads in (1, 3):
        agent = build("dqn", describe(), config, learn_threads=threads)
        agent.optimizer = sgd(agent.network, 0.1, threads)
        first = flat(agent.network).clone()
        play_tape(agent, tape)
        assert agent.updates > 20
        weights.append(flat(agent.network))
    assert not torch.allclose(weights[0], first, atol=1e-2)
    torch.testing.assert_close(*weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_holds_on_to_what_a_dense_layer_was_given(count):
    """Behind an update its inputs, of which factors of the gradient are made, can go."""
    seen, collected = [], []

    def watched(network, part):
        metrics = work(network, part)
        seen.append(network[1])
        collected.append(network[1].factors)
        return metrics

    network = make_network()
    shards = Shards(network, Threads(count))
    shards.gradients(watched, INDICES)
    assert collected == [None] if count == 1 else all(len(factors) == 1 for factors in collected)
    assert [layer.factors for layer in seen] == [None] * count
    shards.step(sgd(network, 0.0, count), math.inf)
    assert not shards._products
