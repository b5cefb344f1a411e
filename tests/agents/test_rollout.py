"""Rollouts: the frames that an agent acts on are those it learns from, whoever takes turns."""

import numpy as np
import pytest
import torch

from agents.frames import FrameStack
from agents.on_policy import Batch, policy_terms
from agents.rollout import Rollout
from tests.agents.driving import Tape, build, configure, describe, draw_tape, inputs_of, look, play_tape

SHAPE = (1, 2, 2)


def naive_stacks(tape: Tape, depth: int) -> np.ndarray:
    """(T, N, depth, *SHAPE), with plain loops."""
    steps = tape.steps
    stacks = np.zeros((tape.length, tape.num_envs, depth, *SHAPE), np.uint8)
    for t in range(tape.length):
        for slot in range(tape.num_envs):
            for back in range(depth):
                stacks[t, slot, depth - 1 - back] = steps.observation[t - back, slot]
                if steps.is_first[t - back, slot]:
                    break
    return stacks


def pictures(steps, num_envs, seed=0):
    return draw_tape(steps, num_envs, shape=SHAPE, dtype="uint8", seed=seed)


def put_frame(rollout, t, observation, is_first):
    rollout.put_step(t, slice(None), look(observation)._replace(is_first=is_first))


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("length", [2, 10])
def test_stacks_for_acting_for_learning_and_of_a_player_are_the_same(length, num_envs, depth):
    """Over three rollouts, some shorter than a stack, and again after acting: looking changes nothing that is stored."""
    tape = pictures(3 * length + 1, num_envs)
    expected = torch.from_numpy(naive_stacks(tape, depth))
    everyone = slice(None)
    rollout = Rollout(length, num_envs, depth, describe(SHAPE, "uint8"), torch.device("cpu"))
    player = FrameStack(num_envs, depth, SHAPE, torch.uint8, torch.device("cpu"))

    def put(t, step):
        put_frame(rollout, t, step.observation, step.is_first)
        return player.push(torch.from_numpy(step.observation), torch.from_numpy(step.is_first), everyone)

    assert torch.equal(put(0, tape.at(0)), expected[0])
    for start in (0, length, 2 * length):
        for t in range(length):
            assert torch.equal(rollout.inputs_at(t, everyone).stacks[0], expected[start + t])
            for slot in range(num_envs):
                assert torch.equal(rollout.inputs_at(t, slice(slot, slot + 1)).stacks[0][0], expected[start + t, slot])
            assert torch.equal(put(t + 1, tape.at(start + t + 1)), expected[start + t + 1])
        assert torch.equal(rollout.inputs_at(length, everyone).stacks[0], expected[start + length])  # whose value is asked for
        t, slots = (index.flatten() for index in np.indices((length, num_envs)))
        learned = rollout.inputs(torch.from_numpy(t)[None], torch.from_numpy(slots)).stacks[0]
        assert torch.equal(learned, expected[start + t, slots])
        rollout.carry_over()


def test_a_stack_looks_back_into_the_rollout_before():
    rollout = Rollout(2, 1, 3, describe((1,)), torch.device("cpu"))
    frame = iter(np.arange(1.0, 10.0)[:, None, None])
    put_frame(rollout, 0, next(frame), np.array([True]))
    for _ in range(2):
        for t in (1, 2):
            put_frame(rollout, t, next(frame), np.array([False]))
        rollout.carry_over()
    # frames 1 ... 5; the last is the third rollout's first
    assert rollout.inputs_at(0, slice(None)).stacks[0].flatten().tolist() == [3, 4, 5]
    put_frame(rollout, 1, next(frame), np.array([True]))
    assert rollout.inputs_at(1, slice(None)).stacks[0].flatten().tolist() == [0, 0, 6]  # black, which leaves the frames alone:
    assert rollout.inputs_at(0, slice(None)).stacks[0].flatten().tolist() == [
        3,
        4,
        5,
    ]


class Watch:
    """Keeps a copy of each rollout that an agent is about to learn from, and leaves the agent as it is."""

    def __init__(self, agent, learn=False):
        self.seen = []
        update = agent.update

        def watched(batch):
            rollout = agent.rollout
            tables = ("frames", "age", "actions", "log_probs", "values", "rewards", "terminated", "ends", "mask")
            stored = {name: getattr(rollout, name).clone() for name in tables}
            self.seen.append((stored, Batch(*(field.clone() for field in batch))))
            return update(batch) if learn else {}

        agent.update = watched


def small_agent(algorithm="ppo", groups=1, **changes):
    config = configure(algorithm, **{"num_envs": 4, "rollout_steps": 6, "frame_stack": 3, "reward": "none", **changes})
    return build(algorithm, describe((5,), "uint8"), config, groups=groups)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_groups_fill_the_same_rollouts_as_one(algorithm):
    """Up to which action is drawn, since the groups draw in turn from one generator."""
    tape = draw_tape(19, 4, shape=(5,), dtype="uint8", life=0.1)
    rollouts = {}
    for groups in (1, 2, 4):
        agent = small_agent(algorithm, groups)
        watch = Watch(agent)
        play_tape(agent, tape.rewind(groups))
        rollouts[groups] = [table for table, _ in watch.seen]
        assert len(rollouts[groups]) == 3  # 18 steps behind the first
        assert agent.steps == (~tape.steps.is_first).sum()
    for groups in (2, 4):
        for one, other in zip(rollouts[1], rollouts[groups], strict=True):
            for name in ("frames", "age", "rewards", "terminated", "ends", "mask"):
                assert torch.equal(one[name], other[name]), name
            torch.testing.assert_close(one["values"], other["values"])


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_stored_is_what_the_policy_that_acted_said(algorithm, groups):
    tape = draw_tape(13, 4, shape=(5,), dtype="uint8")
    agent = small_agent(algorithm, groups, learning_rate=0.1)
    networks = [{name: weight.clone() for name, weight in agent.network.state_dict().items()}]
    watch = Watch(agent, learn=True)
    inner = agent.update

    def update(batch):
        metrics = inner(batch)
        networks.append({name: weight.clone() for name, weight in agent.network.state_dict().items()})
        return metrics

    agent.update = update
    play_tape(agent, tape.rewind(groups))
    assert len(watch.seen) == 2
    assert (tape.steps.terminated.any(), tape.steps.truncated.any(), tape.steps.is_first[1:].any()) == (True, True, True)
    for start, (stored, batch), weights in zip((0, 6), watch.seen, networks, strict=False):
        agent.network.load_state_dict(weights)
        actions = torch.from_numpy(tape.actions[start : start + 6])
        assert torch.equal(stored["actions"], actions)
        stacks = torch.zeros(7, 4, 3, 5, dtype=torch.uint8)
        for t in range(7):
            for slot in range(4):
                for back in range(3):
                    stacks[t, slot, 2 - back] = torch.from_numpy(tape.steps.observation[start + t - back, slot])
                    if tape.steps.is_first[start + t - back, slot]:
                        break
        with torch.no_grad():
            logits, values, _ = agent.network(*inputs_of(stacks.flatten(0, 1)))
        torch.testing.assert_close(stored["values"].flatten(), values[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            stored["log_probs"], policy_terms(logits[0, :24], actions.flatten())[0].view(6, 4), atol=1e-4, rtol=1e-4
        )
        # what an action brought is in the step after it
        after = tape.at(slice(start + 1, start + 7))
        assert np.array_equal(stored["rewards"], after.reward)
        assert np.array_equal(stored["terminated"], after.terminated)
        assert np.array_equal(stored["ends"], after.terminated | after.truncated)
        assert np.array_equal(stored["mask"], ~after.is_first)
        assert torch.equal(batch.weights, stored["mask"].float())
        assert torch.equal(batch.actions, actions)


@pytest.mark.parametrize("algorithm", ["a2c", "dqn", "ppo"])
@pytest.mark.parametrize("wanted", [False, True])
def test_a_lost_life_ends_the_return_only_where_wanted(algorithm, wanted):
    tape = draw_tape(7, 4, shape=(5,), dtype="uint8", life=0.3, seed=2)
    after = tape.at(slice(1, 7))
    assert (after.life_lost & ~after.terminated).any()
    assert (after.life_lost & after.truncated).any()
    agent = small_agent(algorithm, end_on_life_loss=wanted)
    if algorithm == "dqn":
        play_tape(agent, tape)
        stored = {name: getattr(agent.replay, name)[:6] for name in ("terminated", "ends")}
    else:
        watch = Watch(agent)
        play_tape(agent, tape)
        stored = watch.seen[0][0]
    over = after.terminated | after.life_lost if wanted else after.terminated
    assert np.array_equal(stored["terminated"], over)
    assert np.array_equal(stored["ends"], over | after.truncated)


@pytest.mark.parametrize("algorithm", ["a2c", "dqn", "ppo"])
def test_clipped_rewards_are_learned_from_and_the_game_keeps_its_own(algorithm):
    tape = draw_tape(7, 4, shape=(5,), dtype="uint8")
    tape.steps.reward[:] *= 10
    before = tape.steps.reward.copy()
    agent, played = small_agent(algorithm, reward="clip"), ~tape.steps.is_first[1:7]
    if algorithm == "dqn":
        play_tape(agent, tape)
        t, slots = (torch.from_numpy(index.flatten()) for index in np.indices((6, 4)))
        learned = agent.replay.transitions(t, slots, 1, 0.99).rewards.view(6, 4)
    else:
        watch = Watch(agent)
        play_tape(agent, tape)
        learned = watch.seen[0][0]["rewards"]
    assert np.array_equal(learned[played], np.clip(before[1:7], -1, 1)[played])
    assert np.array_equal(tape.steps.reward, before)
    assert (np.abs(before[1:7]) > 1).any()


def test_actions_follow_the_policy():
    """Sampled with the probabilities that the network gives: 4,000 draws, 5 sigma."""
    agent = small_agent(num_envs=1_000, rollout_steps=8, frame_stack=1)
    with torch.no_grad():
        agent.network.policy.weight.zero_()
        agent.network.policy.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    tape = draw_tape(5, 1_000, shape=(5,), dtype="uint8")
    play_tape(agent, tape)
    shares = np.bincount(tape.actions.flatten()[:4_000], minlength=4) / 4_000
    assert shares == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.04)


def test_epsilon_greedy_actions():
    config = configure("dqn", num_envs=1_000, frame_stack=1, epsilon_start=0.4, epsilon_end=0.4)
    agent = build("dqn", describe((5,), "uint8"), config, total_frames=10**6)
    with torch.no_grad():
        agent.network.head.weight.zero_()
        agent.network.head.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 0.0]))
    tape = draw_tape(5, 1_000, shape=(5,), dtype="uint8")
    play_tape(agent, tape)
    shares = np.bincount(tape.actions.flatten()[:4_000], minlength=4) / 4_000
    assert shares == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.04)
