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
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from envs import registry
from envs.contract import Game, GameDescription, GameLost, GameProtocol, InputError, Outcome, ProtocolOptions, TimeStep

RESET = 255  # command byte; lower ones are group numbers
FAILED = 254  # reply byte: a line of JSON that says why follows
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
            hang_seconds: How long a worker may take for a step.

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
        self._file = _anonymous_file()
        try:
            for slots in self._shares(env_id, num_workers or usable_cores()):
                ids = {slot: self.tasks[slot] for group in slots for slot in group}
                self._workers.append(
                    _WorkerProcess(self._file.fileno(), ids, options or ProtocolOptions(), slots, list(record), hang_seconds)
                )
            self.description = self._joint_description(env_id, [worker.describe() for worker in self._workers])
            self._memory = SharedMemory(self._file.fileno(), num_envs, self.description, list(record), create=True)
            self._steps = tuple(self._memory.step_of(group) for group in self.groups)
            for worker in self._workers:
                worker.map_memory(num_envs, self.description)
        except BaseException:
            self.close()
            raise

    def _shares(self, env_id: str, num_workers: int) -> list[list[list[int]]]:
        """The slots of each worker, by group."""
        if registry.game_class(env_id).one_a_process:
            return [
                [[slot] if slot in range(self.num_envs)[group] else [] for group in self.groups]
                for slot in range(self.num_envs)
            ]
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
        for worker in self._workers:
            if worker.slots[group]:
                worker.start(group)

    def recv(self, group: int) -> TimeStep:
        """Wait for this group's step. The fields are views, valid until its next `send`.

        Raises:
            WorkerError: a game raised; or a worker died or hangs and is not to be started anew, or died again and again.
        """
        for worker in self._workers:
            if not worker.slots[group]:
                continue
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


class SharedMemory:
    """The arrays that the trainer and its workers both see, laid out one behind the other in one file."""

    def __init__(self, fd: int, num_envs: int, game: GameDescription, record: Sequence[int], *, create: bool) -> None:
        """Lay the arrays over the file; `create` first makes it long enough."""
        screen = game.screen_shape or (0, 0, 3)
        layout: dict[str, tuple[tuple[int, ...], Any]] = {
            "observation": ((num_envs, *game.observation_shape), game.observation_dtype),
            "extra": ((num_envs, game.extra_size), np.float32),
            "reward": ((num_envs,), np.float32),
            "terminated": ((num_envs,), np.bool_),
            "truncated": ((num_envs,), np.bool_),
            "is_first": ((num_envs,), np.bool_),
            "life_lost": ((num_envs,), np.bool_),
            "frames": ((num_envs,), np.int32),
            "actions": ((num_envs,), np.int64),
            "seeds": ((num_envs,), np.int64),
            "screens": ((len(record), game.protocol.frame_skip[1], *screen), np.uint8),
            "screen_counts": ((len(record),), np.int64),
        }
        starts, end = {}, 0
        for name, (shape, dtype) in layout.items():
            starts[name] = end
            end += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // 64) * 64  # each array on a cache line of its own
        if create:
            os.ftruncate(fd, max(end, 1))
        buffer = mmap.mmap(fd, max(end, 1))
        arrays = {name: np.ndarray(shape, dtype, buffer, starts[name]) for name, (shape, dtype) in layout.items()}
        self.step = TimeStep(*(arrays[name] for name in TimeStep._fields))
        self.actions, self.seeds = arrays["actions"], arrays["seeds"]
        self.screens, self.screen_counts = arrays["screens"], arrays["screen_counts"]

    def step_of(self, slots: slice) -> TimeStep:
        """Views of some slots' step."""
        fields: list[Any] = [field[slots] for field in self.step]
        return TimeStep(*fields)


class _Channel:
    """One-byte signals and one-line JSON messages over a pair of pipes."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self._incoming, self._outgoing = incoming, outgoing

    def write(self, signal: int) -> None:
        os.write(self._outgoing, bytes((signal,)))

    def read(self) -> int | None:
        """The next signal; None when the other side is gone."""
        signal = os.read(self._incoming, 1)
        return signal[0] if signal else None

    def write_message(self, message: Any) -> None:
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(self._outgoing, data) :]

    def read_message(self) -> Any:
        """The next message; an empty dict when the other side is gone."""
        line = bytearray()
        while not line.endswith(b"\n"):
            piece = os.read(self._incoming, 1)
            if not piece:
                return {}
            line += piece
        return json.loads(line)

    def close(self) -> None:
        os.close(self._incoming)
        os.close(self._outgoing)


class _WorkerProcess(_Channel):
    """The trainer's end of one worker."""

    def __init__(
        self,
        memory: int,
        ids: dict[int, str],
        options: ProtocolOptions,
        slots: list[list[int]],
        record: list[int],
        hang_seconds: float,
    ) -> None:
        self.slots = slots  # slots[group]
        self._memory, self._hang_seconds = memory, hang_seconds
        self._order = {"slots": slots, "ids": list(ids.items()), "options": asdict(options), "record": record}
        self._seeds: list[list[list[int]]] = []
        self._running: list[int] = []  # groups whose step was started and has not been received
        self._restarts = 0
        self._launch()

    def _launch(self) -> None:
        memory = self._memory
        commands, command_end = os.pipe()
        reply_end, replies = os.pipe()
        paths = [str(Path(__file__).parent.parent), *filter(None, sys.path), os.getcwd()]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envs.workers", str(memory), str(commands), str(replies)],
            pass_fds=(memory, commands, replies),
            stdin=subprocess.DEVNULL,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
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
        return _description_from(self.read_message())

    def map_memory(self, num_envs: int, description: GameDescription) -> None:
        """Let it write where the trainer reads."""
        self.write_message({"num_envs": num_envs, "description": asdict(description)})

    def reset(self, seeds: list[list[list[int]]]) -> None:
        """Open a game in each of its slots, `seeds[group][slot]`; the results of every group are to be received."""
        self._seeds = seeds
        self.write(RESET)
        self.write_message(seeds)
        for group, slots in enumerate(self.slots):
            if slots:
                self.start(group)

    def start(self, group: int) -> None:
        """Start a step."""
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
        self._await(self._hang_seconds)
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

    def _kill(self) -> None:
        """End what is left of it and the engines of its games, processes of its group that outlive a worker that is killed."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class _Worker:
    """A worker process: plays its games when told to."""

    def __init__(self, channel: _Channel, memory_fd: int) -> None:
        order = channel.read_message()
        options = ProtocolOptions(**_with_tuples(order["options"]))
        self._channel = channel
        self._slots: list[list[int]] = order["slots"]
        self._games: dict[int, Game] = {slot: registry.make_game(env_id, options) for slot, env_id in order["ids"]}
        channel.write_message(asdict(next(iter(self._games.values())).description))
        layout = channel.read_message()
        self._memory = SharedMemory(
            memory_fd, layout["num_envs"], _description_from(layout["description"]), order["record"], create=False
        )
        self._rows = {slot: row for row, slot in enumerate(order["record"]) if slot in self._games}
        for slot in self._rows:
            self._games[slot].record()
        self._seeds: dict[int, list[int]] = {}
        self._over: dict[int, bool] = {}

    def serve(self) -> None:
        """Obey until the trainer is gone."""
        while (command := self._channel.read()) is not None:
            if command == RESET:
                self._plan_games(self._channel.read_message())
            else:
                for slot in self._slots[command]:
                    self._play(slot)
                self._channel.write(command)

    def _plan_games(self, seeds: list[list[list[int]]]) -> None:
        """Open new games at the next step of each slot."""
        for slots, group_seeds in zip(self._slots, seeds, strict=True):
            self._seeds |= dict(zip(slots, group_seeds, strict=True))
            self._over |= dict.fromkeys(slots, True)

    def _open(self, slot: int) -> None:
        seed = self._seeds[slot].pop(0) if self._seeds[slot] else None
        self._games[slot].reset(seed, self._memory.step.observation[slot], self._memory.step.extra[slot])
        self._memory.seeds[slot] = -1 if seed is None else seed
        self._write(slot, Outcome(0.0, False, False, False, 0), is_first=True)

    def _play(self, slot: int) -> None:
        if self._over[slot]:
            return self._open(slot)
        step = self._memory.step
        outcome = self._games[slot].step(int(self._memory.actions[slot]), step.observation[slot], step.extra[slot])
        self._write(slot, outcome, is_first=False)

    def _write(self, slot: int, outcome: Outcome, *, is_first: bool) -> None:
        step = self._memory.step
        step.reward[slot], step.terminated[slot], step.truncated[slot], step.life_lost[slot], step.frames[slot] = outcome
        step.is_first[slot] = is_first
        self._over[slot] = outcome.terminated or outcome.truncated
        if (row := self._rows.get(slot)) is not None:
            frames = self._games[slot].last_frames()
            self._memory.screen_counts[row] = len(frames)
            for at, frame in enumerate(frames):
                self._memory.screens[row, at] = frame


def _other_seeds(seeds: list[int], restarts: int) -> list[int]:
    """Of the games that follow a restart: a function of the slot's first seed and of how often its worker was started anew."""
    return [int(np.random.SeedSequence((seeds[0], restarts)).generate_state(1)[0] & 0x7FFFFFFF)] if seeds else []


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _anonymous_file() -> BinaryIO:
    """A file in memory that no name leads to, so that nothing is left when every process that holds it is gone."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("playfield"), "r+b")
    return tempfile.TemporaryFile()


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    """What JSON made lists of, as it was."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _description_from(fields: dict[str, Any]) -> GameDescription:
    """A description from its JSON."""
    return GameDescription(**_with_tuples({**fields, "protocol": GameProtocol(**_with_tuples(fields["protocol"]))}))


def main() -> None:
    """A worker's life; its failures go to the trainer as one message."""
    memory, commands, replies = map(int, sys.argv[1:])
    for fd in (memory, commands, replies):
        os.set_inheritable(fd, False)  # a game's engine that outlives its worker would keep the pipe open, and hide its end
    channel = _Channel(commands, replies)
    told = False
    with contextlib.suppress(BrokenPipeError):  # the trainer is gone, or wants no more of us
        try:
            worker = _Worker(channel, memory)
            told = True
            worker.serve()
        except BrokenPipeError:
            raise
        except Exception as error:
            if told:
                channel.write(FAILED)
            channel.write_message(_last_words(error))


def _last_words(error: Exception) -> dict[str, str]:
    if isinstance(error, InputError | GameLost):
        return {"error": str(error), "kind": type(error).__name__}
    text = "".join(traceback.format_exception(error))
    return {"error": f"{type(error).__name__}: {error}", "kind": type(error).__name__, "traceback": text}


if __name__ == "__main__":
    main()
