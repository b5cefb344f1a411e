"""What a worker says when something fails in it, over its own pipes."""

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from envs import registry, worker_process
from envs.contract import GameLost, ProtocolOptions
from envs.shared_memory import CLONE, FAILED, RESET, RESTORE, Channel, GoneError, SharedMemory, anonymous_file, description_from

BERZERK = "Berzerk-v0"  # a game that can be copied


class Worker:
    """One with a single game, in a thread of this process."""

    def __init__(self) -> None:
        commands, command_end = os.pipe()
        reply_end, replies = os.pipe()
        self.channel, self.memory = Channel(reply_end, command_end), anonymous_file()
        self.end = Channel(commands, replies)
        self.thread = threading.Thread(target=self._live)
        self.thread.start()
        options = asdict(ProtocolOptions())
        self.channel.write_message({"slots": [[0]], "ids": [(0, BERZERK)], "options": options, "record": [0], "core": None})
        description = self.channel.read_message()
        SharedMemory(self.memory.fileno(), 1, description_from(description), [0], create=True)
        self.channel.write_message({"num_envs": 1, "description": description})

    def _live(self) -> None:
        with contextlib.closing(self.end):  # as a process does that ends
            worker_process._live(self.end, self.memory.fileno())

    def close(self) -> None:
        self.channel.close()
        self.thread.join()
        self.memory.close()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Worker]:
    """One whose game fails in a method."""
    method, error = request.param

    def fail(self: Any) -> None:
        raise error("its engine is gone")

    monkeypatch.setattr(registry.game_class(BERZERK), method, fail)
    worker = Worker()
    yield worker
    worker.close()


@pytest.mark.parametrize("failing", [("record", GameLost)], indirect=True)
def test_what_fails_behind_the_description_is_no_step(failing):
    with contextlib.suppress(GoneError):  # by then it may have ended
        failing.channel.write(RESET)
        failing.channel.write(0)
    assert failing.channel.read() == FAILED
    assert failing.channel.read_message() == {"error": "its engine is gone", "kind": "GameLost"}


@pytest.mark.parametrize("failing", [("record", BrokenPipeError)], indirect=True)
def test_a_game_whose_own_pipe_breaks_is_no_trainer_that_is_gone(failing):
    assert failing.channel.read() == FAILED
    assert failing.channel.read_message()["error"] == "BrokenPipeError: its engine is gone"


@pytest.mark.parametrize("failing", [("clone", GameLost)], indirect=True)
def test_what_fails_in_a_copy_is_no_copy(failing):
    failing.channel.write(CLONE)
    assert failing.channel.read() == FAILED
    assert failing.channel.read_message() == {"error": "its engine is gone", "kind": "GameLost"}


@pytest.mark.parametrize("command", [CLONE, RESTORE])
def test_a_copy_that_would_not_be_read_is_not_made(command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(worker_process, "MOST_COPY", 99)
    worker = Worker()
    worker.channel.write(RESET)
    worker.channel.write(0)
    assert worker.channel.read() == 0
    worker.channel.write(command)
    if command == RESTORE:
        worker.channel.write_message({0: {"clone": "x" * 100, "over": False, "seed": 1, "actions": []}})
    assert worker.channel.read() == FAILED
    message = worker.channel.read_message()
    worker.close()
    assert message["kind"] == "InputError" and message["error"].endswith("bytes; at most 99 are kept")
