"""What a judge did over many prompts: position bias, disagreement, parse failures, cycles, taste for length.

Whether its verdicts are right is not known here. Every rate comes with an interval that resamples prompts, since the
verdicts on one prompt stand or fall together.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from statistics import correlation
from typing import NamedTuple

from moaa_ray.core.ranking import Verdict, num_cycles, pair_results


@dataclass(frozen=True, kw_only=True)
class JudgedPrompt:
    """One prompt after judging.

    verdicts are all that were asked for (none for a pointwise judge); scores and lengths (in any one unit) are by
    candidate; top_tie and bottom_tie are a Ranking's; is_kept says whether the prompt became a preference pair.
    """

    verdicts: tuple[Verdict, ...]
    scores: tuple[float | None, ...]
    lengths: tuple[int, ...]
    top_tie: str
    bottom_tie: str
    is_kept: bool
    is_ranked: bool = True
    """False: too few verdicts for a ranking. Then only the verdicts count, not what became of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A rate and its 95 % interval over prompts; count is its denominator, and nothing else is known where that is 0.

    A rate of exactly 0 or 1 has an interval without width: resampling shows nothing that the prompts do not.
    """

    value: float | None
    low: float | None
    high: float | None
    count: int


@dataclass(frozen=True, kw_only=True)
class TieCounts:
    """By what one place was decided, in ranked prompts; one with fewer than two scores counts as decided by score."""

    num_score: int
    num_head_to_head: int
    num_sonneborn_berger: int
    num_coin: int


@dataclass(frozen=True, kw_only=True)
class JudgeStats:
    """What a judge did. Pairs are those of which both orders parsed, triads those of which all three pairs did."""

    num_prompts: int
    first_rate: Estimate
    """Of parsed verdicts, those for the candidate shown first; 0.5 is no position bias."""
    disagreement_rate: Estimate
    """Of pairs, those whose orders disagree: both_first_rate + both_second_rate."""
    both_first_rate: Estimate
    both_second_rate: Estimate
    parse_failure_rate: Estimate
    """Of verdicts asked for, those without a winner."""
    cycle_rate: Estimate
    """Of triads, those in which i beats j beats k beats i; a judge of coin flips has 1/32."""
    kept_rate: Estimate
    """Of prompts, those that became a preference pair; what that is worth JudgeWork.coin_ranking tells."""
    length_correlation: Estimate
    """Mean over prompts of the Pearson correlation of length and score; count leaves out prompts without variance."""
    top_ties: TieCounts
    bottom_ties: TieCounts


class _Tally(NamedTuple):
    """Numerators and denominators of one prompt, or their sums over many; all float, so that they sum alike."""

    prompts: float = 0
    verdicts: float = 0
    parsed: float = 0
    said_first: float = 0
    pairs: float = 0
    both_first: float = 0
    both_second: float = 0
    triads: float = 0
    cyclic: float = 0
    kept: float = 0
    correlated: float = 0
    correlation: float = 0


def judge_stats(prompts: Sequence[JudgedPrompt], *, seed: int, num_resamples: int = 1000) -> JudgeStats:
    """Rates over all prompts, with percentile bootstrap intervals: whole prompts are drawn with replacement.

    Raises ValueError on two verdicts for one order of one pair, and on an unknown kind of tie break. Six thousand
    prompts of five candidates and a thousand resamples take a few seconds.
    """
    tallies = [_tally(prompt) for prompt in prompts]
    columns = list(zip(*tallies, strict=True))
    rng = Random(seed)
    data = _Tally(*map(sum, columns))
    resamples = [_total(columns, rng.choices(range(len(tallies)), k=len(tallies))) for _ in range(num_resamples)]

    def estimate(parts: Callable[[_Tally], tuple[float, float]]) -> Estimate:
        numerator, count = parts(data)
        if not count:
            return Estimate(value=None, low=None, high=None, count=0)
        values = sorted(top / bottom for top, bottom in map(parts, resamples) if bottom)
        low, high = _quantile(values, 0.025), _quantile(values, 0.975)
        return Estimate(value=numerator / count, low=low, high=high, count=int(count))

    return JudgeStats(
        num_prompts=int(data.prompts),
        first_rate=estimate(lambda t: (t.said_first, t.parsed)),
        disagreement_rate=estimate(lambda t: (t.both_first + t.both_second, t.pairs)),
        both_first_rate=estimate(lambda t: (t.both_first, t.pairs)),
        both_second_rate=estimate(lambda t: (t.both_second, t.pairs)),
        parse_failure_rate=estimate(lambda t: (t.verdicts - t.parsed, t.verdicts)),
        cycle_rate=estimate(lambda t: (t.cyclic, t.triads)),
        kept_rate=estimate(lambda t: (t.kept, t.prompts)),
        length_correlation=estimate(lambda t: (t.correlation, t.correlated)),
        top_ties=_tie_counts(prompt.top_tie for prompt in prompts if prompt.is_ranked),
        bottom_ties=_tie_counts(prompt.bottom_tie for prompt in prompts if prompt.is_ranked),
    )


def _tally(prompt: JudgedPrompt) -> _Tally:
    results = pair_results(prompt.verdicts)
    cyclic, triads = num_cycles(len(prompt.scores), results)
    winners = {(verdict.first, verdict.second): verdict.winner for verdict in prompt.verdicts}
    both = [(winners[i, j], winners[j, i]) for (i, j), result in results.items() if result is not None]
    length_correlation = _length_correlation(prompt) if prompt.is_ranked else None
    return _Tally(
        prompts=prompt.is_ranked,
        verdicts=len(winners),
        parsed=sum(winner is not None for winner in winners.values()),
        said_first=sum(winner == "first" for winner in winners.values()),
        pairs=len(both),
        both_first=both.count(("first", "first")),
        both_second=both.count(("second", "second")),
        triads=triads,
        cyclic=cyclic,
        kept=prompt.is_kept,
        correlated=length_correlation is not None,
        correlation=length_correlation or 0.0,
    )


def _length_correlation(prompt: JudgedPrompt) -> float | None:
    """None where all candidates with a score have one length or one score."""
    scored = [(length, score) for length, score in zip(prompt.lengths, prompt.scores, strict=True) if score is not None]
    lengths, scores = [length for length, _ in scored], [score for _, score in scored]
    if len(set(lengths)) < 2 or len(set(scores)) < 2:
        return None
    most = max(abs(score) for score in scores)  # a rule's may be so large or small that a square of them is none
    return correlation(lengths, [score / most for score in scores])


def _total(columns: Sequence[Sequence[float]], drawn: Sequence[int]) -> _Tally:
    """The sums over the drawn prompts; columns hold the fields of _Tally, in order."""
    return _Tally(*(sum(map(column.__getitem__, drawn)) for column in columns))


def _quantile(values: Sequence[float], part: float) -> float | None:
    """The value of nearest rank in a sorted list; None of an empty one."""
    return values[round(part * (len(values) - 1))] if values else None


def _tie_counts(kinds: Iterable[str]) -> TieCounts:
    counts = Counter(kinds)
    ties = TieCounts(
        num_score=counts.pop("", 0),
        num_head_to_head=counts.pop("head_to_head", 0),
        num_sonneborn_berger=counts.pop("sonneborn_berger", 0),
        num_coin=counts.pop("coin", 0),
    )
    if counts:
        raise ValueError(f"unknown tie breaks {sorted(counts)}: a Ranking's top_tie or bottom_tie is wanted")
    return ties
