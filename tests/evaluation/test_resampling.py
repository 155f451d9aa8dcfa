from math import sqrt

import numpy as np
import pytest

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.evaluation.resampling import ratio, resamples


def test_every_resample_draws_as_many_prompts_as_there_are():
    drawn = resamples(7, seed=1, num_resamples=20)
    assert drawn.shape == (20, 7)
    assert set(drawn.sum(axis=1)) == {7.0}


def test_a_seed_gives_the_same_resamples_again_and_another_one_others():
    assert np.array_equal(resamples(9, seed=1), resamples(9, seed=1))
    assert not np.array_equal(resamples(9, seed=1), resamples(9, seed=2))


def test_a_ratio_is_that_of_the_sums_and_its_interval_is_as_wide_as_theory_says():
    """100 prompts with one success in two: 50 %, standard error 5, so about 50 -+ 9.8."""
    found = ratio([1.0, 0.0] * 50, [1.0] * 100, seed=3, scale=100)
    assert (found.value, found.count) == (50, 100)
    half = 1.96 * 100 * sqrt(0.25 / 100)
    assert found.low == pytest.approx(50 - half, abs=1.5)
    assert found.high == pytest.approx(50 + half, abs=1.5)


def test_prompts_of_many_battles_weigh_more():
    """(3 + 0) / (3 + 1) = 0.75."""
    assert ratio([3.0, 0.0], [3.0, 1.0], seed=0).value == 0.75


def test_nothing_counted_is_nothing_known():
    assert ratio([0.0, 0.0], [0.0, 0.0], seed=0) == Estimate(value=None, low=None, high=None, count=0)
