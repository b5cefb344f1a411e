"""The vectoriser: K games in each worker process, over shared memory. Every family of environments is played through it.

The memory is an anonymous file that the workers inherit, so it has no name that could be left behind. Commands and replies are
single bytes on pipes: when the trainer dies, however it dies, its ends close, the workers read end-of-file, and exit.

    trainer                 pipe                worker
    actions -> memory
    send(group) ──────── group number ───────▶  step this group's slots, results -> memory
    recv(group) ◀─────── group number ────────

A worker that dies or hangs is started anew with other seeds, where that is wanted; its slots open games at their next step:

    observation:  o0 ── o1 ── o2    (the worker dies)  o0'── o1'
    is_first:     T     F     F                        T     F      so the step between o2 and o0' has no weight in any loss
"""

import contextlib
import itertools
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from envs import registry
from envs.contract import GameDescription, GameLost, InputError, ProtocolOptions, TimeStep
from envs.shared_memory import FAILED, RESET, Channel, SharedMemory, anonymous_file, description_from

HANG_SECONDS = 120.0  # without a reply, after which a worker counts as hanging; a level that is compiled first takes 24
MOST_RESTARTS = 3  # of one worker, without a step in between
# A worker computes on one core, and opens no window.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy"}


class WorkerError(RuntimeError):
    """A worker process died or its game raised."""


class WorkerLostError(WorkerError):
    """A worker process died or hangs: starting it anew may help."""


class WorkerEnvs:
    """N games of one id in worker processes; implements `envs.contract.Envs`."""

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        options: ProtocolOptions | None = None,
        num_groups: int = 1,
        num_workers: int | None = None,
        record: Sequence[int] = (),
        restart: bool = False,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """Start the workers.

        Args:
            env_id: What to play; an id that stands for several games is spread over the slots.
            num_envs: Slots.
            options: The user's changes to the id's protocol.
            num_groups: Groups of slots that take turns.
            num_workers: Processes; one a core where not given.
            record: Slots whose emulator frames are kept for `last_frames`.
            restart: Start a worker anew when it dies or hangs; its games are lost. Without it that is a `WorkerError`.
            hang_seconds: How long a worker may take for a step; a step that opens games has as much for each of its slots.

        Raises:
            InputError: unknown id, a game that cannot be played, or a number of environments that the groups do not divide.
        """
        if num_envs % num_groups:
            raise InputError(f"num_envs {num_envs} does not divide into {num_groups} groups; take a multiple of {num_groups}")
        self.num_envs = num_envs
        size = num_envs // num_groups
        self.groups = tuple(slice(group * size, (group + 1) * size) for group in range(num_groups))
        tasks = registry.tasks_of(env_id)
        self.tasks = tuple(tasks[slot % len(tasks)] for slot in range(num_envs))
        self.seeds = np.full(num_envs, -1, np.int64)
        self.lost_games = 0
        self._restart, self._recorded = restart, {slot: row for row, slot in enumerate(record)}
        self._workers: list[_WorkerProcess] = []
        self._file = anonymous_file()
        try:
            cores = _cores_to_keep(env_id)
            for slots in self._shares(num_workers or usable_cores()):
                order = {
                    "slots": slots,
                    "ids": [(slot, self.tasks[slot]) for group in slots for slot in group],
                    "options": asdict(options or ProtocolOptions()),
                    "record": list(record),
                    "core": next(cores),
                }
                self._workers.append(_WorkerProcess(self._file.fileno(), slots, order, hang_seconds))
            self.description = self._joint_description(env_id, [worker.describe() for worker in self._workers])
            self._memory = SharedMemory(self._file.fileno(), num_envs, self.description, list(record), create=True)
            self._steps = tuple(self._memory.step_of(group) for group in self.groups)
            for worker in self._workers:
                worker.map_memory(num_envs, self.description)
        except BaseException:
            self.close()
            raise

    def _shares(self, num_workers: int) -> list[list[list[int]]]:
        """The slots of each worker, by group."""
        size = self.num_envs // len(self.groups)
        shares = np.array_split(np.arange(size), min(size, num_workers))
        return [[[int(slot) + group.start for slot in share] for group in self.groups] for share in shares]

    def _joint_description(self, env_id: str, descriptions: list[GameDescription]) -> GameDescription:
        """That of any slot, under the id that was asked for; of several games the first stands for all."""
        first = descriptions[0]
        return replace(first, protocol=replace(first.protocol, env=env_id))

    def reset(self, seeds: Sequence[Sequence[int]]) -> None:
        """Open a game in every slot; slot i opens its k-th game with `seeds[i][k]`, later ones without reseeding."""
        for worker in self._workers:
            worker.reset([[list(seeds[slot]) for slot in slots] for slots in worker.slots])

    def send(self, actions: NDArray[np.integer[Any]], group: int) -> None:
        """Start a step of one group; actions (slots of the group,)."""
        self._memory.actions[self.groups[group]] = actions
        before = self._steps[group]
        opens = bool((before.terminated | before.truncated).any())
        for worker in self._workers:
            worker.start(group, opens=opens)

    def recv(self, group: int) -> TimeStep:
        """Wait for this group's step. The fields are views, valid until its next `send`.

        Raises:
            WorkerError: a game raised; or a worker died or hangs and is not to be started anew, or died again and again.
        """
        for worker in self._workers:
            try:
                worker.expect(group)
            except WorkerLostError as gone:
                if not self._restart:
                    raise
                self._start_anew(worker, group, gone)
        self.seeds[self.groups[group]] = self._memory.seeds[self.groups[group]]
        return self._steps[group]

    def _start_anew(self, worker: "_WorkerProcess", group: int, gone: "WorkerLostError") -> None:
        self.lost_games += sum(map(len, worker.slots))
        for _ in range(MOST_RESTARTS):
            try:
                worker.start_anew(self.num_envs, self.description)
                return worker.expect(group)
            except WorkerLostError as again:
                gone = again
        raise WorkerError(f"{gone}; so it did {MOST_RESTARTS} times in a row after it was started anew") from gone

    def last_frames(self, slot: int) -> NDArray[np.uint8]:
        """Every emulator frame of a recorded slot's last step: (k, H, W, 3) RGB; k = 0 where the step opened a game."""
        row = self._recorded[slot]
        return self._memory.screens[row, : self._memory.screen_counts[row]]

    def close(self) -> None:
        """End the workers and free the memory; harmless when done twice."""
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.wait()
        self._workers = []
        self._file.close()

    def __enter__(self) -> Self:
        """Close at the end of a `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close at the end of a `with` block."""
        self.close()


class _WorkerProcess(Channel):
    """The trainer's end of one worker."""

    def __init__(self, memory: int, slots: list[list[int]], order: dict[str, Any], hang_seconds: float) -> None:
        self.slots = slots  # slots[group]
        self._memory, self._order, self._hang_seconds = memory, order, hang_seconds
        self._seeds: list[list[list[int]]] = []
        self._running: list[int] = []  # groups whose step was started and has not been received
        self._opening: set[int] = set()  # groups whose running step opens games
        self._restarts = 0
        self._launch()

    def _launch(self) -> None:
        memory = self._memory
        commands, command_end = os.pipe()
        reply_end, replies = os.pipe()
        # What a worker leaves behind when it is killed goes with the folder.
        self._folder = tempfile.TemporaryDirectory(prefix="playfield-", ignore_cleanup_errors=True)
        folders = dict.fromkeys(("TMPDIR", "TEST_TMPDIR"), self._folder.name)
        paths = [str(Path(__file__).parent.parent), *filter(None, sys.path), os.getcwd()]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envs.worker_process", str(memory), str(commands), str(replies)],
            pass_fds=(memory, commands, replies),
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT, **folders, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            start_new_session=True,  # Ctrl-C is for the trainer, which ends its workers itself
        )
        os.close(commands)
        os.close(replies)
        super().__init__(reply_end, command_end)
        self.write_message(self._order)

    def describe(self) -> GameDescription:
        """What it plays.

        Raises:
            InputError: nothing that can be played.
        """
        return description_from(self.read_message())

    def map_memory(self, num_envs: int, description: GameDescription) -> None:
        """Let it write where the trainer reads."""
        self.write_message({"num_envs": num_envs, "description": asdict(description)})

    def reset(self, seeds: list[list[list[int]]]) -> None:
        """Open a game in each of its slots, `seeds[group][slot]`; the results of every group are to be received."""
        self._seeds = seeds
        self.write(RESET)
        self.write_message(seeds)
        for group in range(len(self.slots)):
            self.start(group, opens=True)

    def start(self, group: int, *, opens: bool) -> None:
        """Start a step; `opens`: some of its slots open a game, which may take each of them as long as a step."""
        if opens:
            self._opening.add(group)
        self._running.append(group)
        self.write(group)

    def start_anew(self, num_envs: int, description: GameDescription) -> None:
        """End what is left of the process; another takes its slots, opens new games and starts the steps that were running.

        Raises:
            WorkerLostError: it died as well.
        """
        self._kill()
        self.close()
        self._restarts += 1
        self._launch()
        self.describe()
        self.map_memory(num_envs, description)
        self._opening.update(range(len(self.slots)))
        self.write(RESET)
        self.write_message([[_other_seeds(seeds, self._restarts) for seeds in group] for group in self._seeds])
        for group in self._running:
            self.write(group)

    def write(self, signal: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # a worker that is gone is reported by `expect`, with its last words
            super().write(signal)

    def write_message(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            super().write_message(message)

    def expect(self, group: int) -> None:
        """Wait for the end of a step.

        Raises:
            WorkerError: its game raised.
            WorkerLostError: the worker died or hangs.
        """
        self._await(self._hang_seconds * (len(self.slots[group]) if group in self._opening else 1))
        self._opening.discard(group)
        reply = self.read()
        if reply is None or reply == FAILED:
            self._fail(self.read_message() if reply == FAILED else {})
        assert reply == group == self._running[0], f"groups take turns: waited for {group} and received {reply}"
        self._running.pop(0)

    def _await(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._incoming, select.POLLIN)
        if not poll.poll(seconds * 1000):
            raise WorkerLostError(f"a worker process has not answered for {seconds:g} seconds")

    def read_message(self) -> Any:
        self._await(HANG_SECONDS)  # a process that starts on a busy machine takes longer than a step
        message = super().read_message()
        if not message or "error" in message:
            self._fail(message)
        return message

    def _fail(self, message: dict[str, str]) -> None:
        if message.get("kind") == InputError.__name__:
            raise InputError(message["error"])
        if message.get("kind") == GameLost.__name__:
            raise WorkerLostError(message["error"])
        if not message:
            raise WorkerLostError(f"a worker process ended on its own with exit status {self._process.wait()}")
        error = WorkerError(message["error"])
        error.add_note(f"In the worker:\n{message['traceback']}")
        raise error

    def wait(self) -> None:
        """Wait for its end after `close`, at which it reads end-of-file and exits."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)
        if self._process.returncode != 0:
            self._kill()
        self._folder.cleanup()

    def _kill(self) -> None:
        """End what is left of it and the engines of its games, processes of its group that outlive a worker that is killed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def _other_seeds(seeds: list[int], restarts: int) -> list[int]:
    """Of the games that follow a restart: a function of the slot's first seed and of how often its worker was started anew."""
    return [int(np.random.SeedSequence((seeds[0], restarts)).generate_state(1)[0] & 0x7FFFFFFF)] if seeds else []


def _cores_to_keep(env_id: str) -> Iterator[int | None]:
    """The core of each worker, by turns; None leaves it to the system.

    A game and its engine hand over to each other many times a step: on one core that takes half as long as on two. Trainers
    side by side usually begin with different cores.
    """
    if not (registry.game_class(env_id).own_engine and hasattr(os, "sched_getaffinity")):
        return itertools.repeat(None)
    cores = sorted(os.sched_getaffinity(0))
    first = os.getpid() % len(cores)
    return itertools.cycle(cores[first:] + cores[:first])


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
