"""Train an agent: `python train.py {dqn|a2c|ppo} --env ID`, `python train.py resume DIR`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.outputs import outlive_readers

if TYPE_CHECKING:
    from training.loop import Run

USAGE = """\
usage: python train.py {{{algorithms}}} --env ID [flags]    train a new agent
       python train.py ALGORITHM --env ID --help         every flag, with the values that would run
       python train.py resume DIR [--env ID]             go on with a run
       python train.py doctor                            what is installed here, and what mends what is not

  --env Berzerk-v0, Bowling-v0 (screen images), Bowling-ram-v0 (RAM), ALE/<Game>-v5; VizdoomBasic-v1, MiniWorld-Hallway-v0,
        dmlab/<level> (3D worlds); CartPole-v1; package.module:Id-v0
"""


def main(args: Sequence[str]) -> int:
    """Run a command line; returns the exit code."""
    try:
        from envs.contract import InputError
        from training.loop import Stopped

        try:
            return _run(args)
        except InputError as error:
            print(f"train.py: {error}", file=sys.stderr)
            return error.exit_code
        except Stopped as stop:
            print(f"train.py: {stop}", file=sys.stderr)
            return stop.exit_code
    except ModuleNotFoundError as error:
        from training import missing

        print(f"train.py: {missing.advice(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while the imports run, too, which take seconds
        return 130


def _run(args: Sequence[str]) -> int:
    import difflib

    from agents.registry import ALGORITHMS
    from envs.contract import InputError

    verbs = [*ALGORITHMS, "resume", "doctor"]
    asked = args[1:] if args and args[0] in ("resume", "doctor") else args[:1]  # an algorithm's own help is tyro's
    if not args or list(asked) in (["-h"], ["--help"]):
        _show_usage()
        return 0 if args else 2
    if args[0] not in verbs:
        nearest = difflib.get_close_matches(args[0].lower(), verbs, n=1)
        example = ", as in train.py ppo --env Berzerk-v0" if args[0].startswith("-") else ""
        advice = f"; nearest: {nearest[0]}" if nearest else example
        raise InputError(f"unknown command {args[0]!r}; expected {', '.join(verbs)}{advice}")
    if args[0] == "doctor":
        if args[1:]:
            raise InputError(f"doctor takes no arguments; given {' '.join(args[1:])}")
        return _doctor()
    return _resume(args[1:]) if args[0] == "resume" else _train(args[0], args[1:])


def _show_usage() -> None:
    from agents.registry import ALGORITHMS

    print(USAGE.format(algorithms="|".join(ALGORITHMS)))


def _doctor() -> int:
    from training import doctor

    doctor.show()
    return 0


def _train(algorithm: str, args: Sequence[str]) -> int:
    import dataclasses

    import tyro

    from agents.registry import ALGORITHMS
    from envs import registry
    from envs.contract import RULE_FLAGS, as_flags
    from training import command_line, presets, start
    from training.config import RunConfig, default_run_dir

    env = command_line.flag(args, "--env")
    rules: dict[str, Any] = {}
    description = "The values shown are those of no game in particular; with --env ID, those that would run."
    if env is not None:
        game = registry.game_class(env)
        rules = {name: getattr(game.options_of(env), name) for name in RULE_FLAGS}
        description = f"Flags that can change the rules of {env}: {as_flags(game.flags)}."
    preset = presets.preset(algorithm, env or "")
    run_config: Any = RunConfig  # of a class that is known here only
    kind = run_config[ALGORITHMS[algorithm].config]
    default = RunConfig(env=tyro.MISSING if env is None else env, agent=preset, **rules)
    config = command_line.parse(kind, args, prog=f"train.py {algorithm}", default=default, description=description)
    config.check()
    if config.run_dir is None:
        config = dataclasses.replace(config, run_dir=default_run_dir(config.env, algorithm, config.seed))
    return _finish(start.new_run(algorithm, config, lambda line: print(line, file=sys.stderr)))


def _resume(args: Sequence[str]) -> int:
    from envs.contract import InputError
    from training import command_line, start
    from training.config import check_path

    env = command_line.flag(args, "--env")
    rest = [word for at, word in enumerate(args) if word != "--env" and args[at - 1] != "--env" and word != f"--env={env}"]
    if len(rest) != 1:
        raise InputError(
            "resume: expected one run directory and nothing else, as in `train.py resume runs/Bowling-ram-v0-ppo-s1`; "
            "a run's settings do not change"
        )
    check_path("resume", rest[0])
    run_dir = Path(rest[0])
    if start.finished(run_dir, env):
        measures = command_line.next_command("evaluate.py", run_dir, env or "")
        print(f"{run_dir} is finished; {measures} measures it, and a longer one would be another run", file=sys.stderr)
        return 0
    run = start.old_run(run_dir, env)
    if run.envs.strays:
        print(
            f"{len(run.envs.strays)} of {run.envs.num_envs} games went another way when they were played again; "
            "from here on the run is another one than if it had not been stopped",
            file=sys.stderr,
        )
    if run.agent.replay is not None and run.agent.replay.forgotten:
        print(
            "replay begins anew, since --no-save-replay asked for it or an older version had it; it fills again before "
            "anything is learned, and from here on the run is another one than if it had not been stopped",
            file=sys.stderr,
        )
    return _finish(run)


def _finish(run: "Run") -> int:
    from rich.console import Console

    from training.command_line import next_command
    from training.progress import Display

    console = Console(stderr=True)
    with run:
        display = Display(run.total_frames, console)
        console.print(f"{run.run_dir}: {run.agent.frames:,} of {run.total_frames:,} frames", highlight=False, markup=False)
        with display.running(run.agent.frames):
            run.train(display.show)
    console.print(f"where the time went: {display.where_time_went()}", highlight=False, soft_wrap=True)
    measures = next_command("evaluate.py", run.run_dir, run.envs.tasks[0])
    console.print(f"{run.run_dir} is trained; {measures} measures it", highlight=False, markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    outlive_readers()
    raise SystemExit(main(sys.argv[1:]))
