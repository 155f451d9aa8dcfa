"""Differences between arms: a bootstrap over seeds and prompts, and Holm's correction."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 10_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The accuracy of one arm minus another's, both on the same prompts with the same seeds."""

    mean: float
    low: float
    high: float
    """The 95 % interval, of this difference alone."""
    p: float
    """Of no difference, two-sided."""


def difference(first_SP: np.ndarray, second_SP: np.ndarray, *, seed: int = 0) -> Difference:
    """The difference of two arms' correctness [seeds, prompts], with an interval from resampled seeds and prompts.

    All seeds are asked the same prompts, so seeds and prompts are drawn apart from each other and every pair of them
    is taken: a resample that draws a hard prompt draws it for all its seeds. p is twice the smaller share of resamples
    on either side of 0 and at least 1 / (resamples + 1). With few seeds such intervals are somewhat too narrow.
    """
    difference_SP = first_SP.astype(float) - second_SP.astype(float)
    num_seeds, num_prompts = difference_SP.shape
    draw = np.random.default_rng(seed)
    seeds_RS = draw.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=NUM_RESAMPLES)
    prompts_RP = draw.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=NUM_RESAMPLES)
    means_R = ((seeds_RS @ difference_SP) * prompts_RP).sum(axis=1) / (num_seeds * num_prompts)
    low, high = np.quantile(means_R, [0.025, 0.975])
    beyond = min((means_R <= 0).sum(), (means_R >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (NUM_RESAMPLES + 1))
    return Difference(mean=float(difference_SP.mean()), low=float(low), high=float(high), p=float(p))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's adjusted p-values of a family of tests (Holm 1979), by name."""
    adjusted: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def over_seeds(values_S: np.ndarray) -> dict[str, float | list[float]]:
    """Mean, smallest, largest, and each seed's."""
    mean, least, most = float(values_S.mean()), float(values_S.min()), float(values_S.max())
    return {"mean": mean, "min": least, "max": most, "by_seed": values_S.round(4).tolist()}
