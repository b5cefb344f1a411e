"""Training: the order of calls between environments and agent, and around it counting, logging and checkpoints."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

from agents.agent import Agent
from envs.contract import Envs, InputError, TimeStep
from training import checkpoint
from training.metrics import Clock, Metrics
from training.scores import Scores


class Turn(NamedTuple):
    """One group's step, as the agent has just seen it."""

    slots: slice
    timestep: TimeStep
    metrics: dict[str, float] | None  # of an update, where one was made


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop
    """The run was stopped by a signal, after a checkpoint."""

    def __init__(self, signal_number: int, run_dir: Path) -> None:
        """Remember which signal; the process exits with 128 more."""
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; `python train.py resume {run_dir}` goes on")
        self.exit_code = 128 + signal_number


def turns(envs: Envs, agent: Agent, clock: Clock) -> Iterator[Turn]:
    """Let the groups take turns in a fixed order, for ever; one is played while the agent is busy with another."""
    waiting: list[tuple[int, TimeStep]] = []
    while True:
        for group, slots in enumerate(envs.groups):
            with clock.measure("environment"):
                timestep = envs.recv(group)
            with clock.measure("learning"):
                metrics = agent.observe(timestep, slots)
            yield Turn(slots, timestep, metrics)
            waiting.append((group, timestep))
            if agent.holds:
                continue
            with clock.measure("forward"):
                for held, seen in waiting:
                    envs.send(agent.act(seen, envs.groups[held]), held)
            waiting.clear()


class Run:
    """One training run in its directory, from wherever it stands to its end."""

    def __init__(self, run_dir: Path, total_frames: int, checkpoint_frames: int, envs: Envs, agent: Agent) -> None:
        """Take what was built; `load` then continues from a checkpoint."""
        self.run_dir, self.total_frames, self.checkpoint_frames = run_dir, total_frames, checkpoint_frames
        self.envs, self.agent = envs, agent
        self.scores = Scores(envs.tasks)
        self.clock = Clock()
        self._signal: int | None = None

    def __enter__(self) -> Self:
        """End the environments' workers at the end of a `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the environments' workers."""
        self.envs.close()

    @property
    def _checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            InputError: it is not of an agent like this one: another version of the program had other networks, say.
        """
        state = checkpoint.load(path)
        try:
            self.agent.load_state_dict(state["agent"] | {name: state[name] for name in ("weights", "optimizer")})
            self.scores.load_state_dict(state["scores"])
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} does not fit this version; the run's config.json names its commit ({reason})") from error

    def save(self) -> Path:
        """Write a checkpoint of the run as it stands, and drop those that are no longer kept."""
        agent = self.agent.state_dict()
        parts = {name: agent.pop(name) for name in ("weights", "optimizer")}
        path = checkpoint.save(
            self._checkpoints, self.agent.frames, {**parts, "agent": agent, "scores": self.scores.state_dict()}
        )
        checkpoint.prune(self._checkpoints)
        return path

    def train(self, show: Callable[[dict[str, float]], None]) -> None:
        """Train to the end; `show` is given each row of metrics.

        Raises:
            Stopped: a signal came; a checkpoint was written.
        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Metrics(self.run_dir, self.total_frames, self.agent.frames) as metrics:
                self._train(metrics, show)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _train(self, metrics: Metrics, show: Callable[[dict[str, float]], None]) -> None:
        agent = self.agent
        next_checkpoint = self._next_checkpoint()
        self.clock.lap(agent.frames)
        for turn in turns(self.envs, agent, self.clock):
            self.scores.watch(turn.timestep, turn.slots)
            if self._signal is not None:
                self.save()
                raise Stopped(self._signal, self.run_dir)
            if turn.metrics is None:
                continue
            metrics.add(turn.metrics)
            done = agent.frames >= self.total_frames
            if done or metrics.due(agent.frames):
                now = {**self.scores.metrics(), "score/games_lost": self.envs.lost_games, **self.clock.lap(agent.frames)}
                show(metrics.write(agent.frames, agent.steps, now))
            if done or agent.frames >= next_checkpoint:
                self.save()
                next_checkpoint = self._next_checkpoint()
            if done:
                return

    def _next_checkpoint(self) -> int:
        """The next multiple of the period: where a run was resumed does not move it."""
        return (self.agent.frames // self.checkpoint_frames + 1) * self.checkpoint_frames

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signal = number
