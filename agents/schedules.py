"""Values that change over a run."""


def linear(start: float, end: float, progress: float) -> float:
    """From `start` at progress 0 to `end` at progress 1, and `end` after that."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)
