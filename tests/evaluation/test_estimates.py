"""Statistics of some games, against numbers that a person can check and against the libraries that define them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluation.estimates import RESAMPLES, Estimates, mean_interval, summarize

SCORES = [12.0, 7.0, 31.0, 18.0, 22.0, 9.0, 140.0, 27.0, 16.0, 11.0, 19.0, 24.0]


def test_hand_numbers():
    # 1 2 | 3 4 5 6 | 7 100: the middle half has mean 4.5
    found = summarize([100.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [8, 1, 2, 3, 4, 5, 6, 7])
    assert (found.mean, found.median, found.iqm, found.distinct_games) == (16.0, 4.5, 4.5, 8)
    assert summarize([1.0, 3.0], [5, 5]).std == pytest.approx(2**0.5)  # ddof = 1: (1 + 1) / (2 - 1)


def test_against_rliable():
    """The constants are rliable 1.2.0's of SCORES as 12 runs of one task, read once.

    `metrics.aggregate_mean`, `metrics.aggregate_iqm`, and the mean's `library.get_interval_estimates(reps=20_000,
    random_state=RandomState(0))`; `aggregate_iqm` of the first 11, where a quarter is no whole number, last.
    """
    found = summarize(SCORES, range(12))
    assert found.mean == pytest.approx(28.0)
    assert found.iqm == pytest.approx(18.5)
    assert found.ci95 == pytest.approx((14.75, 50.083333), abs=0.5)  # two sets of random draws: half a point
    assert summarize(SCORES[:11], range(11)).iqm == pytest.approx(17.857142857142858)


def test_against_scipy():
    expected = stats.bootstrap(
        (np.array(SCORES),), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert mean_interval(np.array(SCORES)) == pytest.approx((expected.low, expected.high), abs=0.5)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(1)
    intervals = [mean_interval(generator.normal(50.0, 10.0, 60)) for _ in range(100)]
    covered = sum(low <= 50.0 <= high for low, high in intervals)
    assert 88 <= covered <= 99


def test_no_interval_of_games_so_few_that_it_would_not_cover_the_mean():
    assert summarize(SCORES[:9], range(9)).ci95 is None
    assert summarize(SCORES[:10], range(10)).ci95 is not None
    generator = np.random.default_rng(1)
    few = [mean_interval(generator.normal(50.0, 10.0, 3)) for _ in range(100)]
    assert sum(low <= 50.0 <= high for low, high in few) < 85  # of the 95 that it says


def test_the_same_games_give_the_same_figures():
    assert summarize(SCORES, range(12)) == summarize(SCORES, range(12))


def test_no_interval_over_the_same_game():
    assert summarize([200.0] * 10, ["same"] * 10) == Estimates(200.0, 200.0, 0.0, 200.0, None, 1)


@pytest.mark.parametrize(("distinct", "has_interval"), [(4, False), (5, True), (10, True)])
def test_no_interval_when_fewer_than_half_are_distinct(distinct, has_interval):
    found = summarize(SCORES[:10], [min(game, distinct - 1) for game in range(10)])
    assert found.distinct_games == distinct
    assert (found.ci95 is not None) == has_interval


def test_games_that_end_alike_have_an_interval_unless_all_do():
    assert summarize([0.0] * 6 + [1.0] * 4, range(10)).ci95 == pytest.approx((0.1, 0.7))
    assert summarize([5.0] * 10, range(10)).ci95 is None


def test_one_game():
    assert summarize([7.0], ["one"]) == Estimates(7.0, 7.0, None, 7.0, None, 1)


def test_no_games():
    with pytest.raises(ValueError, match="no games"):
        summarize([], [])


def test_a_game_is_missing():
    with pytest.raises(ValueError, match="2 scores of 1 games"):
        summarize([1.0, 2.0], ["one"])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_figures_lie_between_the_worst_and_the_best_game(scores):
    found = summarize([float(score) for score in scores], list(range(len(scores))))
    for figure in (found.mean, found.median, found.iqm, *(found.ci95 or ())):
        assert min(scores) - 1e-9 <= figure <= max(scores) + 1e-9
    assert found.iqm == pytest.approx(stats.trim_mean(scores, 0.25))
    assert found.ci95 is None or found.ci95[0] - 1e-9 <= found.mean <= found.ci95[1] + 1e-9
