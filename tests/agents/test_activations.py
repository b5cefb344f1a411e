"""A2C learns from what its layers made when it acted: the same as from a forward pass over the rollout."""

import gc
import weakref

import pytest
import torch

from agents.activations import Activations, Known, look
from agents.networks import NatureCNN
from envs.contract import InputError
from tests.agents.driving import build, configure, describe, draw_tape, play_tape, same, split
from training.loop import Turns
from training.metrics import Clock

SHAPE = (1, 52, 60)  # 3 x 4 behind the third convolution
NUM_ENVS, STEPS = 6, 5


def make(*, forward=False, groups=2, threads=1, precision=torch.float32, extra=0, **settings):
    """An A2C agent; with `forward`, one that makes a forward pass to learn."""
    config = configure("a2c", **{"num_envs": NUM_ENVS, "rollout_steps": STEPS, "frame_stack": 2, **settings})
    agent = build(
        "a2c", describe(SHAPE, "uint8", extra=extra), config, groups=groups, learn_threads=threads, precision=precision
    )
    if forward:
        agent.activations = None
    return agent


def tape_of(rollouts, groups=2, extra=0, seed=0):
    return draw_tape(rollouts * STEPS + 1, NUM_ENVS, shape=SHAPE, dtype="uint8", extra=extra, seed=seed).rewind(groups)


@pytest.mark.parametrize(
    ("groups", "threads", "extra"), [(1, 1, 0), (2, 1, 0), (2, 2, 0), (2, 2, 3), (3, 2, 0), (2, 3, 0), (6, 1, 0)]
)
def test_an_update_is_the_one_that_a_forward_pass_leads_to(groups, threads, extra, monkeypatch):
    """Threads get parts that begin and end within a piece; in float32 up to rounding, since batches are of other sizes."""
    monkeypatch.setattr("agents.shards.SMALLEST_OF_IMAGES", 1)
    monkeypatch.setattr("agents.shards._SHARED", 300_000)  # so that the dense layer's rows are shared, and no other's
    known, made = (make(forward=forward, groups=groups, threads=threads, extra=extra) for forward in (False, True))
    rows = [play_tape(agent, tape_of(3, groups, extra)) for agent in (known, made)]
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
    """Nor are stacks gathered: the blocks that they became are kept as well. Behind the update nothing holds on to them."""
    agent = make()
    seen, learned, held = [], [], []

    def counted_results(torso, stacks):
        seen.append(len(stacks))
        return results(torso, stacks)

    def counted_gradients(torso, given, gradient):
        learned.append([len(result) for result in given])
        held.extend(weakref.ref(result) for result in given[:-1])
        return gradients(torso, given, gradient)

    results, gradients = NatureCNN.results, NatureCNN.gradients
    monkeypatch.setattr(NatureCNN, "results", counted_results)
    monkeypatch.setattr(NatureCNN, "gradients", counted_gradients)
    monkeypatch.setattr("agents.rollout.gather_stacks", None)
    gc.disable()
    try:
        play_tape(agent, tape_of(2))
        assert not any(result() is not None for result in held)
    finally:
        gc.enable()
    assert learned == [[NUM_ENVS * STEPS] * 5] * 2
    assert set(seen) == {NUM_ENVS // 2}


class Sideways:
    """A torso whose only layer leaves its samples side by side in memory."""

    def results(self, stacks):
        yield stacks.T.contiguous().T


def test_samples_have_to_lie_one_after_the_other():
    """Else those of a rollout would be written over each other."""
    kept = Activations(STEPS, (slice(0, 4),))
    kept.begin(0, slice(0, 4))
    with pytest.raises(AssertionError, match="one after the other"):
        kept(Sideways(), torch.zeros(4, 8))


@pytest.mark.parametrize("shape", [(4, 84, 84), (3, 38, 61)])
def test_gradients_are_those_of_autograd(shape):
    """With pixels left over at the right and at the bottom too."""
    torch.manual_seed(0)
    torso = NatureCNN(*shape)
    stacks = torch.randint(256, (3, shape[0], 1, *shape[1:]), dtype=torch.uint8)
    upstream = torch.randn(3, torso.features)
    with torch.no_grad():
        known = Known([*torso.results(stacks)])
    gradients = []
    for see, given in ((known, stacks[:0]), (look, stacks)):
        torso.zero_grad()
        features = see(torso, given)
        assert torch.equal(features, torso(stacks))
        features.backward(upstream)
        gradients.append([weight.grad.clone() for weight in torso.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("groups", "threads", "begun"), [(2, 2, [1, 0]), (2, 4, [1, 0]), (2, 6, [3, 0]), (3, 3, [1, 2, 0]), (3, 2, [0, 1, 0])]
)
def test_a_groups_part_is_begun_while_others_still_play(groups, threads, begun, precision, monkeypatch):
    """With the bits of an update that begins behind the last group; a part of two groups waits for both."""
    monkeypatch.setattr("agents.shards.SMALLEST_OF_IMAGES", 1)
    early, late = (make(groups=groups, threads=threads, precision=precision) for _ in range(2))
    monkeypatch.setattr(late.shards, "begin", lambda work, parts: None)
    turns, seen, rows = Turns(tape_of(2, groups), early, Clock()), [], []
    while early.updates < 2:
        metrics = next(turns).metrics
        rows += [metrics] if metrics else []
        seen.append(early.shards.begun)
    assert seen == [0] * groups * STEPS + begun + [0] * groups * (STEPS - 1) + begun
    assert rows == play_tape(late, tape_of(2, groups))
    assert same(early.state_dict(), late.state_dict())


def test_a_part_that_was_begun_and_fails_is_told_and_forgotten(monkeypatch):
    monkeypatch.setattr("agents.shards.SMALLEST_OF_IMAGES", 1)
    agent = make(threads=2)
    turns = Turns(tape_of(1), agent, Clock())
    for _ in range(2 * STEPS):
        next(turns)
    known = agent.activations.known
    monkeypatch.setattr(agent.activations, "known", lambda part: 1 / 0 if part[0] == 0 else known(part))
    next(turns)
    assert agent.shards.begun == 1
    with pytest.raises(ZeroDivisionError):
        next(turns)
    assert not agent.shards.begun
    assert all(replica.torso.dense.factors is None for replica in agent.shards._replicas)


def test_no_part_is_begun_before_all_advantages_are_known(monkeypatch):
    """They are made alike over the whole rollout, where that is wanted."""
    monkeypatch.setattr("agents.shards.SMALLEST_OF_IMAGES", 1)
    agent = make(threads=2, normalize_advantages=True)
    turns = Turns(tape_of(1), agent, Clock())
    while agent.updates < 1:
        next(turns)
        assert not agent.shards.begun


def test_units_come_group_by_group_and_step_by_step():
    assert Activations(2, split(4, 2)).units.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]


def test_nothing_is_kept_beyond_the_update_that_it_is_for():
    agent = make()
    play_tape(agent, tape_of(1))
    assert agent.updates == 1
    with pytest.raises(KeyError):
        agent.activations.known(agent.activations.units)


def test_a_rollout_with_what_is_kept_has_to_fit_into_memory(monkeypatch):
    """In float32, four pictures and a vector: 32 of 13 x 15, 32 of 12 x 14, 64 of 5 x 6 and of 3 x 4, and 512."""
    kept = 4 * (32 * 13 * 15 + 32 * 12 * 14 + 64 * 5 * 6 + 64 * 3 * 4 + 512) * NUM_ENVS * STEPS * 2
    size = make().rollout.size + kept
    monkeypatch.setattr("agents.storage.free_memory", lambda: 10 * size)
    make()
    monkeypatch.setattr("agents.storage.free_memory", lambda: size)
    with pytest.raises(InputError, match=f"what the network makes of {NUM_ENVS * STEPS} steps"):
        make()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("turn", [1, 2, 3, 8, 9, 10, 11, 12, 13, 19, 20, 21])
def test_an_agent_that_is_loaded_within_a_rollout_learns_the_same(turn, threads, precision, monkeypatch):
    """What was kept or begun is not saved: it is made again, with the same bits, and what was there before is dropped."""
    monkeypatch.setattr("agents.shards.SMALLEST_OF_IMAGES", 1)
    whole, tape = make(threads=threads, precision=precision), tape_of(2)
    play_tape(whole, tape)
    first, second = (make(threads=threads, precision=precision) for _ in range(2))
    elsewhere = Turns(tape_of(2, seed=1), second, Clock())
    for _ in range(2 * STEPS + 1):  # one group is behind its last step
        next(elsewhere)
    assert second.shards.begun == threads - 1
    turns = Turns(tape.rewind(2), first, Clock())
    for _ in range(turn):
        next(turns)
    second.load_state_dict(first.state_dict())
    rest = Turns(tape, second, Clock())
    rest.load_state_dict(turns.state_dict())
    for _ in range(2 * tape.length - turn):
        next(rest)
    assert second.updates == whole.updates == 2
    assert same(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize("other", [{"torso": "impala"}, {"memory": "gru"}])
def test_other_networks_make_a_forward_pass(other):
    agent = make(**other)
    assert agent.activations is None
    assert len(play_tape(agent, tape_of(1))) == 1
