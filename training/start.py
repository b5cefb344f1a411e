"""From a run's config to a run that is ready to train."""

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch

from agents import registry as agents
from agents.agent import Agent, Setting
from agents.torch_setup import keep_freed_memory, pick_device, pick_precision
from envs import registry
from envs.contract import GameDescription, InputError, game_seeds
from envs.cores import usable_cores
from envs.workers import WorkerEnvs
from training import checkpoint, replay_files
from training.command_line import next_command
from training.config import Plan, RunConfig, check_game, load_config, make_plan, save_config
from training.lock import Lock
from training.loop import Run, stopping_signals


def new_run(algorithm: str, config: RunConfig[Any], say: Callable[[str], None] = lambda _: None) -> Run:
    """Open a run in a directory of its own, which goes again where a game cannot be opened, or a signal comes before.

    Args:
        algorithm: Its name.
        config: With the directory.
        say: Is told that games open, which may take minutes.

    Raises:
        InputError: the directory exists, or the environment cannot be had; nothing was created.
        WorkerError: a game could not be opened; neither was anything.
    """
    run_dir = config.run_dir
    assert run_dir is not None
    if (run_dir / "weights.safetensors").exists():
        raise InputError(f"{run_dir} is a trained agent, and no run to go on with; --run-dir names another")
    if (run_dir / "config.json").exists():
        goes_on = next_command("train.py resume", run_dir, config.env)
        raise InputError(
            f"{run_dir} exists already; {goes_on} goes on to the frames it was begun for, --seed or --run-dir begins another"
        )
    if run_dir.exists():
        raise InputError(f"{run_dir} exists already and is not a run; --run-dir names another")
    plan = plan_of(config)
    with _ended_by_signals(), contextlib.ExitStack() as undo:
        envs = open_envs(config, plan)
        undo.callback(envs.close)
        envs.reset(_seeds(config, envs))  # games open while the agent is built
        agent = build_agent(algorithm, config, plan, envs.description)
        facts = {"protocol": dataclasses.asdict(envs.description.protocol), "versions": versions(), "commit": commit()}
        with _refused(f"--run-dir {run_dir} cannot be made"):
            run_dir.mkdir(parents=True)
        try:
            lock = Lock(run_dir)
        except BaseException:
            shutil.rmtree(run_dir)
            raise
        undo.callback(lock.release)
        undo.callback(shutil.rmtree, run_dir)  # before it is let go: whoever took it then would lose it
        with _refused(f"--run-dir {run_dir} cannot be written"):
            save_config(run_dir / "config.json", algorithm, config, plan, facts)
        run = _run(config, envs, agent, lock)
        say(f"{run_dir}: opening {envs.num_envs} games")
        envs.wait()
        undo.pop_all()
    return run


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and a hangup unwind, as Ctrl-C does; a terminal that closes hangs up more than once."""
    numbers = [number for number in stopping_signals() if number != signal.SIGINT]

    def end(number: int, _: object) -> None:
        if before.pop(signal.SIGHUP, None) is not None:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # to the end of the process
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def plan_of(config: RunConfig[Any]) -> Plan:
    """How this machine trains it.

    Raises:
        InputError: CUDA is asked for and there is none.
    """
    device = pick_device(config.device)
    bf16 = pick_precision(config.precision, device) == torch.bfloat16
    images, slow = registry.sees_images(config.env), registry.is_slow(config.env)
    on: Literal["cpu", "cuda"] = "cuda" if device.type == "cuda" else "cpu"
    return make_plan(config.agent.num_envs, usable_cores(), on, "bf16" if bf16 else "fp32", images=images, slow=slow)


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Say what the system refuses, in one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what}: {error.strerror}") from error


def finished(run_dir: Path, trusted: str | None = None) -> bool:
    """Whether a run has come to its end; `trusted` as in `load_config`.

    Raises:
        InputError: the directory is not a run, or only what was exported from one, or it plays another id than the trusted one.
    """
    _, config, _ = load_config(run_dir / "config.json", trusted)
    if trusted not in (None, config.env):
        raise InputError(f"--env {trusted}: {run_dir} plays {config.env}")
    if (run_dir / "weights.safetensors").exists():
        measures = next_command("evaluate.py", run_dir, config.env)
        raise InputError(f"{run_dir} is a trained agent without the run that made it; {measures} measures it")
    try:
        saved = checkpoint.newest(run_dir / "checkpoints", quiet=True)  # `old_run` names those that are damaged
    except checkpoint.NoCheckpointError:
        return False
    if saved is None or int(saved.name) < config.total_frames:
        return False
    # The end writes a row of metrics; a signal in the last update leaves a checkpoint of the same frame without one.
    written = checkpoint.state_part(saved, "metrics")
    return isinstance(written, dict) and written.get("written") == int(saved.name)


def old_run(run_dir: Path, trusted: str | None = None) -> Run:
    """Open a run at its newest checkpoint that is whole, or at its beginning where it has none; `trusted` as in `load_config`.

    Raises:
        InputError: the directory is not a run, something that would be written in it is a link, another process trains it, its
            game is another one here, or none of its checkpoints is whole.
    """
    algorithm, config, plan = load_config(run_dir / "config.json", trusted)
    config = dataclasses.replace(config, run_dir=run_dir)
    pick_device(plan.device)
    with contextlib.ExitStack() as undo:
        lock = Lock(run_dir)
        undo.callback(lock.release)
        with _refused(f"{run_dir} cannot be tidied up"):
            _refuse_links(run_dir)
            checkpoint.sweep(run_dir / "checkpoints")
        saved = checkpoint.newest(run_dir / "checkpoints", check=replay_files.verify)
        envs = open_envs(config, plan)
        undo.callback(envs.close)
        check_game(run_dir / "config.json", envs.description.protocol, versions())
        agent = build_agent(algorithm, config, plan, envs.description)
        run = _run(config, envs, agent, lock)
        if saved is None:
            envs.reset(_seeds(config, envs))
        else:
            run.load(saved, _seeds(config, envs))
        undo.pop_all()
    return run


def _refuse_links(run_dir: Path) -> None:
    """Look for links where a run writes and deletes: a stranger's would lead to other runs. The run itself may be one."""
    for name in ("checkpoints", "replay", "tensorboard"):
        for path in itertools.chain([run_dir / name], (run_dir / name).rglob("*")):
            if path.is_symlink():
                raise InputError(f"{path} is a link, and no run has any; to keep a run elsewhere, let {run_dir} be one")


def build_agent(algorithm: str, config: RunConfig[Any], plan: Plan, game: GameDescription) -> Agent:
    """The agent of a run, before it has learned anything."""
    keep_freed_memory()
    torch.set_num_threads(1)  # agents share an update out to threads of their own, see agents/shards.py
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS refuses; read when CUDA starts
    if config.deterministic != torch.are_deterministic_algorithms_enabled():  # to say so imports torch's compiler: a second
        torch.use_deterministic_algorithms(config.deterministic)
    setting = Setting(
        game=game,
        num_envs=config.agent.num_envs,
        groups=_groups(config.agent.num_envs, plan.groups),
        total_frames=config.total_frames,
        seed=config.seed,
        device=torch.device(plan.device),
        precision=torch.bfloat16 if plan.precision == "bf16" else torch.float32,
        learn_threads=plan.learn_threads,
    )
    return agents.ALGORITHMS[algorithm].build(config.agent, setting)


def _groups(num_envs: int, num_groups: int) -> tuple[slice, ...]:
    size = num_envs // num_groups
    return tuple(slice(start, start + size) for start in range(0, num_envs, size))


def open_envs(config: RunConfig[Any], plan: Plan) -> WorkerEnvs:
    """The games of a run, in its workers."""
    return WorkerEnvs(
        config.env,
        config.agent.num_envs,
        options=config.protocol_options,
        num_groups=plan.groups,
        num_workers=plan.workers,
        share_cores=plan.device == "cpu",
        restart=True,
    )


def _run(config: RunConfig[Any], envs: WorkerEnvs, agent: Agent, lock: Lock) -> Run:
    assert config.run_dir is not None
    periods = config.total_frames, config.checkpoint_frames
    return Run(config.run_dir, *periods, envs, agent, lock=lock, save_replay=config.save_replay)


def _seeds(config: RunConfig[Any], envs: WorkerEnvs) -> list[Iterator[int]]:
    return [training_seeds(config.seed, slot, task) for slot, task in enumerate(envs.tasks)]


def training_seeds(seed: int, slot: int, task: str) -> Iterator[int]:
    """Seeds of a slot's games: one for all where their state can be copied, else one for each, so that each can be reopened."""
    games = range(1) if registry.clones(task) else itertools.count()
    return (game_seeds(0, seed, range(slot, slot + 1), *([game] if game else []))[0] for game in games)


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    return {name: version(name) for name in ("ale-py", "gymnasium", "numpy", "torch")}


def commit() -> str | None:
    """The commit of this source tree, with `+changes` where it is not exactly that; None outside of a git checkout."""
    git = [
        "git",
        "-C",
        str(Path(__file__).parent.parent),
        "describe",
        "--always",
        "--abbrev=12",
        "--exclude=*",
        "--dirty=+changes",
    ]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None
