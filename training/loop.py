"""Training: the order of calls between environments and agent, and around it counting, logging and checkpoints."""

import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

from agents.agent import Agent
from envs.contract import Envs, InputError, TimeStep
from training import checkpoint
from training.metrics import Clock, Metrics
from training.replay_files import ReplayFiles
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


class Turns:
    """The groups take turns in a fixed order, for ever; one is played while the agent is busy with another."""

    def __init__(self, envs: Envs, agent: Agent, clock: Clock) -> None:
        """Begin with the first group."""
        self._envs, self._agent, self._clock = envs, agent, clock
        self._group = 0  # whose turn it is
        self._waiting: list[tuple[int, TimeStep]] = []  # groups whose step was observed, and that have not acted yet

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> Turn:
        """Act for whom it is due, then let the agent observe the next group's step."""
        envs, agent, group = self._envs, self._agent, self._group
        if not agent.holds:
            with self._clock.measure("forward"):
                for held, seen in self._waiting:
                    envs.send(agent.act(seen, envs.groups[held]), held)
            self._waiting.clear()
        slots = envs.groups[group]
        with self._clock.measure("environment"):
            timestep = envs.recv(group)
        with self._clock.measure("learning"):
            metrics = agent.observe(timestep, slots)
        self._waiting.append((group, timestep))
        self._group = (group + 1) % len(envs.groups)
        return Turn(slots, timestep, metrics)

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is, and who waits."""
        return {"group": self._group, "waiting": [group for group, _ in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, with the steps that the environments hold."""
        self._group = state["group"]
        self._waiting = [(group, self._envs.seen(group)) for group in state["waiting"]]


class Run:
    """One training run in its directory, from wherever it stands to its end."""

    def __init__(self, run_dir: Path, total_frames: int, checkpoint_frames: int, envs: Envs, agent: Agent) -> None:
        """Take what was built; `load` then continues from a checkpoint."""
        self.run_dir, self.total_frames, self.checkpoint_frames = run_dir, total_frames, checkpoint_frames
        self.envs, self.agent = envs, agent
        self.scores = Scores(envs.tasks)
        self.clock = Clock()
        self.turns = Turns(envs, agent, self.clock)
        self._replay_files = ReplayFiles(run_dir / "replay")
        self._metrics: dict[str, Any] = {}  # what the next row of metrics will be made of
        self._next_checkpoint = checkpoint_frames
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

    def load(self, path: Path, seeds: Sequence[Iterable[int]]) -> None:
        """Continue from a checkpoint, in place of `envs.reset(seeds)`.

        Raises:
            InputError: it is not of an agent like this one: another version of the program had other networks, say.
        """
        state = checkpoint.load(path)
        try:
            self.agent.load_state_dict(state["agent"] | {name: state[name] for name in ("weights", "optimizer")})
            if self.agent.replay is not None:
                self._replay_files.load(self.agent.replay, state["replay"])
            self.scores.load_state_dict(state["scores"])
            self.envs.load_state_dict(state["envs"], seeds)
            self.turns.load_state_dict(state["turns"])
            self._metrics, self._next_checkpoint = state["metrics"], state["next_checkpoint"]
        except (RuntimeError, KeyError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} does not fit this version; the run's config.json names its commit ({reason})") from error

    def save(self, *, clone: bool) -> Path:
        """Write a checkpoint of the run as it stands, and drop those that are no longer kept.

        `clone` copies the games. Behind a copy a game may go on otherwise than without one, so this is for moments that come in
        every run alike; at others (a signal) their last copies and the actions since then are enough.
        """
        agent = self.agent.state_dict()
        state = {
            "weights": agent.pop("weights"),
            "optimizer": agent.pop("optimizer"),
            "agent": agent,
            "scores": self.scores.state_dict(),
            "envs": self.envs.state_dict(clone=clone),
            "turns": self.turns.state_dict(),
            "metrics": self._metrics,
            "next_checkpoint": self._next_checkpoint,
        }
        if self.agent.replay is not None:
            state["replay"] = self._replay_files.save(self.agent.replay, keep=clone)
        path = checkpoint.save(self._checkpoints, self.agent.frames, state)
        checkpoint.prune(self._checkpoints)
        self._replay_files.sweep(checkpoint.plain_parts(self._checkpoints, "replay"))
        return path

    def train(self, show: Callable[[dict[str, float]], None]) -> None:
        """Train to the end; `show` is given each row of metrics.

        Raises:
            Stopped: a signal came; a checkpoint was written.
        """
        before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with Metrics(self.run_dir, self.total_frames, self.agent.frames) as metrics:
                metrics.load_state_dict(self._metrics)
                self._train(metrics, show)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _train(self, metrics: Metrics, show: Callable[[dict[str, float]], None]) -> None:
        agent = self.agent
        self.clock.lap(agent.frames)
        for turn in self.turns:
            self.scores.watch(turn.timestep, turn.slots)
            if turn.metrics is not None:
                metrics.add(turn.metrics)
                done = agent.frames >= self.total_frames
                if done or metrics.due(agent.frames):
                    now = {**self.scores.metrics(), "score/games_lost": self.envs.lost_games, **self.clock.lap(agent.frames)}
                    show(metrics.write(agent.frames, agent.steps, now))
                self._metrics = metrics.state_dict()
                if done or agent.frames >= self._next_checkpoint:
                    self._next_checkpoint = (agent.frames // self.checkpoint_frames + 1) * self.checkpoint_frames
                    self.save(clone=True)
                if done:
                    return
            if self._signal is not None:
                self.save(clone=False)
                raise Stopped(self._signal, self.run_dir)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signal = number
