"""From verdicts on labelled pairs to accuracies: by pair, by subset, by section, in total.

A subset's accuracy is the mean over its pairs, a section's the mean over its subsets weighed as RewardBench weighs
them, the total the mean over the sections that are there. Intervals resample the pairs within their subsets.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from random import Random

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.judge_stats import Estimate, JudgedPrompt, judge_stats
from moaa_ray.core.judged import JudgeWork
from moaa_ray.core.ranking import Verdict
from moaa_ray.core.seeds import seed_for
from moaa_ray.preference.check_pairs import NUM_MATH_PAIRS, SECTIONS, LabelledPair, section_of
from moaa_ray.types import Completion, Row

NUM_RESAMPLES = 1000
_PAIR = (0, 1)
"""Both candidates of a pair, and the order in which they stand in the row."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a judge made of one labelled pair: 1 right, 0 wrong, 0.5 undecided, None no verdict."""

    id: str
    subset: str
    chosen: int
    both_orders: float | None
    one_order: float | None
    scores: tuple[float | None, ...] = ()
    """By candidate, and so are the lengths, in characters."""
    lengths: tuple[int, ...] = ()
    verdicts: Mapping[str, tuple[Verdict, ...]] = field(default_factory=dict)
    """By the model that gives them; empty for a pointwise judge."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """Why there is no verdict (no number), by reason."""


@dataclass(frozen=True, kw_only=True)
class Habits:
    """What one model that gives verdicts is like, whether it is right or not; see judge_stats."""

    first_rate: Estimate
    """Of its verdicts, those for the answer shown first; 0.5 is no position bias."""
    disagreement_rate: Estimate
    parse_failure_rate: Estimate


@dataclass(frozen=True, kw_only=True)
class Score:
    """The accuracies over some pairs. A pair without a verdict counts one half in them."""

    num_pairs: int
    both_orders: Estimate
    one_order: Estimate
    no_verdict: int
    """Pairs without a verdict in both orders (without two numbers, of a pointwise judge)."""
    no_verdict_one_order: int


@dataclass(frozen=True, kw_only=True)
class Scores:
    """In RewardBench's order, subsets that it does not have last."""

    total: Score
    sections: Mapping[str, Score]
    subsets: Mapping[str, Score]
    is_reward_bench: bool
    """Whether these are RewardBench's pairs, whole and alone, so that the total compares with published ones."""


def outcome_of(pair: LabelledPair, judged: Row, reading: JudgeWork) -> Outcome:
    """What became of a pair, of its row as the judge has left it."""
    if reading.scorer is not None:
        known = reading.scorer.scores(judged)
        points = one = _right(_higher(known.get(0), known.get(1)), pair.chosen)
        scores = (known.get(0), known.get(1))
        errors = Counter(rating.error or "no_number" for rating in reading.ratings(judged) if rating.value is None)
        verdicts: dict[str, tuple[Verdict, ...]] = {}
    else:
        verdicts = _verdicts(judged, reading)
        result = reading.results(judged).get(_PAIR)
        scores = (result, None if result is None else 1 - result)
        points, one = _right(result, pair.chosen), _right(_majority(verdicts), pair.chosen)
        errors = Counter(judgment.error for judgment in reading.judgments(judged) if judgment.error)
    return Outcome(
        id=pair.row.id,
        subset=pair.row.source,
        chosen=pair.chosen,
        both_orders=points,
        one_order=one,
        scores=scores,
        lengths=tuple(len(a.text) for a in pair.row.answers[CANDIDATES] if isinstance(a, Completion)),
        verdicts=verdicts,
        errors=errors,
    )


def _verdicts(judged: Row, reading: JudgeWork) -> dict[str, tuple[Verdict, ...]]:
    return {name: tuple(each.verdicts(judged, name)) for each in reading.rounds for name in each.deciders}


def _majority(verdicts: Mapping[str, Sequence[Verdict]]) -> float | None:
    """The result for candidate 0 in the order of the row: one model's verdict, or what most members of a jury say."""
    said = [v.winner for given in verdicts.values() for v in given if (v.first, v.second) == _PAIR and v.winner]
    return _higher(said.count("first"), said.count("second")) if said else None


def _higher(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return None
    return 0.5 if first == second else float(first > second)


def _right(result: float | None, chosen: int) -> float | None:
    """The result for the chosen candidate, of that for candidate 0."""
    return result if result is None or chosen == 0 else 1 - result


def scores_of(outcomes: Iterable[Outcome], *, seed: int) -> Scores:
    """All accuracies with 95 % intervals. Ten thousand pairs take some seconds."""
    by_subset: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_subset.setdefault(outcome.subset, []).append(outcome)
    known = [subset for subsets in SECTIONS.values() for subset in subsets if subset in by_subset]
    order = [*known, *(subset for subset in by_subset if subset not in known)]
    leaves = {subset: _Part.of(subset, by_subset[subset], seed=seed) for subset in order}
    sections: dict[str, list[str]] = {}
    for subset in order:
        sections.setdefault(section_of(subset), []).append(subset)
    parts = {
        section: _mean([leaves[subset] for subset in subsets], [_weight(section, subset) for subset in subsets])
        for section, subsets in sections.items()
    }
    return Scores(
        total=_mean(list(parts.values()), [1.0] * len(parts)).score(),
        sections={section: part.score() for section, part in parts.items()},
        subsets={subset: part.score() for subset, part in leaves.items()},
        is_reward_bench={subset: len(given) for subset, given in by_subset.items()} == _reward_bench(),
    )


def _weight(section: str, subset: str) -> float:
    """A subset that is none of RewardBench's is alone in its section."""
    return SECTIONS.get(section, {}).get(subset, 1.0)


def _reward_bench() -> dict[str, int]:
    counts = {subset: num for subsets in SECTIONS.values() for subset, num in subsets.items()}
    return {**counts, "math-prm": NUM_MATH_PAIRS}


@dataclass(frozen=True, kw_only=True)
class _Part:
    """Some pairs: their accuracies, first over the pairs themselves, then over each of the resamples."""

    both_orders: Sequence[float]
    one_order: Sequence[float]
    num_pairs: int
    no_verdict: int
    no_verdict_one_order: int

    @staticmethod
    def of(subset: str, outcomes: Sequence[Outcome], *, seed: int) -> "_Part":
        both, one = [o.both_orders for o in outcomes], [o.one_order for o in outcomes]
        return _Part(
            both_orders=_resampled(both, Random(seed_for(seed, "resamples", subset))),
            one_order=_resampled(one, Random(seed_for(seed, "resamples", subset))),
            num_pairs=len(outcomes),
            no_verdict=both.count(None),
            no_verdict_one_order=one.count(None),
        )

    def score(self) -> Score:
        """What is reported."""
        return Score(
            num_pairs=self.num_pairs,
            both_orders=_estimate(self.both_orders, self.num_pairs),
            one_order=_estimate(self.one_order, self.num_pairs),
            no_verdict=self.no_verdict,
            no_verdict_one_order=self.no_verdict_one_order,
        )


def _resampled(points: Sequence[float | None], rng: Random) -> list[float]:
    """The mean of the points, and the means of NUM_RESAMPLES draws of as many of them with replacement."""
    values = [0.5 if value is None else value for value in points]
    num = len(values)
    return [fsum(values) / num, *(fsum(rng.choices(values, k=num)) / num for _ in range(NUM_RESAMPLES))]


def _mean(parts: Sequence[_Part], weights: Sequence[float]) -> _Part:
    """Parts as one: the weighted means of their accuracies, the sums of their counts."""

    def mean(curves: Iterable[Sequence[float]]) -> list[float]:
        columns = zip(*curves, strict=True)
        return [fsum(w * v for w, v in zip(weights, column, strict=True)) / fsum(weights) for column in columns]

    return _Part(
        both_orders=mean(part.both_orders for part in parts),
        one_order=mean(part.one_order for part in parts),
        num_pairs=sum(part.num_pairs for part in parts),
        no_verdict=sum(part.no_verdict for part in parts),
        no_verdict_one_order=sum(part.no_verdict_one_order for part in parts),
    )


def _estimate(means: Sequence[float], count: int) -> Estimate:
    value, *drawn = means
    drawn.sort()
    last = len(drawn) - 1
    return Estimate(value=value, low=drawn[round(0.025 * last)], high=drawn[round(0.975 * last)], count=count)


def habits_of(outcomes: Sequence[Outcome], *, seed: int) -> tuple[dict[str, Habits], Estimate]:
    """By the model that gives verdicts, and the correlation of score and length of the judge as a whole."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.verdicts))
    stats = {name: judge_stats([_prompt(outcome, name) for outcome in outcomes], seed=seed) for name in names or [""]}
    habits = {
        name: Habits(
            first_rate=stats[name].first_rate,
            disagreement_rate=stats[name].disagreement_rate,
            parse_failure_rate=stats[name].parse_failure_rate,
        )
        for name in names
    }
    return habits, next(iter(stats.values())).length_correlation


def _prompt(outcome: Outcome, name: str) -> JudgedPrompt:
    return JudgedPrompt(
        verdicts=outcome.verdicts.get(name, ()),
        scores=outcome.scores,
        lengths=outcome.lengths,
        top_tie="",
        bottom_tie="",
        is_kept=False,
    )
