"""The same seed gives the same numbers, and a saved agent goes on as if nothing had happened."""

import numpy as np
import pytest
import torch

from agents.registry import ALGORITHMS
from tests.agents.driving import build, configure, describe, draw_tape, play_tape, same, step_along
from training import checkpoint
from training.loop import Run

GAME = describe((5,), "uint8")
TOTAL = 2_000
SETTINGS = {
    "num_envs": 4,
    "rollout_steps": 6,
    "frame_stack": 2,
    "reward": "normalize",
    "discount": 0.9,
    "learning_rate": 1e-2,
    "minibatches": 2,
    "epochs": 2,
    "batch_size": 8,
    "update_steps": 4,
    "target_frames": 100,
    "epsilon_frames": 400,
}


def make(algorithm, seed=1, groups=2):
    return build(algorithm, GAME, configure(algorithm, **SETTINGS), groups=groups, total_frames=TOTAL, seed=seed)


def tape_of(seed):
    """Its length is a whole number of rollouts behind the first step, and longer than a DQN waits before it learns."""
    return draw_tape(61, 4, shape=(5,), dtype="uint8", seed=seed).rewind(2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_same_seed_same_numbers(algorithm):
    results = []
    for seed in (1, 1, 2):
        agent, tape = make(algorithm, seed), tape_of(0)
        torch.manual_seed(len(results))  # nothing is drawn from the global generator once the agent is there
        rows = play_tape(agent, tape)
        results.append((agent.state_dict(), tape.actions, rows))
    first, again, other = results
    assert first[0]["counters"]["updates"] > 5
    assert same(first[0], again[0])
    assert (first[1] == again[1]).all()
    assert first[2] == again[2]
    assert not same(first[0]["weights"], other[0]["weights"])
    assert (first[1] != other[1]).any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learning_changes_the_weights_and_counts(algorithm):
    agent, tape = make(algorithm), tape_of(0)
    before = {name: weight.clone() for name, weight in agent.state_dict()["weights"].items()}
    play_tape(agent, tape)
    after = agent.state_dict()
    assert all(not torch.equal(before[name], after["weights"][name]) for name in before)
    assert all(weight.isfinite().all() for weight in after["weights"].values())
    assert agent.frames == tape.steps.frames.sum()
    assert agent.steps == (~tape.steps.is_first).sum()


def saved(agent, directory):
    """Through a run's own checkpoint."""
    return Run(directory, TOTAL, TOTAL, tape_of(0), agent).save(clone=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_agent_goes_on_like_the_one_that_was_saved(algorithm, tmp_path):
    original = make(algorithm)
    play_tape(original, tape_of(1))
    path = saved(original, tmp_path)
    loaded = make(algorithm, seed=9)
    Run(tmp_path, TOTAL, TOTAL, tape_of(0), loaded).load(path, [])
    assert same(loaded.state_dict(), original.state_dict())
    ours, theirs = tape_of(2), tape_of(2)
    rows = play_tape(original, ours)
    assert play_tape(loaded, theirs) == rows
    assert (ours.actions == theirs.actions).all()
    assert same(loaded.state_dict(), original.state_dict())
    assert original.updates > 10


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_the_last_values_of_a_rollout_are_made_again(algorithm):
    """Checkpoints once held them only behind the last group's last step; this one is from before it."""
    agent, tape = make(algorithm), tape_of(1)
    for slots in agent.setting.groups:
        agent.observe(tape.at(0, slots), slots)
    for t in range(1, SETTINGS["rollout_steps"] + 1):
        for slots in agent.setting.groups:
            agent.act(tape.at(t - 1, slots), slots)
        for slots in agent.setting.groups[: 1 if t == SETTINGS["rollout_steps"] else 2]:
            agent.observe(tape.at(t, slots), slots)
    assert agent.holds
    state = clone(agent.state_dict())
    values = state["rollout"]["values"]
    assert values[-1].ne(0).tolist() == [True, True, False, False]
    expected = values[-1].clone()
    values[-1] = 0
    agent.load_state_dict(state)
    assert torch.equal(agent.rollout.values[-1], expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_part_of_the_state_matters(algorithm):
    """With one part left out the numbers are others, so the test above would see it."""
    config = configure(algorithm, **SETTINGS | {"memory": "gru", "memory_steps": 3})

    def make(seed):
        return build(algorithm, GAME, config, groups=2, total_frames=TOTAL, seed=seed)

    original = make(1)
    play_tape(original, tape_of(1))
    kept = clone(original.state_dict())

    def future(missing=None):
        agent, tape = make(9), tape_of(2)
        state = clone(kept)  # an optimiser goes on writing into what it was given
        agent.load_state_dict({**state, missing: agent.state_dict()[missing]} if missing else state)
        if agent.replay is not None:
            agent.replay.newest, agent.replay.complete = original.replay.newest, original.replay.complete
            agent.replay.put_steps(agent.replay.oldest, original.replay.steps(agent.replay.oldest, agent.replay.newest + 1))
        tape.steps.is_first[0] = False  # else a memory would be empty
        rows = play_tape(agent, tape)
        return {**agent.state_dict(), "rows": rows}

    whole = future()
    assert same(whole, future())
    for part in kept:
        assert not same(whole, future(part)), part


@pytest.mark.parametrize(("reward", "forgotten"), [("clip", False), ("none", False), ("scale", True), ("normalize", True)])
def test_a_replay_of_what_was_made_of_rewards_is_forgotten(reward, forgotten):
    """As an older version kept it; what was clipped stays so when it is clipped again."""
    agent = build("dqn", GAME, configure("dqn", **SETTINGS | {"reward": reward}), groups=2)
    play_tape(agent, tape_of(1))
    state = agent.state_dict()
    agent.load_state_dict(state)
    assert not agent.replay.forgotten
    del state["rewards"]["in_replay"]
    agent.load_state_dict(state)
    assert agent.replay.forgotten == forgotten


def clone(part):
    if isinstance(part, torch.Tensor):
        return part.clone()
    if isinstance(part, dict):
        return {name: clone(value) for name, value in part.items()}
    return [clone(value) for value in part] if isinstance(part, list) else part


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_checkpoint_gives_back_every_bit(algorithm, tmp_path):
    agent = make(algorithm)
    play_tape(agent, tape_of(1))
    state = agent.state_dict()
    assert same(checkpoint.unflatten(*checkpoint.flatten(state)), state)
    path = checkpoint.save(tmp_path, 7, checkpoint.encode(state))
    assert same(checkpoint.load(path), state)
    again = checkpoint.save(tmp_path, 8, checkpoint.encode(state))
    for file in path.iterdir():
        assert file.read_bytes() == (again / file.name).read_bytes(), file.name
    assert same(checkpoint.load_weights(path), state["weights"])


def test_dqn_keeps_two_networks(tmp_path):
    agent = make("dqn")
    play_tape(agent, tape_of(1))
    state = agent.state_dict()
    assert not same(state["weights"], state["target"])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_moments_from_a_file_lie_in_memory_as_the_weights_do(algorithm, tmp_path):
    """A fused optimiser pairs weights and moments by their place in memory; convolutions keep their channels last."""
    game = describe((1, 36, 36), "uint8")
    config = configure(algorithm, **SETTINGS | {"start_frames": 0})
    agents = [build(algorithm, game, config, groups=2, total_frames=TOTAL) for _ in range(2)]
    play_tape(agents[0], draw_tape(25, 4, shape=(1, 36, 36), dtype="uint8").rewind(2))
    state = agents[0].state_dict()
    agents[1].load_state_dict(checkpoint.load(checkpoint.save(tmp_path, 0, checkpoint.encode(state))))
    for agent in agents:
        for weights in agent.network.parameters():
            weights.grad = torch.ones_like(weights)
        step_along(agent.optimizer, agent.network)
    assert same(agents[0].network.state_dict(), agents[1].network.state_dict())


def test_a_short_run_copies_the_target_network_a_hundred_times():
    config = configure("dqn", **SETTINGS | {"target_frames": 32_000})
    for total, period in ((40_000, 400), (10_000_000, 32_000)):
        assert build("dqn", GAME, config, total_frames=total).target_period == period


def test_the_target_network_is_a_copy_now_and_then():
    agent = build("dqn", GAME, configure("dqn", **SETTINGS | {"start_frames": 0}), groups=2, total_frames=100_000)
    tape = draw_tape(130, 4, shape=(5,), dtype="uint8").rewind(2)
    copies = []
    last = clone(agent.target.state_dict())
    for t in range(tape.length):
        for slots in tape.groups:
            agent.observe(tape.at(t, slots), slots)
            agent.learn()
            agent.act(tape.at(t, slots), slots)
            now = agent.target.state_dict()
            if not same(now, last):
                assert same(now, agent.network.state_dict())
                copies.append(agent.frames)
                last = clone(now)
    assert len(copies) == 4  # every 100 frames, at the next step of a group
    assert np.diff([0, *copies]) == pytest.approx([101] * 4, abs=2)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_acts_has_learned(algorithm):
    """In bfloat16 a copy of the weights acts: it is up to date after an update, and after a state was loaded."""
    config = configure(algorithm, **SETTINGS | {"start_frames": 0})
    agents = [build(algorithm, GAME, config, groups=2, total_frames=TOTAL, precision=torch.bfloat16) for _ in range(2)]
    first = clone(agents[0].network.state_dict())
    play_tape(agents[0], tape_of(1))
    agents[1].load_state_dict(agents[0].state_dict())
    assert not same(agents[0].network.state_dict(), first)
    for agent in agents:
        weights = agent.network.state_dict()
        acting = agent.shards.network.state_dict()
        assert {weight.dtype for weight in acting.values()} == {torch.bfloat16, torch.float32}
        for name, weight in acting.items():
            assert torch.equal(weight, weights[name].to(weight.dtype)), name
