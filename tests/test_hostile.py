"""Strangers' runs and files: nothing in them is executed, nothing beside them is touched, and each is one line.

An audit hook sees every import, unpickling and shell command of this process.
"""

import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
import train
from training import checkpoint, metrics
from training.export import export

CANARY = Path("canary")  # is made where something was executed
EVENTS = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn")
_seen: list[str] = []
_listening = False


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _listening and (event in EVENTS or (event == "import" and str(args[0]).startswith("stranger"))):
        _seen.append(f"{event} {args[0]!r}")


sys.addaudithook(_audit)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY.resolve()}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of DQN, and its entry of the zoo beside it."""
    place = tmp_path_factory.mktemp("trained")
    small = ["--total-frames", "600", "--num-envs", "4", "--checkpoint-frames", "250", "--update-steps", "4"]
    assert train.main(["dqn", "--env", "CartPole-v1", *small, "--run-dir", str(place / "run")]) == 0
    last = checkpoint.checkpoints(place / "run" / "checkpoints")[-1]
    shutil.copytree(last, place / "kept")
    export(last, place / "entry")
    shutil.rmtree(last)  # so that there is something to go on with
    return place


@pytest.fixture(autouse=True)
def place(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True, symlinks=True)
    (tmp_path / "mine").mkdir()
    for name in ("letter", "000000000000-16", "metrics.jsonl"):
        (tmp_path / "mine" / name).write_text("mine")
    for year in (2019, 2020, 2021, 2022, 2023):
        (tmp_path / "mine" / str(year)).mkdir()
    (tmp_path / "stranger_module.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    assert not CANARY.exists(), "something was executed"
    assert sorted(path.name for path in Path("mine").iterdir()) == sorted(
        ["letter", "000000000000-16", "metrics.jsonl", "2019", "2020", "2021", "2022", "2023"]
    )
    assert all(path.read_text() == "mine" for path in Path("mine").iterdir() if path.is_file())


def edit(path: str, **changes: Any) -> None:
    """Change a JSON file: `agent__frame_stack=3` is content["agent"]["frame_stack"] = 3."""
    content = json.loads(Path(path).read_text())
    for name, value in changes.items():
        *above, last = name.split("__")
        part = content
        for step in above:
            part = part[step]
        part[last] = value
    Path(path).write_text(json.dumps(content))


def put(path: str, data: bytes) -> None:
    Path(path).unlink(missing_ok=True)
    Path(path).write_bytes(data)


def link(path: str, target: str) -> None:
    if Path(path).is_dir():
        shutil.rmtree(path)
    Path(path).unlink(missing_ok=True)
    Path(path).symlink_to(Path(target).absolute())


def tensors(header: dict[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def in_checkpoints(name: str, data: bytes) -> None:
    """In every checkpoint of the run, with a manifest to fit."""
    for saved in checkpoint.checkpoints(Path("run/checkpoints")):
        put(str(saved / name), data)
        edit(str(saved / "manifest.json"), sha256={f.name: checkpoint.sha256(f) for f in saved.iterdir()})


def states(change: Callable[[Any], None]) -> None:
    for saved in checkpoint.checkpoints(Path("run/checkpoints")):
        state = json.loads((saved / "state.json").read_text())
        change(state)
        in_checkpoints("state.json", json.dumps(state).encode())


def archive(path: str, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members.items():
            file.writestr(name, data)


def saved_by_torch() -> bytes:
    file = io.BytesIO()
    torch.save({"weights": Payload()}, file)
    return file.getvalue()


def bomb() -> None:
    """A piece of replay that grows to a gigabyte, named by the checkpoint with its true sum."""
    newest = checkpoint.state_part(checkpoint.checkpoints(Path("run/checkpoints"))[-1], "replay")
    piece = Path("run/replay") / "{:012d}-{:012d}".format(*newest["pieces"][-1])
    whole = zlib.compressobj(9)
    put(str(piece), b"".join(whole.compress(bytes(2**20)) for _ in range(1_024)) + whole.flush())

    def rename(state: Any) -> None:
        for each in state["replay"]["pieces"]:
            if f"{each[0]:012d}-{each[1]:012d}" == piece.name:
                each[2] = checkpoint.sha256(piece)

    states(rename)


DEEP = b"[" * 10**6 + b"]" * 10**6
LONG = "x" * 300
SB3 = {"data": json.dumps({"policy_class": {":type:": "x", ":serialized:": "gASVKAAA"}}).encode(), "policy.pth": b""}
# What is done to the files, the command, and what its line says; `entry` is of the zoo, `run` can be resumed.
CASES: dict[str, tuple[Callable[[], object], list[str], str]] = {
    "a pickle for weights": (
        lambda: put("entry/weights.safetensors", pickle.dumps(Payload())),
        ["entry"],
        "cannot|no checkpoint",
    ),
    "a file of torch.save for weights": (
        lambda: put("entry/weights.safetensors", saved_by_torch()),
        ["entry"],
        "no checkpoint",
    ),
    "cloudpickle in an archive of SB3": (
        lambda: archive("sb3.zip", {**SB3, "d": pickle.dumps(Payload())}),
        ["sb3.zip"],
        "is no run",
    ),
    "an archive that climbs out": (lambda: archive("slip.zip", {"../canary": b"x"}), ["slip.zip"], "is no run"),
    "an archive that grows": (lambda: archive("bomb.zip", {"weights.safetensors": bytes(2**26)}), ["bomb.zip"], "is no run"),
    "a device for weights": (lambda: link("entry/weights.safetensors", "/dev/zero"), ["entry"], "no regular file"),
    "a pipe for weights": (
        lambda: (Path("entry/weights.safetensors").unlink(), os.mkfifo("entry/weights.safetensors")),
        ["entry"],
        "no regular file",
    ),
    "a link to a secret for weights": (lambda: link("entry/weights.safetensors", "/etc/passwd"), ["entry"], "no checkpoint"),
    "a header of 2^63 bytes": (lambda: put("entry/weights.safetensors", tensors({}, length=2**63)), ["entry"], "no checkpoint"),
    "a header of 90 MB that is not there": (
        lambda: put("entry/weights.safetensors", tensors({}, length=90_000_000)),
        ["entry"],
        "no checkpoint",
    ),
    "a shape that lies": (
        lambda: put(
            "entry/weights.safetensors", tensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, b"abcd")
        ),
        ["entry"],
        "no checkpoint",
    ),
    "a dtype that lies": (
        lambda: put(
            "entry/weights.safetensors", tensors({"w": {"dtype": "F64", "shape": [1], "data_offsets": [0, 4]}}, b"abcd")
        ),
        ["entry"],
        "no checkpoint",
    ),
    "a dtype that is none": (
        lambda: put(
            "entry/weights.safetensors", tensors({"w": {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]}}, b"abcd")
        ),
        ["entry"],
        "no checkpoint",
    ),
    "weights of another network": (
        lambda: put(
            "entry/weights.safetensors", tensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"abcd")
        ),
        ["entry"],
        "not of a run of ours",
    ),
    "a config in YAML with tags": (
        lambda: put("entry/config.json", b"!!python/object/apply:os.system ['touch canary']"),
        ["entry"],
        "not of a run",
    ),
    "a config a million brackets deep": (lambda: put("entry/config.json", DEEP), ["entry"], "config.json"),
    "a config that is a pipe": (
        lambda: (Path("entry/config.json").unlink(), os.mkfifo("entry/config.json")),
        ["entry"],
        "no regular file",
    ),
    "a config of a terabyte": (lambda: os.truncate("entry/config.json", 2**40), ["entry"], "bytes; at most"),
    "an id that names a module": (
        lambda: edit("entry/config.json", run__env="stranger_module:Game-v0"),
        ["entry"],
        "--env 'stranger_module:Game-v0'",
    ),
    "an id that names a module, to resume": (
        lambda: edit("run/config.json", run__env="stranger_module:Game-v0"),
        ["resume", "run"],
        "--env 'stranger_module:Game-v0'",
    ),
    "another id than the user trusts": (
        lambda: edit("entry/config.json", run__env="stranger_module:Game-v0"),
        ["entry", "--env", "tests.envs.own_games:Squares-v0"],
        "--env 'stranger_module:Game-v0'",
    ),
    "a stack of a billion frames": (lambda: edit("entry/config.json", agent__frame_stack=10**9), ["entry"], "--frame-stack"),
    "code for a number": (
        lambda: edit("entry/config.json", agent__discount="__import__('os')"),
        ["entry"],
        "not a config.json",
    ),
    "a list for an algorithm": (lambda: edit("entry/config.json", algorithm=["dqn"]), ["entry"], "not a config.json"),
    "a text for the frames trained": (lambda: edit("entry/config.json", trained__frames="many"), ["entry"], "not of a run"),
    "a million workers": (lambda: edit("run/config.json", plan__workers=10**6), ["resume", "run"], "not a config.json"),
    "a device that is none": (lambda: edit("run/config.json", plan__device="x"), ["resume", "run"], "not a config.json"),
    "ten thousand workers": (
        lambda: edit("run/config.json", plan__workers=10**4, plan__groups=1, agent__num_envs=10**4),
        ["resume", "run"],
        "not a config.json",
    ),
    "a level that climbs": (
        lambda: edit("run/config.json", run__env="dmlab/../../stranger"),
        ["resume", "run"],
        "--env 'dmlab/../../stranger'",
    ),
    "a state of 40 MB": (lambda: in_checkpoints("state.json", b"[" + b"[]," * 2**24), ["resume", "run"], "bytes; at most"),
    "text for metrics": (
        lambda: states(lambda state: state["metrics"].update(seen={"loss/q": ["much"]})),
        ["resume", "run"],
        "does not fit",
    ),
    "text for the next checkpoint": (
        lambda: states(lambda state: state.update(next_checkpoint="soon")),
        ["resume", "run"],
        "does not fit",
    ),
    "a state a million brackets deep": (lambda: in_checkpoints("state.json", DEEP), ["resume", "run"], "RecursionError"),
    "a state of other things": (lambda: states(lambda state: state.update(agent=[])), ["resume", "run"], "does not fit"),
    "a manifest that is a list": (
        lambda: [put(str(saved / "manifest.json"), b"[]") for saved in checkpoint.checkpoints(Path("run/checkpoints"))],
        ["resume", "run"],
        "none of the",
    ),
    "replay that grows": (bomb, ["resume", "run"], "cannot be read"),
    "replay of negative steps": (
        lambda: states(lambda state: state["replay"].update(pieces=[[-(10**9), 10**9, "00"]])),
        ["resume", "run"],
        "none of the",
    ),
    "a lock that is a link": (lambda: link("run/lock", "mine/letter"), ["resume", "run"], "cannot be written"),
    "a name that climbs": (lambda: None, ["../../../etc"], "is no run"),
    "a name with a null": (lambda: None, ["run\0"], "null character"),
    "a name that is no UTF-8": (lambda: None, ["run\udcff"], "has to be UTF-8"),
    "a name that is no UTF-8, to resume": (lambda: Path("run").rename("run\udcff"), ["resume", "run\udcff"], "has to be UTF-8"),
    "a run directory that is no UTF-8": (
        lambda: None,
        ["a2c", "--env", "CartPole-v1", "--total-frames", "10", "--run-dir", "new\udcff"],
        "has to be UTF-8",
    ),
    "a run directory that is no text": (
        lambda: edit("run/config.json", run__run_dir="\ud800"),
        ["resume", "run"],
        "has to be UTF-8",
    ),
    "a name of 300 characters": (lambda: None, [LONG], "255 bytes"),
    "a name of 300 characters, to resume": (lambda: None, ["resume", LONG], "255 bytes"),
    "a device": (lambda: None, ["/dev/zero"], "is no run"),
    "a directory to write to of 300 characters": (lambda: None, ["entry", "--out", LONG], "255 bytes"),
    "a run directory of 300 characters": (
        lambda: None,
        ["a2c", "--env", "CartPole-v1", "--total-frames", "10", "--run-dir", LONG],
        "255 bytes",
    ),
}


def command(args: list[str]) -> int:
    main = train.main if args[0] in ("resume", "a2c") else evaluate.main
    extra = [] if main is train.main else ["--episodes", "1", "--videos", "0"]
    return main([*args, *extra])


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_executed_and_one_line_says_why(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    global _listening
    harm, args, said = CASES[case]
    harm()
    there = sorted(Path().rglob("*"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    _seen.clear()
    _listening = True
    code = command(args)
    _listening = False
    err = capsys.readouterr().err
    last = err.splitlines()[-1]
    assert (code, _seen) == (3 if said in ("none of the", "RecursionError") else 2, [])
    assert re.search(said, err), err
    assert last.startswith(("train.py: ", "evaluate.py: "))
    assert "Traceback" not in err
    assert len(last) < 600
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kilobytes
    assert [path for path in sorted(Path().rglob("*")) if path not in there and path.name != "lock"] == []


@pytest.mark.parametrize(
    "plant",
    {
        "metrics": lambda: link("run/metrics.jsonl", "mine/letter"),
        "aside": lambda: link("run/.metrics.jsonl.new", "mine/letter"),
    }.items(),
    ids=lambda item: item[0],
)
def test_links_in_a_strangers_run_lead_to_nothing_that_is_lost(plant: tuple[str, Callable[[], None]]) -> None:
    """What is written takes their place."""
    plant[1]()
    assert train.main(["resume", "run"]) == 0


@pytest.mark.parametrize(
    "where",
    ["checkpoints", "checkpoints/000000000001", "checkpoints/.gone-000000000001/x", "replay", "replay/x", "tensorboard"],
)
def test_links_to_another_run_are_refused(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its checkpoints and pieces of replay have the names that a run deletes of its own."""
    Path("run", where).parent.mkdir(exist_ok=True)
    link(f"run/{where}", f"other/{where}")
    shutil.copytree("mine", "other/replay")
    Path("other/tensorboard").mkdir()
    Path("other/tensorboard/events.out.tfevents.1").write_text("theirs")
    for frames in range(1, 9):
        shutil.copytree("kept", f"other/checkpoints/{frames:012d}")
    there = sorted((path, path.is_file() and path.read_bytes()) for path in Path().rglob("*"))
    assert train.main(["resume", "run"]) == 2
    assert capsys.readouterr().err.startswith(f"train.py: run/{where} is a link")
    assert sorted((path, path.is_file() and path.read_bytes()) for path in Path().rglob("*")) == there


def test_what_is_not_ours_stays() -> None:
    """Numbers are names of checkpoints, of which old ones go, where they have twelve digits."""
    places = [Path("run", name) for name in ("checkpoints", "replay", "tensorboard")]
    for place in places:
        shutil.copytree("mine", place, dirs_exist_ok=True)
    there = [Path("run/checkpoints", "0" * digits) for digits in range(1, 6)]
    for path in there:
        path.mkdir()
    there += [place / path.name for place in places for path in Path("mine").iterdir()]
    assert train.main(["resume", "run"]) == 0
    assert all(path.exists() for path in there)


def test_a_run_that_is_a_link_itself_goes_on() -> None:
    Path("run").rename("elsewhere")
    link("run", "elsewhere")
    before = checkpoint.checkpoints(Path("elsewhere/checkpoints"))
    assert train.main(["resume", "run"]) == 0
    assert len(checkpoint.checkpoints(Path("elsewhere/checkpoints"))) > len(before)
    assert Path("run").is_symlink()


def test_things_that_stand_where_ours_would_do_not_stop_a_run() -> None:
    """A file for a directory, a directory for a file, a row that TensorBoard could not take, a neighbour that is a pipe."""
    Path("run/checkpoints/.writing-000000000001").write_text("")
    Path("run/.metrics.jsonl.new").mkdir()
    rows = Path("run/metrics.jsonl").read_text()
    Path("run/metrics.jsonl").write_text('{"frames": 1, "steps": 1' + "0" * 400 + "}\n" + rows + '{"frames": -1}\n')
    oldest = Path("run/checkpoints/000000000001")
    shutil.copytree("kept", oldest)
    (oldest / "state.json").unlink()
    os.mkfifo(oldest / "state.json")
    assert train.main(["resume", "run"]) == 0
    assert not Path("run/checkpoints/.writing-000000000001").exists()
    assert all(row["frames"] >= 0 and row.get("steps", 0) < 10**9 for row in metrics.read(Path("run/metrics.jsonl")))


def test_a_config_in_another_encoding_is_read() -> None:
    config = json.loads(Path("entry/config.json").read_text())
    config["commit"] = ["a", "list"]
    Path("entry/config.json").write_bytes(json.dumps(config).encode("utf-16"))
    assert evaluate.main(["entry", "--episodes", "1", "--videos", "0"]) == 0


def test_what_lies_in_the_directory_that_it_is_called_from_is_not_imported() -> None:
    """Workers are Pythons of their own, which import `sitecustomize` before anything else."""
    Path("sitecustomize.py").write_text(f"open({str(CANARY.resolve())!r}, 'w')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, str(Path(evaluate.__file__)), "entry", "--episodes", "1", "--videos", "0"]
    assert subprocess.run(command, env=environment, check=False).returncode == 0


def test_a_module_that_is_named_twice_is_imported(capsys: pytest.CaptureFixture[str]) -> None:
    """Once in the run's config and once by the user."""
    env = "tests.envs.own_games:Brief-v0"
    assert train.main(["a2c", "--env", env, "--total-frames", "40", "--num-envs", "2", "--run-dir", "own"]) == 0
    assert evaluate.main(["own", "--episodes", "1", "--videos", "0"]) == 2
    assert f"--env {env!r}" in capsys.readouterr().err
    assert evaluate.main(["own", "--episodes", "1", "--videos", "0", "--env", env]) == 0
    edit("own/config.json", run__total_frames=80)
    assert train.main(["resume", "own"]) == 2
    assert train.main(["resume", "own", "--env", env]) == 0
