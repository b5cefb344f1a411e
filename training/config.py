"""What a run is asked to do, and the plan of how this machine does it. Both are written into the run as `config.json`."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar, get_type_hints

import typeguard
import tyro

from agents import registry as agents
from envs.contract import RULE_FLAGS, GameProtocol, InputError, ProtocolOptions, one_line
from envs.registry import brings_code, tasks_of
from training.checkpoint import read_file, say_once, write_whole

AgentConfig = TypeVar("AgentConfig")
FORMAT = 1  # of config.json
_MOST_CORES = 1_024  # that a plan may speak of: each is a process and a thread
_SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}


def parse_count(text: str) -> int:
    """A whole number above zero from `10M`, `200k`, `1e6` or `1_000_000`.

    Raises:
        ValueError: the text is none, or not above zero.
    """
    factor = _SUFFIXES.get(text[-1:], 1)
    try:
        value = float(text[:-1] if factor > 1 else text) * factor
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value == int(value) and value > 0):
        raise ValueError(f"{text!r} is not a whole number above zero; write 10M, 200k, 1e6 or 1_000_000")
    return int(value)


def parse_skip(text: str) -> tuple[int, int]:
    """Fewest and most frames from `4` or `2-4`.

    Raises:
        ValueError: the text is neither, or not 1 to 16.
    """
    fewest, dash, most = text.partition("-")
    most = most if dash else fewest
    if not (fewest.isdecimal() and most.isdecimal() and 1 <= int(fewest) <= int(most) <= 16):
        raise ValueError(f"{text!r} is no frame skip; write 4, or 2-4 for one drawn from 2, 3 and 4 (1 to 16)")
    return int(fewest), int(most)


def parse_image_size(text: str) -> tuple[int, int]:
    """Height and width from `72x128`.

    Raises:
        ValueError: the text is no such pair, or a side is not 16 to 512.
    """
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal() and all(16 <= int(side) <= 512 for side in (height, width))):
        raise ValueError(f"{text!r} is no image size; write height x width, as in 72x128 (16 to 512 each)")
    return int(height), int(width)


def _show_skip(skip: tuple[int, int]) -> str:
    return str(skip[0]) if skip[0] == skip[1] else f"{skip[0]}-{skip[1]}"


def _show_image_size(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


Count = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=lambda texts: parse_count(texts[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [f"{value:_}"],
    ),
]
FrameSkip = Annotated[
    tuple[int, int],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="K|K-L",
        instance_from_str=lambda texts: parse_skip(texts[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [_show_skip(value)],
    ),
]
ImageSize = Annotated[
    tuple[int, int],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="HxW",
        instance_from_str=lambda texts: parse_image_size(texts[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [_show_image_size(value)],
    ),
]


@dataclass(frozen=True)
class RunConfig(Generic[AgentConfig]):
    """One training run."""

    env: str
    """What to play: Berzerk-v0, Bowling-ram-v0, ALE/Pong-v5, CartPole-v1, package.module:Id-v0."""
    agent: tyro.conf.OmitArgPrefixes[AgentConfig]
    total_frames: Count = 10_000_000
    """Emulator frames to train for."""
    seed: int = 1
    """Decides the games, the initial weights and every draw."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks are computed."""
    run_dir: Annotated[
        Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: runs/<env>-<algorithm>-s<seed>)")
    ] = None
    """The run's own directory."""
    checkpoint_frames: Count = 1_000_000
    """Emulator frames from checkpoint to checkpoint."""
    save_replay: bool = True
    """Keep DQN's replay in checkpoints. Without it a resumed run fills replay again, and is not the run that never stopped."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the networks; auto is bf16 where the hardware has it."""
    deterministic: bool = False
    """Make CUDA repeat itself bit for bit too, at some cost in speed; the CPU always does."""
    sticky: Annotated[float | None, tyro.conf.arg(metavar="FLOAT")] = None
    """Probability at each emulator frame that the previous action is repeated."""
    frame_skip: Annotated[FrameSkip | None, tyro.conf.arg(metavar="K|K-L")] = None
    """Emulator frames that an action is held: 4, or 2-4 for one drawn at each step."""
    full_action_space: bool = False
    """All 18 actions of the console instead of the game's own."""
    noop_max: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Open each game with up to this many frames of doing nothing, 0 for none."""
    max_episode_frames: Annotated[Count | None, tyro.conf.arg(metavar="N")] = None
    """Emulator frames after which a game is cut off; `<Game>-v0` ids have 10000 agent steps instead."""
    image_size: Annotated[ImageSize | None, tyro.conf.arg(metavar="HxW")] = None
    """Height and width of the picture that the agent sees in a 3D world, in pixels, as in 72x128."""
    game_variables: bool = False
    """Hand out the game's own numbers (health, ammunition) beside the picture, where it has some."""
    lab_actions: Annotated[Literal[9, 15] | None, tyro.conf.arg(metavar="{9,15}")] = None
    """Size of DeepMind Lab's action set: 9 as in IMPALA, 15 as in PopArt and R2D2."""

    @property
    def protocol_options(self) -> ProtocolOptions:
        """The flags that change the game's rules."""
        return ProtocolOptions(**{name: getattr(self, name) for name in RULE_FLAGS})

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            InputError: a value out of its range; one line that names it.
        """
        if self.run_dir is not None:
            check_path("--run-dir", self.run_dir)
        if self.sticky is not None and not 0 <= self.sticky <= 1:
            raise InputError(f"--sticky {self.sticky}: expected a probability from 0 to 1")
        for flag, value, least, most in (
            ("--total-frames", self.total_frames, 1, 2**53),
            ("--checkpoint-frames", self.checkpoint_frames, 1, 2**53),
            ("--noop-max", self.noop_max, 0, 10**6),
            ("--max-episode-frames", self.max_episode_frames, 1, 2**31 - 1),
            ("--seed", self.seed, 0, 2**63 - 1),
        ):
            if value is not None and not least <= value <= most:
                raise InputError(f"{flag} {value}: expected {least} to {most}")
        if self.frame_skip is not None:
            _check_text("--frame-skip", _show_skip(self.frame_skip), parse_skip)
        if self.image_size is not None:
            _check_text("--image-size", _show_image_size(self.image_size), parse_image_size)
        if not self.save_replay and "capacity" not in vars(self.agent):
            raise InputError("--no-save-replay: only dqn has a replay")
        for name, value in vars(self.agent).items():
            _check_number(name, value)
        if (count := len(tasks_of(self.env))) > 1 and (num_envs := vars(self.agent)["num_envs"]) % count:
            raise InputError(f"--num-envs {num_envs}: {self.env} is {count} tasks that take turns; take a multiple of {count}")


def _check_text(flag: str, text: str, parse: Callable[[str], Any]) -> None:
    """Refuse what a config.json says and the command line would not take."""
    try:
        parse(text)
    except ValueError as error:
        raise InputError(f"{flag}: {error}") from error


def check_path(what: str, path: Path | str) -> None:
    """Refuse what no file system takes for a path.

    Raises:
        InputError: a part of it is longer than 255 bytes, or has a null character; or it is no UTF-8, which TensorBoard wants.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"{what} {str(path)[:40]!r}: a name has to be UTF-8") from None
    if "\0" in str(path) or any(len(os.fsencode(part)) > 255 for part in Path(path).parts) or len(str(path)) > 4_000:
        raise InputError(f"{what} {str(path)[:40]!r}...: a name has at most 255 bytes, and no null character")


# Lowest and highest value of every number that an algorithm's config has.
_SHARES = (0.0, 1.0)
_RANGES: dict[str, tuple[float, float]] = {
    "num_envs": (1, 65_536),
    "rollout_steps": (1, 65_536),
    "memory_steps": (1, 65_536),
    "lag": (0, 1),
    "epochs": (1, 1_000),
    "minibatches": (1, 65_536),
    "frame_stack": (1, 64),
    "batch_size": (1, 2**20),
    "n_step": (1, 1_000),
    "capacity": (1, 10**9),
    "update_steps": (1, 10**6),
    "target_frames": (1, 10**12),
    "epsilon_frames": (0, 10**12),
    "start_frames": (0, 10**12),
    "learning_rate": (0.0, 10.0),
    "max_grad_norm": (1e-9, 1e9),
    "clip": (1e-9, 1e9),
    "value_clip": (1e-9, 1e9),
    **dict.fromkeys(("discount", "gae_lambda", "epsilon_start", "epsilon_end", "rms_decay"), _SHARES),
    **dict.fromkeys(("entropy_coefficient", "value_coefficient", "reward_scale"), (0.0, 1e9)),
}


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    lowest, highest = _RANGES.get(name, (-math.inf, math.inf))
    if not lowest <= value <= highest:
        raise InputError(f"--{name.replace('_', '-')} {value}: expected {lowest:g} to {highest:g}")


@dataclass(frozen=True)
class Plan:
    """How this machine runs it: decided once, written down, and used again by `resume`, since another plan means other bits."""

    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16"]
    workers: int
    """Processes that play."""
    groups: int
    """Groups of games that take turns, so that one is played while the policy acts for another."""
    learn_threads: int
    """CPU threads that share an update, while the workers wait."""


MANY_GAMES = 128  # with which four groups were measured to be faster than two, on 16 cores


def make_plan(
    num_envs: int,
    cores: int,
    device: Literal["cpu", "cuda"],
    precision: Literal["fp32", "bf16"],
    *,
    images: bool,
    slow: bool = False,
) -> Plan:
    """A fixed function of the machine's cores and the run.

    Where the policy looks at pictures on the CPU, acting takes about as long as playing, and one core is left to it; not
    with `slow` games, which take several times as long. Beside a GPU many games are played in more groups: while the
    slowest worker of one is waited for, others have more to play; not seen from RAM.
    """
    groups = 2 if num_envs % 2 == 0 and num_envs >= 4 else 1
    if images and device == "cuda" and num_envs >= MANY_GAMES and num_envs % 4 == 0:
        groups = 4
    players = max(1, cores - 1) if images and not slow and device == "cpu" else cores
    return Plan(
        device=device,
        precision=precision,
        workers=min(players, num_envs // groups),
        groups=groups,
        learn_threads=cores if device == "cpu" else 1,
    )


def default_run_dir(env: str, algorithm: str, seed: int) -> Path:
    """`runs/<env>-<algorithm>-s<seed>`."""
    return Path("runs") / f"{env.replace('/', '-').replace(':', '-')}-{algorithm}-s{seed}"


def save_config(path: Path, algorithm: str, config: RunConfig[Any], plan: Plan, facts: dict[str, Any]) -> None:
    """Write `config.json`; `facts` are protocol, versions and commit: for readers, and for `check_game`."""
    run = {**dataclasses.asdict(config), "run_dir": str(config.run_dir)}
    agent = run.pop("agent")
    content = {"format": FORMAT, "algorithm": algorithm, "run": run, "agent": agent, "plan": dataclasses.asdict(plan), **facts}
    write_whole(path, json.dumps(content, indent=1) + "\n")


def load_config(path: Path, trusted: str | None = None) -> tuple[str, RunConfig[Any], Plan]:
    """Read `config.json` back; it may be a stranger's.

    Args:
        path: The file.
        trusted: An id that the user has named: what it imports may be imported.

    Raises:
        InputError: there is none, it is not one of ours, or its id names code that the user has not named.
    """
    try:
        content = json.loads(read_file(path, most=2**20))
        algorithm = content["algorithm"]
        if algorithm not in agents.ALGORITHMS:
            raise ValueError(f"known algorithms are {', '.join(agents.ALGORITHMS)}, and not {algorithm!r}")
        agent = agents.ALGORITHMS[algorithm].config(**content["agent"])
        run: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content["run"].items()}
        run["run_dir"] = Path(run["run_dir"])
        config: RunConfig[Any] = RunConfig(agent=agent, **run)
        plan = Plan(**content["plan"])
        for part in (config, agent, plan):
            _check_types(part)
        _check_plan(plan, agent.num_envs)
    except FileNotFoundError as error:
        checkpoints = path.parent.parent  # if it is one of a run's checkpoints that was named
        nearest = f"; nearest: {checkpoints.parent}" if checkpoints.name == "checkpoints" else ""
        lacks = "has no config.json" if path.parent.exists() else "does not exist"
        raise InputError(f"{path.parent} is not a run: it {lacks}{nearest}") from error
    except _MISFITS as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is not a config.json that this version can read ({type(error).__name__}: {reason})"
        ) from error
    if brings_code(config.env) and config.env != trusted:
        raise InputError(
            f"{path}: {config.env!r} brings code of its own, which is run if you name it too: --env {config.env!r}"
        )
    config.check()
    return algorithm, config, plan


_MISFITS = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, typeguard.TypeCheckError)


def check_game(path: Path, opened: GameProtocol, versions: Mapping[str, str]) -> None:
    """Refuse another game than the one that a `config.json` was written of; say on stderr where only versions differ.

    What an older file does not say is not compared. Nor are id and level: a task of several and what is held out have others.

    Args:
        path: The file; it may be a stranger's.
        opened: The rules of the game as it is here.
        versions: Of packages beside the game's own, by name.

    Raises:
        InputError: a rule or a file of the game differs.
    """
    content = json.loads(read_file(path, most=2**20))
    was, made = (part if isinstance(part, dict) else {} for part in (content.get("protocol"), content.get("versions")))
    now = json.loads(json.dumps(dataclasses.asdict(opened)))
    rules = [name for name in now if name in was and name not in ("env", "level", "backend") and was[name] != now[name]]
    if rules:
        said = "; ".join(f"{name} {_only_in(was[name], now[name])}, here {_only_in(now[name], was[name])}" for name in rules)
        raise InputError(f"{path.parent} was trained on another game than the one here: {said}")
    named = [name for name in versions if name in made]
    before = [str(was.get("backend", opened.backend)), *(f"{name} {made[name]}" for name in named)]
    after = [opened.backend, *(f"{name} {versions[name]}" for name in named)]
    if before != after:
        said = f"trained with {_only_in(before, after)}, here {_only_in(after, before)}; numbers may come out otherwise"
        say_once(one_line(f"{path.parent}: {said}"))


def _only_in(value: Any, other: Any) -> str:
    """What a rule says, in a few words; of names what the other has not."""
    if isinstance(value, list) and isinstance(other, list) and any(isinstance(each, str) for each in [*value, *other]):
        value = ", ".join(str(each) for each in value if each not in other) or "none"
    return str(value)[:200]


def _check_types(part: Any) -> None:
    for name, kind in get_type_hints(type(part), include_extras=False).items():
        if name != "agent":
            typeguard.check_type(getattr(part, name), kind)


def _check_plan(plan: Plan, num_envs: int) -> None:
    if num_envs < 1 or plan.groups < 1 or num_envs % plan.groups:
        raise ValueError(f"{num_envs} games do not divide into {plan.groups} groups")
    if not (1 <= plan.workers <= min(num_envs, _MOST_CORES) and 1 <= plan.learn_threads <= _MOST_CORES):
        raise ValueError(f"{plan.workers} workers and {plan.learn_threads} threads")
