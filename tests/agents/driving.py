"""Agents at work without worker processes: environments that are played here, or read from a tape.

Both are driven by the training loop's own `Turns`, so that the order of calls is the real one.
"""

import dataclasses
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.agent import Agent, Decision, Player, Setting
from agents.networks import Inputs
from agents.registry import ALGORITHMS
from agents.replay import Replay
from agents.shards import SharedOptimizer, Threads, shares
from envs.contract import VOCABULARY, GameDescription, GameProtocol, ProtocolOptions, TimeStep
from envs.registered import RegisteredGame
from training.loop import Turns
from training.metrics import Clock

PROTOCOL = GameProtocol(
    env="Tape-v0",
    observation="vector",
    size=(1,),
    colour=None,
    frame_skip=(1, 1),
    max_pool=False,
    sticky=0.0,
    action_set="discrete",
    noop_max=0,
    fire_reset=False,
    episode_end="environment",
    max_episode_frames=None,
    max_episode_steps=None,
    mode=None,
    difficulty=None,
    rom_md5=None,
    backend="tape",
)


def describe(
    shape: tuple[int, ...] = (3,), dtype: str = "float32", actions: int = 4, skip: int = 1, extra: int = 0, tokens: int = 0
) -> GameDescription:
    """A game that nobody plays."""
    return GameDescription(
        protocol=dataclasses.replace(PROTOCOL, size=shape, frame_skip=(skip, skip)),
        observation_shape=shape,
        observation_dtype=dtype,
        extra_size=extra,
        num_tokens=tokens,
        action_names=tuple(map(str, range(actions))),
        screen_shape=None,
        frames_per_second=60.0,
    )


GAMES = {"pixels": describe((1, 40, 40), "uint8"), "ram": describe((16,), "uint8"), "vector": describe((5,))}


def split(num_envs: int, groups: int) -> tuple[slice, ...]:
    """Slots of each group."""
    size = num_envs // groups
    return tuple(slice(start, start + size) for start in range(0, num_envs, size))


def configure(algorithm: str, **wanted: Any) -> Any:
    """The algorithm's config, with those of the wanted settings that it has."""
    config = ALGORITHMS[algorithm].config
    known = {field.name for field in dataclasses.fields(config)}
    return config(**{name: value for name, value in wanted.items() if name in known})


def build(
    algorithm: str,
    game: GameDescription,
    config: Any,
    *,
    groups: int = 1,
    total_frames: int = 10_000,
    seed: int = 1,
    device: str = "cpu",
    learn_threads: int = 1,
    precision: torch.dtype = torch.float32,
) -> Any:
    """An agent that has learned nothing."""
    setting = Setting(
        game=game,
        num_envs=config.num_envs,
        groups=split(config.num_envs, groups),
        total_frames=total_frames,
        seed=seed,
        device=torch.device(device),
        precision=precision,
        learn_threads=learn_threads,
    )
    return ALGORITHMS[algorithm].build(config, setting)


class Tape:
    """Steps that were drawn in advance, whatever is done; it keeps the actions it is sent. Implements what `Turns` needs."""

    def __init__(self, steps: TimeStep, groups: int = 1) -> None:
        """`steps` has time before the batch in every field."""
        self.steps = steps
        self.length, self.num_envs = steps.reward.shape
        self.tasks = ("Tape-v0",) * self.num_envs
        self.actions = np.full((self.length, self.num_envs), -1)
        self.rewind(groups)

    def rewind(self, groups: int) -> "Tape":
        """Back to the first step, for another number of groups."""
        self.groups = split(self.num_envs, groups)
        self.times = [0] * groups
        return self

    def at(self, t: int, slots: slice = slice(None)) -> TimeStep:
        """One step."""
        return TimeStep(*(field[t, slots] for field in self.steps))

    def recv(self, group: int) -> TimeStep:
        return self.at(self.times[group], self.groups[group])

    def seen(self, group: int) -> TimeStep:
        return self.recv(group)

    def state_dict(self, *, clone: bool) -> dict[str, Any]:
        return {"times": list(self.times)}

    def load_state_dict(self, state: dict[str, Any], seeds: Any) -> None:
        self.times = list(state["times"])

    def send(self, actions: NDArray[np.integer[Any]], group: int) -> None:
        self.actions[self.times[group], self.groups[group]] = actions
        self.times[group] += 1


def draw_tape(
    steps: int,
    num_envs: int,
    *,
    shape: tuple[int, ...] = (3,),
    dtype: str = "float32",
    end: float = 0.1,
    cut: float = 0.1,
    lost: float = 0.05,
    life: float = 0.0,
    frames: int = 1,
    extra: int = 0,
    tokens: int = 0,
    seed: int = 0,
) -> Tape:
    """A tape of random numbers, with the given shares of terminations, truncations, lost episodes and lost lives.

    The last `tokens` of the `extra` numbers are words.
    """
    rng = np.random.default_rng(seed)
    size = (steps, num_envs)
    image = dtype == "uint8"
    observation = rng.integers(0, 256, (*size, *shape), np.uint8) if image else rng.normal(size=(*size, *shape)).astype("f4")
    is_first, terminated, truncated = np.zeros((3, *size), np.bool_)
    opens = np.ones(num_envs, np.bool_)
    for t in range(steps):
        kind = rng.random(num_envs)
        is_first[t] = opens | (kind > 1 - lost)
        terminated[t] = ~is_first[t] & (kind < end)
        truncated[t] = ~is_first[t] & ~terminated[t] & (kind < end + cut)
        opens = terminated[t] | truncated[t]
    numbers = rng.normal(size=(*size, extra)).astype(np.float32)
    if tokens:
        numbers[..., -tokens:] = rng.integers(VOCABULARY, size=(*size, tokens))
    return Tape(
        TimeStep(
            observation=observation,
            extra=numbers,
            reward=np.where(is_first, 0, rng.normal(size=size)).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            is_first=is_first,
            life_lost=~is_first & (rng.random(size) < life),
            frames=np.where(is_first, 0, frames).astype(np.int32),
        )
    )


class Games:
    """Registered environments played in this process; implements what `Turns` needs."""

    def __init__(self, env_id: str, num_envs: int) -> None:
        """One group of `num_envs` games."""
        self.games = [RegisteredGame(env_id, ProtocolOptions()) for _ in range(num_envs)]
        self.description = self.games[0].description
        self.groups = split(num_envs, 1)
        shape = self.description.observation_shape
        self.step = TimeStep(
            observation=np.zeros((num_envs, *shape), self.description.observation_dtype),
            extra=np.zeros((num_envs, 0), np.float32),
            reward=np.zeros(num_envs, np.float32),
            terminated=np.zeros(num_envs, np.bool_),
            truncated=np.zeros(num_envs, np.bool_),
            is_first=np.ones(num_envs, np.bool_),
            life_lost=np.zeros(num_envs, np.bool_),
            frames=np.zeros(num_envs, np.int32),
        )
        for slot, game in enumerate(self.games):
            game.reset(slot, self.step.observation[slot], self.step.extra[slot])

    def recv(self, group: int) -> TimeStep:
        return self.step

    seen = recv

    def send(self, actions: NDArray[np.integer[Any]], group: int) -> None:
        step = self.step
        over = step.terminated | step.truncated
        for slot, game in enumerate(self.games):
            outcome = (0.0, False, False, False, 0)
            if over[slot]:
                game.reset(None, step.observation[slot], step.extra[slot])
            else:
                outcome = game.step(int(actions[slot]), step.observation[slot], step.extra[slot])
            step.reward[slot], step.terminated[slot], step.truncated[slot], step.life_lost[slot], step.frames[slot] = outcome
        step.is_first[:] = over


def drive(agent: Agent, envs: Any, steps: int) -> list[dict[str, float]]:
    """Let an agent play and learn for some steps of every environment; returns the metrics of each update."""
    taken = islice(Turns(envs, agent, Clock()), steps * len(envs.groups))
    return [turn.metrics for turn in taken if turn.metrics is not None]


def play_tape(agent: Agent, tape: Tape) -> list[dict[str, float]]:
    """Drive an agent through a whole tape, from its beginning."""
    return drive(agent, tape.rewind(len(tape.groups)), tape.length)


def learn(
    algorithm: str,
    game: GameDescription,
    device: torch.device | str,
    precision: torch.dtype = torch.float32,
    memory: str = "none",
    rollouts: int = 1,
    lag: int = 0,
    **settings: int,
) -> tuple[Any, NDArray[np.integer[Any]], list[dict[str, float]]]:
    """Some rollouts' worth of a run of four games; returns the agent, its actions and the metrics."""
    steps = 16
    sizes = {"rollout_steps": steps, "minibatches": 1, "epochs": 1, "batch_size": 16, "update_steps": 16, **settings}
    config = configure(algorithm, num_envs=4, frame_stack=2, learning_rate=1e-3, memory=memory, lag=lag, **sizes)
    agent = build(algorithm, game, config, groups=2, total_frames=400, device=str(device), precision=precision)
    kind = {"shape": game.observation_shape, "dtype": game.observation_dtype, "extra": game.extra_size}
    tape = draw_tape(steps * rollouts + 1, 4, **kind, tokens=game.num_tokens).rewind(2)
    rows = play_tape(agent, tape)
    assert agent.updates > 0
    return agent, tape.actions[:-1], rows


def assert_holds_what_one_here_does(there: Replay, game: GameDescription) -> None:
    """Copy a replay of another device to the CPU, and take the same transitions from both."""
    t, slots = torch.tensor([3, 7, 9, 2]), torch.arange(4)
    here = Replay(there.rows * 4, 4, there.depth, game)
    here.newest, here.complete = there.newest, there.complete
    here.put_steps(0, there.steps(0, there.newest + 1))
    for left, right in zip(here.transitions(t, slots, 2, 0.9), there.transitions(t, slots, 2, 0.9), strict=True):
        assert right.device.type == "cuda"
        assert torch.equal(left, right.cpu())
    assert torch.equal(here.seen_at(5, slice(0, 2))[0], there.seen_at(5, slice(0, 2))[0].cpu())


def inputs_of(stacks: torch.Tensor, extra: torch.Tensor | None = None) -> tuple[Inputs, torch.Tensor]:
    """What a network without a memory is given: (B, depth, *shape) as one step, and a state without numbers."""
    size = len(stacks)
    extra = torch.zeros(size, 0) if extra is None else extra
    no, zero = torch.zeros(1, size, dtype=torch.bool), torch.zeros(1, size)
    return Inputs(stacks[None], extra[None], zero.long(), zero, no), torch.zeros(size, 0)


def decide(player: Player, step: TimeStep, played: NDArray[np.int64] | None = None) -> Decision:
    """What a player thinks, of first steps unless it is told what was played."""
    return player.decide(step, np.zeros(len(step.reward), np.int64) if played is None else played)


def look(observations: Sequence[Any]) -> TimeStep:
    """First observations of as many episodes."""
    observation = np.asarray(observations)
    no, zero = np.zeros(len(observation), np.bool_), np.zeros(len(observation), np.float32)
    return TimeStep(observation, np.zeros((len(zero), 0), np.float32), zero, no, no, ~no, no, zero.astype(np.int32))


def same(left: Any, right: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and left.dtype == right.dtype and torch.equal(left.cpu(), right.cpu())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):  # JSON has no tuples
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def sgd(network, rate, threads=1):
    """Plain steps along the gradient, in place of an agent's optimiser."""
    return SharedOptimizer(lambda weights: _Plain(weights, lr=rate), network, Threads(threads))


class _Plain:
    def __init__(self, weights, lr):
        self.lr, self.moments, self._weights = lr, {}, weights

    def step_along(self, gradients):
        for weight, gradient in zip(self._weights, gradients, strict=True):
            weight.grad = gradient
        torch.optim.SGD(self._weights, self.lr).step()


def step_along(optimizer, network):
    """A shared step along the gradients of a network's weights, one share after another."""
    for share, rows in enumerate(shares([weight.grad for weight in network.parameters()], optimizer.sharers)):
        optimizer.step_rows(share, rows)
