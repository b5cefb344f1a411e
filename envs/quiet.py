"""Engines that talk, kept from doing so."""

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*outputs: int) -> Iterator[None]:
    """What is written to these file descriptors inside the block is lost; a process that starts there inherits that."""
    kept = [os.dup(output) for output in outputs]
    with open(os.devnull, "wb") as nowhere:
        for output in outputs:
            os.dup2(nowhere.fileno(), output)
    try:
        yield
    finally:
        for output, before in zip(outputs, kept, strict=True):
            os.dup2(before, output)
            os.close(before)
