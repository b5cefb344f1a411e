"""Advantage Actor-Critic, the synchronous form of A3C: Mnih et al. 2016, https://arxiv.org/abs/1602.01783.

What differs from the paper:
1. Synchronous: all environments' steps make one batch and one gradient step.
2. The advantage has a trace (`gae_lambda`); 1.0, the default here, is the paper's n-step return.
3. torch's RMSprop, which adds its epsilon outside of the root; the paper's code added it inside. Its mean square begins at 0,
   so that the first steps are up to ten times as long as later ones: 1 / sqrt(1 - `rms_decay`).
4. A step whose action was ignored, because it only opened an episode, has weight zero in every mean.
5. A truncated episode bootstraps from its last observation instead of counting as lost.
6. Orthogonal initial weights (torch's own in a memory and in what reads instructions), and gradients clipped by their length.
7. The paper's LSTM is an option, `--memory lstm`, and sees the last action and reward too.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from agents.activations import Activations
from agents.agent import Setting
from agents.networks import NatureCNN
from agents.on_policy import Batch, OnPolicyAgent, OnPolicyConfig, mean_over, policy_terms
from agents.rmsprop import RMSprop
from agents.storage import check_room


@dataclass(frozen=True)
class A2CConfig(OnPolicyConfig):
    """Settings of A2C."""

    num_envs: int = 16
    """Games played side by side."""
    rollout_steps: int = 5
    """Agent steps of each game between two updates."""
    learning_rate: float = 7e-4
    """Step size of RMSprop at the start."""
    gae_lambda: float = 1.0
    """Trace of the advantage estimate: 0 trusts the value, 1 the return."""
    normalize_advantages: bool = False
    """Give the advantages of each rollout mean 0 and deviation 1."""
    rms_decay: float = 0.99
    """Memory of RMSprop's mean square."""


def a2c_loss(logits: Tensor, values: Tensor, batch: Batch, *, entropy: float, value: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The policy-gradient objective with a baseline, negated to be minimised.

    Args:
        logits: (..., A).
        values: (...).
        batch: What was done and how it turned out.
        entropy: Weight of the entropy bonus.
        value: Weight of the value's error.

    Returns:
        The loss and its parts, scalars.
    """
    log_probs, entropies = policy_terms(logits, batch.actions)
    mean = mean_over(batch.weights)
    policy_loss = -mean(batch.advantages * log_probs)
    value_loss = mean((batch.returns - values) ** 2)
    bonus = mean(entropies)
    loss = policy_loss - entropy * bonus + value * value_loss
    return loss, {"loss/policy": policy_loss, "loss/value": value_loss, "policy/entropy": bonus}


class A2C(OnPolicyAgent):
    """One gradient step over each rollout."""

    config: A2CConfig

    def __init__(self, config: A2CConfig, setting: Setting) -> None:
        """Build what every on-policy agent has; on a CPU the Nature CNN's forward passes are those of acting, without a memory.

        Raises:
            InputError: a rollout, with what the network's layers make of it, does not fit into memory.
        """
        super().__init__(config, setting)
        if setting.device.type == "cpu" and isinstance(self.network.torso, NatureCNN) and self.network.memory is None:
            self._check_room()
            self.activations = Activations(config.rollout_steps, setting.groups)

    def _check_room(self) -> None:
        one = Activations(1, (slice(0, 1),))
        self.see(one, 0, slice(0, 1))
        units = self.rollout.num_units
        what = f"what the network makes of {units:,} steps, with the rollout of these,"
        size = self.rollout.size + 2 * units * one.size  # twice: in an update their gradients, most of which are soon gone
        check_room(what, size, "take fewer --rollout-steps or --num-envs")

    def _note_value(self, t: int, slots: slice) -> None:
        """Behind a group's last step threads begin to learn from what is complete, while other groups still play."""
        super()._note_value(t, slots)
        if self.activations and not self.config.normalize_advantages and slots.stop < self.setting.num_envs:
            parts = self.shards.parts(self.activations.units)
            played = len(self.activations.units) * slots.stop // self.setting.num_envs
            complete = sum(end <= played for end in accumulate(map(len, parts)))
            if complete > self.shards.begun:
                self.shards.begin(self.work(self._batch()), parts[:complete])

    def make_optimizer(self, weights: list[nn.Parameter]) -> RMSprop:
        """RMSprop."""
        return RMSprop(weights, self.config.learning_rate, self.config.rms_decay, eps=1e-5)

    def update(self, rollout: Batch) -> dict[str, Tensor]:
        """Learn from a rollout."""
        units = self.activations.units if self.activations else torch.arange(self.rollout.num_units, device=self.setting.device)
        return self.gradient_step(rollout, units)

    def loss(self, logits: Tensor, values: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `a2c_loss`."""
        return a2c_loss(logits, values, batch, entropy=self.config.entropy_coefficient, value=self.config.value_coefficient)
