"""How far two judges of the same candidates agree, whoever is right."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

from moaa_ray.core.judge_stats import Estimate

Scores = Sequence[float | None]
"""By candidate; None: no score."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Two judges on the prompts that both have judged, with 95 % intervals over prompts."""

    num_prompts: int
    order: Estimate
    """Of the comparisons of two candidates that both decide, those decided alike; a coin gives 0.5."""
    best: Estimate
    """Of the prompts where each has one best candidate, those where it is the same."""
    undecided: Estimate
    """Of all comparisons, those where at least one of the two sees no difference, or has no score."""


def agreement(one: Sequence[Scores], other: Sequence[Scores], *, seed: int, num_resamples: int = 1000) -> Agreement:
    """The agreement of two judges' scores on the same prompts, in the same order; candidates too."""
    counts = [_counts(a, b) for a, b in zip(one, other, strict=True)]
    draws = [Random(seed + i).choices(counts, k=len(counts)) for i in range(num_resamples)] if counts else []
    return Agreement(
        num_prompts=len(counts),
        order=_estimate(counts, draws, 0, 1),
        best=_estimate(counts, draws, 2, 3),
        undecided=_estimate(counts, draws, 4, 5),
    )


def _counts(one: Scores, other: Scores) -> tuple[int, ...]:
    """(alike, both decide, same best, both have one best, undecided, comparisons) of one prompt."""
    alike = decided = num = 0
    for i, j in combinations(range(len(one)), 2):
        sign, other_sign = _sign(one[i], one[j]), _sign(other[i], other[j])
        num += 1
        decided += bool(sign and other_sign)
        alike += bool(sign and sign == other_sign)
    best, other_best = _best(one), _best(other)
    has_best = best is not None and other_best is not None
    return alike, decided, int(has_best and best == other_best), int(has_best), num - decided, num


def _sign(left: float | None, right: float | None) -> int:
    return 0 if left is None or right is None else (left > right) - (left < right)


def _best(scores: Scores) -> int | None:
    """The candidate above all others; None where there is no such one."""
    known = [score for score in scores if score is not None]
    top = [i for i, score in enumerate(scores) if known and score == max(known)]
    return top[0] if len(top) == 1 else None


def _estimate(counts: list[tuple[int, ...]], draws: list[list[tuple[int, ...]]], top: int, bottom: int) -> Estimate:
    total = sum(one[bottom] for one in counts)
    if not total:
        return Estimate(value=None, low=None, high=None, count=0)
    sums = ((sum(one[top] for one in drawn), sum(one[bottom] for one in drawn)) for drawn in draws)
    shares = sorted(part / whole for part, whole in sums if whole)
    low, high = (shares[round(part * (len(shares) - 1))] for part in (0.025, 0.975))
    return Estimate(value=sum(one[top] for one in counts) / total, low=low, high=high, count=total)
