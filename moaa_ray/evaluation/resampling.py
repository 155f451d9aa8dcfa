"""Intervals by bootstrap over prompts: what was judged on one prompt is drawn or left out together."""

from collections.abc import Sequence

import numpy as np

from moaa_ray.core.judge_stats import Estimate

NUM_RESAMPLES = 1000


def resamples(num_prompts: int, *, seed: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """How often each prompt is drawn: [num_resamples, num_prompts] counts, each row with the sum num_prompts."""
    raise NotImplementedError


def ratio(numerators: Sequence[float], denominators: Sequence[float], *, seed: int, scale: float = 1.0) -> Estimate:
    """scale x sum(numerators) / sum(denominators) with a 95 % percentile interval over prompts.

    Both are by prompt, in an order that does not depend on where they come from. count is the sum of the denominators
    that stand for counts, rounded down; without any, value, low and high are None.
    """
    raise NotImplementedError
