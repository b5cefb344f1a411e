"""The trainer's end of one worker process: its life, what it is asked for, and how long its answers may take."""

import contextlib
import itertools
import math
import os
import select
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from envs.contract import GameDescription, GameLost, InputError
from envs.shared_memory import CLONE, FAILED, RESET, RESTORE, Channel, GoneError, description_from

HANG_SECONDS = 120.0  # without a reply, after which a worker counts as hanging
OPENING = 5  # times as long for each slot, where games open: a level of DeepMind Lab compiled for 71 s on an idle machine
_PIECE = 1.0  # seconds of a wait: one in which the trainer does not run either (a container is frozen) is as long as any other
# A worker computes on one core, where Mesa draws for it too, opens no window, and makes no sound: to look for a sound server is
# enough for JACK's library to leave a folder in shared memory.
_HEADLESS = {"SDL_VIDEODRIVER": "dummy", "SDL_AUDIODRIVER": "dummy", "ALSOFT_DRIVERS": "null"}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0", **_HEADLESS}


class WorkerError(RuntimeError):
    """A worker process died or its game raised."""


class WorkerLostError(WorkerError):
    """A worker process died or hangs: starting it anew may help."""


class WorkerHandle(Channel):
    """The trainer's end of one worker."""

    def __init__(self, memory: int, slots: list[list[int]], order: dict[str, Any], hang_seconds: float) -> None:
        """Start the process.

        Args:
            memory: File descriptor of what it shares with the trainer.
            slots: Whose games it plays, by group.
            order: The first message to it: the ids it plays and how, its core, and the slots that are recorded.
            hang_seconds: How long a step may take; one that opens games has `OPENING` times as long for each slot.
        """
        self.slots = slots  # slots[group]
        self.core: int | None = order["core"]
        self._memory, self._order, self._hang_seconds = memory, order, hang_seconds
        self.running: list[int] = []  # groups whose step was started and has not been received
        self._opening: set[int] = set()  # groups whose running step opens games
        self._cloning = False  # copies of its games were asked for and have not been received
        self._launch()

    def _launch(self) -> None:
        memory = self._memory
        commands, command_end = os.pipe()
        reply_end, replies = os.pipe()
        # What a worker leaves behind when it is killed goes with the folder.
        self._folder = tempfile.TemporaryDirectory(prefix="playfield-", ignore_cleanup_errors=True)
        folders = dict.fromkeys(("TMPDIR", "TEST_TMPDIR"), self._folder.name)
        paths = [str(Path(__file__).parent.parent), *filter(None, sys.path)]
        if any(":" in env_id for _, env_id in self._order["ids"]):  # modules of the user's own
            paths.append(os.getcwd())  # else never: what lies here may be a stranger's
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "envs.worker_process", str(memory), str(commands), str(replies)],
            pass_fds=(memory, commands, replies),
            stdin=subprocess.DEVNULL,
            env={**os.environ, **ENVIRONMENT, **folders, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))},
            start_new_session=True,  # Ctrl-C is for the trainer, which ends its workers itself
        )
        os.close(commands)
        os.close(replies)
        super().__init__(reply_end, command_end)
        self._poll = select.poll()
        self._poll.register(reply_end, select.POLLIN)
        self._room = select.poll()
        self._room.register(command_end, select.POLLOUT)
        self.write_message(self._order)

    def describe(self) -> GameDescription:
        """What it plays.

        Raises:
            InputError: nothing that can be played.
        """
        self._await(HANG_SECONDS * sum(map(len, self.slots)))  # each of its games may take long to make
        return description_from(self.read_message())

    def map_memory(self, num_envs: int, description: GameDescription) -> None:
        """Let it write where the trainer reads."""
        self.write_message({"num_envs": num_envs, "description": asdict(description)})

    def start(self, group: int, *, opens: bool) -> None:
        """Start a step; `opens`: some of its slots open a game, for which each of them has `OPENING` times as long."""
        if opens:
            self._opening.add(group)
        self.running.append(group)
        self.write(group)

    def start_cloning(self) -> None:
        """Ask for a copy of each of its games that can be copied."""
        self._cloning = True
        self.write(CLONE)

    def clones(self) -> dict[str, str]:
        """Those copies as JSON, by slot.

        Raises:
            WorkerLostError: it died or hangs.
        """
        self._expect(CLONE, HANG_SECONDS)
        clones: dict[str, str] = self.read_message()["clones"]
        self._cloning = False
        return clones

    def expect_restored(self) -> None:
        """Wait until every slot is where it stood; each has as long as a step of a game that opens.

        Raises:
            WorkerError: the worker died or hangs, or its game raised.
        """
        for _ in itertools.chain(*self.slots):
            self._expect(RESTORE, HANG_SECONDS * OPENING)

    def start_anew(self, num_envs: int, description: GameDescription) -> None:
        """End what is left of the process; another takes its slots, opens new games and does again what was asked for.

        Raises:
            WorkerLostError: it died as well.
        """
        self._kill()
        self.close()
        self._launch()
        self.describe()
        self.map_memory(num_envs, description)
        self._opening.update(range(len(self.slots)))
        self.write(RESET)
        for group in self.running:
            self.write(group)
        if self._cloning:
            self.write(CLONE)

    def write(self, signal: int) -> None:
        """Send one byte, to nobody where the worker is gone."""
        with contextlib.suppress(GoneError):  # a worker that is gone is reported by `expect`, with its last words
            super().write(signal)

    def write_message(self, message: Any) -> None:
        """Send a message, to nobody where the worker is gone.

        Raises:
            WorkerLostError: it hangs.
        """
        with contextlib.suppress(GoneError):
            super().write_message(message)

    def write_some(self, data: memoryview) -> int:
        """Send as much as there is room for.

        Raises:
            WorkerLostError: there is none.
        """
        self._wait_in_pieces(self._room, HANG_SECONDS)
        return super().write_some(data[: select.PIPE_BUF])  # where there is room at all, there is for so much

    def expect(self, group: int) -> None:
        """Wait for the end of a step.

        Raises:
            WorkerError: its game raised.
            WorkerLostError: the worker died or hangs.
        """
        self._expect(group, self._hang_seconds * (OPENING * len(self.slots[group]) if group in self._opening else 1))
        self._opening.discard(group)
        first = self.running.pop(0)
        assert group == first, f"groups take turns: waited for {group} before {first}"

    def _expect(self, signal: int, seconds: float) -> None:
        self._await(seconds)
        reply = self.read()
        if reply is None or reply == FAILED:
            self._fail(self.read_message() if reply == FAILED else {})
        assert reply == signal, f"waited for {signal} and received {reply}"

    def _await(self, seconds: float) -> None:
        if not self._poll.poll(min(seconds, _PIECE) * 1000):
            self._wait_in_pieces(self._poll, seconds)

    def _wait_in_pieces(self, poll: "select.poll", seconds: float) -> None:
        if not any(poll.poll(_PIECE * 1000) for _ in range(math.ceil(seconds / _PIECE))):
            raise WorkerLostError(f"a worker process has not answered for {seconds:g} seconds")

    def read_message(self) -> Any:
        """The next message.

        Raises:
            InputError: it says that a game cannot be played.
            WorkerError: it says that the worker failed.
            WorkerLostError: the worker died or hangs.
        """
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
