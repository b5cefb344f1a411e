"""Checkpoints: tensors as safetensors, everything else as JSON, nothing that could execute.

    checkpoints/000001048576/       emulator frames
        weights.safetensors         the networks
        optimizer.safetensors       the optimiser's moments
        tensors.safetensors         other tensors (generators, target networks)
        state.json                  counters, scores, and where each tensor belongs
        manifest.json               SHA-256 of each of these files

A checkpoint is written aside, synced to the disk and renamed, so that it is there whole or not at all. What a disk or a copy
changed later is found by the sums: safetensors reads a flipped bit without a word.

The files may also come from a stranger. Nothing but regular files is opened, and no more is read than memory has room for.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from mmap import mmap
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from agents.storage import free_memory
from envs.contract import InputError
from training.scores import WINDOW

FORMAT = 4  # of a checkpoint; 1 held no games, rollout and replay, 2 no sums of replay's pieces, 3 copies of games as text
READABLE = (2, 3, 4)
KEEP = 3  # newest checkpoints that are kept, beside the best
_FILES = ("weights", "optimizer")  # top-level parts of a state that have a file of their own; other tensors share one
_TENSORS = (*_FILES, "tensors")
_TENSOR = "tensor:"  # marks a string in state.json that stands for a tensor
MOST_JSON = 2**25  # bytes of a state.json; one of 65,536 games side by side, the most that there are, has 9 MB
_NAME = "[0-9]" * 12  # so that nothing else is ever deleted
# What directories are called before a checkpoint is there, while another takes its place, and before it is deleted.
_WRITING, _BEFORE, _GONE = ".writing-", ".before-", ".gone-"
# What can go wrong with a file that is not what it seems to be.
_DAMAGES = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError)


class NoCheckpointError(InputError):
    """A run has checkpoints, and none of them is whole."""

    exit_code = 3


class TooLargeError(InputError):
    """A file does not fit into memory or is larger than any of ours, which says nothing about whether it is whole."""


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


def encode(state: dict[str, Any]) -> dict[str, bytes]:
    """The files of a checkpoint, by name; equal states give equal bytes.

    Raises:
        FloatingPointError: weights or moments of the optimiser are not finite. Such a state is worth nothing.
        TooLargeError: it could not be read back.
    """
    plain, tensors = flatten(state)
    for path, tensor in tensors.items():
        if _file_of(path) in _FILES and not tensor.isfinite().all():
            raise FloatingPointError(f"{path} is not finite")
    parts = {name: {path: tensor for path, tensor in tensors.items() if _file_of(path) == name} for name in _TENSORS}
    files = {f"{name}.safetensors": safetensors.torch.save(part) for name, part in parts.items()}
    files["state.json"] = (json.dumps(plain, indent=1) + "\n").encode()
    if (size := len(files["state.json"])) > MOST_JSON:
        raise TooLargeError(f"a state.json of {size:,} bytes cannot be saved; at most {MOST_JSON:,} are read")
    sums = {name: hashlib.sha256(files[name]).hexdigest() for name in sorted(files)}
    return {**files, "manifest.json": (json.dumps({"format": FORMAT, "sha256": sums}, indent=1) + "\n").encode()}


def save(directory: Path, frames: int, files: Mapping[str, bytes | mmap]) -> Path:
    """Write one checkpoint below `directory` and return its path; one of the same frame is replaced.

    Raises:
        OSError: it cannot be written (the disk is full, say). What was there before is as it was.
    """
    target = directory / f"{frames:012d}"
    aside, before = (directory / f"{prefix}{target.name}" for prefix in (_WRITING, _BEFORE))
    sweep(directory)
    try:
        remove(aside)  # again: here it has to be gone
        aside.mkdir(parents=True)
        for name, content in files.items():
            (aside / name).write_bytes(content)
            sync(aside / name)
        sync(aside)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    if target.exists():
        target.rename(before)  # not deleted yet: a kill costs nothing but between two renames
    aside.rename(target)
    sync(directory)
    sync(directory.parent)
    shutil.rmtree(before, ignore_errors=True)
    return target


def sweep(directory: Path) -> None:
    """Tidy up after a run that was killed while it saved: one that was moved aside comes back if its place is empty."""
    for before in directory.glob(_BEFORE + _NAME):
        if not (place := directory / before.name.removeprefix(_BEFORE)).exists() and not before.is_symlink():
            before.rename(place)
    for prefix in (_WRITING, _BEFORE, _GONE):
        for stale in directory.glob(prefix + _NAME):
            with unneeded(stale):
                remove(stale)


@contextlib.contextmanager
def unneeded(path: Path) -> Iterator[None]:
    """Inside, what nobody needs any more is deleted; where the system does not let it go it stays, which is said once."""
    try:
        yield
    except OSError as error:
        say_once(f"{path} cannot be deleted ({error.strerror}); it is needed no more, and the run goes on")


@functools.cache
def say_once(line: str) -> None:
    """Print a line to standard error, unless this process has."""
    print(line, file=sys.stderr, flush=True)


def remove(path: Path) -> None:
    """Delete whatever stands at a path; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def verify(checkpoint: Path) -> None:
    """Compare every file of a checkpoint with its manifest.

    Raises:
        InputError: the directory is no checkpoint, it is of another version, a file is missing or is not what was written.
        TooLargeError: it does not fit into memory.
    """
    try:
        manifest = json.loads(read_file(checkpoint / "manifest.json", most=2**20))
        if manifest["format"] not in READABLE:
            raise InputError(f"{checkpoint} has format {manifest['format']!r}, and this version reads {READABLE}")
        for name in ("state.json", *(f"{part}.safetensors" for part in _TENSORS)):
            if sha256(checkpoint / name) != manifest["sha256"][name]:
                raise InputError(f"{checkpoint / name} is damaged: it is not what was written")
    except _DAMAGES as error:
        raise _unreadable(checkpoint, error) from error


def newest(directory: Path, *, check: Callable[[Path], None] = verify, quiet: bool = False) -> Path | None:
    """The newest checkpoint that is whole; those that are not are named on stderr. None where there has been none.

    Args:
        directory: A run's `checkpoints`.
        check: Raises an InputError where a checkpoint is not whole.
        quiet: Say nothing.

    Raises:
        NoCheckpointError: there are some, and none of them is whole.
        TooLargeError: one does not fit into memory; an older one would lose what was learned since.
    """
    saved = checkpoints(directory)
    for path in reversed(saved):
        try:
            check(path)
            return path
        except TooLargeError:
            raise
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
        plain = json.loads(read_file(checkpoint / "state.json", most=MOST_JSON))
        tensors: dict[str, Tensor] = {}
        for name in _TENSORS:
            tensors |= safetensors.torch.load_file(checkpoint / f"{name}.safetensors", device=str(device))
        state: dict[str, Any] = unflatten(plain, tensors)
        return state
    except _DAMAGES as error:
        raise _unreadable(checkpoint, error) from error


def load_weights(directory: Path) -> dict[str, Tensor]:
    """The networks' tensors alone, by parameter name.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = directory / "weights.safetensors"
    try:
        check_file(path)
        return {name.removeprefix("weights/"): tensor for name, tensor in safetensors.torch.load_file(path).items()}
    except _DAMAGES as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"{path} is no checkpoint that can be read ({type(error).__name__}: {error})")


def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints below a run's `checkpoints` directory, oldest first."""
    return sorted(path for path in directory.glob(_NAME) if path.is_dir() and not path.is_symlink())


def state_parts(directory: Path, name: str) -> Iterator[Any]:
    """One part of the state of each checkpoint below a directory that has it, tensors left out.

    Raises:
        TooLargeError: one does not fit into memory, and may be read at another time.
    """
    for path in checkpoints(directory):
        try:
            yield state_part(path, name)
        except TooLargeError:
            raise
        except InputError:
            pass  # what cannot be read will not be resumed


def state_part(checkpoint: Path, name: str) -> Any:
    """One part of the state of a checkpoint, tensors left out.

    Raises:
        InputError: it cannot be read, or has no such part.
        TooLargeError: it does not fit into memory.
    """
    try:
        return json.loads(read_file(checkpoint / "state.json", most=MOST_JSON))[name]
    except _DAMAGES as error:
        raise _unreadable(checkpoint, error) from error


def prune(newest: Path) -> None:
    """Keep three checkpoints, the newest last, and the one with the best mean score of its last training games.

    Where a run went on from an earlier one, those of later frames are damaged; they go when it is there again. What does not
    fit into memory may be the best one, and stays until it does.
    """
    kept = [path for path in checkpoints(newest.parent) if path.name <= newest.name]
    scores = {path: score for path in kept if (score := _score(path)) is not None}
    best = max(scores, key=lambda path: (*scores[path], path.name), default=None)
    for path in kept[:-KEEP]:
        if path in scores and path != best:
            with unneeded(path):
                shutil.rmtree(path.rename(path.with_name(f"{_GONE}{path.name}")))  # whole, or not there


def _score(checkpoint: Path) -> tuple[bool, float] | None:
    """Whether a checkpoint has the 100 games that a mean wants, and their mean.

    The lowest of all where it cannot be read; None where it does not fit into memory.
    """
    try:
        scores = state_part(checkpoint, "scores")
        return all(len(games) == WINDOW for games in scores["last"].values()), float(scores["mean_100"])
    except TooLargeError:
        return None
    except (InputError, *_DAMAGES):
        return False, float("-inf")


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, after a loss of power too."""
    aside = path.with_name(f".{path.name}.new")
    remove(aside)
    try:
        with aside.open("xb") as file:  # anew: what stands there may be a link to somewhere else
            file.write(content.encode() if isinstance(content, str) else content)
        sync(aside)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    aside.replace(path)
    sync(path.parent)


def _file_of(path: str) -> str:
    part = path.split("/", 1)[0]
    return part if part in _FILES else "tensors"


def check_file(path: Path, most: float = math.inf) -> None:
    """Refuse what cannot be read into memory: a pipe or a device, a file of more than `most` bytes or than memory has room for.

    Raises:
        OSError: it is not there.
        InputError: it is no regular file.
        TooLargeError: it is too large.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path} is no regular file")
    free = free_memory()
    if found.st_size > (most := min(most, math.inf if free is None else free)):
        raise TooLargeError(f"{path} has {found.st_size:,} bytes; at most {most:,} are read")


def read_file(path: Path, most: float = math.inf) -> bytes:
    """The content of a file that `check_file` lets pass."""
    check_file(path, most)
    return path.read_bytes()


def sha256(path: Path) -> str:
    """SHA-256 of a file that `check_file` lets pass, in hexadecimal."""
    check_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Bring a file or the names in a directory to the disk: until then a loss of power may undo them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
