"""Training: the order of calls between environments and agent, and around it counting, logging and checkpoints."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from mmap import mmap
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn, Self

import numpy as np
import safetensors.torch
import torch

from agents.agent import Agent, BrokenOff, NonFiniteError
from envs.contract import Envs, InputError, TimeStep
from envs.worker_handle import WorkerLostError
from training import checkpoint
from training.command_line import next_command
from training.disk import Disk
from training.large_pages import LargePages
from training.lock import Lock
from training.metrics import Clock, Metrics, check_state
from training.replay_files import ReplayFiles
from training.scores import Scores

_SHOW_CURSOR = b"\x1b[?25h"


class Turn(NamedTuple):
    """One group's step, as the agent has just seen it."""

    slots: slice
    timestep: TimeStep
    metrics: dict[str, float] | None  # of an update, where one was made


class Stopped(Exception):  # noqa: N818 - not an error: the run was asked to stop
    """The run was stopped by a signal, after a checkpoint."""

    def __init__(self, signal_number: int, run_dir: Path, env: str) -> None:
        """Remember which signal; the process exits with 128 more."""
        goes_on = next_command("train.py resume", run_dir, env)
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; {goes_on} goes on")
        self.exit_code = 128 + signal_number


class ProtectedError(InputError):
    """The run was stopped before it could spoil what it had learned."""

    exit_code = 4


class Turns:
    """The groups take turns in a fixed order, for ever; one is played while the agent is busy with another."""

    def __init__(self, envs: Envs, agent: Agent, clock: Clock) -> None:
        """Begin with the first group."""
        self._envs, self._agent, self._clock = envs, agent, clock
        self.pages = LargePages()
        self._group = 0  # whose turn it is
        self._observed = False  # whether its step was observed; what is to be learned from it was not yet
        self._waiting: list[tuple[int, TimeStep]] = []  # groups whose step was observed, and that have not acted yet

    def __iter__(self) -> Self:
        """Itself."""
        return self

    def __next__(self) -> Turn:
        """Act for whom it is due, then let the agent observe the next group's step, and learn.

        Raises:
            BrokenOff: the agent hurries, and has not learned; the next call goes on there.
            NonFiniteError: a number of the environment or of learning is not finite.
        """
        envs, agent, group = self._envs, self._agent, self._group
        slots = envs.groups[group]
        if not self._observed:
            self._observe(group, slots)
        timestep = envs.seen(group)
        with self._clock.measure("learning"):
            metrics = agent.learn()
        if metrics is not None:
            self.pages.look()
        self._observed = False
        self._waiting.append((group, timestep))
        self._group = (group + 1) % len(envs.groups)
        return Turn(slots, timestep, metrics)

    def _observe(self, group: int, slots: slice) -> None:
        envs, agent = self._envs, self._agent
        if not agent.holds:
            with self._clock.measure("forward"):
                for held, seen in self._waiting:
                    envs.send(agent.act(seen, envs.groups[held]), held)
            self._waiting.clear()
        with self._clock.measure("environment"):
            timestep = envs.recv(group)
        refuse_non_finite(timestep)
        with self._clock.measure("learning"):
            agent.observe(timestep, slots)
        self._observed = True

    def state_dict(self) -> dict[str, Any]:
        """Whose turn it is, how far it is, and who waits."""
        return {"group": self._group, "observed": self._observed, "waiting": [group for group, _ in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, with the steps that the environments hold."""
        self._group, self._observed = state["group"], state.get("observed", False)
        self._waiting = [(group, self._envs.seen(group)) for group in state["waiting"]]


def _beside_the_heap(content: bytes) -> mmap:
    """The same bytes in pages of their own.

    In the heap they would lie between what training takes and gives back meanwhile, for as long as the disk takes: no two
    checkpoints would leave the same gaps, and now and then it would have to grow.
    """
    pages = mmap(-1, len(content))
    pages.write(content)
    return pages


def refuse_non_finite(timestep: TimeStep) -> None:
    """Look at the numbers of a step.

    Raises:
        NonFiniteError: one of them is NaN or infinite.
    """
    numbers = {"observation": timestep.observation, "extra": timestep.extra, "reward": timestep.reward}
    for name, values in numbers.items():
        if values.dtype.kind == "f" and values.size and not np.isfinite(values).all():
            raise NonFiniteError(f"the environment's {name}", {name: torch.tensor(own) for name, own in numbers.items()})


def stopping_signals() -> list[int]:
    """Signals that stop a run; a hangup, of its terminal, is none where it was ignored before, as under nohup."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP])]


class Run:
    """One training run in its directory, from wherever it stands to its end."""

    def __init__(
        self,
        run_dir: Path,
        total_frames: int,
        checkpoint_frames: int,
        envs: Envs,
        agent: Agent,
        *,
        lock: Lock | None = None,
        save_replay: bool = True,
    ) -> None:
        """Take what was built, and the lock of the directory; `load` then continues from a checkpoint."""
        self.run_dir, self.total_frames, self.checkpoint_frames = run_dir, total_frames, checkpoint_frames
        self.envs, self.agent = envs, agent
        self.scores = Scores(envs.tasks)
        self.clock = Clock()
        self.turns = Turns(envs, agent, self.clock)
        self._lock, self._disk = lock, Disk()
        self._replay_files = ReplayFiles(run_dir / "replay", self._disk, saved=save_replay)
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[Path] | None = None  # the checkpoint that is on its way to the disk
        self._metrics: dict[str, Any] = {}  # what the next row of metrics will be made of
        self._next_checkpoint = checkpoint_frames
        self._signal: int | None = None

    def __enter__(self) -> Self:
        """End the environments' workers at the end of a `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the environments' workers and the threads that write, and let go of the directory."""
        self._disk.give_up()  # first: whatever fails below, no thread waits for room any more
        self.agent.hurry = True  # nor does an update beside playing hold up the end
        self.envs.close()
        self._saver.shutdown()
        self._replay_files.close()
        if self._lock is not None:
            self._lock.release()

    @property
    def _checkpoints(self) -> Path:
        return self.run_dir / "checkpoints"

    def load(self, path: Path, seeds: Sequence[Iterable[int]]) -> None:
        """Continue from a checkpoint, in place of `envs.reset(seeds)`.

        Raises:
            InputError: it is not of an agent like this one: another version of the program had other networks, say; or a worker
                died or hangs while its games were brought back to where they stood.
        """
        state = checkpoint.load(path)
        try:
            if self.agent.replay is not None:
                self._replay_files.load(self.agent.replay, state["replay"])
            self.agent.load_state_dict(state["agent"] | {name: state[name] for name in ("weights", "optimizer")})
            self.scores.load_state_dict(state["scores"])
            self.envs.load_state_dict(state["envs"], seeds)
            self.turns.load_state_dict(state["turns"])
            self._metrics, self._next_checkpoint = check_state(state["metrics"]), int(state["next_checkpoint"])
        except WorkerLostError as error:
            raise InputError(f"{path} may be whole: {error}, while games were played up to where they stood") from error
        except (RuntimeError, LookupError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"{path} does not fit this version; the run's config.json names its commit ({reason})") from error

    def save(self, *, clone: bool) -> Path:
        """Write a checkpoint of the run as it stands, drop those that are no longer kept, and wait until that is done.

        `clone` copies the games. After a copy a game may go on otherwise than without one, so this is for moments that come in
        every run alike; at others (a signal) their last copies and the actions since then are enough.

        Raises:
            DiskFullError: there was no room for it, and the run was asked to stop.
            ProtectedError: a weight is not finite.
        """
        self._begin_saving(clone=clone)
        assert self._saving is not None
        path = self._saving.result()
        self._end_saving()
        return path

    def _begin_saving(self, *, clone: bool) -> None:
        """Take down how the run stands; a thread brings it to the disk while training goes on."""
        self._end_saving()
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
        try:
            files = {name: _beside_the_heap(content) for name, content in checkpoint.encode(state).items()}
        except FloatingPointError as error:
            raise ProtectedError(f"{error} at {self.agent.frames:,} frames; {self._stands()}") from error
        self._saving = self._saver.submit(self._write, self.agent.frames, files)

    def _write(self, frames: int, files: dict[str, mmap]) -> Path:
        def save() -> Path:
            if (rows := self.run_dir / "metrics.jsonl").exists():
                checkpoint.sync(rows)  # those before a checkpoint are not written again
            return checkpoint.save(self._checkpoints, frames, files)

        path = self._disk.write(self.run_dir, sum(map(len, files.values())), save)
        checkpoint.prune(path)
        self._replay_files.sweep(checkpoint.state_parts(self._checkpoints, "replay"))
        return path

    def _end_saving(self) -> None:
        """Wait until the last checkpoint is on the disk."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()

    def _stands(self) -> str:
        """Where the run stands on the disk."""
        saved = checkpoint.checkpoints(self._checkpoints)
        return f"the run stands at {saved[-1]}" if saved else "the run has no checkpoint"

    def train(self, show: Callable[[dict[str, float]], None]) -> None:
        """Train to the end; `show` is given each row of metrics.

        Raises:
            Stopped: a signal came; a checkpoint was written.
            DiskFullError: a signal came while there was no room for one.
            ProtectedError: a number was not finite; what was learned until the last checkpoint is safe.
        """
        before = {number: signal.signal(number, self._on_signal) for number in stopping_signals()}
        try:
            with Metrics(self.run_dir, self.total_frames, self._metrics, self._disk) as metrics:
                self._train(metrics, show)
        except NonFiniteError as error:
            raise self._protect(error) from error
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _train(self, metrics: Metrics, show: Callable[[dict[str, float]], None]) -> None:
        agent = self.agent
        self.clock.lap(agent.frames)
        while True:
            try:
                turn = next(self.turns)
            except BrokenOff:
                self._stop()
            self.scores.watch(turn.timestep, turn.slots)
            if agent.replay is not None:
                with self.clock.measure("saving"):
                    self._replay_files.advance(agent.replay)
            if turn.metrics is not None:
                metrics.add(turn.metrics)
                done = agent.frames >= self.total_frames
                if done or metrics.due(agent.frames):
                    now = {**self.scores.metrics(), "score/games_lost": self.envs.lost_games, **self.clock.lap(agent.frames)}
                    show(metrics.write(agent.frames, agent.steps, now))
                self._metrics = metrics.state_dict()
                if done or agent.frames >= self._next_checkpoint:
                    self._next_checkpoint = (agent.frames // self.checkpoint_frames + 1) * self.checkpoint_frames
                    with self.clock.measure("saving"):
                        self._begin_saving(clone=True)
                if done:
                    return self._end_saving()
            if self._disk.full or (self._saving is not None and self._saving.done()):
                with self.clock.measure("saving"):
                    self._end_saving()
            if self._signal is not None:
                self._stop()

    def _stop(self) -> NoReturn:
        assert self._signal is not None
        self.save(clone=False)
        raise Stopped(self._signal, self.run_dir, self.envs.tasks[0])

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        """Stop after the turn in progress; a second signal ends the process at once, where it is no hangup."""
        for each in stopping_signals():  # a terminal that closes hangs up more than once, and so does its shell
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else signal.SIG_DFL)
        self._signal = number
        self.agent.hurry = True
        self._disk.give_up()
        if os.isatty(2):  # the progress line has hidden it, and a second signal would leave it so
            with contextlib.suppress(OSError):  # it may have closed by now
                os.write(2, _SHOW_CURSOR + b"\nstopping after a checkpoint; once more, and it stops at once\n")

    def _protect(self, error: NonFiniteError) -> ProtectedError:
        """Keep what is not finite for a look at it."""
        path = self.run_dir / "non-finite.safetensors"
        batch = {name: value.detach().cpu().contiguous().clone() for name, value in error.batch.items()}
        kept = f"what it came from is in {path}"
        try:
            checkpoint.write_whole(path, safetensors.torch.save(batch))
        except OSError as problem:
            kept = f"what it came from could not be kept ({problem.strerror})"
        self._disk.give_up()
        with contextlib.suppress(OSError, InputError):  # why a checkpoint could not be written is the lesser news
            self._end_saving()
        return ProtectedError(f"{error}, at {self.agent.frames:,} frames; {kept}, and {self._stands()}")
