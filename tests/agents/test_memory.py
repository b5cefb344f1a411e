"""Memory: what was seen is remembered, within an episode and no longer, and learned from as it was acted on."""

import dataclasses

import numpy as np
import pytest
import torch

from agents.networks import MEMORY_UNITS, ActorCritic, Beside, Inputs
from agents.registry import ALGORITHMS
from envs.contract import VOCABULARY, InputError
from tests.agents.driving import Games, Tape, build, configure, decide, describe, draw_tape, drive, play_tape

KINDS = ["gru", "lstm"]
SETTINGS = {"num_envs": 4, "rollout_steps": 12, "memory_steps": 4, "frame_stack": 2, "reward": "none"}


def whole_tape(tape: Tape, actions) -> Inputs:
    """All steps at once: (T, N, ...); row t holds the actions before step t."""
    steps = tape.steps
    before = np.concatenate([np.zeros((1, tape.num_envs), np.int64), actions[:-1]])
    given = (steps.observation[:, :, None], steps.extra, before, steps.reward, steps.is_first)
    return Inputs(*map(torch.from_numpy, given))


@pytest.mark.parametrize("kind", KINDS)
def test_step_by_step_is_the_whole_sequence(kind):
    torch.manual_seed(0)
    tape = draw_tape(40, 3, shape=(5,), dtype="uint8", extra=2)
    network = ActorCritic(describe((5,), "uint8", extra=2), 1, "auto", kind)
    inputs = whole_tape(tape, np.random.default_rng(0).integers(4, size=(40, 3)))
    start = torch.randn(3, network.state_size)
    logits, values, state = network(inputs, start)
    assert (logits.shape, values.shape, state.shape) == ((40, 3, 4), (40, 3), start.shape)
    now = start
    for t in range(40):
        step_logits, step_values, now = network(Inputs(*(part[t : t + 1] for part in inputs)), now)
        torch.testing.assert_close(step_logits[0], logits[t], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(step_values[0], values[t], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(now, state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cell_is_torchs_own_layer(kind):
    """Over a sequence without a reset, `nn.GRU` and `nn.LSTM` with the same weights give the same."""
    torch.manual_seed(0)
    network = ActorCritic(describe((5,)), 1, "auto", kind)
    tape = draw_tape(9, 2, shape=(5,), end=0, cut=0, lost=0)
    tape.steps.reward[:] *= 3
    actions = np.random.default_rng(0).integers(4, size=(9, 2))
    inputs = whole_tape(tape, actions)
    features = network.torso(inputs.stacks.flatten(0, 1)).unflatten(0, (9, 2))
    played = torch.eye(4)[inputs.last_actions] * ~inputs.is_first[..., None]
    rewards = (inputs.last_rewards.clamp(-1, 1) * ~inputs.is_first)[..., None]
    assert (inputs.last_rewards.abs() > 1).any()
    layer = {"gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[kind](features.shape[-1] + 5, MEMORY_UNITS)
    layer.load_state_dict({f"{name}_l0": weight for name, weight in network.memory.cell.state_dict().items()})
    expected, _ = layer(torch.cat([features, played, rewards], -1))
    logits, values, _ = network(inputs, torch.randn(2, network.state_size))  # the first step forgets what is older
    torch.testing.assert_close(logits, network.policy(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, network.value(expected)[..., 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_episode_knows_nothing_of_the_one_before(kind):
    """Neither its state nor what was last played and paid."""
    torch.manual_seed(0)
    network = ActorCritic(describe((5,)), 1, "auto", kind)
    tape = draw_tape(20, 3, shape=(5,), end=0, cut=0, lost=0)
    inputs = whole_tape(tape, np.random.default_rng(0).integers(4, size=(20, 3)))
    inputs.is_first[12, 1] = True
    alone = Inputs(*(part[12:, 1:2].clone() for part in inputs))
    alone.last_actions[0], alone.last_rewards[0] = 3 - alone.last_actions[0], 0.5
    logits, _, _ = network(inputs, torch.zeros(3, network.state_size))
    fresh, _, _ = network(alone, torch.randn(1, network.state_size))
    torch.testing.assert_close(logits[12:, 1:2], fresh, atol=1e-6, rtol=1e-5)
    inputs.is_first[12, 1] = False
    remembered, _, _ = network(inputs, torch.zeros(3, network.state_size))
    assert not torch.allclose(remembered[12:, 1:2], fresh, atol=1e-4)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("groups", [1, 2])
def test_what_is_learned_from_is_what_acted(algorithm, kind, groups):
    """Every unit's forward pass gives the probabilities and values that were noted when its steps were played.

    The value behind a rollout is that of the next one's first step.
    """
    agent = build(algorithm, describe((5,), "uint8", extra=3), configure(algorithm, **SETTINGS, memory=kind), groups=groups)
    compared = []
    behind = []

    def update(batch):
        rollout = agent.rollout
        if behind:
            torch.testing.assert_close(batch.values[0], behind[-1], atol=1e-5, rtol=1e-5)
        behind.append(rollout.values[-1].clone())
        assert rollout.num_units == 12 // 4 * 4
        t, slots, state = rollout.unit(torch.randperm(rollout.num_units))
        with torch.no_grad():
            logits, values, _ = agent.network(rollout.inputs(t, slots), state)
        log_probs = logits.log_softmax(-1).gather(-1, batch.actions[t, slots][..., None])[..., 0]
        torch.testing.assert_close(log_probs, batch.log_probs[t, slots], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values, batch.values[t, slots], atol=1e-5, rtol=1e-5)
        seen = sorted(zip(t.flatten().tolist(), slots.expand_as(t).flatten().tolist(), strict=True))
        assert seen == [(step, slot) for step in range(12) for slot in range(4)]
        compared.append(rollout.states.abs().sum().item())
        return {}

    agent.update = update
    play_tape(agent, draw_tape(37, 4, shape=(5,), dtype="uint8", extra=3).rewind(groups))
    assert len(compared) == 3
    assert compared[1] > 1  # it had something to remember from the rollout before


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_update_begins_with_the_policy_that_acted(algorithm, kind):
    """In the first gradient step of each rollout the loss sees the very probabilities and values that were noted."""
    config = configure(algorithm, **SETTINGS, memory=kind, epochs=1, minibatches=1, learning_rate=1e-2)
    agent = build(algorithm, describe((5,), "uint8", extra=2), config)
    seen = []
    loss = agent.loss

    def watched(logits, values, batch):
        log_probs = logits.detach().log_softmax(-1).gather(-1, batch.actions[..., None])[..., 0]
        torch.testing.assert_close(log_probs, batch.log_probs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(values.detach(), batch.values, atol=1e-4, rtol=1e-4)
        seen.append(agent.rollout.states[0].abs().max().item())
        return loss(logits, values, batch)

    agent.loss = watched
    play_tape(agent, draw_tape(37, 4, shape=(5,), dtype="uint8", end=0.02, cut=0.02, lost=0, extra=2))
    assert len(seen) == 3
    assert min(seen[1:]) > 0.01  # there was something to begin with


def test_gradients_cross_the_steps_of_a_chunk():
    config = configure("a2c", **{**SETTINGS, "num_envs": 1, "frame_stack": 1}, memory="gru")
    agent = build("a2c", describe((5,)), config)
    reached = []

    def update(batch):
        t, slots, state = agent.rollout.unit(torch.tensor([1]))  # steps 4 to 7
        inputs = agent.rollout.inputs(t, slots)
        stacks = inputs.stacks.clone().requires_grad_()
        _, values, _ = agent.network(inputs._replace(stacks=stacks), state)
        values[-1].sum().backward()
        reached.append((t[:, 0].tolist(), stacks.grad.abs().sum((1, 2, 3)).tolist()))
        return {}

    agent.update = update
    play_tape(agent, draw_tape(13, 1, shape=(5,), end=0, cut=0, lost=0))
    ((steps, gradients),) = reached
    assert steps == [4, 5, 6, 7]
    assert all(gradient > 0 for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_player_remembers_as_training_did(kind):
    """Told what was played, it gives what the acting policy noted, through ends, truncations and rollouts."""
    game = describe((5,), "uint8", extra=2)
    config = configure("ppo", **SETTINGS, memory=kind)
    agent = build("ppo", game, config)
    log_probs, values = [], []

    def update(batch):
        log_probs.extend(batch.log_probs.numpy().copy())
        values.extend(batch.values.numpy().copy())
        return {}

    agent.update = update
    tape = draw_tape(61, 4, shape=(5,), dtype="uint8", extra=2)
    play_tape(agent, tape)
    player = ALGORITHMS["ppo"].player(config, game, agent.state_dict()["weights"], torch.device("cpu"), 4, "sample")
    played = np.zeros(4, np.int64)
    for t in range(60):
        decision = player.decide(tape.at(t), played)
        played = tape.actions[t]
        assert decision.probabilities[range(4), played] == pytest.approx(np.exp(log_probs[t]), abs=1e-5)
        assert decision.values == pytest.approx(values[t], abs=1e-4)


def test_a_rollout_is_a_whole_number_of_chunks():
    with pytest.raises(InputError, match="--memory-steps 8: a rollout of 12 steps cannot be divided by it; take 4"):
        build("ppo", describe(), configure("ppo", **{**SETTINGS, "memory_steps": 8}, memory="gru"))
    with pytest.raises(InputError, match="--minibatches 16: a rollout has only 12 parts to share out; take 12"):
        build("ppo", describe(), configure("ppo", **SETTINGS, minibatches=16, memory="gru"))
    agent = build("a2c", describe(), configure("a2c", rollout_steps=5, memory="gru"))  # 32 steps back are the whole rollout
    assert agent.rollout.chunk == 5
    assert build("ppo", describe(), configure("ppo", **{**SETTINGS, "memory_steps": 5})).rollout.chunk == 1


RECALL = {
    "rollout_steps": 20,
    "memory_steps": 20,
    "discount": 0.95,
    "frame_stack": 1,
    "reward": "none",
    "entropy_coefficient": 0.0,
    "learning_rate": 1e-3,
    "minibatches": 1,
    "clip": 0.2,
    "normalize_advantages": True,
}


def recalled(algorithm, kind, num_envs, frames):
    """Mean reward of the last games of a run that has to remember a cue for ten steps."""
    config = configure(algorithm, **RECALL, num_envs=num_envs, memory=kind)
    envs = Games("tests.agents.probes:Recall-v0", config.num_envs)
    agent = build(algorithm, envs.description, config, total_frames=frames)
    rewards = []
    update = agent.update

    def watched(batch):
        rollout = agent.rollout
        rewards.append(rollout.rewards[rollout.terminated].mean().item())
        return update(batch)

    agent.update = watched
    drive(agent, envs, frames // config.num_envs)
    return float(np.mean(rewards[-5:]))


@pytest.mark.parametrize(
    ("algorithm", "num_envs", "frames", "kinds"),
    [
        pytest.param("a2c", 16, 60_000, KINDS, marks=pytest.mark.slow),
        pytest.param("ppo", 8, 20_000, ("lstm",), marks=pytest.mark.slow),
        ("ppo", 8, 20_000, ("gru",)),
    ],
)
def test_a_cue_is_remembered_with_a_memory_and_not_without(algorithm, num_envs, frames, kinds):
    assert abs(recalled(algorithm, "none", num_envs, frames)) < 0.5  # a coin's expectation is 0
    for kind in kinds:
        assert recalled(algorithm, kind, num_envs, frames) > 0.9, kind


# ---------------------------------------------------------------------------------------- what is beside the picture


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_stands_beside_is_learned_from(algorithm):
    """The picture never changes, and the number beside the first observation, -1 or 1, is the reward that follows."""
    tape = draw_tape(1_201, 8, end=0, cut=0, lost=0, extra=1)
    steps, rng = tape.steps, np.random.default_rng(3)
    steps.observation[:] = 0
    steps.extra[:] = rng.choice([-1, 1], steps.extra.shape)
    steps.is_first[:], steps.terminated[:] = False, False
    steps.is_first[::2], steps.terminated[1::2] = True, True
    steps.reward[:] = 0
    steps.reward[1::2] = steps.extra[0:-1:2, :, 0]
    steps.frames[:] = ~steps.is_first
    settings = {"rollout_steps": 8, "frame_stack": 1, "reward": "none", "learning_rate": 3e-3, "minibatches": 1}
    config = configure(algorithm, **settings, num_envs=8, target_frames=80, update_steps=8, batch_size=32)
    game = describe(extra=1)
    agent = build(algorithm, game, config, total_frames=4_800)
    play_tape(agent, tape)
    row = ALGORITHMS[algorithm]
    player = row.player(config, game, agent.state_dict()["weights"], torch.device("cpu"), 8, row.policies[0])
    values = decide(player, tape.at(0)).values
    assert values == pytest.approx(steps.extra[0, :, 0], abs=0.1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_numbers_beside_decide(algorithm):
    """The same pictures with other numbers beside are another situation."""
    game = describe((1, 36, 36), "uint8", extra=2)
    config = configure(algorithm, num_envs=4, frame_stack=1)
    agent = build(algorithm, game, config, total_frames=1_000)
    weights = agent.state_dict()["weights"]
    policy = ALGORITHMS[algorithm].policies[0]
    one, other = (ALGORITHMS[algorithm].player(config, game, weights, torch.device("cpu"), 4, policy) for _ in range(2))
    step = draw_tape(1, 4, shape=(1, 36, 36), dtype="uint8", extra=2).at(0)
    here = one.decide(step, np.zeros(4, np.int64)).values
    there = other.decide(step._replace(extra=step.extra * 100), np.zeros(4, np.int64)).values
    assert np.isfinite(there).all()
    assert (np.abs(here - there) > 1e-4).all()


def test_an_instruction_is_read_in_order_and_to_its_end():
    torch.manual_seed(0)
    beside = Beside(2, 6)
    numbers = torch.tensor([[100.0, -3.0]])

    def read(*words):
        padded = [*words, *[0] * (6 - len(words))]
        return beside(torch.cat([numbers, torch.tensor([padded], dtype=torch.float32)], -1))[0]

    short, long, turned = read(5, VOCABULARY - 1), read(5, VOCABULARY - 1, 7), read(VOCABULARY - 1, 5)
    assert short.shape == (beside.features,)
    assert not torch.allclose(short, turned)
    assert not torch.allclose(short, long)
    expected, _ = beside.reader(beside.embedding(torch.tensor([[5, VOCABULARY - 1]])))
    torch.testing.assert_close(short[64:], expected[0, -1])  # padding is not read
    assert not read()[64:].any()  # nothing is said
    torch.testing.assert_close(short[:64], beside.dense(torch.tensor([np.log1p(100), -np.log1p(3)]).float()).relu())


def test_only_games_with_numbers_beside_have_weights_for_them():
    plain = ActorCritic(describe((3,)), 1, "auto")
    assert {name.split(".")[0] for name in plain.state_dict()} == {"torso", "policy", "value"}
    words = ActorCritic(dataclasses.replace(describe((3,)), extra_size=4, num_tokens=4), 1, "auto")
    assert "beside.dense.weight" not in words.state_dict()
    assert "beside.reader.weight_ih_l0" in words.state_dict()
