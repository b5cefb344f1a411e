"""Evaluate agents: `python evaluate.py RUN [RUN ...]`, where RUN is a run, a checkpoint, zoo/NAME, random:ID or script:ID."""

import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from envs.outputs import outlive_readers
from training import missing

try:
    import tyro
except ModuleNotFoundError as error:
    print(f"evaluate.py: {missing.advice(error)}", file=sys.stderr)
    raise SystemExit(2) from None


@dataclass(frozen=True)
class Options:
    """Play whole games with frozen agents, set the scores beside baselines, and record videos."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="")]
    """Runs, checkpoints, zoo entries, random:ID or script:ID."""
    episodes: int = 30
    """Games that each one plays."""
    seed: int = 0
    """Decides the games; training never plays them."""
    policy: Annotated[
        Literal["sample", "greedy"] | None,
        tyro.conf.arg(metavar="{sample,greedy}", help_behavior_hint="(default: PPO and A2C sample, DQN plays epsilon 0.001)"),
    ] = None
    """How agents choose."""
    videos: int = 1
    """Games of each that are recorded."""
    blind_games: int = 20
    """Games of the baselines that never look (the agent's best game replayed, scripts); 0 for none."""
    out: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: videos/<run>, of several videos/<first>+<n>)"),
    ] = None
    """Where scores.json, report.html and the videos go."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks are computed."""
    env: Annotated[str | None, tyro.conf.arg(metavar="ID", help_behavior_hint="")] = None
    """An id with code of its own (package.module:Id-v0) that an agent's config names: you trust it, and it is imported."""


def main(args: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        from envs.contract import InputError

        try:
            return _evaluate(args)
        except InputError as error:
            print(f"evaluate.py: {error}", file=sys.stderr)
            return error.exit_code
    except ModuleNotFoundError as error:
        print(f"evaluate.py: {missing.advice(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:  # while the imports run, too, which take seconds
        print("evaluate.py: stopped; no scores were written", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


def _evaluate(args: Sequence[str]) -> int:
    from training import command_line
    from training.config import check_path

    options = command_line.parse(Options, args, prog="evaluate.py", description=Options.__doc__ or "")

    from rich.console import Console

    from evaluation import session  # after the command line: plots and statistics take a second to import, and --help has none

    if options.out is not None:
        check_path("--out", options.out)
    session.check(options.runs, options.episodes, options.videos, options.blind_games, options.seed)
    subjects = session.find_all(options.runs, options.policy, options.device, options.env)
    out = options.out or session.default_out(subjects)
    console = Console()
    session.run(
        subjects,
        range(options.episodes),
        seed=options.seed,
        videos=options.videos,
        blind_games=options.blind_games,
        out=out,
        command=shlex.join(["python", "evaluate.py", *args]),
        console=console,
    )
    console.print(f"{out}/report.html", highlight=False, markup=False)
    return 0


def _stop(number: int, _: object) -> None:
    for each in (signal.SIGTERM, signal.SIGHUP):  # a terminal that closes hangs up more than once, and `timeout` ends twice
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt(number)


def end_as_with_ctrl_c() -> None:
    """Let SIGTERM and a hangup stop this process as Ctrl-C does, but for a hangup that was ignored before, as under nohup."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _stop)


if __name__ == "__main__":
    outlive_readers()
    end_as_with_ctrl_c()
    raise SystemExit(main(sys.argv[1:]))
