"""Breaks one line after another in a copy of the project; some test has to fail for each: `python -m tests.mutants [WORDS]`.

The table is `tests/mutants.json`; WORDS choose the rows that contain one of them. Where a mutant survives, the exit code is 1.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from envs.cores import usable_cores

ROOT = Path(__file__).parent.parent
COPIED = (
    "agents",
    "envs",
    "training",
    "evaluation",
    "tests",
    "docs",
    "train.py",
    "evaluate.py",
    "pyproject.toml",
    "README.md",
    "Makefile",
)
LONGER = 5  # times the unbroken tests' time: a test that takes so long hangs, and has failed
LEAST_SECONDS = 60.0


class Mutant(NamedTuple):
    """One broken line, and the tests that have to see it."""

    what: str
    file: str
    old: str
    new: str
    tests: list[str]


MUTANTS = [Mutant(**row) for row in json.loads((ROOT / "tests" / "mutants.json").read_text())]


class Result(NamedTuple):
    """What came of one mutant."""

    caught: bool
    said: str


def copy_tree(target: Path) -> None:
    """Copy what the tests need."""
    for name in COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target / name, ignore=ignored) if source.is_dir() else shutil.copy(source, target / name)


def run_tests(tree: Path, tests: Sequence[str], seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run some tests of a copy until the first one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=seconds, check=False)


def try_mutant(file: str, old: str, new: str, tests: Sequence[str], seconds: float) -> Result:
    """Break one line in a copy of its own and run the tests that should see it, for so long at most."""
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        path = Path(folder) / file
        text = path.read_text()
        if text.count(old) != 1:
            return Result(False, f"the line stands {text.count(old)} times in {file}: mend the table")
        path.write_text(text.replace(old, new))
        try:
            done = run_tests(Path(folder), tests, seconds)
        except subprocess.TimeoutExpired:
            return Result(True, "hung")
        last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
        return Result(done.returncode == 1, last)


def main(words: Sequence[str]) -> int:
    """Try the table, as many at a time as there are cores; returns the exit code."""
    if any(word.startswith("-") for word in words):
        print(__doc__)
        return 0 if set(words) <= {"-h", "--help"} else 2
    chosen = [mutant for mutant in MUTANTS if not words or any(word in " ".join(map(str, mutant)) for word in words)]
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    with tempfile.TemporaryDirectory() as folder:
        copy_tree(Path(folder))
        started = time.monotonic()
        whole = run_tests(Path(folder), tests)
        seconds = max(
            LEAST_SECONDS, LONGER * (time.monotonic() - started) / max(1, len({test.split("::")[0] for test in tests}))
        )
        if whole.returncode != 0:
            print(f"the tests fail without any mutant:\n{whole.stdout[-3000:]}{whole.stderr[-1000:]}")
            return 1
    caught = 0
    with ThreadPoolExecutor(usable_cores()) as pool:
        results = pool.map(lambda mutant: try_mutant(mutant.file, mutant.old, mutant.new, mutant.tests, seconds), chosen)
        for mutant, result in zip(chosen, results, strict=True):
            word, why = ("caught  ", "") if result.caught else ("SURVIVED", f": {result.said}")
            print(f"{word} {mutant.what} ({mutant.file}){why}", flush=True)
            caught += result.caught
    print(f"{caught} of {len(chosen)} caught")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
