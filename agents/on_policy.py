"""All that A2C and PPO share: act, fill a rollout, learn from it, begin the next. Theirs are optimiser, loss and `update`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.activations import Activations, look
from agents.agent import Setting
from agents.cuda_graphs import Graphed
from agents.learner import Learner, Update
from agents.networks import ActorCritic, Inputs
from agents.normalize import Kind, RewardTransform
from agents.player import NetworkPlayer
from agents.rollout import Rollout, generalized_advantages
from agents.schedules import linear
from agents.shards import Optimizer, Shards, SharedOptimizer, Threads, Work
from agents.storage import check_room
from envs.contract import GameDescription, InputError, TimeStep

_COPIES = 4  # of a rollout in memory while a checkpoint is made of it: itself, what was taken down, its bytes, and the file


@dataclass(frozen=True)
class OnPolicyConfig:
    """What A2C and PPO have in common."""

    num_envs: int
    """Games played side by side."""
    rollout_steps: int
    """Agent steps of each game between two updates."""
    learning_rate: float
    """Step size of the optimiser at the start."""
    anneal_learning_rate: bool = True
    """Let the learning rate fall linearly to zero at the end of the run."""
    discount: float = 0.99
    """Weight of the reward one agent step later."""
    gae_lambda: float = 0.95
    """Trace of the advantage estimate: 0 trusts the value, 1 the return."""
    entropy_coefficient: float = 0.01
    """Weight of the bonus for undecided policies."""
    value_coefficient: float = 0.25
    """Weight of the value's squared error."""
    max_grad_norm: float = 0.5
    """Length at which gradients are clipped."""
    normalize_advantages: bool = True
    """Give the advantages of each rollout mean 0 and deviation 1."""
    reward: Kind = "clip"
    """What the agent makes of the game's score: clip, scale, normalize or none."""
    reward_scale: float = 1.0
    """Factor for `--reward scale`."""
    end_on_life_loss: bool = False
    """End the return, not the game, where a life is lost."""
    frame_stack: int = 4
    """Frames that the agent sees at once."""
    torso: Literal["auto", "nature", "impala"] = "auto"
    """Network for images; RAM and vectors have one of their own."""
    memory: Literal["none", "gru", "lstm"] = "none"
    """Recurrent cell behind the network, which also sees the last action and reward, for what a stack of frames cannot show."""
    memory_steps: int = 32
    """Agent steps that gradients flow back through the memory; a rollout where it is shorter."""


class Batch(NamedTuple):
    """What was done in some observations and how it turned out; the observations stay in the rollout.

    (T, N) for a whole rollout, and (L, B) for the B units of L steps that a gradient step learns from.
    """

    actions: Tensor
    log_probs: Tensor  # of the policy that acted
    values: Tensor  # of the critic that acted
    advantages: Tensor
    returns: Tensor  # what the value should have been
    weights: Tensor  # 1, or 0 where the action was ignored


def mean_over(weights: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean over the samples that count, of whatever numbers are given of all; 0 where none counts."""
    shares = weights / weights.sum().clamp(min=1)
    return lambda x: (x * shares).sum()


def normalized(advantages: Tensor, mask: Tensor, floor: float = 1e-3) -> Tensor:
    """Mean 0 and deviation 1 over what counts; `floor` keeps a rollout without any reward from being noise blown up."""
    mean = mean_over(mask)
    centred = advantages - mean(advantages)
    return centred / (mean(centred**2).sqrt() + floor)


def policy_terms(logits: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the actions and entropies: (..., A), (...) -> (...), (...)."""
    log_probs = torch.log_softmax(logits, dim=-1)
    return log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1), -(log_probs.exp() * log_probs).sum(-1)


class OnPolicyAgent(ABC):
    """Collects rollouts and learns from each."""

    def __init__(self, config: OnPolicyConfig, setting: Setting, *, lag: int = 0) -> None:
        """Build the network, the optimiser and the rollout's storage; with a `lag` of 1, learn while the next is played.

        Raises:
            InputError: a rollout is not a whole number of `memory_steps`, or does not fit into memory.
        """
        self.config, self.setting = config, setting
        self.frames = self.steps = 0
        self.hurry = False
        torch.manual_seed(setting.seed)  # the initial weights are drawn from the global generator
        game = setting.game
        self.network = ActorCritic(game, config.frame_stack, config.torso, config.memory).to(setting.device)
        threads = Threads(setting.learn_threads)
        self.optimizer = SharedOptimizer(self.make_optimizer, self.network, threads)
        self.shards = Shards(self.network, threads, setting.precision, images=game.sees_images)
        self._choose = Graphed(self._choice, setting.device, priority=-1)  # before what is learned meanwhile
        self._graphed_step = Graphed(self._gradient_step, setting.device)
        self.generator = torch.Generator(setting.device).manual_seed(setting.seed)
        self.shuffler = torch.Generator(setting.device).manual_seed(setting.seed) if lag else self.generator
        """Shuffles in `update`."""
        self.rewards = RewardTransform(config.reward, config.reward_scale, config.discount, setting.num_envs)
        self.rollout, past = self._make_rollouts(lag)
        self.learner = Learner(self._update, self.shards.network, self.rollout, past, setting.device)
        self.state = torch.zeros((setting.num_envs, self.network.state_size), device=setting.device)  # before the next step
        self._times = {group.start: -1 for group in setting.groups}  # each group's step in the rollout
        self._began = 0  # frames when the rollout was begun
        self.activations: Activations | None = None  # what the torso made when it acted, where it is kept to learn
        self.replay = None

    def _make_rollouts(self, lag: int) -> tuple[Rollout, Rollout]:
        """The one that is filled and the one that is learned from, which is another with a lag."""
        config, setting = self.config, self.setting
        chunk = min(config.memory_steps, config.rollout_steps) if config.memory != "none" else 1
        if config.rollout_steps % chunk:
            fits = math.gcd(chunk, config.rollout_steps)
            raise InputError(
                f"--memory-steps {chunk}: a rollout of {config.rollout_steps} steps cannot be divided by it; take {fits}"
            )
        shape = config.rollout_steps, setting.num_envs, config.frame_stack, setting.game
        make = partial(Rollout, *shape, chunk=chunk, state=self.network.state_size)
        what = f"a rollout of {config.rollout_steps:,} steps in each of {setting.num_envs:,} games"
        if lag:
            what = f"{what}, twice for --lag {lag}"
        size = (1 + lag) * make(device=torch.device("meta")).size
        advice = "take fewer --rollout-steps or --num-envs"
        check_room(what, size, advice, setting.device)
        check_room(f"{what}, with a checkpoint of it", _COPIES * size, advice)
        rollout = make(device=setting.device)
        return rollout, make(device=setting.device) if lag else rollout

    @abstractmethod
    def make_optimizer(self, weights: list[nn.Parameter]) -> Optimizer:
        """The algorithm's optimiser over some weights."""

    @abstractmethod
    def loss(self, logits: Tensor, values: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The algorithm's loss, a mean over the batch, and its parts."""

    @abstractmethod
    def update(self, rollout: Batch) -> dict[str, Tensor]:
        """Learn from a whole rollout; returns metrics as scalars on the device."""

    @property
    def holds(self) -> bool:
        """True from the first group's last step of a rollout to the last group's."""
        return any(time == self.config.rollout_steps for time in self._times.values())

    @property
    def updates(self) -> int:
        """Updates whose metrics are known."""
        return self.learner.updates

    @property
    def learning_rate(self) -> float:
        """Step size of the coming update, by the frame at which its rollout began: so the last one still learns."""
        if not self.config.anneal_learning_rate:
            return self.config.learning_rate
        return linear(self.config.learning_rate, 0.0, self._began / self.setting.total_frames)

    def act(self, timestep: TimeStep, slots: slice) -> NDArray[np.int64]:
        """Sample actions for a group and note what they were worth."""
        t = self._times[slots.start]
        shape = slots.stop - slots.start, self.setting.game.num_actions
        if self.activations:
            self.activations.begin(t, slots)
        with torch.inference_mode():
            waits = torch.empty(shape, device=self.setting.device).exponential_(generator=self.generator)
            state = self.state[slots]
            choice = self._choose(*self.rollout.inputs_at(t, slots), state, waits)
            self.rollout.put_decision(t, slots, choice["action"], choice["log_prob"], choice["value"], state)
            if self.network.memory is not None:
                self.state[slots] = choice["state"]
            chosen: NDArray[np.int64] = choice["action"].cpu().numpy()
            return chosen

    def _choice(self, *given: Tensor) -> dict[str, Tensor]:
        """Draw actions: the fields of Inputs (1, B, ...), the memory's state (B, S), waits drawn with rate 1 (B, A)."""
        *seen, state, waits = given
        logits, values, state = self.learner.actor(Inputs(*seen), state, self.activations or look)
        log_probs = logits[0].log_softmax(-1)
        # Of waits with these rates the shortest is a draw: torch.multinomial's own, but for its checks, which cost as much
        actions = (log_probs.exp() / waits).argmax(-1, keepdim=True)
        log_prob = log_probs.gather(-1, actions)[:, 0]
        return {"action": actions[:, 0], "log_prob": log_prob, "value": values[0], "state": state}

    def observe(self, timestep: TimeStep, slots: slice) -> None:
        """Note what the last actions brought."""
        self.frames += sum(timestep.frames.tolist())
        self.steps += timestep.is_first.tolist().count(False)
        t = self._times[slots.start]
        if t >= 0:
            self._note_outcome(t, timestep, slots)
        t = self._times[slots.start] = t + 1
        self.rollout.put_step(t, slots, timestep)
        if t == self.config.rollout_steps:
            self._note_value(t, slots)  # while other groups still play

    def _note_outcome(self, t: int, timestep: TimeStep, slots: slice) -> None:
        terminated = timestep.terminated | timestep.life_lost if self.config.end_on_life_loss else timestep.terminated
        self.rewards.watch(timestep, slots)
        outcome = {"rewards": self.rewards(timestep.reward), "terminated": terminated, "ends": terminated | timestep.truncated}
        self.rollout.put(t, slots, **outcome)

    def _note_value(self, t: int, slots: slice) -> None:
        """Note what the observation behind a rollout is worth."""
        with torch.no_grad():
            _, values, _ = self.learner.actor(self.rollout.inputs_at(t, slots), self.state[slots])
            self.rollout.put(t, slots, values=values[0])

    def learn(self) -> dict[str, float] | None:
        """Learn at the end of a rollout, and begin the next; see `Learner.learn`."""
        if any(time < self.config.rollout_steps for time in self._times.values()):
            return None
        metrics = self.learner.learn(self.learning_rate, last=self.frames >= self.setting.total_frames)
        self.rollout.carry_over()
        self._times = dict.fromkeys(self._times, 0)
        self._began = self.frames
        return metrics

    def _update(self, rate: float) -> Update:
        self.optimizer.learning_rate = rate
        batch = self._batch()
        metrics = self.update(batch)
        variance = explained_variance(batch.values, batch.returns, batch.weights)
        return Update([*metrics, "value/explained_variance"], torch.stack([*metrics.values(), variance]), batch._asdict())

    def _batch(self) -> Batch:
        """The rollout with its advantages."""
        rollout, config = self.learner.past, self.config
        advantages = generalized_advantages(
            rollout.rewards, rollout.values, rollout.terminated, rollout.ends, rollout.mask, config.discount, config.gae_lambda
        )
        values, weights = rollout.values[:-1], rollout.mask.float()
        returns = advantages + values
        if config.normalize_advantages:
            advantages = normalized(advantages, weights)
        return Batch(rollout.actions, rollout.log_probs, values, advantages, returns, weights)

    def gradient_step(self, rollout: Batch, units: Tensor) -> dict[str, Tensor]:
        """One clipped gradient step on some units of a rollout, (B,): see `agents/rollout.py`."""
        return self._graphed_step(*rollout, units)

    def _gradient_step(self, *given: Tensor) -> dict[str, Tensor]:
        *fields, units = given
        sums = self.shards.gradients(self.work(Batch(*fields)), units, self.rollout.chunk)
        scale = 1 / sums.pop("counted").clamp(min=1)
        if self.activations:
            self.activations.forget()
        norm = self.shards.step(self.optimizer, self.config.max_grad_norm, scale)
        return {**{name: value * scale for name, value in sums.items()}, "gradient/norm": norm}

    def work(self, rollout: Batch) -> Work:
        """What a thread does for its part of a batch.

        Gradients and metrics are sums over the steps that count: how many there are is known only after the last part.
        """
        past = self.learner.past

        def work(network: nn.Module, part: Tensor) -> dict[str, Tensor]:
            steps, slots, state = past.unit(part)
            batch = Batch(*(field[steps, slots] for field in rollout))
            known = self.activations.known(part) if self.activations else None
            inputs = past.inputs(steps, slots, stacks=known is None)
            logits, values, _ = network(inputs, state, known or look)
            loss, parts = self.loss(logits, values, batch)
            counted = batch.weights.sum()
            torch.autograd.backward(loss * counted)
            sums = {name: value.detach() * counted for name, value in {**parts, "loss/total": loss}.items()}
            return {**sums, "counted": counted}

        return work

    def learned(self) -> dict[str, Any]:
        """What an update changes: weights, optimiser, and the generator that shuffles (and draws actions, without a lag)."""
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.shuffler.get_state(),
        }

    def load_learned(self, state: dict[str, Any]) -> None:
        """Take back what `learned` returned."""
        self.shards.forget()  # what was begun with other weights
        self.network.load_state_dict(state["weights"])
        self.shards.refresh()
        self.optimizer.load_state_dict(state["optimizer"])
        self.shuffler.set_state(state["generator"])

    def state_dict(self) -> dict[str, Any]:
        """What was learned, counters, reward moments, the memory, and the rollout as far as it is."""
        lag = {}
        if self.learner.lag:  # first: it waits for an update
            lag["lag"] = {**self.learner.state_dict(), "generator": self.generator.get_state()}
        return {
            **lag,
            **self.learned(),
            "rewards": self.rewards.state_dict(),
            "counters": {"frames": self.frames, "steps": self.steps, "updates": self.updates, "began": self._began},
            "times": self._times,
            "state": self.state,
            "rollout": self.rollout.state_dict(max(self._times.values())),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state."""
        self.load_learned(state)
        self.rewards.load_state_dict(state["rewards"])
        counters = (state["counters"][name] for name in ("frames", "steps", "updates", "began"))
        self.frames, self.steps, self.learner.updates, self._began = counters
        self._times = dict(state["times"])
        self.state.copy_(state["state"])
        self.rollout.load_state_dict(state["rollout"])
        if self.learner.lag:
            self.learner.load_state_dict(state["lag"])
            self.generator.set_state(state["lag"]["generator"])
        steps = self.config.rollout_steps
        if self.activations:  # not in a checkpoint
            for slots in self.setting.groups:
                for t in range(min(self._times[slots.start] + 1, steps)):
                    self.see(self.activations, t, slots)
        for slots in self.setting.groups:
            if self._times[slots.start] == steps:
                self._note_value(steps, slots)  # checkpoints of older versions have it only after all groups

    def see(self, activations: Activations, t: int, slots: slice) -> None:
        """Make the results of layers for step t of a rollout without acting."""
        activations.begin(t, slots)
        with torch.inference_mode():
            self.learner.actor(self.rollout.inputs_at(t, slots), self.state[slots], activations)


def frozen_player(
    config: OnPolicyConfig, game: GameDescription, weights: dict[str, Tensor], device: torch.device, num_envs: int, policy: str
) -> NetworkPlayer:
    """Trained weights at play: `sample` draws from the policy, `greedy` takes its likeliest action."""
    network = ActorCritic(game, config.frame_stack, config.torso, config.memory).to(device)
    network.load_state_dict(weights)

    def play(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, values, state = network(inputs, state)
        if policy == "greedy":
            return nn.functional.one_hot(logits[0].argmax(-1), logits.shape[-1]).float(), values[0], state
        return logits[0].softmax(-1), values[0], state

    return NetworkPlayer(play, num_envs, config.frame_stack, game, device, network.state_size)


def explained_variance(values: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
    """1 where the value foretells the returns exactly, 0 where it is no better than their mean."""
    mean = mean_over(weights)

    def variance(x: Tensor) -> Tensor:
        return mean((x - mean(x)) ** 2)

    return 1 - variance(returns - values) / variance(returns).clamp(min=1e-8)
