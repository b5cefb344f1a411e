"""Checkpoints: tensors as safetensors, everything else as JSON, nothing that could execute.

    checkpoints/000001048576/       emulator frames
        weights.safetensors         the networks
        optimizer.safetensors       the optimiser's moments
        tensors.safetensors         other tensors (generators, target networks)
        state.json                  counters, scores, and where each tensor belongs
        manifest.json               SHA-256 of each of these files

A checkpoint is written aside, synced to the disk and renamed, so that it is there whole or not at all. What a disk or a copy
changed later is found by the sums: safetensors reads a flipped bit without a word.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from envs.contract import InputError
from training.scores import WINDOW

FORMAT = 2  # of a checkpoint; 1 held no games, rollout and replay
KEEP = 3  # newest checkpoints that are kept, beside the best
_FILES = ("weights", "optimizer")  # top-level parts of a state that have a file of their own; other tensors share one
_TENSOR = "tensor:"  # marks a string in state.json that stands for a tensor


class NoCheckpointError(InputError):
    """A run has checkpoints, and none of them is whole."""

    exit_code = 3


def flatten(state: Any, path: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Separate nested dicts and lists into JSON, in which each tensor or array is replaced by its path, and tensors by path."""
    if isinstance(state, np.ndarray):
        state = torch.from_numpy(state)
    if isinstance(state, Tensor):
        return _TENSOR + path, {path: state.detach().cpu().contiguous()}
    if not isinstance(state, (dict, list, tuple)):
        return state, {}
    tensors: dict[str, Tensor] = {}
    items = state.items() if isinstance(state, dict) else enumerate(state)
    plain: list[tuple[Any, Any]] = []
    for key, value in items:
        below, found = flatten(value, f"{path}/{key}" if path else str(key))
        plain.append((key, below))
        tensors |= found
    if not isinstance(state, dict):
        return [value for _, value in plain], tensors
    # JSON has only string keys; torch's optimisers count their parameters in whole numbers.
    return {f"#{key}" if isinstance(key, int) else key: value for key, value in plain}, tensors


def unflatten(plain: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `flatten`, but for tuples, which come back as lists."""
    if isinstance(plain, str) and plain.startswith(_TENSOR):
        return tensors[plain.removeprefix(_TENSOR)]
    if isinstance(plain, list):
        return [unflatten(value, tensors) for value in plain]
    if isinstance(plain, dict):
        return {int(key[1:]) if key[:1] == "#" else key: unflatten(value, tensors) for key, value in plain.items()}
    return plain


def save(directory: Path, frames: int, state: dict[str, Any]) -> Path:
    """Write one checkpoint below `directory` and return its path; one of the same frame is replaced."""
    target = directory / f"{frames:012d}"
    for stale in directory.glob(".*"):  # of a run that was killed while it saved
        shutil.rmtree(stale)
    aside = directory / f".writing-{target.name}"
    aside.mkdir(parents=True)
    plain, tensors = flatten(state)
    for name in (*_FILES, "tensors"):
        part = {path: tensor for path, tensor in tensors.items() if _file_of(path) == name}
        save_file(part, aside / f"{name}.safetensors")
    (aside / "state.json").write_text(json.dumps(plain, indent=1) + "\n")
    sums = {file.name: _sha256(file) for file in sorted(aside.iterdir())}
    (aside / "manifest.json").write_text(json.dumps({"format": FORMAT, "sha256": sums}, indent=1) + "\n")
    for file in sorted(aside.iterdir()):
        _sync(file)
    _sync(aside)
    before = directory / f".before-{target.name}"
    if target.exists():
        target.rename(before)  # not deleted yet: a kill costs nothing but between two renames
    aside.rename(target)
    _sync(directory)
    _sync(directory.parent)
    shutil.rmtree(before, ignore_errors=True)
    return target


def verify(checkpoint: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        InputError: the directory is no checkpoint, it is of another version, or a file is missing or is not what was written.
    """
    try:
        manifest = json.loads((checkpoint / "manifest.json").read_text())
        if manifest["format"] != FORMAT:
            raise InputError(f"{checkpoint} has format {manifest['format']!r}, and this version reads {FORMAT}")
        for name in ("state.json", *(f"{part}.safetensors" for part in (*_FILES, "tensors"))):
            if _sha256(checkpoint / name) != manifest["sha256"][name]:
                raise InputError(f"{checkpoint / name} is damaged: it is not what was written")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint} is no checkpoint that can be read ({type(error).__name__}: {error})") from error


def newest(directory: Path, *, quiet: bool = False) -> Path | None:
    """The newest checkpoint that is whole; those that are not are named on stderr. None where there has been none.

    Raises:
        NoCheckpointError: there are some, and none of them is whole.
    """
    saved = checkpoints(directory)
    for path in reversed(saved):
        try:
            verify(path)
            return path
        except InputError as error:
            if not quiet:
                print(f"{error}; looking at an older one", file=sys.stderr)
    if saved:
        raise NoCheckpointError(f"none of the {len(saved)} checkpoints in {directory} is whole")
    return None


def load(checkpoint: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read one checkpoint.

    Raises:
        InputError: the directory is no checkpoint, or a part of it is missing or damaged.
    """
    verify(checkpoint)
    try:
        plain = json.loads((checkpoint / "state.json").read_text())
        tensors: dict[str, Tensor] = {}
        for name in (*_FILES, "tensors"):
            tensors |= load_file(checkpoint / f"{name}.safetensors", device=str(device))
        state: dict[str, Any] = unflatten(plain, tensors)
        return state
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(f"{checkpoint} is no checkpoint that can be read ({type(error).__name__}: {error})") from error


def load_weights(directory: Path) -> dict[str, Tensor]:
    """The networks' tensors alone, by parameter name.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = directory / "weights.safetensors"
    try:
        return {name.removeprefix("weights/"): tensor for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints below a run's `checkpoints` directory, oldest first."""
    return sorted(path for path in directory.glob("[0-9]*") if path.is_dir())


def plain_parts(directory: Path, name: str) -> list[Any]:
    """One part of the state of each checkpoint below a directory that has it, tensors left out."""
    parts = []
    for path in checkpoints(directory):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # what cannot be read will not be resumed
            parts.append(json.loads((path / "state.json").read_text())[name])
    return parts


def prune(directory: Path) -> None:
    """Keep the newest three and the one with the best mean score of its last training games."""
    kept = checkpoints(directory)
    scores = {path: _score(path) for path in kept}
    best = max(kept, key=lambda path: (*scores[path], path.name), default=None)
    for path in kept[:-KEEP]:
        if path != best:
            shutil.rmtree(path)


def _score(checkpoint: Path) -> tuple[bool, float]:
    """Whether a checkpoint has the 100 games that a mean wants, and their mean; the lowest of all where it cannot be read."""
    try:
        scores = json.loads((checkpoint / "state.json").read_text())["scores"]
        return all(len(games) == WINDOW for games in scores["last"].values()), float(scores["mean_100"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False, float("-inf")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, after a loss of power too."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(content.encode() if isinstance(content, str) else content)
    _sync(aside)
    aside.replace(path)
    _sync(path.parent)


def _file_of(path: str) -> str:
    part = path.split("/", 1)[0]
    return part if part in _FILES else "tensors"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
