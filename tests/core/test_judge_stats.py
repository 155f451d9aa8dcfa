from dataclasses import replace
from itertools import permutations
from math import sqrt
from random import Random
from statistics import fmean, stdev

import pytest

from moaa_ray.core.judge_stats import Estimate, JudgedPrompt, TieCounts, judge_stats
from moaa_ray.core.ranking import Verdict, Winner, candidate_scores, num_cycles, pair_results

ALWAYS: tuple[Winner, Winner] = ("first", "second")
NOTHING = Estimate(value=None, low=None, high=None, count=0)


def verdicts(*winners: tuple[int, int, Winner | None]) -> tuple[Verdict, ...]:
    return tuple(Verdict(first=first, second=second, winner=winner) for first, second, winner in winners)


def judged(given: tuple[Verdict, ...] = (), **fields) -> JudgedPrompt:
    empty = JudgedPrompt(verdicts=given, scores=(), lengths=(), top_tie="", bottom_tie="", is_kept=False)
    return replace(empty, **{"scores": (None,) * 3, "lengths": (1,) * 3, **fields})


def interval(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def test_every_rate_is_counted_by_hand_on_two_prompts():
    """First prompt: 6 verdicts parsed, 3 say first; pairs 0-1 (both first), 0-2 (both second), 1-2 (agree on 1).

    Second: of 4 verdicts one failed, so 3 parsed, 2 first; pair 0-1 agrees on 0, pair 0-2 is missing.
    Triads: only the first prompt has one, with ties in it.
    """
    both = verdicts((0, 1, "first"), (1, 0, "first"), (0, 2, "second"), (2, 0, "second"))
    one = both + verdicts((1, 2, "first"), (2, 1, "second"))
    two = verdicts((0, 1, "first"), (1, 0, "second"), (0, 2, "first"), (2, 0, None))
    stats = judge_stats([judged(one, is_kept=True), judged(two)], seed=0, num_resamples=50)
    values = {
        "first_rate": (5 / 9, 9),
        "disagreement_rate": (2 / 4, 4),
        "both_first_rate": (1 / 4, 4),
        "both_second_rate": (1 / 4, 4),
        "parse_failure_rate": (1 / 10, 10),
        "cycle_rate": (0.0, 1),
        "kept_rate": (1 / 2, 2),
    }
    for name, (value, count) in values.items():
        estimate = getattr(stats, name)
        assert (estimate.value, estimate.count) == (pytest.approx(value), count), name
        assert estimate.low <= estimate.value <= estimate.high, name
    assert stats.num_prompts == 2


def test_cycles_are_a_part_of_the_triads_whose_pairs_all_count():
    """0 beats 1 beats 2 beats 0 in the first prompt; 0 beats both others and 1 beats 2 in the second."""
    circle = verdicts(
        (0, 1, "first"), (1, 0, "second"), (1, 2, "first"), (2, 1, "second"), (2, 0, "first"), (0, 2, "second")
    )
    line = (*circle[:4], *verdicts((2, 0, "second"), (0, 2, "first")))
    stats = judge_stats([judged(circle), judged(line), judged(line[:5])], seed=0, num_resamples=0)
    assert stats.cycle_rate == Estimate(value=0.5, low=None, high=None, count=2)


def test_without_prompts_or_verdicts_a_rate_is_nothing_and_no_error():
    nothing = judge_stats([], seed=0)
    assert (nothing.num_prompts, nothing.first_rate, nothing.kept_rate) == (0, NOTHING, NOTHING)
    pointwise = judge_stats([judged(scores=(0.1, 0.2, 0.9), is_kept=True)], seed=0)
    assert pointwise.first_rate == pointwise.disagreement_rate == pointwise.cycle_rate == NOTHING
    assert pointwise.parse_failure_rate == pointwise.length_correlation == NOTHING
    assert pointwise.kept_rate == Estimate(value=1.0, low=1.0, high=1.0, count=1)


def test_length_correlation_is_the_mean_within_prompts_and_leaves_out_those_without_variance():
    """1 and -1/2: lengths 1, 2, 3 and scores 1, 0, 1/2 have covariance -1/2 and variances 2 and 1/2. Left out: equal
    scores, equal lengths, one score alone. Over all candidates at once the long prompt would rule.
    """
    prompts = [
        judged(scores=(0.0, 0.5, 1.0), lengths=(100, 200, 300)),
        judged(scores=(1.0, 0.0, 0.5), lengths=(1, 2, 3)),
        judged(scores=(0.5, 0.5, 0.5), lengths=(1, 2, 3)),
        judged(scores=(0.0, 0.5, 1.0), lengths=(7, 7, 7)),
        judged(scores=(0.5, None, None), lengths=(1, 2, 3)),
    ]
    stats = judge_stats(prompts, seed=0, num_resamples=50)
    assert stats.length_correlation.value == pytest.approx((1 - 0.5) / 2)
    assert stats.length_correlation.count == 2


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e308])
def test_scores_of_a_rule_correlate_with_length_however_large_or_small_they_are(scale):
    """Likelihoods, or the largest number for what is never right: their squares are no numbers any more."""
    stats = judge_stats([judged(scores=(-scale, 0.0, scale), lengths=(1, 2, 3))], seed=0, num_resamples=5)
    assert stats.length_correlation.value == pytest.approx(1)


def test_tie_breaks_are_counted_by_kind_for_the_top_and_for_the_bottom():
    kinds = [("", "coin"), ("coin", "coin"), ("head_to_head", "sonneborn_berger"), ("", "")]
    stats = judge_stats([judged(top_tie=top, bottom_tie=bottom) for top, bottom in kinds], seed=0, num_resamples=0)
    assert stats.top_ties == TieCounts(num_score=2, num_head_to_head=1, num_sonneborn_berger=0, num_coin=1)
    assert stats.bottom_ties == TieCounts(num_score=1, num_head_to_head=0, num_sonneborn_berger=1, num_coin=2)
    with pytest.raises(ValueError, match=r"unknown tie breaks \['dice'\]"):
        judge_stats([judged(top_tie="dice")], seed=0, num_resamples=0)


def test_the_interval_is_that_of_prompts_not_of_verdicts():
    """200 prompts of 6 verdicts each, in half of them all say first: a standard error of sqrt(1/4 / 200) = 0.0354, so
    a width of 2 x 1.96 x 0.0354 = 0.139; 1,200 verdicts drawn one by one would give 0.057.
    """
    first, second = (
        judged(tuple(Verdict(first=i, second=j, winner=winner) for i, j in permutations(range(3), 2)))
        for winner in ALWAYS
    )
    stats = judge_stats([first, second] * 100, seed=0)
    assert stats.first_rate.value == 0.5
    low, high = interval(stats.first_rate)
    assert high - low == pytest.approx(0.139, rel=0.15)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.01)


def test_the_seed_alone_decides_the_interval():
    prompts = [judged(scores=(0.0, 0.5, i / 100), lengths=(1, 2, 3)) for i in range(100)]
    once, again, other = (judge_stats(prompts, seed=seed, num_resamples=100) for seed in (1, 1, 2))
    assert once == again
    assert interval(once.length_correlation) != interval(other.length_correlation)


def test_a_judge_of_known_accuracy_and_bias_is_recovered():
    """With probability b the judge says first, else it is right with probability p; here p = 0.8, b = 0.2.

    Better one shown first: it wins with q1 = b + (1 - b) p = 0.84. Shown second: with q2 = (1 - b) p = 0.64.
    P(first) = (q1 + 1 - q2) / 2 = (1 + b) / 2 = 0.6, since each pair is asked in both orders.
    P(both first) = q1 (1 - q2) = 0.3024, P(both second) = (1 - q1) q2 = 0.1024, P(disagree) = 0.4048.
    P(result = 1 | better) = q1 q2 = 0.5376; mean score of the best = q1 q2 + P(disagree) / 2 = (q1 + q2) / 2 = 0.74.
    Candidate 0 is the best, then 1, ... Standard error: the standard deviation over prompts of the prompt's own rate
    (prompts have equal denominators) / sqrt(3000); prompts are independent, the pairs of one prompt need not be.
    """
    p, b, num_prompts = 0.8, 0.2, 3000
    rng = Random(0)

    def says(first: int, second: int) -> Verdict:
        is_right = rng.random() < p
        is_first = rng.random() < b or is_right == (first < second)
        return Verdict(first=first, second=second, winner="first" if is_first else "second")

    prompts = []
    for _ in range(num_prompts):
        given = tuple(says(i, j) for i, j in permutations(range(5), 2))
        prompts.append(judged(given, scores=candidate_scores(5, pair_results(given)), lengths=(1,) * 5))
    stats = judge_stats(prompts, seed=0, num_resamples=100)
    results = [pair_results(prompt.verdicts) for prompt in prompts]
    firsts = [fmean(v.winner == "first" for v in prompt.verdicts) for prompt in prompts]
    ties = [fmean(result == 0.5 for result in made.values()) for made in results]
    wins = [fmean(result == 1 for result in made.values()) for made in results]
    best = [prompt.scores[0] for prompt in prompts]

    def near(expected: float, by_prompt: list[float]):
        return pytest.approx(expected, abs=4 * stdev(by_prompt) / sqrt(num_prompts))

    assert stats.first_rate.value == near(0.6, firsts)
    assert stats.disagreement_rate.value == near(0.4048, ties)
    assert stats.both_first_rate.value == near(0.3024, ties)
    assert stats.both_second_rate.value == near(0.1024, ties)
    assert fmean(wins) == near(0.5376, wins)
    assert fmean(best) == near(0.74, best)
    assert stats.parse_failure_rate == Estimate(value=0.0, low=0.0, high=0.0, count=60_000)
    assert stats.cycle_rate.count == 10 * num_prompts
    assert stats.cycle_rate.value == sum(num_cycles(5, made)[0] for made in results) / (10 * num_prompts)
    low, high = interval(stats.disagreement_rate)
    assert low < 0.4048 < high


def test_the_verdicts_on_a_prompt_without_a_ranking_count_and_the_prompt_does_not():
    """Of four verdicts two parsed, both for the first; the pair 0-1 disagrees. The other prompt is kept."""
    one = judged(verdicts((0, 1, "first"), (1, 0, "second"), (0, 2, "first"), (2, 0, "second")), is_kept=True)
    other = judged(verdicts((0, 1, "first"), (1, 0, "first"), (0, 2, None), (2, 0, None)), is_ranked=False)
    stats = judge_stats([one, other], seed=0, num_resamples=10)
    assert (stats.num_prompts, stats.kept_rate.value, stats.kept_rate.count) == (1, 1.0, 1)
    assert (stats.parse_failure_rate.value, stats.parse_failure_rate.count) == (0.25, 8)
    assert (stats.first_rate.value, stats.first_rate.count) == (pytest.approx(4 / 6), 6)
    assert stats.disagreement_rate.value == pytest.approx(1 / 3)
    assert stats.top_ties.num_score == 1
