"""A worker process of `envs/workers.py`: it plays its games when told to, until the trainer is gone."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from dataclasses import asdict

from envs import registry
from envs.contract import CloneableGame, Game, GameLost, InputError, Outcome, ProtocolOptions
from envs.cores import keep_to
from envs.outputs import outlive_readers
from envs.shared_memory import CLONE, FAILED, RESET, RESTORE, Channel, GoneError, SharedMemory, description_from, with_tuples

MOST_COPY = 2**20  # bytes of a game's copy, as the JSON that a checkpoint keeps


class Worker:
    """A worker process: plays its games when told to."""

    def __init__(self, channel: Channel) -> None:
        """Read the order that comes first."""
        order = channel.read_message()
        if order["core"] is not None:
            keep_to({order["core"]})  # before the games: their engines inherit it
        self._options = ProtocolOptions(**with_tuples(order["options"]))
        self._channel = channel
        self._slots: list[list[int]] = order["slots"]
        self._record: list[int] = order["record"]
        self._games: dict[int, Game] = {}
        self._ids: list[tuple[int, str]] = order["ids"]
        self._clones = [slot for slot, env_id in self._ids if registry.clones(env_id)]
        self._over: dict[int, bool] = {}
        if any(registry.game_class(env_id).own_engine for _, env_id in self._ids):
            self._guard = _end_engines_with_this_process()

    def make_games(self) -> None:
        """Make them, and say what they are."""
        for slot, env_id in self._ids:
            self._channel.check_other_side()  # hundreds of games take minutes, here and where they open
            self._games[slot] = registry.make_game(env_id, self._options)
        self._channel.write_message(asdict(next(iter(self._games.values())).description))

    def serve(self, memory_fd: int) -> None:
        """Map the memory when its layout is known, and obey until the trainer is gone."""
        layout = self._channel.read_message()
        if not layout:
            return
        description = description_from(layout["description"])
        self._memory = SharedMemory(memory_fd, layout["num_envs"], description, self._record, create=False)
        self._rows = {slot: row for row, slot in enumerate(self._record) if slot in self._games}
        for slot in self._rows:
            self._games[slot].record()
        while (command := self._channel.read()) is not None:
            if command == RESET:
                self._over |= dict.fromkeys(self._games, True)
            elif command == CLONE:
                clones = {slot: _checked(json.dumps(self._cloneable(slot).clone())) for slot in self._clones}
                self._channel.write(CLONE)
                self._channel.write_message({"clones": clones})
            elif command == RESTORE:
                for slot, game in self._channel.read_message().items():
                    self._restore(int(slot), **game)
                    self._channel.write(RESTORE)
            else:
                for slot in self._slots[command]:
                    self._play(slot)
                self._channel.write(command)

    def close(self) -> None:
        """Close the games; one that fails in that is as far as it gets."""
        for game in self._games.values():
            with contextlib.suppress(Exception):
                game.close()

    def _cloneable(self, slot: int) -> CloneableGame:
        game = self._games[slot]
        assert isinstance(game, CloneableGame)
        return game

    def _restore(self, slot: int, clone: str | None, over: bool, seed: int, actions: list[int]) -> None:
        """Bring a slot to where it stood: from a copy of its game, or from its seed, through the actions since then."""
        if clone is not None:
            self._cloneable(slot).restore(json.loads(_checked(clone)))
        self._over[slot] = over
        self._memory.seeds[slot] = seed if clone is None else -1
        for action in actions:
            opens = self._over[slot]
            self._memory.actions[slot] = action
            self._play(slot)
            if opens:
                self._memory.seeds[slot] = -1  # the games after it had none

    def _open(self, slot: int) -> None:
        self._channel.check_other_side()
        seed = int(self._memory.seeds[slot])
        self._games[slot].reset(
            None if seed == -1 else seed, self._memory.step.observation[slot], self._memory.step.extra[slot]
        )
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


def _end_engines_with_this_process() -> "subprocess.Popen[bytes]":
    """Start a process that notices the end of this one, and ends its group where a trainer that is killed too cannot."""
    return subprocess.Popen(["sh", "-c", f"read _; kill -KILL -{os.getpid()}"], stdin=subprocess.PIPE)


def _checked(copy: str) -> str:
    """A game's copy that may be kept, and given back to it.

    Raises:
        InputError: it is longer than that.
    """
    if len(copy) > MOST_COPY:
        raise InputError(f"a copy of a game has {len(copy):,} bytes; at most {MOST_COPY:,} are kept")
    return copy


def main() -> None:
    """A worker's life; its failures go to the trainer as one message."""
    outlive_readers()  # which the trainer shares with games that print
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # of a whole job: the trainer still wants its games
        signal.signal(number, signal.SIG_IGN)
    memory, commands, replies = map(int, sys.argv[1:])
    for fd in (memory, commands, replies):
        os.set_inheritable(fd, False)  # a game's engine that outlives its worker would keep the pipe open, and hide its end
    channel = Channel(commands, replies)
    folder = os.environ["TMPDIR"]  # of this worker; a game may set another
    try:
        _live(channel, memory)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the trainer does it too, and may be gone


def _live(channel: Channel, memory: int) -> None:
    with contextlib.ExitStack() as end, contextlib.suppress(GoneError):  # the trainer is gone, or wants no more of us
        told = False
        try:
            worker = Worker(channel)
            end.callback(worker.close)
            worker.make_games()
            told = True
            worker.serve(memory)
        except GoneError:
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
