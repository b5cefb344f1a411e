"""The pages say what the code does.

Passages between `<!-- settings:ppo -->` and `<!-- /settings -->`, likewise those of the other names in `MAKERS`, are made from
the code, or from a file of results:

    python -m tests.test_docs --write
"""

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import evaluate
import train
from agents.registry import ALGORITHMS
from envs.contract import GameProtocol
from evaluation import results, scores, session, subjects
from evaluation.baselines import Baseline
from training import metrics, presets, start
from training.config import RunConfig

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
CURRENT = [page for page in PAGES if page.name != "log.md"]  # the log speaks of the code as it was
of_every_page = pytest.mark.parametrize("page", CURRENT, ids=lambda page: page.name)
of_every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


# ------------------------------------------------------------------------------------------- passages made from the code

PASSAGE = re.compile(
    r"(<!-- (settings|differences|presets|throughput|scaling|peers|interruptions|soak):([\w-]+) -->\n)(.*?)(<!-- /\2 -->)",
    re.DOTALL,
)
# Columns of the table of presets; Pong stands for every game without a preset of its own.
PLAYED = {
    "Atari, screen": "ALE/Pong-v5",
    "Atari, RAM": "ALE/Pong-ram-v5",
    "`Bowling-v0`": "Bowling-v0",
    "`Bowling-ram-v0`": "Bowling-ram-v0",
    "`Berzerk-v0`": "Berzerk-v0",
    "`Berzerk-ram-v0`": "Berzerk-ram-v0",
    "other ids": "CartPole-v1",
    "3D worlds": "VizdoomBasic-v1",
}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def shown(value: Any) -> str:
    return f"{value:_}" if type(value) is int else str(value)


def field_docs(config: type[Any]) -> dict[str, str]:
    """The docstring under each field of a dataclass, a base class's where it has none of its own."""
    docs: dict[str, str] = {}
    for kind in filter(dataclasses.is_dataclass, reversed(config.__mro__)):
        definition = ast.parse(inspect.getsource(kind)).body[0]
        for line, after in pairwise(definition.body):
            if isinstance(line, ast.AnnAssign) and isinstance(after, ast.Expr):
                docs[line.target.id] = inspect.cleandoc(after.value.value)
    return docs


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def settings(algorithm: str) -> str:
    config = ALGORITHMS[algorithm].config
    docs = field_docs(config)
    rows = [[f"`{flag(field.name)}`", f"`{shown(field.default)}`", docs[field.name]] for field in dataclasses.fields(config)]
    return table(["setting", "default", "meaning"], rows)


def presets_table(algorithm: str) -> str:
    defaults = dataclasses.asdict(ALGORITHMS[algorithm].config())
    columns = [dataclasses.asdict(presets.preset(algorithm, env_id)) for env_id in PLAYED.values()]
    rows = [
        [f"`{flag(name)}`", *("" if column[name] == default else shown(column[name]) for column in columns)]
        for name, default in defaults.items()
        if any(column[name] != default for column in columns)
    ]
    return table(["setting", *PLAYED], rows)


def differences(algorithm: str) -> str:
    doc = inspect.cleandoc(sys.modules[ALGORITHMS[algorithm].config.__module__].__doc__ or "")
    numbered = doc.partition("What differs from the paper:\n")[2].split("\n\n")[0]
    assert numbered.startswith("1. "), f"{algorithm}: no numbered list of differences in its module's docstring"
    return numbered + "\n"


def benchmark(name: str) -> ModuleType:
    """A file of benchmarks, which are no package: they import each other by bare name."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


def throughput(name: str) -> str:
    found = result(name)
    module = benchmark("throughput")
    written: str = module.table({case: module.summary(rounds) for case, rounds in found["rounds"].items()})
    lengths = [len(rounds) for rounds in found["rounds"].values()]
    fewest, most = min(lengths), max(lengths)
    counts = f"{most}" if fewest == most else f"{fewest} to {most}"
    return f"{found['machine']}; {f'medians of {counts} rounds' if most > 1 else 'one round'}:\n\n{written}\n"


def scaling(name: str) -> str:
    found = result(name)
    written = [benchmark("scaling").table(part, rounds) for part, rounds in found["rounds"].items()]
    return f"{found['machine']}; medians, least and most of the rounds:\n\n" + "\n\n".join(written) + "\n"


def peers(name: str) -> str:
    found = result(name)
    return f"{found['machine']}; medians of {len(found['rounds'])} rounds:\n\n{benchmark('peers').table(found['rounds'])}\n"


def interruptions(name: str) -> str:
    found = result(name)
    return f"{found['machine']}:\n\n{benchmark('interruptions').table(found['summary'])}\n"


def soak(name: str) -> str:
    found = result(name)
    return f"{found['machine']}:\n\n{benchmark('soak').table(found['samples'])}\n"


OF_ALGORITHMS: dict[str, Callable[[str], str]] = {"settings": settings, "differences": differences, "presets": presets_table}
MAKERS = {
    **OF_ALGORITHMS,
    "throughput": throughput,
    "peers": peers,
    "scaling": scaling,
    "interruptions": interruptions,
    "soak": soak,
}


def rewritten(text: str) -> str:
    """A page with its passages made anew."""
    return PASSAGE.sub(lambda match: match[1] + MAKERS[match[2]](match[3]) + match[5], text)


@of_every_algorithm
def test_pages_repeat_the_code(algorithm):
    text = (DOCS / f"{algorithm}.md").read_text()
    assert {(kind, name) for _, kind, name, *_ in PASSAGE.findall(text)} == {(kind, algorithm) for kind in OF_ALGORITHMS}
    assert rewritten(text) == text, "python -m tests.test_docs --write"


@of_every_algorithm
def test_a_passage_that_is_behind_the_code_is_noticed(algorithm):
    text = (DOCS / f"{algorithm}.md").read_text()
    for *_, passage, _ in PASSAGE.findall(text):
        behind = text.replace(passage.splitlines()[-1], "something else")
        assert rewritten(behind) == rewritten(text) != behind


@pytest.mark.parametrize(
    ("page", "kinds"),
    {
        "performance": ["throughput"] * 5 + ["peers", "scaling"],
        "reliability": ["interruptions", "soak"],
    }.items(),
)
def test_pages_repeat_the_results(page, kinds):
    text = (DOCS / f"{page}.md").read_text()
    assert [kind for _, kind, *_ in PASSAGE.findall(text)] == kinds
    assert rewritten(text) == text, "python -m tests.test_docs --write"


# ------------------------------------------------------------------------------------------------- names that are written

NAME = re.compile(r"^\| `([a-z0-9_/]+)` \|", re.MULTILINE)


def names_in(page: str, heading: str | None = None) -> set[str]:
    """The names in the first column of a page's tables, or of those under one heading."""
    text = (DOCS / page).read_text()
    if heading is not None:
        text = re.split(r"^#", text.split(f"## {heading}\n")[1], flags=re.MULTILINE)[0]
    return set(NAME.findall(text))


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> dict[str, set[str]]:
    """Every name in the metrics of a short run of each algorithm."""
    names = {}
    for algorithm in ALGORITHMS:
        agent = dataclasses.replace(presets.preset(algorithm, "CartPole-v1"), num_envs=2)
        run_dir = tmp_path_factory.mktemp("runs") / algorithm
        with start.new_run(algorithm, RunConfig(env="CartPole-v1", agent=agent, total_frames=400, run_dir=run_dir)) as run:
            run.train(lambda row: None)
        names[algorithm] = {name for row in metrics.read(run_dir / "metrics.jsonl") for name in row}
    return names


def test_every_metric_is_explained_and_nothing_else(logged):
    assert names_in("metrics.md") == set().union(*logged.values())


@of_every_algorithm
def test_every_page_explains_what_its_algorithm_logs(logged, algorithm):
    of_every_run = re.compile(r"frames|steps|(score|speed|time)/.*")
    own = {name for name in logged[algorithm] if not of_every_run.fullmatch(name)}
    assert "gradient/norm" in own
    assert names_in(f"{algorithm}.md", "Metrics") == own


def test_every_field_of_scores_and_cards_is_explained(tmp_path):
    (subject,) = subjects.find("random:CartPole-v1", policy=None, device="cpu")
    score, _ = scores.evaluate(subject, range(2), 0, [tmp_path / "game.mp4"])
    card = json.loads((tmp_path / "game.json").read_text())
    assert names_in("evaluation.md", "scores.json") == {*score, "blind_note"}
    assert names_in("evaluation.md", "Baselines") == {field.name for field in dataclasses.fields(Baseline)}
    assert names_in("evaluation.md", "Video") == set(card)
    assert names_in("evaluation.md", "Protocol") == {field.name for field in dataclasses.fields(GameProtocol)}


# -------------------------------------------------------------------------------------- links, paths, commands and flags

FENCE = re.compile(r"^( *)```\w*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
REPOSITORY_PATH = re.compile(r"((?:agents|envs|training|evaluation|tests|benchmarks|docs)/[\w./]+\.[a-z]+)(?:::(\w+))?")


def prose(text: str) -> str:
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """What a `#` can lead to, as GitHub names headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for link in LINK.findall(prose(text)):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if re.match(r"[a-z]+:", link):
            continue
        lost = anchor and target.suffix == ".md" and anchor not in anchors(text if target == page else target.read_text())
        if not target.exists() or lost:
            broken.append(link)
    return broken


def unknown_paths(text: str) -> list[str]:
    """Files that are named in code and do not exist, and tests that are not in their file."""
    named = filter(None, map(REPOSITORY_PATH.fullmatch, CODE.findall(prose(text))))
    return [match[0] for match in named if not _has(ROOT / match[1], match[2])]


def _has(path: Path, test: str | None) -> bool:
    return path.exists() and (test is None or f"def {test}(" in path.read_text())


def unknown_flags(text: str) -> list[str]:
    configs = [RunConfig, evaluate.Options, *(row.config for row in ALGORITHMS.values())]
    fields = [field for config in configs for field in dataclasses.fields(config)]
    known = {flag(field.name) for field in fields} | {"--help", "--no-"}
    known |= {f"--no-{flag(field.name)[2:]}" for field in fields if isinstance(field.default, bool)}
    known |= set(re.findall(r'addoption\("(--[\w-]+)"', (ROOT / "tests" / "conftest.py").read_text()))
    written = [code.split()[0].split("=")[0] for code in CODE.findall(prose(text)) if code.startswith("--")]
    return [word for word in written if word not in known]


def unknown_targets(text: str) -> list[str]:
    """Targets and variables of `make` that the Makefile does not have."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))
    calls = [
        shlex.split(code, comments=True)[1:]
        for code in [*CODE.findall(prose(text)), *lines_of_code(text)]
        if code.startswith("make ")
    ]
    words = [word for call in calls for word in call]
    return [word for word in words if (word.split("=")[0] not in variables if "=" in word else word not in targets)]


def lines_of_code(text: str) -> Iterator[str]:
    """Command lines in code blocks."""
    for _, block in FENCE.findall(text):
        yield from map(str.strip, block.replace("\\\n", " ").splitlines())


def python_lines(text: str) -> list[str]:
    return [line for line in lines_of_code(text) if re.match(r"(\.venv/bin/)?python3? ", line)]


class Accepted(Exception):  # noqa: N818 - nothing went wrong: it ends a command line before it runs
    """A command line was understood; nothing runs."""


def refused(line: str) -> str | None:
    """What is wrong with a line that calls Python; None where it would run."""
    script, *args = shlex.split(line, comments=True)[1:]
    if script == "-m":
        return None if importlib.util.find_spec(args[0]) else f"no module {args[0]}"
    doors = {"train.py": train.main, "evaluate.py": evaluate.main}
    if script not in doors:
        return None if (ROOT / script).exists() else f"no file {script}"
    try:
        code = doors[script](args)
    except Accepted:
        return None
    except SystemExit as stop:  # after --help
        code = stop.code
    return None if code == 0 else f"exit code {code}"


@pytest.fixture
def nothing_runs(monkeypatch):
    def accept(*_: Any, **__: Any) -> None:
        raise Accepted

    monkeypatch.setattr(start, "new_run", accept)
    monkeypatch.setattr(start, "old_run", accept)
    monkeypatch.setattr(start, "finished", lambda *_: False)
    monkeypatch.setattr(session, "find_all", accept)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page):
    assert broken_links(page, page.read_text()) == []


@of_every_page
def test_named_files_and_tests_exist(page):
    assert unknown_paths(page.read_text()) == []


@of_every_page
def test_flags_exist(page):
    assert unknown_flags(page.read_text()) == []


@of_every_page
def test_targets_of_make_exist(page):
    assert unknown_targets(page.read_text()) == []


@of_every_page
def test_commands_are_understood(page, nothing_runs):
    found = {line: refused(line) for line in python_lines(page.read_text())}
    assert {line: why for line, why in found.items() if why} == {}


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page.resolve())
        linked = [(page.parent / link.split("#")[0]).resolve() for link in LINK.findall(page.read_text())]
        waiting += [target for target in linked if target.suffix == ".md" and target.exists() and target not in reached]
    assert {page.resolve() for page in PAGES} <= reached


WRONG = """
# A page

[a](nowhere.md) [b](#no-such-heading) [c](#a-page) [d](https://example.org/nowhere) `agents/nothing.py` `agents/ppo.py`
`tests/test_docs.py::test_nothing` `tests/test_docs.py::test_links_resolve` `--no-such-flag 3` `--no-double`
`--sticky 0` `make nothing`

```
make test
make setup NOTHING=1 TORCH_INDEX=x
.venv/bin/python train.py ppo --env CartPole-v1 --no-such-flag 3
.venv/bin/python train.py ppo --env CartPole-v0815
.venv/bin/python -m tests.nothing
.venv/bin/python nothing.py
.venv/bin/python train.py ppo --env CartPole-v1 --total-frames 1M   # this one is right
```

- In a list:

  ```
  .venv/bin/python evaluate.py runs/x --episodes 0
  ```
"""


def test_every_check_can_fail(nothing_runs, capsys):
    assert broken_links(DOCS / "ppo.md", WRONG) == ["nowhere.md", "#no-such-heading"]
    assert unknown_paths(WRONG) == ["agents/nothing.py", "tests/test_docs.py::test_nothing"]
    assert unknown_flags(WRONG) == ["--no-such-flag"]
    assert unknown_targets(WRONG) == ["nothing", "NOTHING=1"]
    assert [refused(line) is not None for line in python_lines(WRONG)] == [True, True, True, True, False, True]


def write() -> None:
    """Make the passages of every page anew."""
    for page in PAGES:
        before = page.read_text()
        if (after := rewritten(before)) != before:
            page.write_text(after)


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit("usage: python -m tests.test_docs --write")
    write()


def test_the_readmes_results_are_those_of_the_zoo():
    readme = (ROOT / "README.md").read_text()
    table = results.results(ROOT / "zoo")
    assert "| `Bowling-ram-v0-ppo` |" in table
    assert results.with_results(readme, table) == readme
    assert results.with_results(readme, "") != readme


def test_committed_cards_and_scores_are_what_the_program_writes():
    """Evaluating an agent of the zoo writes its card again, and a field more or less would change a file that git tracks."""
    listed = subprocess.run(["git", "ls-files", "videos", "zoo"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    paths = [ROOT / name for name in listed.splitlines() if re.search(r"-game\d+\.json$|/scores\.json$", name)]
    if not paths:
        pytest.skip("this is no git checkout")
    names = [field.name for field in dataclasses.fields(GameProtocol)]
    for path in paths:
        held = json.loads(path.read_text())
        for each in held if isinstance(held, list) else [held]:
            assert list(each["protocol"]) == names, path
