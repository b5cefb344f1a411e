"""What every environment gives and what every agent receives.

This is the only module that `agents/` and `envs/` share, and it needs NumPy alone.

Autoreset is Gymnasium's NEXT_STEP: an ended episode hands out its last observation; the next step ignores its action and opens
a new episode. So each observation appears exactly once and in order:

    observation:  o0 ── o1 ── o2 (the last of its episode)  o0'── o1'
    is_first:     T     F     F                             T     F
    terminated:   F     F     T                             F     F
    action:          a0    a1       ignored                    a0'
"""

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

VOCABULARY = 1000  # word ids that an instruction is made of; 0 stands for no word


class InputError(Exception):
    """The user asked for something that cannot be had.

    The message is one line: what was given, what was expected, and the way out. The command line prints it and exits.
    """

    exit_code = 2

    def __str__(self) -> str:
        """The message, see `one_line`."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """What is no letter, because a file or a user says so, cannot break the line or speak to the terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def by_our_pip(hint: str) -> str:
    """A hint in which `pip install` is that of the Python that runs, whichever one the shell would find."""
    return re.sub(r"(python3? -m )?\bpip3? install", lambda _: f"{sys.executable} -m pip install", hint)


class GameLost(Exception):  # noqa: N818 - not a fault of the program: games with an engine of their own die now and then
    """A game's engine died or hangs. Its worker process is started anew, and the episode counts as lost."""


class TimeStep(NamedTuple):
    """One step of N environments, batch dimension first.

    From `Envs.recv` the fields are views that stay valid until the next `send` to the same group: copy what is kept.
    """

    observation: NDArray[np.generic]  # (N, *shape) images uint8, channels first, ONE frame (stacking is the agent's business)
    extra: NDArray[np.float32]  # (N, E) numbers beside the picture; E = 0 where there are none
    reward: NDArray[np.float32]  # (N,) the game's own score, never clipped
    terminated: NDArray[np.bool_]  # (N,) the task is over: the value of `observation` is zero
    truncated: NDArray[np.bool_]  # (N,) cut off by a limit: its value goes on; never True together with `terminated`
    is_first: NDArray[np.bool_]  # (N,) this observation opens an episode; the action before it was ignored
    life_lost: NDArray[np.bool_]  # (N,) all False where there are no lives
    frames: NDArray[np.int32]  # (N,) emulator frames that this step took; 0 where is_first


class Outcome(NamedTuple):
    """What one step of one game brought, beside its observation."""

    reward: float
    terminated: bool
    truncated: bool
    life_lost: bool
    frames: int  # emulator frames


@dataclass(frozen=True)
class GameProtocol:
    """The rules under which a score was made; two scores without the same rules are two different measurements."""

    env: str
    """Environment id as the user wrote it."""
    observation: str
    """`pixels`, `ram` or `vector`."""
    size: tuple[int, ...]
    """Shape of one observation; images channels first."""
    colour: str | None
    """`grey` or `rgb`; None where the observation is no image."""
    frame_skip: tuple[int, int]
    """Emulator frames an action is held: fewest and most, both included; drawn anew at each step where they differ."""
    max_pool: bool
    """Whether an image is the brighter of the step's last two frames."""
    sticky: float
    """Probability at each emulator frame that the previous action is repeated."""
    action_set: str
    """`minimal` (the game's own actions), `full` (all 18), or `discrete` outside Atari."""
    noop_max: int
    """Up to this many emulator frames of doing nothing open a game; 0 for none."""
    fire_reset: bool
    """Whether FIRE is pressed for the agent when a game opens."""
    episode_end: str
    """What ends an episode: `game over`, or `environment` outside Atari."""
    max_episode_frames: int | None
    """Emulator frames after which a game is cut off (truncated)."""
    max_episode_steps: int | None
    """Agent steps after which a game is cut off (truncated)."""
    mode: int | None
    """Game mode of the cartridge."""
    difficulty: int | None
    """Difficulty switch of the console."""
    rom_md5: str | None
    """MD5 of the game's ROM file."""
    backend: str
    """Package and version that emulates, for example `ale-py 0.12.1`."""
    extra: tuple[str, ...] = ()
    """What the numbers beside the picture are, one name each."""
    level: str | None = None
    """The level or map that is played, where the id does not name it."""
    files: tuple[str, ...] = ()
    """Name and MD5 of each file of the user's own that the engine reads: `mine.wad 5e06...`."""


@dataclass(frozen=True)
class ProtocolOptions:
    """The user's changes to an id's protocol; None keeps what the id means."""

    sticky: float | None = None
    """Probability at each emulator frame that the previous action is repeated."""
    frame_skip: tuple[int, int] | None = None
    """Fewest and most emulator frames that an action is held."""
    full_action_space: bool = False
    """All 18 actions instead of the game's own."""
    noop_max: int | None = None
    """Open each game with 1 to this many emulator frames of doing nothing; 0 for none."""
    max_episode_frames: int | None = None
    """Emulator frames after which a game is cut off."""
    image_size: tuple[int, int] | None = None
    """Height and width of the picture that the agent sees, in pixels."""
    game_variables: bool = False
    """Hand out the game's own numbers (health, ammunition) beside the picture."""
    lab_actions: Literal[9, 15] | None = None
    """Size of DeepMind Lab's action set."""
    held_out: bool = False
    """Play the levels that training never plays, where a game has such; evaluation asks for them."""


RULE_FLAGS = tuple(field.name for field in fields(ProtocolOptions) if field.name != "held_out")  # those that users set


def refuse_options(env_id: str, options: ProtocolOptions, known: Collection[str]) -> None:
    """Refuse flags that a family of games does not have.

    Raises:
        InputError: a flag is given that is not among `known`, names of fields of `ProtocolOptions`.
    """
    given = [name for name in RULE_FLAGS if getattr(options, name) is not None and getattr(options, name) is not False]
    foreign = [name for name in given if name not in known]
    if foreign:
        raise InputError(f"{env_id}: {as_flags(foreign)} cannot change it; flags that can: {as_flags(known)}")


def as_flags(names: Iterable[str]) -> str:
    """Fields of `ProtocolOptions` as they are typed; "none" where there are none."""
    return " and ".join(f"--{name.replace('_', '-')}" for name in names) or "none"


@dataclass(frozen=True)
class GameDescription:
    """What has to be known of a game before memory for it can be laid out and a network built."""

    protocol: GameProtocol
    observation_shape: tuple[int, ...]
    """Shape of one observation: (C, H, W) images, (D,) otherwise."""
    observation_dtype: str
    """`uint8` or `float32`."""
    extra_size: int
    """Numbers beside the picture."""
    num_tokens: int
    """How many of them, the last, are words of an instruction: ids below `VOCABULARY`."""
    action_names: tuple[str, ...]
    """One name an action; the game's own where it has them."""
    screen_shape: tuple[int, int, int] | None
    """(H, W, 3) of a recorded frame; None where the game cannot be drawn."""
    frames_per_second: float
    """Emulator frames in a second of play at the game's own speed."""

    @property
    def num_actions(self) -> int:
        """How many discrete actions there are."""
        return len(self.action_names)

    @property
    def sees_images(self) -> bool:
        """Whether an observation is an image."""
        return len(self.observation_shape) == 3


class Game(Protocol):
    """One environment, as a family implements it and a worker plays it."""

    description: GameDescription
    flags: tuple[str, ...]
    """The fields of `ProtocolOptions` that can change its rules."""
    own_engine: bool
    """Whether it plays by turns with a process of its own, the engine, that is best kept on the same core."""

    def __init__(self, env_id: str, options: ProtocolOptions) -> None:
        """Make the game.

        Raises:
            InputError: no agent of ours can play it, or an option that its family does not have.
        """

    @staticmethod
    def options_of(env_id: str) -> ProtocolOptions:
        """What the flags are for an id where they are not given; None for those that its family does not have."""

    def reset(self, seed: int | None, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> None:
        """Open a new episode and write what is seen first, picture and numbers, in place.

        Without a seed the generators go on as they are.
        """

    def step(self, action: int, observation: NDArray[np.generic], extra: NDArray[np.float32]) -> Outcome:
        """Play one agent step and write what is seen then in place.

        Raises:
            GameLost: the game's engine died.
        """

    def record(self) -> None:
        """From now on keep the emulator frames of each step for `last_frames`."""

    def last_frames(self) -> Sequence[NDArray[np.uint8]]:
        """The emulator frames of the last step, each (H, W, 3) RGB, in order."""

    def close(self) -> None:
        """Give back what the game holds."""


@runtime_checkable
class CloneableGame(Protocol):
    """A game whose state can be copied exactly. Others are opened again by their seed, and played again."""

    @staticmethod
    def clones(env_id: str) -> bool:
        """Whether that is so for an id of the family."""

    def clone(self) -> dict[str, Any]:
        """A copy of the game's state, which JSON can say in a megabyte; from here on it goes on as one restored from it."""

    def restore(self, clone: dict[str, Any]) -> None:
        """Go on from a copy."""


class Envs(Protocol):
    """N environments in groups that take turns in a fixed order, so that timing never decides which data comes next."""

    description: GameDescription
    num_envs: int
    tasks: tuple[str, ...]  # (N,) what each slot plays; one id for all but where a run is spread over several games
    lost_games: int  # games that were cut short by a worker's death
    strays: list[int]  # slots whose games went another way when they were played again, after `load_state_dict`
    groups: tuple[slice, ...]  # the slots of each group
    seeds: NDArray[np.int64]  # (N,) the seed that each slot's running game was opened with; -1 where it was not reseeded

    def reset(self, seeds: Sequence[Iterable[int]]) -> None:
        """Open a game in every slot; the results are the next to be received.

        Slot i opens each game with the next of `seeds[i]`, and games beyond its last seed without reseeding.
        """

    def send(self, actions: NDArray[np.integer], group: int) -> None:
        """Start a step of one group; actions (slots of the group,)."""

    def recv(self, group: int) -> TimeStep:
        """Wait for the step that was started last in this group."""

    def seen(self, group: int) -> TimeStep:
        """What `recv` returned last for this group."""

    def state_dict(self, *, clone: bool) -> dict[str, Any]:
        """Where every game stands, steps that are running included: arrays and what JSON can say.

        `clone` copies the states of games that can be; without it, their last copy and the actions since then are kept.
        """

    def load_state_dict(self, state: dict[str, Any], seeds: Sequence[Iterable[int]]) -> None:
        """Instead of `reset`: bring every game to where it stood, with the seeds that were given to `reset`."""

    def last_frames(self, slot: int) -> NDArray[np.uint8]:
        """Every emulator frame of a recorded slot's last step: (k, H, W, 3) RGB; k = 0 where the step opened a game."""

    def close(self) -> None:
        """End the workers and free the shared memory."""


def game_seeds(purpose: int, seed: int, games: range, *again: int) -> list[int]:
    """One independent seed a game: `SeedSequence((purpose, seed, game, *again))`; purpose 0 is training and 1 is evaluation."""
    return [int(np.random.SeedSequence((purpose, seed, game, *again)).generate_state(1)[0] & 0x7FFFFFFF) for game in games]
