"""Intervals by bootstrap over prompts: what was judged on one prompt is drawn or left out together."""

from collections.abc import Sequence

import numpy as np

from moaa_ray.core.judge_stats import Estimate

NUM_RESAMPLES = 1000
NUM_REFITS = 200
"""Resamples where each of them is a regression."""


def resamples(num_prompts: int, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """How often each prompt is drawn: [num_resamples, num_prompts] counts, each row with the sum num_prompts."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=num_resamples).astype(float)


def ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int, scale: float = 1.0) -> Estimate:
    """scale x sum(numerators) / sum(denominators), and its 95 % interval; both are by prompt, in a fixed order.

    The denominators are counts, and their sum is the estimate's; without any, nothing else is known.
    """
    tops, bottoms = np.asarray(numerators, float), np.asarray(denominators, float)
    if not bottoms.sum():
        return Estimate(value=None, low=None, high=None, count=0)
    drawn = resamples(len(tops), seed=seed)
    drawn_tops, drawn_bottoms = drawn @ tops, drawn @ bottoms
    is_known = drawn_bottoms > 0
    return estimate(
        tops.sum() / bottoms.sum() * scale,
        drawn_tops[is_known] / drawn_bottoms[is_known] * scale,
        count=int(bottoms.sum()),
    )


def estimate(value: float, drawn: np.ndarray, *, count: int) -> Estimate:
    """A value with the 95 % percentile interval of its resamples."""
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return Estimate(value=float(value), low=float(low), high=float(high), count=count)
