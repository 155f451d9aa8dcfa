from itertools import combinations, permutations
from math import log
from random import Random

import pytest

from moaa_ray.core.ranking import (
    Choice,
    Ranking,
    Verdict,
    Winner,
    bradley_terry,
    candidate_scores,
    choose,
    num_cycles,
    pair_results,
    rank,
)


def verdict(first: int, second: int, winner: Winner | None) -> Verdict:
    return Verdict(first=first, second=second, winner=winner)


def ranking(*scores: float | None, order: tuple[int, ...]) -> Ranking:
    return Ranking(order=order, scores=scores, top_tie="", bottom_tie="")


def test_a_pair_counts_for_the_candidate_that_both_orders_name():
    verdicts = [verdict(0, 1, "first"), verdict(1, 0, "second"), verdict(0, 2, "second"), verdict(2, 0, "first")]
    assert pair_results(verdicts) == {(0, 1): 1.0, (0, 2): 0.0}


@pytest.mark.parametrize("winner", ["first", "second"])
def test_orders_that_disagree_give_a_tie(winner):
    assert pair_results([verdict(0, 1, winner), verdict(1, 0, winner)]) == {(0, 1): 0.5}


def test_a_pair_with_one_order_unparsed_or_not_asked_is_missing():
    verdicts = [verdict(0, 1, "first"), verdict(1, 0, None), verdict(2, 1, "second"), verdict(0, 2, None)]
    assert pair_results(verdicts) == {(0, 1): None, (0, 2): None, (1, 2): None}


def test_two_verdicts_on_one_order_are_refused_with_both():
    with pytest.raises(ValueError, match=r"candidates \(1, 0\) in this order, first and None"):
        pair_results([verdict(1, 0, "first"), verdict(1, 0, None)])


def test_a_candidate_against_itself_is_refused():
    with pytest.raises(ValueError, match="with itself"):
        pair_results([verdict(2, 2, "first")])


def test_a_score_is_the_mean_result_over_the_opponents_that_count():
    """0 wins and draws: 3/4. 1 has only its loss to 0. 2 has only its draw with 0. 3 has nothing."""
    assert candidate_scores(4, {(0, 1): 1.0, (0, 2): 0.5, (1, 2): None, (0, 3): None}) == (0.75, 0.0, 0.5, None)


def test_scores_that_are_equal_as_fractions_are_equal():
    """0.1 + 0.2 + 0.3 is 0.6000000000000001 in floats; 0 and 1 have (0.5 + 0.6) / 4 = 0.275 and drew.

    The others have 0.575, 0.7 and 0.675; result x opponent's score is 0.0575 + 0.14 + 0.2025 = 0.4 for 0 and 0.6 x
    0.575 = 0.345 for 1, besides the draw.
    """
    tenths = dict(zip(combinations(range(5), 2), (0.5, 0.1, 0.2, 0.3, 0.6, 0.0, 0.0, 0.5, 0.5, 0.5), strict=True))
    made = rank(5, tenths, coins=[0] * 5)
    assert made.scores == (0.275, 0.275, 0.575, 0.7, 0.675)
    assert (made.order, made.bottom_tie) == ((3, 4, 2, 0, 1), "sonneborn_berger")


@pytest.mark.parametrize("pair", [(1, 0), (1, 1), (0, 3), (-1, 0)])
def test_results_by_anything_but_a_pair_of_these_candidates_are_refused(pair):
    with pytest.raises(ValueError, match="among 3 candidates"):
        candidate_scores(3, {pair: 1.0})


@pytest.mark.parametrize("result", [-0.5, 1.5, float("nan")])
def test_a_result_outside_0_to_1_is_refused(result):
    with pytest.raises(ValueError, match=r"of pair \(0, 1\)"):
        candidate_scores(2, {(0, 1): result})


def test_candidates_stand_by_score_and_the_unscored_are_left_out():
    """Scores: 0 has 0, 1 has 1, 3 has 1/2; nothing counts for 2."""
    made = rank(4, {(0, 1): 0.0, (0, 3): 0.0, (1, 3): 1.0, (1, 2): None}, coins=[9, 8, 7, 6])
    assert made == Ranking(order=(1, 3, 0), scores=(0.0, 1.0, None, 0.5), top_tie="", bottom_tie="")


def test_equal_scores_stand_by_head_to_head():
    """0 loses only to 3 and 1 only to 0: 2/3 each, 0 beat 1. 2 beats only 3 and 3 only 0: 1/3 each, 2 beat 3.

    Coins point the other way, and so does Sonneborn-Berger at the bottom: 2 beat 3 of 1/3, 3 beat 0 of 2/3.
    """
    results = {(0, 1): 1.0, (0, 2): 1.0, (0, 3): 0.0, (1, 2): 1.0, (1, 3): 1.0, (2, 3): 1.0}
    made = rank(4, results, coins=[1, 2, 3, 4])
    assert (made.order, made.top_tie, made.bottom_tie) == ((0, 1, 2, 3), "head_to_head", "head_to_head")


def test_equal_head_to_head_stands_by_the_score_of_those_beaten():
    """Points: 0 and 1 have 2.5 of 4 and drew; 2 has 2; 3 and 4 have 1.5 and 3 beat 4.

    Result x opponent's score: 0 has .5 x .625 + 1 x .5 + 1 x .375 = 1.1875; 1 has .3125 + .375 + .375 = 1.0625.
    """
    pairs = list(combinations(range(5), 2))  # 01 02 03 04 12 13 14 23 24 34
    results = dict(zip(pairs, (0.5, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.5, 0.5, 1.0), strict=True))
    made = rank(5, results, coins=[1, 2, 3, 4, 5])
    assert made.scores == (0.625, 0.625, 0.5, 0.375, 0.375)
    assert (made.order, made.top_tie, made.bottom_tie) == ((0, 1, 2, 3, 4), "sonneborn_berger", "head_to_head")


def test_what_nothing_else_decides_the_higher_coin_does():
    """0 and 1 drew and both beat 2."""
    results = {(0, 1): 0.5, (0, 2): 1.0, (1, 2): 1.0}
    high_one, high_zero = rank(3, results, coins=[1, 2, 0]), rank(3, results, coins=[2, 1, 0])
    assert (high_one.order, high_one.top_tie, high_one.bottom_tie) == ((1, 0, 2), "coin", "")
    assert high_zero.order == (0, 1, 2)


def test_a_missing_pair_costs_nothing_in_a_tie():
    """0 beat 2 and 3, 1 beat only 2, and both have score 1; 2 has 1/3 and 3 has 0.

    The mean score of those beaten is 1/6 for 0 and 1/3 for 1; the sums are equal, which would leave it to the coin.
    """
    results = {(0, 1): None, (0, 2): 1.0, (0, 3): 1.0, (1, 2): 1.0, (1, 3): None, (2, 3): 1.0}
    made = rank(4, results, coins=[9, 0, 0, 0])
    assert (made.order, made.top_tie) == ((1, 0, 2, 3), "sonneborn_berger")


def test_one_that_met_none_of_those_it_ties_with_stands_between_victor_and_vanquished():
    """0, 1 and 2 have 1/2: 0 beat 1, both otherwise even; 2 met neither. 3 beat three and 4 lost to three."""
    results = {(0, 1): 1.0, (0, 3): 0.0, (1, 4): 1.0, (2, 3): 0.0, (2, 4): 1.0, (3, 4): 1.0}
    assert rank(5, results, coins=[0, 9, 1, 0, 0]).order == (3, 0, 2, 1, 4)


def test_one_coin_each_is_wanted():
    with pytest.raises(ValueError, match="2 coins for 3 candidates"):
        rank(3, {}, coins=[1, 2])


def test_cycles_are_counted_among_triads_whose_pairs_all_count():
    circle = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0}
    assert num_cycles(3, circle) == (1, 1)
    assert num_cycles(3, {pair: 1 - result for pair, result in circle.items()}) == (1, 1)
    assert num_cycles(3, {**circle, (0, 2): 1.0}) == (0, 1)
    assert num_cycles(3, {**circle, (0, 2): 0.5}) == (0, 1)
    assert num_cycles(3, {**circle, (0, 2): None}) == (0, 0)
    assert num_cycles(4, {**circle, (0, 3): 1.0, (1, 3): 1.0, (2, 3): None}) == (1, 2)  # 0-1-2 and 0-1-3


def test_bradley_terry_of_two_candidates_solves_its_closed_form():
    """prior (x - 1)(x^2 + 1) = 2 (x + 1): 0.4 x 2 x 10 = 8 = 2 x 4 at x = 3, and 1.2 x 1 x 5 = 6 = 2 x 3 at x = 2."""
    assert bradley_terry(2, {(0, 1): 1.0}, prior=0.4) == pytest.approx((log(3), -log(3)))
    assert bradley_terry(2, {(0, 1): 0.0}, prior=1.2) == pytest.approx((-log(2), log(2)))


def test_bradley_terry_without_results_knows_no_difference():
    assert bradley_terry(3, {(0, 1): None}) == (0.0, 0.0, 0.0)
    assert bradley_terry(0, {}) == ()


def test_after_a_knockout_losing_to_the_champion_costs_less():
    """0 beats 1, 2 beats 3, 0 beats 2. All scores of 1 and 3 are 0; 1 lost to the champion, 3 to the runner-up."""
    strengths = bradley_terry(4, {(0, 1): 1.0, (2, 3): 1.0, (0, 2): 1.0})
    assert sorted(range(4), key=lambda i: -strengths[i]) == [0, 2, 1, 3]
    assert sum(strengths) == pytest.approx(0.0, abs=1e-9)


def test_after_a_round_robin_bradley_terry_orders_as_the_scores_do():
    rng = Random(0)
    for num in range(2, 9):
        results = {pair: rng.choice((0.0, 0.5, 1.0)) for pair in combinations(range(num), 2)}
        scores = [score for score in candidate_scores(num, results) if score is not None]
        strengths = bradley_terry(num, results)
        for i, j in permutations(range(num), 2):
            assert (scores[i] > scores[j]) == (strengths[i] > strengths[j] + 1e-6)


def test_a_prior_that_would_never_converge_is_refused():
    with pytest.raises(ValueError, match="prior = 0 is below"):
        bradley_terry(2, {(0, 1): 1.0}, prior=0.0)


def test_top_and_bottom_become_the_pair():
    chosen = choose(ranking(0.5, 1.0, 0.25, order=(1, 0, 2)), ["a", "b", "c"], min_margin=0.0, max_length_ratio=None)
    assert chosen == Choice(chosen=1, rejected=2, margin=0.75)


@pytest.mark.parametrize(
    ("made", "texts", "rule"),
    [
        (ranking(None, None, order=()), ["a", "a"], "identical_candidates"),
        (ranking(1.0, 0.5, 0.0, order=(0, 1, 2)), ["a", "b", "a"], "identical_candidates"),
        (ranking(None, order=()), ["a"], "unranked"),
        (ranking(None, 1.0, order=(1,)), ["a", "b"], "unranked"),
        (ranking(0.5, 0.5, order=(0, 1)), ["a", "b"], "equal_scores"),
        (ranking(0.6, 0.4, order=(0, 1)), ["a", "b"], "min_margin"),
        (ranking(1.0, 0.0, order=(0, 1)), ["aaaa", "b"], "length_ratio"),
        (ranking(1.0, 0.0, order=(0, 1)), ["a", ""], "length_ratio"),
    ],
)
def test_a_prompt_is_dropped_by_the_first_rule_it_breaks(made, texts, rule):
    assert choose(made, texts, min_margin=0.3, max_length_ratio=3.0) == rule


def test_a_pair_at_the_limits_is_kept():
    """0.7 - 0.4 is 0.29999999999999993 in floats; three characters are three times one."""
    kept = choose(ranking(0.4, 0.7, order=(1, 0)), ["b", "aaa"], min_margin=0.3, max_length_ratio=3.0)
    assert kept == Choice(chosen=1, rejected=0, margin=0.7 - 0.4)


def asked(num: int, winner) -> list[Verdict]:
    """All ordered questions, answered by winner(first, second)."""
    return [verdict(i, j, winner(i, j)) for i, j in permutations(range(num), 2)]


@pytest.mark.parametrize("num", range(2, 9))
def test_relabelling_candidates_permutes_the_outcome_and_never_changes_it(num):
    rng = Random(num)
    for _ in range(50):
        verdicts = asked(num, lambda i, j: rng.choice(("first", "first", "second", "second", None)))
        coins = rng.sample(range(1000), num)
        to = rng.sample(range(num), num)  # candidate i becomes candidate to[i]
        moved = [verdict(to[v.first], to[v.second], v.winner) for v in rng.sample(verdicts, len(verdicts))]
        results, moved_results = pair_results(verdicts), pair_results(moved)
        before = rank(num, results, coins=coins)
        after = rank(num, moved_results, coins=[coins[to.index(i)] for i in range(num)])
        assert after.order == tuple(to[i] for i in before.order)
        assert [after.scores[to[i]] for i in range(num)] == list(before.scores)
        assert (after.top_tie, after.bottom_tie) == (before.top_tie, before.bottom_tie)
        assert num_cycles(num, moved_results) == num_cycles(num, results)


@pytest.mark.parametrize("num", range(2, 9))
def test_a_judge_that_always_says_first_keeps_nothing_whether_or_not_it_always_parses(num):
    rng = Random(num)
    texts = [f"text {i}" for i in range(num)]
    for part_unparsed in (0.0, 0.1):
        for _ in range(50):
            results = pair_results(
                asked(num, lambda i, j, part=part_unparsed: None if rng.random() < part else "first")
            )
            made = rank(num, results, coins=rng.sample(range(1000), num))
            rule = "equal_scores" if len(made.order) > 1 else "unranked"
            assert choose(made, texts, min_margin=0.0, max_length_ratio=None) == rule
            assert part_unparsed or rule == "equal_scores"


@pytest.mark.parametrize("num", range(2, 9))
def test_a_perfect_judge_chooses_the_best_and_rejects_the_worst(num):
    """The best wins all its pairs and the worst none: margin 1."""
    rng = Random(num)
    for _ in range(20):
        quality = rng.sample(range(100), num)
        results = pair_results(asked(num, lambda i, j, q=quality: "first" if q[i] > q[j] else "second"))
        made = rank(num, results, coins=[0] * num)
        best, worst = quality.index(max(quality)), quality.index(min(quality))
        assert choose(made, [str(q) for q in quality], min_margin=1.0, max_length_ratio=None) == Choice(
            chosen=best, rejected=worst, margin=1.0
        )
        assert made.order == tuple(sorted(range(num), key=lambda i: -quality[i]))
        assert num_cycles(num, results)[0] == 0
