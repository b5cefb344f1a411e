"""Losses: numbers to check by hand, and the updates of stable-baselines3's own `train` with the same weights and data."""

import tempfile

import gymnasium
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.logger import configure as sb3_logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import nn

from agents.a2c import a2c_loss
from agents.dqn import dqn_loss, td_targets
from agents.networks import MLP
from agents.on_policy import Batch, explained_variance, mean_over, normalized, policy_terms
from agents.ppo import ppo_loss
from agents.replay import Transitions
from tests.agents.driving import build, configure, describe, draw_tape, inputs_of, play_tape, sgd

SIZE, ACTIONS = 3, 4


# ---------------------------------------------------------------------------------------------------- numbers by hand


def on_policy(ratios, advantages, old_values, returns, weights=None):
    """Samples of a policy that chose evenly between two actions, and the log-odds at which it now gives these ratios.

    The new probability of the action taken is ratio / 2, of the other 1 - ratio / 2.
    """
    taken = torch.tensor(ratios) / 2
    logits = torch.stack([taken.log(), (1 - taken).log()], dim=1).requires_grad_()
    count = len(ratios)
    batch = Batch(
        actions=torch.zeros(count, dtype=torch.int64),
        log_probs=torch.full((count,), 0.5).log(),
        values=torch.tensor(old_values),
        advantages=torch.tensor(advantages),
        returns=torch.tensor(returns),
        weights=torch.ones(count) if weights is None else torch.tensor(weights),
    )
    return logits, batch


def ppo(logits, values, batch, *, clip=0.2, value_clip=None, entropy=0.0, value=0.0):
    values = torch.tensor(values, requires_grad=True)
    loss, parts = ppo_loss(logits, values, batch, clip=clip, value_clip=value_clip, entropy=entropy, value=value)
    loss.backward()
    return loss.item(), {name: part.item() for name, part in parts.items()}, values.grad


@pytest.mark.parametrize(
    ("ratio", "advantage", "gain", "moves"),
    [
        (1.1, 2.0, 2.2, True),  # within the clip
        (1.5, 2.0, 2.4, False),  # better and far enough: 1.2 * 2
        (0.5, 2.0, 1.0, True),  # worse: it may come back
        (0.5, -2.0, -1.6, False),  # less of the bad and far enough: 0.8 * -2
        (1.5, -2.0, -3.0, True),  # more of the bad: it may come back
    ],
)
def test_ppo_clip_by_hand(ratio, advantage, gain, moves):
    logits, batch = on_policy([ratio], [advantage], [0.0], [0.0])
    loss, parts, _ = ppo(logits, [0.0], batch)
    assert loss == pytest.approx(-gain)  # a gain that is not negated would be climbed down
    assert parts["loss/policy"] == pytest.approx(-gain)
    assert parts["policy/clip_fraction"] == (abs(ratio - 1) > 0.2)
    assert parts["policy/approx_kl"] == pytest.approx(ratio - 1 - np.log(ratio), abs=1e-6)
    assert bool(logits.grad.abs().sum() > 1e-6) == moves
    if moves:  # descending makes the action likelier if it was good, and less likely if it was bad
        assert np.sign(-logits.grad[0, 0].item()) == np.sign(advantage)


@pytest.mark.parametrize(
    ("value", "target", "limit", "error", "moves"),
    [
        (1.5, 3.0, None, 2.25, True),  # no clip: (3 - 1.5)^2
        (1.1, 3.0, 0.2, 3.61, True),  # within the clip of the old value 1
        (1.5, 3.0, 0.2, 3.24, False),  # nearer to the target and far enough: (3 - 1.2)^2
        (0.5, 3.0, 0.2, 6.25, True),  # farther from the target: it may come back
    ],
)
def test_value_clip_by_hand(value, target, limit, error, moves):
    logits, batch = on_policy([1.0], [0.0], [1.0], [target])
    loss, parts, gradient = ppo(logits, [value], batch, value_clip=limit, value=2.0)
    assert loss == pytest.approx(2.0 * error)
    assert parts["loss/value"] == pytest.approx(error)
    assert bool(gradient.abs().sum() > 1e-6) == moves


def test_entropy_by_hand():
    logits, batch = on_policy([1.0, 0.5], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    even, uneven = np.log(2), -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    loss, parts, _ = ppo(logits, [0.0, 0.0], batch, entropy=0.1)
    assert parts["policy/entropy"] == pytest.approx((even + uneven) / 2)
    assert loss == pytest.approx(-0.1 * (even + uneven) / 2)  # being undecided is rewarded
    found, _ = a2c_loss(logits.detach(), torch.zeros(2), batch, entropy=0.1, value=0.0)
    assert found.item() == pytest.approx(-0.1 * (even + uneven) / 2)


def test_a2c_by_hand():
    logits, batch = on_policy([1.0, 0.5], [2.0, -4.0], [0.0, 0.0], [1.0, 5.0])
    values = torch.tensor([3.0, 2.0], requires_grad=True)
    loss, parts = a2c_loss(logits, values, batch, entropy=0.0, value=0.25)
    policy = -(2 * np.log(0.5) - 4 * np.log(0.25)) / 2
    assert parts["loss/policy"].item() == pytest.approx(policy)
    assert parts["loss/value"].item() == pytest.approx((2**2 + 3**2) / 2)
    assert loss.item() == pytest.approx(policy + 0.25 * 6.5)
    loss.backward()
    assert logits.grad[0, 0] < 0 < logits.grad[1, 0]  # descending: more of the good action, less of the bad
    assert values.grad.tolist() == pytest.approx([0.25 * 2, -0.25 * 3])  # towards the return


def transitions(rewards, discounts, actions=None, weights=None):
    count = len(rewards)
    return Transitions(
        stacks=torch.zeros(0),
        extra=torch.zeros(0),
        actions=torch.tensor([0] * count if actions is None else actions),
        rewards=torch.tensor(rewards),
        discounts=torch.tensor(discounts),
        next_stacks=torch.zeros(0),
        next_extra=torch.zeros(0),
        weights=torch.ones(count) if weights is None else torch.tensor(weights),
    )


def test_td_targets_by_hand():
    batch = transitions([1.0, 1.0, 1.0], [0.5, 0.0, 0.25])  # one step, over, two steps
    of_target = torch.tensor([[10.0, 20.0], [10.0, 20.0], [40.0, 8.0]])
    of_network = torch.tensor([[3.0, 2.0], [3.0, 2.0], [3.0, 4.0]])
    assert td_targets(batch, of_target, of_target).tolist() == [1 + 0.5 * 20, 1, 1 + 0.25 * 40]
    # double: the network chooses, the target network values
    assert td_targets(batch, of_target, of_network).tolist() == [1 + 0.5 * 10, 1, 1 + 0.25 * 8]


def test_dqn_loss_by_hand():
    values = torch.tensor([[1.0, 9.0], [9.0, 2.0]], requires_grad=True)
    batch = transitions([0.0, 0.0], [1.0, 1.0], actions=[0, 1])
    targets = torch.tensor([1.5, 5.0])  # errors 0.5 and 3
    assert dqn_loss(values, targets, batch, "mse").item() == pytest.approx((0.25 + 9) / 2)
    huber = dqn_loss(values, targets, batch, "huber")
    assert huber.item() == pytest.approx((0.5 * 0.25 + (3 - 0.5)) / 2)
    huber.backward()
    assert values.grad.tolist() == [[-0.25, 0.0], [0.0, -0.5]]  # the large error pulls no harder than 1; others not at all


def test_the_learning_networks_choice_is_valued_by_the_target_network():
    """The same update with the roles of the networks swapped, or with one network in both, gives other weights."""
    config = configure("dqn", num_envs=1, frame_stack=1, double=True, learning_rate=0.1, max_grad_norm=1e9, discount=0.5)
    game = describe((SIZE,), actions=2)
    agent = build("dqn", game, config, total_frames=100)
    agent.optimizer = sgd(agent.network, 0.1)
    with torch.no_grad():
        for network, head in ((agent.network, [3.0, 2.0]), (agent.target, [10.0, 20.0])):
            network.head.weight.zero_()
            network.head.bias.copy_(torch.tensor(head))
    slots, no, yes = slice(0, 1), np.array([False]), np.array([True])
    for step in range(2):
        agent.replay.put_frame(step, slots, np.zeros((1, SIZE)), np.zeros((1, 0)), np.array([step == 0]))
    agent.replay.put_outcome(0, slots, np.ones(1), no, no, yes)
    loss, value, _ = agent._update(torch.tensor([0]), torch.tensor([0])).tolist()
    # target: 1 + 0.5 * 10 (single: 20; swapped: 2; without a target network: 3)
    assert loss == pytest.approx((3 - 6) ** 2)
    assert value == pytest.approx(2.5)
    assert agent.network.head.bias[0].item() == pytest.approx(3 + 0.1 * 2 * 3)
    assert agent.target.head.bias.tolist() == [10.0, 20.0]


# -------------------------------------------------------------------------------------------------- weights and means


def junk(count):
    """On-policy samples drawn at random."""
    rng = torch.Generator().manual_seed(count)
    logits, values = torch.randn(count, ACTIONS, generator=rng), torch.randn(count, generator=rng)
    others = [torch.randn(count, generator=rng) for _ in range(4)]
    actions = torch.randint(ACTIONS, (count,), generator=rng)
    return logits, values, Batch(actions, others[0] - 2, *others[1:], torch.ones(count))


LOSSES = {
    "a2c": lambda logits, values, batch: a2c_loss(logits, values, batch, entropy=0.1, value=0.5),
    "ppo": lambda logits, values, batch: ppo_loss(logits, values, batch, clip=0.2, value_clip=0.5, entropy=0.1, value=0.5),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_weight_zero_takes_a_sample_out(loss):
    logits, values, batch = junk(12)
    counts = torch.arange(12) % 3 > 0
    weighed = LOSSES[loss](logits, values, batch._replace(weights=counts.float()))
    without = LOSSES[loss](logits[counts], values[counts], Batch(*(field[counts] for field in batch)))
    for ours, theirs in zip([weighed[0], *weighed[1].values()], [without[0], *without[1].values()], strict=True):
        assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert weighed[0].item() != pytest.approx(LOSSES[loss](logits, values, batch)[0].item(), abs=1e-3)
    # and nothing that is in it gets out, whatever it is
    wild = torch.where(counts, batch.advantages, 1e6)
    assert LOSSES[loss](logits, values, batch._replace(weights=counts.float(), advantages=wild))[0] == weighed[0]


def test_weight_zero_takes_a_transition_out():
    values = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    batch = transitions([0.0] * 4, [1.0] * 4, actions=[0, 1, 1, 0], weights=[1.0, 0.0, 1.0, 0.0])
    targets = torch.tensor([1.0, 1e6, 2.0, 1e6])
    few = transitions([0.0] * 2, [1.0] * 2, actions=[0, 1])
    for kind in ("mse", "huber"):
        without = dqn_loss(values[[0, 2]], targets[[0, 2]], few, kind)
        assert dqn_loss(values, targets, batch, kind).item() == pytest.approx(without.item(), abs=1e-6)
        assert dqn_loss(values, targets, batch._replace(weights=torch.zeros(4)), kind) == 0  # nothing to learn, and not a NaN


def test_normalisation_counts_what_counts():
    advantages = torch.tensor([1.0, 3.0, 1e6, 5.0, 7.0])
    mask = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0])
    found = normalized(advantages, mask, floor=0.0)[mask > 0]
    assert found.tolist() == pytest.approx([(x - 4) / 5**0.5 for x in (1, 3, 5, 7)])
    assert mean_over(mask)(advantages).item() == 4
    assert mean_over(torch.zeros(5))(advantages).item() == 0
    # a rollout in which nothing happened stays small
    assert normalized(torch.tensor([1e-6, -1e-6]), torch.ones(2)).abs().max() < 1e-2


def test_explained_variance_by_hand():
    returns, ones = torch.tensor([1.0, 2.0, 3.0, 1e6]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert explained_variance(returns, returns, ones).item() == 1
    assert explained_variance(torch.full((4,), 5.0), returns, ones).item() == 0
    assert explained_variance(-returns, returns, ones).item() == pytest.approx(-3)  # errors 2, 4, 6: four times the variance


def test_policy_terms_against_torch():
    logits, _, batch = junk(20)
    theirs = torch.distributions.Categorical(logits=logits)
    log_probs, entropies = policy_terms(logits, batch.actions)
    torch.testing.assert_close(log_probs, theirs.log_prob(batch.actions))
    torch.testing.assert_close(entropies, theirs.entropy())


# ------------------------------------------------------------------------------------------------- stable-baselines3


class OurTorso(BaseFeaturesExtractor):
    """Our network inside of a policy of stable-baselines3's."""

    def __init__(self, space):
        super().__init__(space, 64)
        self.torso = MLP(SIZE, 64)

    def forward(self, observations):
        return self.torso(observations)


class Spaces(gymnasium.Env):
    """What there is to see and do; never played."""

    observation_space = Box(-10, 10, (SIZE,), np.float32)
    action_space = Discrete(ACTIONS)


POLICY = {
    "features_extractor_class": OurTorso,
    "net_arch": [],
    "optimizer_class": torch.optim.SGD,
}


def numbers(network):
    """All weights in one row, by name."""
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def take_over(theirs: nn.Module, ours: nn.Module, names: dict[str, str]):
    """Copy our weights into their policy: names of their modules by ours."""
    with torch.no_grad():
        for our_name, their_name in names.items():
            theirs.get_submodule(their_name).load_state_dict(ours.get_submodule(our_name).state_dict())


def assert_equal_weights(theirs: nn.Module, ours: nn.Module, names: dict[str, str], before):
    for our_name, their_name in names.items():
        for name, value in theirs.get_submodule(their_name).named_parameters():
            found = ours.get_submodule(our_name).get_parameter(name)
            assert (found - before[f"{our_name}.{name}"]).abs().max() > 1e-4  # it was a step
            torch.testing.assert_close(found, value, atol=1e-6, rtol=0)


ACTOR_CRITIC = {"torso": "features_extractor.torso", "policy": "action_net", "value": "value_net"}
RATE, DISCOUNT, TRACE = 0.1, 0.9, 0.8


def their_model(name, steps, num_envs, *, entropy, value, max_grad_norm):
    common = {
        "learning_rate": RATE,
        "n_steps": steps,
        "gamma": DISCOUNT,
        "gae_lambda": TRACE,
        "ent_coef": entropy,
        "vf_coef": value,
        "max_grad_norm": max_grad_norm,
        "normalize_advantage": False,
        "policy_kwargs": {**POLICY, "net_arch": {"pi": [], "vf": []}},
        "device": "cpu",
    }
    envs = sb3.common.vec_env.DummyVecEnv([Spaces] * num_envs)
    if name == "a2c":
        model = sb3.A2C("MlpPolicy", envs, **common, use_rms_prop=False)
    else:
        model = sb3.PPO("MlpPolicy", envs, **common, n_epochs=1, batch_size=steps * num_envs, clip_range=0.2)
    model.set_logger(sb3_logger(tempfile.gettempdir(), []))
    return model


@pytest.mark.parametrize("max_grad_norm", [100.0, 0.1])
@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
def test_a_whole_update_is_stable_baselines3s(algorithm, max_grad_norm):
    """From the same observations, actions and rewards: values, advantages, loss, clipping and step.

    One game with ends and truncations; the steps that only open an episode are not there for stable-baselines3, and it adds the
    value behind a truncation to the reward, as its `collect_rollouts` does.
    """
    length = 64
    tape = draw_tape(length + 1, 1, shape=(SIZE,), lost=0.0, seed=3)
    config = configure(
        algorithm,
        num_envs=1,
        rollout_steps=length,
        frame_stack=1,
        reward="none",
        learning_rate=RATE,
        discount=DISCOUNT,
        gae_lambda=TRACE,
        epochs=1,
        minibatches=1,
        normalize_advantages=False,
        anneal_learning_rate=False,
        entropy_coefficient=0.05,
        value_coefficient=0.5,
        max_grad_norm=max_grad_norm,
    )
    ours = build(algorithm, describe((SIZE,), actions=ACTIONS), config)
    ours.optimizer = sgd(ours.network, RATE)
    before = numbers(ours.network)

    steps = tape.at(slice(None), 0)
    played = ~steps.is_first[1:]
    assert (steps.terminated[1:].sum(), steps.truncated[1:].sum(), (~played).sum()) == pytest.approx((6, 6, 12), abs=4)
    theirs = their_model(algorithm, int(played.sum()), 1, entropy=0.05, value=0.5, max_grad_norm=max_grad_norm)
    take_over(theirs.policy, ours.network, ACTOR_CRITIC)
    (metrics,) = play_tape(ours, tape)

    observations = torch.from_numpy(steps.observation)
    actions = torch.from_numpy(tape.actions[:-1, 0])
    with torch.no_grad():
        values, log_probs, _ = theirs.policy.evaluate_actions(observations[:-1], actions)
        following = theirs.policy.predict_values(observations[1:])[:, 0].numpy()
    rewards = steps.reward[1:] + DISCOUNT * following * steps.truncated[1:]
    buffer = theirs.rollout_buffer
    buffer.reset()
    start = True
    for t in np.flatnonzero(played):
        buffer.add(steps.observation[t], actions[t, None].numpy(), rewards[t], start, values[t], log_probs[t])
        start = steps.terminated[t + 1] or steps.truncated[t + 1]
    last = np.flatnonzero(played)[-1]
    buffer.compute_returns_and_advantage(torch.tensor(following[last]), np.array([start]))
    theirs.train()

    assert_equal_weights(theirs.policy, ours.network, ACTOR_CRITIC, before)
    logged = theirs.logger.name_to_value
    name = {"ppo": "policy_gradient_loss", "a2c": "policy_loss"}[algorithm]
    assert metrics["loss/policy"] == pytest.approx(logged[f"train/{name}"], abs=1e-6)
    assert metrics["loss/value"] == pytest.approx(logged["train/value_loss"], rel=1e-6)
    assert metrics["policy/entropy"] == pytest.approx(-logged["train/entropy_loss"], abs=1e-6)
    assert 0.1 < metrics["gradient/norm"] < 100.0  # one of the two limits clips
    assert metrics["value/explained_variance"] == pytest.approx(logged["train/explained_variance"], abs=1e-5)


@pytest.mark.parametrize("value_clip", [None, 0.3])
def test_ppo_far_from_the_policy_that_acted_is_stable_baselines3s(value_clip):
    """Ratios and values on both sides of their clips, which a first update never sees.

    stable-baselines3 takes the clipped value's error alone, and we the larger of both, as the paper's code does. They agree
    where the value has moved towards the return, so the returns are put there.
    """
    count = 96
    ours = build("ppo", describe((SIZE,), actions=ACTIONS), configure("ppo", num_envs=1, frame_stack=1, max_grad_norm=1e9))
    before = numbers(ours.network)
    theirs = their_model("ppo", count, 1, entropy=0.05, value=0.5, max_grad_norm=1e9)
    theirs.clip_range_vf = value_clip and (lambda _: value_clip)
    take_over(theirs.policy, ours.network, ACTOR_CRITIC)

    rng = torch.Generator().manual_seed(1)
    observations = torch.randn(count, SIZE, generator=rng)
    actions = torch.randint(ACTIONS, (count,), generator=rng)
    with torch.no_grad():
        values, log_probs, _ = theirs.policy.evaluate_actions(observations, actions)
    old_log_probs = log_probs + 0.3 * torch.randn(count, generator=rng)
    old_values = values[:, 0] + 0.5 * torch.randn(count, generator=rng)
    returns = values[:, 0] + (values[:, 0] - old_values) * torch.rand(count, generator=rng)
    advantages = torch.randn(count, generator=rng)

    buffer = theirs.rollout_buffer
    for row in zip(
        observations.numpy(), actions[:, None].numpy(), [0.0] * count, [False] * count, old_values, old_log_probs, strict=True
    ):
        buffer.add(*row)
    buffer.advantages, buffer.returns = advantages[:, None].numpy(), returns[:, None].numpy()
    theirs.train()

    batch = Batch(actions, old_log_probs, old_values, advantages, returns, torch.ones(count))
    optimizer = torch.optim.SGD(ours.network.parameters(), lr=RATE)
    logits, value, _ = ours.network(*inputs_of(observations[:, None]))
    loss, parts = ppo_loss(logits[0], value[0], batch, clip=0.2, value_clip=value_clip, entropy=0.05, value=0.5)
    loss.backward()
    optimizer.step()
    assert_equal_weights(theirs.policy, ours.network, ACTOR_CRITIC, before)
    logged = theirs.logger.name_to_value
    assert loss.item() == pytest.approx(logged["train/loss"], abs=1e-6)
    assert 0.2 < parts["policy/clip_fraction"].item() < 0.8
    assert parts["policy/clip_fraction"].item() == pytest.approx(logged["train/clip_fraction"], abs=1e-6)
    assert parts["policy/approx_kl"].item() == pytest.approx(logged["train/approx_kl"], abs=1e-6)


@pytest.mark.parametrize("max_grad_norm", [100.0, 0.1])
def test_dqns_update_is_stable_baselines3s(max_grad_norm):
    """With the Huber loss, the only one that stable-baselines3 has; n-step windows of different lengths, and ends."""
    count = 64
    config = configure("dqn", num_envs=1, frame_stack=1, loss="huber", max_grad_norm=max_grad_norm)
    ours = build("dqn", describe((SIZE,), actions=ACTIONS), config)
    ours.optimizer = sgd(ours.network, RATE)
    with torch.no_grad():
        for parameter in ours.target.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = numbers(ours.network)
    theirs = sb3.DQN(
        "MlpPolicy",
        Spaces(),
        learning_rate=RATE,
        max_grad_norm=max_grad_norm,
        policy_kwargs=POLICY,
        buffer_size=10,
        device="cpu",
    )
    theirs.set_logger(sb3_logger(tempfile.gettempdir(), []))
    names = {"torso": "features_extractor.torso", "head": "q_net.0"}
    take_over(theirs.q_net, ours.network, names)
    take_over(theirs.q_net_target, ours.target, names)

    rng = torch.Generator().manual_seed(2)
    observations, following = torch.randn(2, count, SIZE, generator=rng)
    actions = torch.randint(ACTIONS, (count,), generator=rng)
    rewards = 2 * torch.randn(count, generator=rng)
    over = torch.rand(count, generator=rng) < 0.2
    discounts = DISCOUNT ** torch.randint(1, 4, (count,), generator=rng)
    theirs.replay_buffer.sample = lambda *_, **__: ReplayBufferSamples(
        observations, actions[:, None], following, over[:, None].float(), rewards[:, None], discounts[:, None]
    )
    theirs.train(gradient_steps=1, batch_size=count)

    nothing, ones = torch.zeros(count, 0), torch.ones(count)
    batch = Transitions(observations[:, None], nothing, actions, rewards, discounts * ~over, following[:, None], nothing, ones)
    ours.replay.look_up = lambda t, *_: (t[None], ones[None])
    ours.replay.gather = lambda places, _: Transitions(*(field[places[0]] for field in batch))
    loss, _, norm = ours._update(torch.arange(count), torch.zeros(count, dtype=torch.int64)).tolist()
    assert 0.1 < norm < 100.0  # one of the two limits clips
    assert_equal_weights(theirs.q_net, ours.network, names, before)
    assert loss == pytest.approx(theirs.logger.name_to_value["train/loss"], abs=1e-6)
