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

import itertools
import json
import os
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from envs import registry
from envs.contract import GameDescription, InputError, ProtocolOptions, TimeStep
from envs.cores import BINDS, cores_in_turn, keep_to, usable_cores
from envs.history import History
from envs.shared_memory import RESET, RESTORE, SharedMemory, anonymous_file
from envs.worker_handle import HANG_SECONDS, WorkerError, WorkerHandle, WorkerLostError

_MANY = 4  # games that a worker plays in a turn, which from there on takes longer than the caller's, as a rule
_LONG_TURN = 1.0  # seconds, for which it is worth while to wait on a certain core
MOST_RESTARTS = 3  # of one worker, without a step in between
_Answer = TypeVar("_Answer")


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
        share_cores: bool = False,
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
            share_cores: The caller computes between steps, on the workers' cores. With a worker for each core, several groups
                and many games, each worker keeps a core, and the caller waits on that of the worker that is done first.
            record: Slots whose emulator frames are kept for `last_frames`.
            restart: Start a worker anew when it dies or hangs; its games are lost. Without it that is a `WorkerError`.
            hang_seconds: How long a worker may take for a step; one that opens games has `OPENING` times as long for each slot.

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
        self.strays: list[int] = []
        self._restart, self._recorded = restart, {slot: row for row, slot in enumerate(record)}
        self._workers: list[WorkerHandle] = []
        self._arrived: set[int] = set()  # groups whose step has come and was not yet handed out
        self._opened = np.zeros(num_envs, np.int64)  # games for which each slot has asked for a seed
        self._lost: dict[int, int] = {}  # slots that open another game at their next step: their worker was started anew
        self._file = anonymous_file()
        try:
            shares = shares_of(self.groups, num_workers or usable_cores())
            busy = num_groups > 1 and size >= _MANY * len(shares)
            self._shares_cores = share_cores and BINDS and busy and len(shares) == len(cores_in_turn()) == usable_cores() > 1
            cores = _cores_to_keep(env_id, all_of_them=self._shares_cores)
            for slots in shares:
                order = self._order(slots, options or ProtocolOptions(), record, next(cores))
                self._workers.append(WorkerHandle(self._file.fileno(), slots, order, hang_seconds))
            self.description = self._joint_description(env_id, [worker.describe() for worker in self._workers])
            self._memory = SharedMemory(self._file.fileno(), num_envs, self.description, list(record), create=True)
            self._steps = tuple(self._memory.step_of(group) for group in self.groups)
            for worker in self._workers:
                worker.map_memory(num_envs, self.description)
        except BaseException:
            self.close()
            raise

    def _order(
        self, slots: list[list[int]], options: ProtocolOptions, record: Sequence[int], core: int | None
    ) -> dict[str, Any]:
        """What a worker is told first."""
        return {
            "slots": slots,
            "ids": [(slot, self.tasks[slot]) for group in slots for slot in group],
            "options": asdict(options),
            "record": list(record),
            "core": core,
        }

    def _joint_description(self, env_id: str, descriptions: list[GameDescription]) -> GameDescription:
        """That of any slot, under the id that was asked for; of several games the first stands for all."""
        first = descriptions[0]
        return replace(first, protocol=replace(first.protocol, env=env_id))

    def reset(self, seeds: Sequence[Iterable[int]]) -> None:
        """Open a game in every slot; slot i opens each game with the next of `seeds[i]`, later ones without reseeding."""
        self._to_open = [iter(slot_seeds) for slot_seeds in seeds]
        self._histories = [History(slots.stop - slots.start) for slots in self.groups]
        self._opened[:] = 0
        self._lost.clear()
        self._memory.actions[:] = 0
        for worker in self._workers:
            worker.write(RESET)
        for group, slots in enumerate(self.groups):
            self._start(group, range(slots.start, slots.stop))

    def send(self, actions: NDArray[np.integer[Any]], group: int) -> None:
        """Start a step of one group; actions (slots of the group,)."""
        self._memory.actions[self.groups[group]] = actions
        before = self._steps[group]
        over = (before.terminated | before.truncated).nonzero()[0] + self.groups[group].start
        self._start(group, over.tolist())

    def _start(self, group: int, opening: Iterable[int]) -> None:
        """Start a step in which some slots open a game."""
        slots, history = self.groups[group], self._histories[group]
        opening = {*opening, *(slot for slot in self._lost if slots.start <= slot < slots.stop)}
        for slot in opening:
            seed = self._lost.pop(slot) if slot in self._lost else self._next_seed(slot)
            self._memory.seeds[slot] = seed
            if seed != -1:
                history.begin(slot - slots.start, seed)
        history.add(self._memory.actions[slots])
        for worker in self._workers:
            worker.start(group, opens=bool(opening))

    def _next_seed(self, slot: int) -> int:
        self._opened[slot] += 1
        return next(self._to_open[slot], -1)

    def recv(self, group: int) -> TimeStep:
        """Wait for this group's step. The fields are views, valid until its next `send`.

        Raises:
            WorkerError: a game raised; or a worker died or hangs and is not to be started anew, or died again and again.
        """
        self._receive(group)
        self._arrived.discard(group)
        self.seeds[self.groups[group]] = self._memory.seeds[self.groups[group]]
        return self._steps[group]

    def _receive(self, group: int) -> None:
        """Wait until this group's step has come."""
        if group in self._arrived:
            return
        if self._shares_cores:
            self._wait_beside_the_first()
        for worker in self._workers:
            self._insist(worker, lambda worker: worker.expect(group))
        self._arrived.add(group)

    def _wait_beside_the_first(self) -> None:
        """Sleep until all workers have answered, or for a while, and wake up on the core of the one that was done first.

        A group is as late as its last worker, and the caller takes the time for what it does next from one of them. The system
        would take it from the last, which wakes the caller up.
        """
        done = _answering(self._workers, _LONG_TURN)
        if not done or len(done) == len(self._workers):
            return
        usable = os.sched_getaffinity(0)
        try:
            keep_to(usable & {done[0].core})
            for worker in self._workers:
                _answering([worker], _LONG_TURN)
        finally:
            keep_to(usable)  # before anything is started that would be bound with it

    def _insist(self, worker: WorkerHandle, ask: Callable[[WorkerHandle], _Answer]) -> _Answer:
        """Ask a worker for something; where it is lost, and that is wanted, ask the one that takes its place."""
        restarts = 0
        while True:
            try:
                if restarts:
                    self._open_others(worker)
                    worker.start_anew(self.num_envs, self.description)
                return ask(worker)
            except WorkerLostError as gone:
                if not self._restart:
                    raise
                if restarts == MOST_RESTARTS:
                    raise WorkerError(f"{gone}; so it did {restarts} times in a row after it was started anew") from gone
                self.lost_games += 0 if restarts else sum(map(len, worker.slots))
                restarts += 1

    def _open_others(self, worker: WorkerHandle) -> None:
        """The games of a worker that is started anew are lost; others open, in the steps that are running or in the next."""
        for group, slots in enumerate(worker.slots):
            history, started = self._histories[group], group in worker.running
            for slot in slots:
                at = slot - self.groups[group].start
                self._memory.seeds[slot] = seed = _other_seed(int(history.seeds[at]), slot)
                history.begin(at, seed, started=started)
                if not started:
                    self._lost[slot] = seed

    def wait(self) -> None:
        """Wait for the steps that are under way; `recv` hands them out.

        Raises:
            WorkerError: as in `recv`.
        """
        for group in [*self._workers[0].running]:  # as in every worker: in the order in which they were started
            self._receive(group)

    def seen(self, group: int) -> TimeStep:
        """What `recv` returned last for this group."""
        return self._steps[group]

    def state_dict(self, *, clone: bool) -> dict[str, Any]:
        """Where every game stands, as `envs.contract.Envs` says it."""
        self.wait()
        if clone:
            self._clone()
        slots = [(history, at) for history in self._histories for at in range(len(history.seeds))]
        clones = [history.clones[at] or "" for history, at in slots]
        return {
            "step": {name: field.copy() for name, field in self._memory.step._asdict().items()},
            "arrived": sorted(self._arrived),
            "seeds": self._memory.seeds.tolist(),
            "opened": self._opened.tolist(),
            "lost_games": self.lost_games,
            "lost": list(self._lost.items()),
            # One array: text would fill state.json, and thousands of tensors the header of their file.
            "clones": np.frombuffer(bytearray("".join(clones), "ascii"), np.uint8),
            "games": [
                {"clone": len(clone) or None, "over": bool(history.over[at]), "seed": int(history.seeds[at])}
                for clone, (history, at) in zip(clones, slots, strict=True)
            ],
            "actions": [history.actions(at).astype(np.int16) for history, at in slots],
        }

    def _clone(self) -> None:
        """Let the games' histories begin here, where they can be copied."""
        over = self._memory.step.terminated | self._memory.step.truncated
        for worker in self._workers:
            worker.start_cloning()
        for worker in self._workers:
            clones = self._insist(worker, WorkerHandle.clones)
            for group, slots in enumerate(worker.slots):
                for slot in slots:
                    if slot not in self._lost and str(slot) in clones:
                        at = slot - self.groups[group].start
                        seed = int(self._histories[group].seeds[at])
                        self._histories[group].begin(at, seed, clones[str(slot)], over=bool(over[slot]))

    def load_state_dict(self, state: dict[str, Any], seeds: Sequence[Iterable[int]]) -> None:
        """Bring every game to where it stood: from its seed or its copy, and through the actions since then."""
        self._to_open = [itertools.islice(each, count, None) for each, count in zip(seeds, state["opened"], strict=True)]
        self._opened[:], self._lost = state["opened"], dict(state["lost"])
        games = _with_clones(state)
        self._histories = [History.of(games[slots], state["actions"][slots]) for slots in self.groups]
        played = [np.asarray(actions).tolist() for actions in state["actions"]]
        order = [{**game, "actions": actions} for game, actions in zip(games, played, strict=True)]
        for worker in self._workers:
            worker.write(RESTORE)
            worker.write_message({slot: order[slot] for slots in worker.slots for slot in slots})
        for worker in self._workers:
            worker.expect_restored()
        strays = np.zeros(self.num_envs, np.bool_)
        for name, field in self._memory.step._asdict().items():
            saved = np.asarray(state["step"][name])
            strays |= (field != saved).reshape(self.num_envs, -1).any(1)
            field[:] = saved
        self.strays = [slot for slot in np.flatnonzero(strays).tolist() if order[slot]["actions"]]
        self._memory.seeds[:] = self.seeds[:] = state["seeds"]
        self._arrived = set(state["arrived"])
        self.lost_games = state["lost_games"]

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


def _with_clones(state: dict[str, Any]) -> list[dict[str, Any]]:
    """The games of a saved state with their copies as JSON, of which it has lengths; before format 4 it had the copies there.

    Raises:
        ValueError: a length is not that of what is there.
    """
    joined, games, stop = np.asarray(state.get("clones", ()), np.uint8).tobytes().decode("ascii"), [], 0
    for game in state["games"]:
        clone = game["clone"]
        if isinstance(clone, int):
            start, stop = stop, stop + clone
            if not start < stop <= len(joined):
                raise ValueError(f"the copy of a game has {clone} of {len(joined)} bytes")
            clone = joined[start:stop]
        elif clone is not None:
            clone = json.dumps(clone)
        games.append({**game, "clone": clone})
    return games


def _other_seed(seed: int, slot: int) -> int:
    """Of the game that follows a lost one: a function of the last seed, which is -1 for a game that had none, and the slot."""
    return int(np.random.SeedSequence((seed + 1, slot)).generate_state(1)[0] & 0x7FFFFFFF)


def shares_of(groups: Sequence[slice], num_workers: int) -> list[list[list[int]]]:
    """The slots of each worker, by group; in all groups together none has two more than another."""
    size = groups[0].stop - groups[0].start
    count = min(size, num_workers)
    each, more = divmod(size, count)
    shares: list[list[list[int]]] = [[] for _ in range(count)]
    for number, group in enumerate(groups):
        slots = iter(range(group.start, group.stop))
        for worker, share in enumerate(shares):
            takes_more = (worker - number * more) % count < more  # in the next group it is the workers behind these
            share.append([*itertools.islice(slots, each + takes_more)])
    return shares


def _cores_to_keep(env_id: str, *, all_of_them: bool) -> Iterator[int | None]:
    """The core of each worker, by turns; None leaves it to the system.

    A game and its engine hand over to each other many times a step: on one core that takes half as long as on two.
    """
    keeps = BINDS and (all_of_them or registry.game_class(env_id).own_engine)
    return itertools.cycle(cores_in_turn()) if keeps else itertools.repeat(None)


def _answering(workers: Sequence[WorkerHandle], seconds: float) -> list[WorkerHandle]:
    """Those that have answered, as soon as one has; none where none does for so long."""
    poll = select.poll()
    for worker in workers:
        poll.register(worker.fileno(), select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(seconds * 1000)}
    return [worker for worker in workers if worker.fileno() in ready]
