"""What can be evaluated: a run, one of its checkpoints, an entry of the zoo, the random agent, a script."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents import registry as agents
from agents.agent import Player
from agents.random_agent import RandomPlayer
from agents.torch_setup import pick_device
from envs import atari, registry
from envs.contract import GameDescription, InputError, ProtocolOptions
from evaluation.blind import replay, script_player, scripts_for
from training import checkpoint, lock
from training.command_line import next_command
from training.config import check_game, check_path, load_config

MakePlayer = Callable[[GameDescription, int], Player]
ZOO = Path("zoo")
UNLEARNED = ("random", "script", "blind replay")  # algorithms that are baselines themselves


@dataclass(frozen=True)
class Subject:
    """Something that can play."""

    name: str
    """What its results are called."""
    algorithm: str
    """Name of the algorithm; `random` or `script` where nothing was learned."""
    env: str
    options: ProtocolOptions
    policy: str
    """How it plays: `sample`, `greedy`, `epsilon 0.001`, `uniform` or `script`."""
    frames: int
    """Emulator frames trained on."""
    checkpoint: str | None
    """The checkpoint's name."""
    commit: str | None
    """Of the source that trained it."""
    make_player: MakePlayer
    metrics: Path | None = None
    """The learning curve."""
    suite: str | None = None
    """What all tasks together are called, where this is one of several that one agent plays."""


def find(text: str, *, policy: str | None, device: str, trusted: str | None = None) -> list[Subject]:
    """The subjects that a word on the command line names: one, each script of a game, or one for each task of an id.

    `trusted` is an id that the user has named: only then is a module imported that a run's config names.

    Raises:
        InputError: it names none; the message gives the nearest that exists.
    """
    return [task for subject in _find(text, policy, device, trusted) for task in _each_task(subject)]


def _each_task(subject: Subject) -> list[Subject]:
    tasks = registry.tasks_of(subject.env)
    if len(tasks) == 1:
        return [subject]
    return [
        dataclasses.replace(subject, env=task, name=f"{subject.name}-{task.rpartition('/')[2]}", suite=subject.name)
        for task in tasks
    ]


def _find(text: str, policy: str | None, device: str, trusted: str | None) -> list[Subject]:
    check_path("RUN", text)
    kind, _, env = text.partition(":")
    if kind in ("random", "script") and not env:
        raise InputError(f"{text!r} names no game; write {kind}:Bowling-ram-v0, say")
    if kind == "random":
        return [_random(env)]
    if kind == "script":
        return _scripts(env)
    path = Path(text)
    if (path / "state.json").exists():
        run_dir = path.resolve().parent.parent
        return [_trained(path, run_dir, f"{run_dir.name}@{path.resolve().name.lstrip('0')}", policy, device, trusted)]
    if (path / "weights.safetensors").exists() and (path / "config.json").exists():
        return [_zoo(path, policy, device, trusted)]
    if (path / "config.json").exists():
        saved = checkpoint.newest(path / "checkpoints")
        if saved is None:
            raise InputError(f"{text} has no checkpoint yet; {_when_it_comes(path, trusted)}")
        return [_trained(saved, path, path.resolve().name, policy, device, trusted)]
    raise InputError(f"{text!r} is no run, checkpoint or zoo entry, nor random:ID or script:ID; {_nearest(text)}")


@contextmanager
def ours(path: Path) -> Iterator[None]:
    """Refuse a file that was not written by this program, where its content turns out not to fit.

    Raises:
        InputError: something in it is missing or of another shape.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is not of a run of ours: {type(error).__name__} {reason}") from error


def _when_it_comes(run_dir: Path, trusted: str | None) -> str:
    trainer = lock.trainer_of(run_dir)
    if trainer is None:
        return f"{next_command('train.py resume', run_dir, trusted or '')} trains it"
    _, config, _ = load_config(run_dir / "config.json", trusted)
    frames = min(config.checkpoint_frames, config.total_frames)
    return f"{trainer} trains it, and writes the first at {frames:,} frames"


def _nearest(text: str) -> str:
    held = sorted(path.parent for path in Path(text).glob("*/config.json"))
    if held:
        others = ", ".join(map(str, held[1:4])) + (f" and {len(held) - 4} more" if len(held) > 4 else "")
        return f"{next_command('evaluate.py', held[0], '')} measures one of those in it{others and f'; others: {others}'}"
    roots = (Path("runs"), "*/config.json"), (ZOO, "*/config.json"), (Path("runs"), "*/checkpoints/*/state.json")
    known = [str(path.parent) for root, pattern in roots for path in sorted(root.glob(pattern))]
    matches = difflib.get_close_matches(text, known, n=3, cutoff=0.3)
    return (
        f"nearest: {', '.join(matches)}"
        if matches
        else f"{next_command('train.py ppo --env', 'Bowling-ram-v0', '')} trains one"
    )


def _random(env: str) -> Subject:
    registry.family_of(env)
    return _unlearned("random", env, "random", "uniform", lambda game, _: RandomPlayer(game.num_actions))


def _scripts(env: str) -> list[Subject]:
    registry.family_of(env)
    scripts = scripts_for(atari.rom_of(env))
    if not scripts:
        raise InputError(f"script:{env}: there is no script for this game; Bowling has two")
    return [_unlearned(f"script-{name}", env, "script", "script", script_player(script)) for name, script in scripts.items()]


def scripts_like(subject: Subject) -> list[Subject]:
    """The scripts of a subject's game under the subject's own protocol; empty for most games."""
    scripts = scripts_for(atari.rom_of(subject.env))
    return [
        dataclasses.replace(
            _unlearned(f"script-{name}", subject.env, "script", "script", script_player(script)), options=subject.options
        )
        for name, script in scripts.items()
    ]


def blind_replay(of: Subject, actions: Sequence[int]) -> Subject:
    """The baseline that repeats a game of an agent without looking."""
    player = script_player(lambda _: replay(actions))
    name = f"blind-{of.name}"
    return dataclasses.replace(of, name=name, algorithm="blind replay", policy="script", make_player=player, suite=None)


def _unlearned(kind: str, env: str, algorithm: str, policy: str, make_player: MakePlayer) -> Subject:
    return Subject(
        name=f"{kind}-{env.replace('/', '-').replace(':', '-')}",
        algorithm=algorithm,
        env=env,
        options=ProtocolOptions(),
        policy=policy,
        frames=0,
        checkpoint=None,
        commit=None,
        make_player=make_player,
    )


def _trained(saved: Path, run_dir: Path, name: str, policy: str | None, device: str, trusted: str | None) -> Subject:
    state = checkpoint.load(saved)
    with ours(saved):
        frames = int(state["agent"]["counters"]["frames"])
        dict(state["weights"])
    return _agent(name, run_dir, state["weights"], frames, saved.name, policy, device, trusted)


def _zoo(path: Path, policy: str | None, device: str, trusted: str | None) -> Subject:
    with ours(path / "config.json"):
        trained = json.loads(checkpoint.read_file(path / "config.json", most=2**20))["trained"]
        frames, saved = int(trained["frames"]), str(trained["checkpoint"])
    weights = checkpoint.load_weights(path)
    return _agent(path.name, path, weights, frames, saved, policy, device, trusted)


def _agent(
    name: str,
    directory: Path,
    weights: dict[str, Any],
    frames: int,
    saved: str,
    policy: str | None,
    device: str,
    trusted: str | None,
) -> Subject:
    algorithm, config, _ = load_config(directory / "config.json", trusted)
    commit = json.loads(checkpoint.read_file(directory / "config.json", most=2**20)).get("commit")
    row = agents.ALGORITHMS[algorithm]
    chosen = policy or row.policies[0]
    if chosen not in row.policies:
        raise InputError(f"--policy {policy}: {name} is a {algorithm} agent, which plays {' or '.join(row.policies)}")

    def player(game: GameDescription, num_envs: int) -> Player:
        check_game(directory / "config.json", game.protocol, {})
        torch.set_num_threads(1)  # the workers have the other cores
        with ours(directory / "weights.safetensors"):
            return row.player(config.agent, game, weights, pick_device(device), num_envs, chosen)

    return Subject(
        name=name,
        algorithm=algorithm,
        env=config.env,
        options=config.protocol_options,
        policy=chosen,
        frames=frames,
        checkpoint=saved,
        commit=commit if isinstance(commit, str) else None,
        make_player=player,
        metrics=directory / "metrics.jsonl",
    )
