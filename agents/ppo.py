"""Proximal Policy Optimization: Schulman et al. 2017, https://arxiv.org/abs/1707.06347.

What differs from the paper:
1. The learning rate, but not the clip range, falls to zero over the run.
2. Advantages are normalised once a rollout, with a floor under the deviation, instead of not at all: a minibatch without any
   reward would otherwise be noise blown up to size one.
3. A step whose action was ignored, because it only opened an episode, has weight zero in every mean.
4. A truncated episode bootstraps from its last observation instead of counting as lost.
5. Orthogonal initial weights (torch's own in a memory and in what reads instructions), gradients clipped by their length, and
   Adam's epsilon of 1e-5, as in the code that made the paper's figures. That code halves the value's squared error; here its
   weight says so.
6. `--memory` puts a recurrent cell in front of policy and value; a minibatch is then made of whole chunks of steps.
7. With `--lag 1` a rollout is learned from while the next one is played. The ratio is still that of the policy that learns to
   the one that played, which is then one update older.
"""

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from agents.adam import Adam
from agents.agent import BrokenOff, Setting
from agents.on_policy import Batch, OnPolicyAgent, OnPolicyConfig, mean_over, policy_terms
from envs.contract import InputError


@dataclass(frozen=True)
class PPOConfig(OnPolicyConfig):
    """Settings of PPO."""

    num_envs: int = 8
    """Games played side by side."""
    rollout_steps: int = 128
    """Agent steps of each game between two updates."""
    learning_rate: float = 2.5e-4
    """Step size of Adam at the start."""
    epochs: int = 4
    """Times that each sample is learned from."""
    minibatches: int = 4
    """Parts that a rollout is split into; a gradient step for each."""
    clip: float = 0.1
    """How far the new policy's ratio may move from 1 before its gradient stops."""
    lag: Literal[0, 1] = 0
    """1 learns from a rollout while the next one is played, by the policy of one update earlier: for GPUs."""
    value_clip: float | None = None
    """How far a value may move from the old one before its gradient stops; None for no limit."""


def ppo_loss(
    logits: Tensor, values: Tensor, batch: Batch, *, clip: float, value_clip: float | None, entropy: float, value: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """The clipped objective, negated to be minimised.

    Args:
        logits: (..., A) of the policy that learns.
        values: (...) of the critic that learns.
        batch: What the policy that acted did, and how it turned out.
        clip: Distance from 1 at which the ratio is clipped.
        value_clip: The same for values, in units of the value; None for no clipping.
        entropy: Weight of the entropy bonus.
        value: Weight of the value's error.

    Returns:
        The loss and its parts, scalars.
    """
    log_probs, entropies = policy_terms(logits, batch.actions)
    log_ratio = log_probs - batch.log_probs
    ratio = log_ratio.exp()
    mean = mean_over(batch.weights)
    gain = torch.min(ratio * batch.advantages, ratio.clamp(1 - clip, 1 + clip) * batch.advantages)
    error = (values - batch.returns) ** 2
    if value_clip is not None:
        near = batch.values + (values - batch.values).clamp(-value_clip, value_clip)
        error = torch.max(error, (near - batch.returns) ** 2)
    policy_loss, value_loss, bonus = -mean(gain), mean(error), mean(entropies)
    with torch.no_grad():
        clipped = mean(((ratio - 1).abs() > clip).float())
        divergence = mean(ratio - 1 - log_ratio)  # Schulman's low-variance estimate, http://joschu.net/blog/kl-approx.html
    loss = policy_loss - entropy * bonus + value * value_loss
    parts = {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": bonus}
    return loss, {**parts, "policy/approx_kl": divergence, "policy/clip_fraction": clipped}


class PPO(OnPolicyAgent):
    """Several epochs of minibatches over each rollout."""

    config: PPOConfig

    def __init__(self, config: PPOConfig, setting: Setting) -> None:
        """Build what every on-policy agent has.

        Raises:
            InputError: a rollout has too few parts for its minibatches, or is not a whole number of `memory_steps`.
        """
        super().__init__(config, setting, lag=config.lag)
        units = self.rollout.num_units
        if units < config.minibatches:
            raise InputError(f"--minibatches {config.minibatches}: a rollout has only {units} parts to share out; take {units}")

    def make_optimizer(self, weights: list[nn.Parameter]) -> Adam:
        """Adam."""
        return Adam(weights, self.config.learning_rate, eps=1e-5)

    def update(self, rollout: Batch) -> dict[str, Tensor]:
        """Learn from a rollout; metrics are means over all minibatches.

        Raises:
            BrokenOff: the agent is to hurry; nothing was learned.
        """
        seen: list[dict[str, Tensor]] = []
        before = copy.deepcopy(self.learned())
        for _ in range(self.config.epochs):
            order = torch.randperm(self.rollout.num_units, generator=self.shuffler, device=self.setting.device)
            for units in order.tensor_split(self.config.minibatches):
                if self.hurry:
                    self.load_learned(before)
                    raise BrokenOff
                seen.append(self.gradient_step(rollout, units))
        return {name: torch.stack([metrics[name] for metrics in seen]).mean() for name in seen[0]}

    def loss(self, logits: Tensor, values: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `ppo_loss`."""
        config = self.config
        weights = {"entropy": config.entropy_coefficient, "value": config.value_coefficient}
        return ppo_loss(logits, values, batch, clip=config.clip, value_clip=config.value_clip, **weights)
