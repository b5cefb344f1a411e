"""One call of `evaluate.py`: every subject is measured, then everything is written and shown together."""

import contextlib
import fcntl
import glob
import os
import re
import tempfile
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from itertools import chain, count
from pathlib import Path

from rich.console import Console

from agents.torch_setup import pick_device
from envs.contract import InputError
from evaluation import report, subjects, tables
from evaluation.progress import Progressing
from evaluation.rules import Score
from evaluation.scores import BLIND_FIRST, blind_note, blind_players, blind_score, evaluate, write_json
from evaluation.subjects import UNLEARNED, Subject
from training import metrics

VIDEOS = Path("videos")


def check(runs: Sequence[str], episodes: int, videos: int, blind_games: int, seed: int) -> None:
    """Refuse what cannot be evaluated.

    Raises:
        InputError: nothing to evaluate, or a number out of its range.
    """
    if not runs:
        raise InputError("expected a run, a checkpoint, zoo/NAME, random:ID or script:ID")
    if not 1 <= episodes <= BLIND_FIRST:
        raise InputError(f"--episodes {episodes}: expected 1 to {BLIND_FIRST:,}")
    if videos < 0 or blind_games < 0 or seed < 0:
        raise InputError(f"--videos {videos} --blind-games {blind_games} --seed {seed}: expected 0 or more")


def find_all(runs: Sequence[str], policy: str | None, device: str, trusted: str | None = None) -> list[Subject]:
    """Every subject that the words on the command line name, each with a name of its own.

    Random play and scripts follow the rules of the first agent that plays the same game.
    """
    pick_device(device)  # refused before anything is played
    found: list[Subject] = []
    for run in dict.fromkeys(runs):
        tasks = subjects.find(run, policy=policy, device=device, trusted=trusted)
        suites = [subject.suite for subject in found if subject.suite]
        found += [replace(each, suite=each.suite and _free_name(each.suite, suites)) for each in tasks]
    if policy is not None and all(subject.algorithm in UNLEARNED for subject in found):
        none = "is no trained agent, and has" if len(runs) == 1 else "are no trained agents, and have"
        raise InputError(f"--policy {policy}: {' and '.join(runs)} {none} no policy to choose")
    rules = {subject.env: subject.options for subject in reversed(found) if subject.algorithm not in UNLEARNED}
    named: dict[str, Subject] = {}
    for subject in found:
        name = _free_name(subject.name, named)
        options = subject.options if subject.algorithm not in UNLEARNED else rules.get(subject.env, subject.options)
        named[name] = replace(subject, name=name, options=options)
    return list(named.values())


def _free_name(name: str, taken: Container[str]) -> str:
    """The name itself, or the first of `<name>-2`, `<name>-3`, ... that is not taken."""
    return next(each for each in chain([name], (f"{name}-{n}" for n in count(2))) if each not in taken)


def default_out(found: Sequence[Subject]) -> Path:
    """`videos/<run>`, or `videos/<first>+<n>` for several."""
    names = list(dict.fromkeys(subject.suite or subject.name for subject in found))
    more = f"+{len(names) - 1}" if len(names) > 1 else ""
    return VIDEOS / f"{names[0]}{more}"


def run(
    found: Sequence[Subject],
    games: range,
    *,
    seed: int,
    videos: int,
    blind_games: int,
    out: Path,
    command: str,
    console: Console,
) -> list[Score]:
    """Measure, write `scores.json`, `report.html` and videos below `out`, and print the tables."""
    asked: list[Score] = []
    blind: list[Score] = []
    recorded: dict[str, list[Path]] = {}
    with _held(out):
        for subject in found:
            console.print(f"{subject.name}: {len(games)} games", highlight=False, markup=False)
            started = time.time_ns()
            paths = [out / f"{subject.name}-game{game}.mp4" for game in games[:videos]]
            with Progressing(subject.name, len(games), console) as progress:
                score, episodes = evaluate(subject, games, seed, paths, progress.over)
            if subject.algorithm not in UNLEARNED and blind_games:
                told = f"{subject.name}: {blind_games} games of each player that never looks"
                console.print(told, highlight=False, markup=False)
                unseeing = []
                for player in blind_players(subject, episodes):
                    with Progressing(player.name, blind_games, console) as progress:
                        unseeing.append(blind_score(player, blind_games, seed, progress.over))
                score = {**score, "blind_note": blind_note(score, unseeing)}
                blind += unseeing
            asked.append(score)
            recorded[subject.name] = [path for path in paths if path.exists() and path.stat().st_mtime_ns >= started]
            _remove_videos(out, subject, keep=recorded[subject.name])
        scores = _each_once([*asked, *blind])
        write_json(out / "scores.json", scores)
        curves = {subject.name: _curve(subject, subject.metrics) for subject in found if subject.metrics}
        report.write_report(out / "report.html", scores, curves, recorded, command)
    tables.show(scores, console)
    return scores


def _curve(subject: Subject, path: Path) -> list[dict[str, float]]:
    """The rows of a learning curve; of one task among several, with this task's score as the score."""
    rows = metrics.read(path)
    if subject.suite is None:
        return rows
    own = f"score/mean_100/{subject.env}"
    return [{**row, "score/mean_100": row[own]} for row in rows if own in row]


def _each_once(scores: Sequence[Score]) -> list[Score]:
    """Scores with names of their own: what was measured twice under the same rules stands once, as measured first."""
    named: dict[str, Score] = {}
    seen: list[tuple[str, object]] = []
    for score in scores:
        measurement = (score["run"], score["protocol"])
        if measurement not in seen:
            seen.append(measurement)
            name = _free_name(score["run"], named)
            named[name] = {**score, "run": name}
    return list(named.values())


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """Make a directory, before anything is played, and hold it for this process; what was made for nothing goes again.

    Raises:
        InputError: it cannot be made or written to, or another process holds it.
    """
    missing = [path for path in (out, *out.absolute().parents) if not os.path.exists(path)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out):  # root may write anywhere, it is said of /proc too
            directory = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"--out {out} cannot be made or written to: {error.strerror}") from error
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, directory)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise InputError(f"{out} is being written by another evaluate.py; --out names another") from error
        except OSError:  # some file systems of clusters have no locks
            pass
        undo.callback(_remove_empty, missing)
        yield


def _remove_empty(nested: Sequence[Path]) -> None:
    with contextlib.suppress(OSError):
        for path in nested:
            path.rmdir()


def _remove_videos(out: Path, subject: Subject, keep: Container[Path]) -> None:
    """Take away what an earlier evaluation of the same subject recorded here and this one did not replace."""
    for path in out.glob(f"{glob.escape(subject.name)}-game*"):
        ours = re.fullmatch(r"-game\d+(\.partial)?\.(mp4|json)", path.name.removeprefix(subject.name))
        if ours and path.with_suffix(".mp4") not in keep:
            path.unlink()
