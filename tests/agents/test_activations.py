"""A2C learns from what its layers made when it acted: the same as from a forward pass over the rollout."""

import pytest
import torch
from torch import nn

from agents import activations
from agents.activations import Activations, compute
from agents.networks import NatureCNN
from envs.contract import InputError
from tests.agents.driving import build, configure, describe, draw_tape, play_tape, same, split
from training.loop import Turns
from training.metrics import Clock

SHAPE = (1, 52, 60)  # 3 x 4 behind the third convolution
NUM_ENVS, STEPS = 6, 5


def make(*, forward=False, groups=2, threads=1, precision=torch.float32, torso="auto", memory="none"):
    """An A2C agent; with `forward`, one that makes a forward pass to learn."""
    settings = {"num_envs": NUM_ENVS, "rollout_steps": STEPS, "frame_stack": 2, "torso": torso, "memory": memory}
    config = configure("a2c", **settings)
    agent = build("a2c", describe(SHAPE, "uint8"), config, groups=groups, learn_threads=threads, precision=precision)
    if forward:
        agent.activations = None
    return agent


def tape_of(rollouts, groups=2):
    return draw_tape(rollouts * STEPS + 1, NUM_ENVS, shape=SHAPE, dtype="uint8").rewind(groups)


@pytest.mark.parametrize(("groups", "threads"), [(1, 1), (2, 1), (2, 2), (3, 2), (2, 3), (6, 1)])
def test_an_update_is_the_one_that_a_forward_pass_leads_to(groups, threads, monkeypatch):
    """Threads get parts that begin and end within a piece; in float32 up to rounding, since batches are of other sizes."""
    monkeypatch.setattr("agents.shards.SMALLEST_OF_IMAGES", 1)
    known, made = (make(forward=forward, groups=groups, threads=threads) for forward in (False, True))
    rows = [play_tape(agent, tape_of(3, groups)) for agent in (known, made)]
    assert known.updates == made.updates == 3
    for ours, theirs in zip(*rows, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    for ours, theirs in zip(known.network.parameters(), made.network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_it_is_so_in_bfloat16():
    known, made = (make(forward=forward, precision=torch.bfloat16) for forward in (False, True))
    rows = [play_tape(agent, tape_of(1)) for agent in (known, made)]
    assert rows[0][0] == pytest.approx(rows[1][0], rel=2e-2, abs=1e-3)
    for ours, theirs in zip(known.network.parameters(), made.network.parameters(), strict=True):
        assert (ours.grad - theirs.grad).norm() < 0.05 * theirs.grad.norm()


def test_no_layer_is_computed_to_learn(monkeypatch):
    agent = make()
    called = []

    def counted(network, stacks, layer=compute):
        called.append((len(stacks), layer))
        return forward(network, stacks, layer)

    forward = NatureCNN.forward
    monkeypatch.setattr(NatureCNN, "forward", counted)
    play_tape(agent, tape_of(2))
    learned = [layer for size, layer in called if size == NUM_ENVS * STEPS]
    assert len(learned) == 2
    assert all(isinstance(layer, activations.Known) for layer in learned)
    images, weight, bias = torch.zeros(4, 3, 8, 8), torch.zeros(2, 3, 2, 2), torch.zeros(2)
    kept = torch.rand(4, 2, 7, 7)
    assert torch.equal(activations.Known(iter([kept]))(nn.functional.conv2d, images, weight, bias), kept)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_the_layers(stride):
    """Against torch's numerical gradients, in float64."""
    draw = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=draw, dtype=torch.float64).requires_grad_()

    cases = (
        (nn.functional.conv2d, (drawn(2, 3, 8, 8), drawn(4, 3, 2, 2), drawn(4)), ((stride, stride),)),
        (nn.functional.linear, (drawn(3, 5), drawn(4, 5), drawn(4)), ()),
    )
    for function, arguments, rest in cases:
        result = function(*arguments, *rest)
        ours = activations.Known(iter([result.detach().clone()]))(function, *arguments, *rest)
        upstream = torch.randn(result.shape, generator=draw, dtype=torch.float64)
        for mine, theirs in zip(
            torch.autograd.grad(ours, arguments, upstream), torch.autograd.grad(result, arguments, upstream), strict=True
        ):
            torch.testing.assert_close(mine, theirs)


def test_units_come_group_by_group_and_step_by_step():
    assert Activations(2, split(4, 2)).units.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_nothing_is_kept_beyond_the_update_that_it_is_for():
    agent = make()
    play_tape(agent, tape_of(1))
    assert agent.updates == 1
    assert agent.activations.size == 0
    with pytest.raises(KeyError):
        agent.activations.known(agent.activations.units)


def test_a_rollout_with_what_is_kept_has_to_fit_into_memory(monkeypatch):
    """In float32, three pictures and a vector: 32 of 12 x 14, 64 of 5 x 6 and of 3 x 4, and 512."""
    kept = 4 * (32 * 12 * 14 + 64 * 5 * 6 + 64 * 3 * 4 + 512) * NUM_ENVS * STEPS
    size = make().rollout.size + kept
    monkeypatch.setattr("agents.storage.free_memory", lambda: 10 * size)
    make()
    monkeypatch.setattr("agents.storage.free_memory", lambda: size)
    with pytest.raises(InputError, match=f"what the network makes of {NUM_ENVS * STEPS} steps"):
        make()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", range(1, 2 * STEPS + 1))
def test_an_agent_that_is_loaded_within_a_rollout_learns_the_same(steps, precision):
    """What was kept is not saved; it is made again, with the same bits."""
    whole, tape = make(precision=precision), tape_of(2)
    play_tape(whole, tape)
    first, second = make(precision=precision), make(precision=precision)
    turns = Turns(tape.rewind(2), first, Clock())
    for _ in range(2 * steps + 1):  # the second group is a step behind
        next(turns)
    second.load_state_dict(first.state_dict())
    rest = Turns(tape, second, Clock())
    rest.load_state_dict(turns.state_dict())
    for _ in range(2 * tape.length - 2 * steps - 1):
        next(rest)
    assert second.updates == whole.updates == 2
    assert same(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize("other", [{"torso": "impala"}, {"memory": "gru"}])
def test_other_networks_make_a_forward_pass(other):
    agent = make(**other)
    assert agent.activations is None
    assert len(play_tape(agent, tape_of(1))) == 1
