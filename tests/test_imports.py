"""The house's plan: imports point down only, and names are not taken.

train.py, evaluate.py  ->  evaluation  ->  training  ->  agents | envs
agents and envs meet in envs.contract alone
"""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("agents", "envs", "training", "evaluation")
DOORS = ("train", "evaluate")
MODULES = sorted([ROOT / f"{door}.py" for door in DOORS] + [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")])
MAY_IMPORT = {
    "envs": {"envs"},
    "agents": {"agents", "envs.contract"},
    "training": {"training", "agents", "envs"},
    "evaluation": {"evaluation", "training", "agents", "envs"},
    "train": {"evaluation", "training", "agents", "envs"},
    "evaluate": {"evaluation", "training", "agents", "envs"},
}
OPTIONAL = {"vizdoom", "miniworld", "deepmind_lab", "ray", "huggingface_hub"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(source: str, package: str = "") -> set[str]:
    """Every module or name that a source imports, as a dotted name; `import_module("...")` included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant):
                found.add(str(first.value))
            elif isinstance(first, ast.JoinedStr) and isinstance(first.values[0], ast.Constant):
                found.add(str(first.values[0].value))
    return found


def upward(importer: str, imported: str) -> bool:
    """Whether an import of ours points up or sideways; other people's packages never do."""
    if imported.partition(".")[0] not in (*PACKAGES, *DOORS):
        return False
    allowed = MAY_IMPORT[importer.partition(".")[0]]
    return not any(imported == name or imported.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path):
    name = name_of(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    assert [one for one in sorted(imports_of(path.read_text(), package)) if upward(name, one)] == []


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("envs.atari", "import agents.dqn"),
        ("envs.atari", "def later():\n    from training import loop"),
        ("envs.atari", "import importlib\nimportlib.import_module('agents')"),
        ("envs.atari", "import importlib\nimportlib.import_module(f'agents.{name}')"),
        ("agents.dqn", "from envs import workers"),
        ("agents.dqn", "import envs"),
        ("agents.dqn", "from envs.contract_of_another_kind import TimeStep"),
        ("agents.dqn", "from ..training import loop"),
        ("training.loop", "from evaluation.play import play_games"),
        ("training.loop", "import train"),
        ("evaluation.play", "from evaluate import main"),
        ("train", "import evaluate"),
    ],
)
def test_an_import_that_points_up_is_seen(importer, source):
    assert any(upward(importer, one) for one in imports_of(source, importer.rpartition(".")[0]))


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("agents.dqn", "from envs.contract import TimeStep"),
        ("agents.dqn", "from envs import contract"),
        ("agents.dqn", "from .networks import build\nfrom . import networks\nimport torch"),
        ("envs.registry", "import importlib\nimportlib.import_module('envs.atari')\nimport evaluation_of_others"),
        ("training.loop", "from agents import registry\nfrom envs.workers import WorkerEnvs"),
        ("evaluate", "from evaluation import session\nfrom training import checkpoint"),
    ],
)
def test_other_imports_are_allowed(importer, source):
    assert not any(upward(importer, one) for one in imports_of(source, importer.rpartition(".")[0]))


def test_init_files_are_empty():
    found = [path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("__init__.py")]
    assert len(found) > len(PACKAGES)
    assert [path for path in found if path.read_text()] == []


def taken_names() -> set[str]:
    """What the standard library and the packages that we ask for are imported as."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    wanted = {normal(requirement) for requirement in asked}
    installed = {module for module, names in packages_distributions().items() if wanted & {normal(name) for name in names}}
    return {*sys.stdlib_module_names, *installed, *wanted, *OPTIONAL, "utils", "util", "helpers", "common", "misc"}


def normal(requirement: str) -> str:
    """A distribution's name without its versions and extras, spelled as modules are."""
    letters = [letter if letter.isalnum() else "_" if letter in "-_." else " " for letter in requirement]
    return "".join(letters).split()[0].lower()


def test_no_module_takes_a_name():
    taken = taken_names()
    assert {"json", "torch", "cv2", "stable_baselines3", "ale_py", "av", "tensorboard"} <= taken
    assert [name_of(path) for path in MODULES if path.stem in taken] == []
