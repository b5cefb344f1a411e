"""Deep Q-Network: Mnih et al. 2015, "Human-level control through deep reinforcement learning", https://doi.org/10.1038/nature14236.

With double Q-learning (van Hasselt et al. 2016, https://arxiv.org/abs/1509.06461) and n-step returns (Sutton 1988) as options.

What differs from the paper:
1. Adam and the squared error instead of RMSprop and the Huber loss, after Dopamine's findings; `--loss huber` is there.
2. Several games are played side by side; `update_steps` counts the agent steps of all of them.
3. A lost life ends the return only with `--end-on-life-loss`.
4. Learning starts after 80,000 emulator frames instead of 200,000, as in Dopamine. In a short run, replay is no larger than
   the run, learning starts after 5 % of it, exploration has fallen after 25 %, and the target network is a copy from at most
   1 % of the run before.
5. A step whose action was ignored, because it only opened an episode, has weight zero in the loss.
6. A truncated episode bootstraps from its last observation instead of counting as lost.
7. Exploration falls to 1 % in 1M emulator frames instead of to 10 % in 4M, the target network is copied every 32,000, as in
   Dopamine, and a frozen agent plays one action in a thousand at random instead of one in twenty.
8. Gradients are clipped by their length, and initial weights are orthogonal.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.adam import Adam
from agents.agent import NonFiniteError, Setting
from agents.cuda_graphs import Graphed
from agents.networks import Inputs, QNetwork
from agents.normalize import Kind, RewardTransform
from agents.player import NetworkPlayer
from agents.replay import Replay, Transitions
from agents.schedules import linear
from agents.shards import Shards, SharedOptimizer, Threads
from envs.contract import GameDescription, InputError, TimeStep

_REPORT_UPDATES = 50  # updates between two rows of metrics
PLAY_EPSILON = 0.001  # share of random actions of a frozen agent


@dataclass(frozen=True)
class DQNConfig:
    """Settings of DQN."""

    num_envs: int = 8
    """Games played side by side."""
    capacity: int = 1_000_000
    """Agent steps that replay holds."""
    batch_size: int = 32
    """Transitions an update learns from."""
    update_steps: int = 4
    """Agent steps, over all games, from update to update."""
    target_frames: int = 32_000
    """Emulator frames from one copy of the network into the target network to the next; at most 1 % of the run."""
    start_frames: int = 80_000
    """Emulator frames before the first update; at most 5 % of the run."""
    epsilon_start: float = 1.0
    """Share of random actions at the start."""
    epsilon_end: float = 0.01
    """Share of random actions after `epsilon_frames`."""
    epsilon_frames: int = 1_000_000
    """Emulator frames in which the share of random actions falls; at most 25 % of the run."""
    learning_rate: float = 6.25e-5
    """Step size of Adam."""
    discount: float = 0.99
    """Weight of the reward one agent step later."""
    n_step: int = 1
    """Rewards that are added up before a value is trusted."""
    double: bool = False
    """Choose the next action by the network that learns, and value it by the target network."""
    loss: Literal["mse", "huber"] = "mse"
    """Error to minimise."""
    max_grad_norm: float = 10.0
    """Length at which gradients are clipped."""
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


def td_targets(batch: Transitions, target_values: Tensor, choosing_values: Tensor) -> Tensor:
    """What the values of the actions taken should have been.

    Args:
        batch: What happened.
        target_values: (B, A) of the next states, by the target network.
        choosing_values: (B, A) of the next states, by the network whose best action counts: the target network itself in DQN,
            the network that learns in double DQN.

    Returns:
        (B,) `rewards + discounts * target_values[argmax choosing_values]`.
    """
    best = choosing_values.argmax(-1, keepdim=True)
    return batch.rewards + batch.discounts * target_values.gather(-1, best).squeeze(-1)


def dqn_loss(values: Tensor, targets: Tensor, batch: Transitions, kind: str) -> Tensor:
    """Mean error of the actions taken, over the transitions that count.

    Args:
        values: (B, A) of the states.
        targets: (B,) see `td_targets`.
        batch: What happened.
        kind: `mse` or `huber`.

    Returns:
        A scalar.
    """
    taken = values.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    error = nn.functional.huber_loss if kind == "huber" else nn.functional.mse_loss
    return (error(taken, targets, reduction="none") * batch.weights).sum() / batch.weights.sum().clamp(min=1)


class DQN:
    """Acts epsilon-greedily and learns from replay."""

    def __init__(self, config: DQNConfig, setting: Setting) -> None:
        """Build the networks, the optimiser and replay.

        Raises:
            InputError: replay does not fit into memory, or the run is shorter than `n_step`.
        """
        self.config, self.setting = config, setting
        self.frames = self.steps = self.updates = 0
        self.hurry = False  # no update of this agent is long
        torch.manual_seed(setting.seed)  # the initial weights are drawn from the global generator
        game = setting.game
        self.network = QNetwork(game, config.frame_stack, config.torso).to(setting.device)
        threads = Threads(setting.learn_threads)
        self.optimizer = SharedOptimizer(lambda weights: Adam(weights, config.learning_rate, eps=1.5e-4), self.network, threads)
        self.shards = Shards(self.network, threads, setting.precision, images=game.sees_images)
        self.target = copy.deepcopy(self.shards.network).requires_grad_(False)
        self._choose = Graphed(self._best, setting.device)
        self.generator = torch.Generator().manual_seed(setting.seed)
        self.rewards = RewardTransform(config.reward, config.reward_scale, config.discount, setting.num_envs)
        self._frames_a_step = float(np.mean(game.protocol.frame_skip))
        steps = math.ceil(setting.total_frames / self._frames_a_step)  # that the run will fill, about
        if steps <= config.n_step * setting.num_envs:
            raise InputError(
                f"--n-step {config.n_step}: the run has only {steps // setting.num_envs} steps a game; take more --total-frames"
            )
        capacity = min(config.capacity, steps)
        size = capacity, setting.num_envs, config.frame_stack
        self.replay = Replay(*size, game, config.n_step, setting.device, self.rewards)
        # An update gathers its batch itself, unless the GPU has no room for replay.
        self._gathers = self.replay.device == setting.device
        self._graphed_step = Graphed(self._gather_and_step if self._gathers else self._step, setting.device)
        self._times = {group.start: -1 for group in setting.groups}  # each group's newest step
        self._credit = 0  # agent steps that no update has used up yet
        self._losses: list[Tensor] = []
        self._target_frames = 0  # when the target network was last copied

    @property
    def holds(self) -> bool:
        """Never: replay takes groups as they come."""
        return False

    @property
    def filling(self) -> bool:
        """Whether replay fills before the first update, or anew in a run that went on without what it had."""
        held = (self.replay.newest - self.replay.first) * self.setting.num_envs * self._frames_a_step
        return self.frames < self.start_frames or (self.replay.first > 0 and held < self.start_frames)

    @property
    def start_frames(self) -> float:
        """Emulator frames that replay fills with before the first update."""
        return min(self.config.start_frames, 0.05 * self.setting.total_frames)

    @property
    def target_period(self) -> float:
        """Emulator frames from one copy into the target network to the next."""
        return min(self.config.target_frames, 0.01 * self.setting.total_frames)

    @property
    def epsilon(self) -> float:
        """Share of random actions now."""
        falling = min(self.config.epsilon_frames, 0.25 * self.setting.total_frames)
        return linear(self.config.epsilon_start, self.config.epsilon_end, self.frames / max(falling, 1))

    def act(self, timestep: TimeStep, slots: slice) -> NDArray[np.int64]:
        """Take the best action, or now and then any."""
        t = self._times[slots.start]
        with torch.inference_mode():
            seen = self.replay.seen_at(t, slots)
            best = self._choose(*(part.to(self.setting.device) for part in seen))["best"]
            chosen: NDArray[np.int64] = best.cpu().numpy()
        explores = torch.rand(len(chosen), generator=self.generator).numpy() < self.epsilon
        if explores.any():
            anything = torch.randint(self.setting.game.num_actions, (int(explores.sum()),), generator=self.generator)
            chosen[explores] = anything.numpy()
        self.replay.put_action(t, slots, chosen)
        return chosen

    def _best(self, stacks: Tensor, extra: Tensor) -> dict[str, Tensor]:
        return {"best": self.shards.network(stacks, extra).argmax(-1)}

    def observe(self, timestep: TimeStep, slots: slice) -> None:
        """Store what the last actions brought."""
        self.frames += sum(timestep.frames.tolist())
        played = timestep.is_first.tolist().count(False)
        self.steps += played
        t = self._times[slots.start]
        if t >= 0:
            self._note_outcome(t, timestep, slots)
        t = self._times[slots.start] = t + 1
        self.replay.put_frame(t, slots, timestep.observation, timestep.extra, timestep.is_first)
        self.replay.newest, self.replay.complete = max(self._times.values()), max(0, min(self._times.values()))
        if not self.filling:
            self._credit += played

    def learn(self) -> dict[str, float] | None:
        """Make the updates that are due."""
        if not self.filling:
            self._learn()
        over = self.frames >= self.setting.total_frames
        return self._report() if over or self.filling or len(self._losses) >= _REPORT_UPDATES else None

    def _note_outcome(self, t: int, timestep: TimeStep, slots: slice) -> None:
        terminated = timestep.terminated | timestep.life_lost if self.config.end_on_life_loss else timestep.terminated
        self.rewards.watch(timestep, slots)
        outcome = (timestep.reward, terminated, terminated | timestep.truncated, ~timestep.is_first)
        self.replay.put_outcome(t, slots, *outcome)

    def _learn(self) -> None:
        config, span = self.config, self.replay.span(self.config.n_step)
        batch = None
        while self._credit >= config.update_steps and span[0] < span[1]:
            self._credit -= config.update_steps
            batch = self.replay.draw(config.batch_size, span, self.generator)
            self._losses.append(self._update(*batch))
        # What is not finite stays so, so the last update tells of all.
        if batch is not None and not self._losses[-1].isfinite().all():
            fields = self.replay.transitions(*batch, config.n_step, config.discount)
            raise NonFiniteError(f"loss or gradient of update {self.updates}", fields._asdict())
        if self.frames - self._target_frames >= self.target_period:
            self.target.load_state_dict(self.shards.network.state_dict())
            self._target_frames = self.frames

    def _report(self) -> dict[str, float]:
        """Means over the updates since the last report."""
        if not self._losses:
            return {"policy/epsilon": self.epsilon}
        loss, value, norm = torch.stack(self._losses).mean(0).tolist()  # one wait for the device, not one an update
        self._losses.clear()
        return {"loss/td": loss, "value/mean": value, "gradient/norm": norm, "policy/epsilon": self.epsilon}

    def _update(self, t: Tensor, slots: Tensor) -> Tensor:
        """One gradient step on the transitions that begin at some steps; returns loss, mean value and the gradient's length."""
        self.updates += 1
        given: tuple[Tensor, ...] = self.replay.look_up(t, slots, self.config.n_step, self.config.discount)
        if not self._gathers:
            given = self.replay.gather(*given)
        # Else each copy to a GPU would wait for the update before it
        return self._graphed_step(*(part.to(self.setting.device, non_blocking=True) for part in given))["losses"]

    def _gather_and_step(self, places: Tensor, outcomes: Tensor) -> dict[str, Tensor]:
        """A gradient step on what `Replay.look_up` returned; each thread gathers its own part."""
        *_, weights = outcomes
        return self._gradient_step(lambda part: self.replay.gather(places[:, part], outcomes[:, part]), weights)

    def _step(self, *fields: Tensor) -> dict[str, Tensor]:
        """A gradient step on the fields of `Transitions`."""
        batch = Transitions(*fields)
        return self._gradient_step(lambda _: batch, batch.weights)

    def _gradient_step(self, part_of: Callable[[Tensor], Transitions], weights: Tensor) -> dict[str, Tensor]:
        """A gradient step on a batch, given by its parts and by the weights of its transitions."""
        config, size, counted = self.config, len(weights), weights.sum().clamp(min=1)

        def work(network: nn.Module, part: Tensor) -> dict[str, Tensor]:
            batch = part_of(part)
            with torch.no_grad():
                target_values = self.target(batch.next_stacks, batch.next_extra)
                choosing_values = network(batch.next_stacks, batch.next_extra) if config.double else target_values
            values = network(batch.stacks, batch.extra)
            share = batch.weights.sum() / counted
            loss = dqn_loss(values, td_targets(batch, target_values, choosing_values), batch, config.loss) * share
            torch.autograd.backward(loss)
            return {"loss": loss.detach(), "value": values.detach().mean() * len(part) / size}

        metrics = self.shards.gradients(work, torch.arange(size, device=self.setting.device))
        norm = self.shards.step(self.optimizer, config.max_grad_norm)
        return {"losses": torch.stack([metrics["loss"], metrics["value"], norm])}

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimiser, counters, reward moments and the generator; replay is kept for itself."""
        counters = {"frames": self.frames, "steps": self.steps, "updates": self.updates}
        return {
            "weights": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "target": self.target.state_dict(),
            "generator": self.generator.get_state(),
            "rewards": {**self.rewards.state_dict(), "in_replay": "as played"},
            "counters": {**counters, "credit": self._credit, "target_frames": self._target_frames},
            "times": self._times,
            "losses": self._losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back a state, replay being filled again; what an older version had made of its rewards is forgotten."""
        if self.config.reward in ("scale", "normalize") and "in_replay" not in state["rewards"]:
            self.replay.forget()
        self.network.load_state_dict(state["weights"])
        self.target.load_state_dict(state["target"])
        self.shards.refresh()
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
        self.rewards.load_state_dict(state["rewards"])
        counters = state["counters"]
        self.frames, self.steps, self.updates = (counters[name] for name in ("frames", "steps", "updates"))
        self._credit, self._target_frames = counters["credit"], counters["target_frames"]
        self._times, self._losses = dict(state["times"]), [loss.to(self.setting.device) for loss in state["losses"]]


def frozen_player(
    config: DQNConfig, game: GameDescription, weights: dict[str, Tensor], device: torch.device, num_envs: int, policy: str
) -> NetworkPlayer:
    """Trained weights at play: `greedy`, or with one random action in a thousand (`epsilon 0.001`)."""
    network = QNetwork(game, config.frame_stack, config.torso).to(device)
    network.load_state_dict(weights)
    epsilon = 0.0 if policy == "greedy" else PLAY_EPSILON

    def play(inputs: Inputs, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        values = network(inputs.stacks[0], inputs.extra[0])
        best = nn.functional.one_hot(values.argmax(-1), values.shape[-1])
        return best * (1 - epsilon) + epsilon / values.shape[-1], values.max(-1).values, state

    return NetworkPlayer(play, num_envs, config.frame_stack, game, device)
