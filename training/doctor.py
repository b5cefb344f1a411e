"""What this machine can do: `python train.py doctor`. Each line is `ok`, or says what mends it.

Whatever could crash or take long to import is tried in a process of its own.
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

import torch

from agents.replay import bytes_per_step
from agents.storage import free_memory
from agents.torch_setup import pick_precision
from envs import atari
from envs.contract import by_our_pip
from envs.worker_handle import ENVIRONMENT

_SECONDS = 60  # for one probe
_REPLAY = 1_000_000 * bytes_per_step((1, atari.SIDE, atari.SIDE), torch.uint8)  # DQN's default, in bytes
_DOOM = """
import gymnasium, vizdoom.gymnasium_wrapper
env = gymnasium.make("VizdoomBasic-v1")
env.reset(seed=0)
print(sum(name.startswith("Vizdoom") for name in gymnasium.registry), "ids, software renderer")
"""
_MINI_WORLD = """
import os
os.environ["PYGLET_HEADLESS"] = "1"
import gymnasium, miniworld, pyglet
env = gymnasium.make("MiniWorld-Hallway-v0")
env.reset(seed=0)
ids = sum(name.startswith("MiniWorld") for name in gymnasium.registry)
print(ids, "ids, EGL,", pyglet.gl.current_context.get_info().get_renderer())
"""
_LAB = """
import deepmind_lab
lab = deepmind_lab.Lab("lt_chasm", ["RGB_INTERLEAVED"], config={"width": "96", "height": "72", "logLevel": "NEVER"})
lab.reset(seed=1)
print("any level, software renderer")
"""
_ENCODER = 'import av; av.codec.Codec("libx264", "w"); print("H.264 by PyAV", av.__version__)'


class Finding(NamedTuple):
    """One line of the report."""

    subject: str
    ok: bool
    text: str
    """What there is; where it is not ok, what mends it."""


def findings() -> Iterator[Finding]:
    """Look at one thing after the other."""
    yield Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} on {platform.platform()}")
    yield Finding("torch", True, f"{torch.__version__}, networks compute in {_precision('cpu')} on the CPU")
    yield _cuda()
    yield _memory()
    yield Finding("atari", True, f"{len(atari.ids())} ids by ale-py {version('ale-py')}, no screen needed")
    yield _probe("doom", "vizdoom", _DOOM, by_our_pip("pip install vizdoom"))
    mends = by_our_pip("pip install miniworld; apt-get install libegl1 libglu1-mesa")
    yield _probe("miniworld", "miniworld", _MINI_WORLD, mends)
    yield _lab()
    yield _probe("video", "av", _ENCODER, by_our_pip("pip install av"))


def _precision(device: str) -> str:
    return str(pick_precision("auto", torch.device(device))).removeprefix("torch.")


def _cuda() -> Finding:
    if not torch.cuda.is_available():
        return Finding("cuda", True, "no device that torch sees; training runs on the CPU")
    major, minor = torch.cuda.get_device_capability()
    return Finding("cuda", True, f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}, {_precision('cuda')}")


def _memory() -> Finding:
    free = free_memory()
    if free is None:
        return Finding("memory", True, "this system does not say how much is free")
    needs = f"{free / 1e9:.1f} GB free, DQN's default replay of screen images needs up to {_REPLAY / 1e9:.1f} GB"
    fits = int(0.9 * free / _REPLAY * 10) / 10
    return Finding("memory", fits >= 1, needs if fits >= 1 else f"{needs}; take --capacity {max(int(fits * 1e6), 10_000)}")


def _lab() -> Finding:
    """Its module is on no package index, so few have it."""
    mends = "build its Python package, or `dmlab-gym build` (Python 3.13 and later): see docs/lab.md"
    if find_spec("deepmind_lab") is None:
        return Finding("dmlab", True, f"not installed, and optional; to have it, {mends}")
    return _probe("dmlab", "deepmind_lab", _LAB, mends)


def _probe(subject: str, package: str, code: str, mend: str) -> Finding:
    """Try a family or a package in a process of its own, which finds what a worker finds."""
    try:
        with tempfile.TemporaryDirectory() as folder:  # ViZDoom leaves its settings where it is started
            command = [sys.executable, "-c", code]
            env = {**os.environ, **ENVIRONMENT}
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False, cwd=folder, env=env)
    except subprocess.TimeoutExpired:
        return Finding(subject, False, f"did not answer for {_SECONDS} seconds; {mend}")
    if done.returncode == 0:
        said = done.stdout.strip().splitlines()
        return Finding(subject, True, f"{said[-1] if said else ''} ({_version(package)})")
    reason = (done.stderr.strip().splitlines() or [f"ended with exit status {done.returncode}"])[-1]
    return Finding(subject, False, f"{reason}; {mend}")


def _version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # DeepMind Lab's module may come without a distribution
        return package


def show() -> None:
    """Print the report."""
    for subject, ok, text in findings():
        print(f"{'ok  ' if ok else 'MEND'} {subject:<10} {text}")
