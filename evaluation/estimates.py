"""What a handful of games says about an agent.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(https://arxiv.org/abs/2108.13264), for the interquartile mean and the percentile bootstrap.

What differs from it:
1. The sample is the games of one agent, not runs x tasks: an interval speaks for this agent, not for its algorithm.
2. No interval is given where games are too few or too much alike: over a few games a percentile bootstrap covers the mean far
   less often than it says (`docs/log.md`), and over one game played many times it says nothing.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

RESAMPLES = 50_000
CONFIDENCE = 0.95
FEWEST = 10  # games with an interval
BATCH = 1_000_000  # numbers drawn at a time: 8 MB, however many games there are


@dataclass(frozen=True)
class Estimates:
    """Statistics of the scores of some games, in the game's own points."""

    mean: float
    median: float
    std: float | None
    """Sample standard deviation (ddof = 1) over games; None for a single game."""
    iqm: float
    """Interquartile mean: a quarter of the games is cut at either end (rounded down), and the rest averaged."""
    ci95: tuple[float, float] | None
    """95 % percentile bootstrap interval of the mean; None for fewer than ten games, where fewer than half of them are
    distinct, and where all have one score."""
    distinct_games: int
    """Number of games that differ in what was played or in what it brought."""


def summarize(returns: Sequence[float], games: Sequence[Hashable]) -> Estimates:
    """Statistics of some games; the same games give the same figures.

    Args:
        returns: Score of each game, in the game's own points.
        games: What tells one game from another, for each; see `Episode.digest`.

    Raises:
        ValueError: There are no games, or not one for each score.
    """
    if len(returns) == 0:
        raise ValueError("no games to summarize")
    if len(returns) != len(games):
        raise ValueError(f"{len(returns)} scores of {len(games)} games")
    distinct = len(set(games))
    scores = np.asarray(returns, dtype=np.float64)
    tells = len(scores) >= FEWEST and distinct >= len(scores) / 2 and scores.min() < scores.max()
    return Estimates(
        mean=float(scores.mean()),
        median=float(np.median(scores)),
        std=float(scores.std(ddof=1)) if len(scores) > 1 else None,
        iqm=float(stats.trim_mean(scores, 0.25)),
        ci95=mean_interval(scores) if tells else None,
        distinct_games=distinct,
    )


def mean_interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `scores` (games,), at least two; drawn with a fixed seed."""
    interval = stats.bootstrap(
        (scores,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH // len(scores)),
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(interval.low), float(interval.high)
