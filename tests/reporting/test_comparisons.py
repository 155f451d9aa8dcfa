"""Judgments read for people. Rows are written out, and what is expected is counted by hand."""

from itertools import product

import pytest

from moaa_ray.core import judge_rounds
from moaa_ray.reporting.cards import candidates_of, matrix_of
from moaa_ray.reporting.comparisons import Tally, majority, meetings, results_of, tally, why_dropped, why_pair
from tests.reporting.runs import candidate, judged, judgment, lower_wins

TEXTS = ["zero", "one", "two"]


def always_first(first: int, second: int) -> str:
    return "first"


def test_both_orders_of_a_pair_are_one_meeting_with_its_result():
    met = meetings(judged("r", TEXTS, lower_wins)["judgments"])
    assert [(each.pair, each.result) for each in met] == [((0, 1), 1.0), ((0, 2), 1.0), ((1, 2), 1.0)]
    assert [(q.first, q.winner, q.letter) for q in met[0].questions] == [(0, 0, "A"), (1, 0, "B")]
    assert tally(results_of(met), 1) == Tally(won=1, lost=1, tied=0, missing=0)


def test_orders_that_disagree_are_a_tie_and_an_order_without_a_verdict_is_missing():
    met = meetings([judgment(0, 1, "first"), judgment(1, 0, "first"), judgment(0, 2, "first"), judgment(2, 0, "")])
    assert [each.result for each in met] == [0.5, None]
    assert tally(results_of(met), 0) == Tally(won=0, lost=0, tied=1, missing=1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_jury_is_read_as_the_judge_stage_reads_it(size):
    for votes in product([0.0, 0.5, 1.0, None], repeat=size):
        assert majority(votes) == judge_rounds._majority(list(votes)), votes


def test_rounds_of_a_knockout_stand_apart_and_the_later_one_counts():
    first = [judgment(0, 1, "first", judge="decide.big.r1"), judgment(1, 0, "second", judge="decide.big.r1")]
    again = [judgment(0, 1, "second", judge="decide.big.r2"), judgment(1, 0, "first", judge="decide.big.r2")]
    met = meetings([*first, *again])
    assert [(each.round, each.result) for each in met] == [(1, 1.0), (2, 0.0)]
    assert results_of(met) == {(0, 1): 0.0}
    assert {q.judge for each in met for q in each.questions} == {"big"}


def test_the_matrix_shows_whom_the_judge_named_in_both_orders():
    met = meetings(
        [judgment(0, 1, "first"), judgment(1, 0, "second"), judgment(0, 2, "first"), judgment(2, 0, "first")]
    )
    cells = matrix_of(met, 3)
    assert [[cell.kind for cell in row] for row in cells] == [
        ["self", "win", "tie"], ["loss", "self", "never"], ["tie", "never", "self"]
    ]  # fmt: skip
    assert (cells[0][1].orders, cells[1][0].orders) == ("0 | 0", "0 | 0")
    assert (cells[0][2].orders, cells[2][0].orders) == ("0 | 2", "2 | 0")
    assert cells[0][2].told == (
        "0 against 2: with 0 shown first the verdict is 0, with 2 shown first 2; both times the one shown first."
    )
    assert matrix_of([], 3) == []


def test_one_sentence_says_why_the_chosen_won():
    record = judged("r", TEXTS, lower_wins)
    assert why_pair(record, 0, 2) == (
        "Candidate 0 won 2 of 2, candidate 2 won 0 of 2; face to face 0 won in both orders."
    )


def test_the_sentence_names_what_broke_a_tie():
    record = {**judged("r", TEXTS, always_first), "top_tie": "head_to_head", "bottom_tie": "coin"}
    assert why_pair(record, 0, 2) == (
        "Candidate 0 won 0 of 2 with 2 tied, candidate 2 won 0 of 2 with 2 tied; face to face the two orders "
        "disagreed; first place by the pairs among equal scores; last place by a coin, as everything else was equal."
    )


def test_without_comparisons_the_sentence_is_about_scores():
    record = {**judged("r", TEXTS, lower_wins), "judgments": [], "scores": [3.25, -1.0, 2.0], "ranking": [0, 2, 1]}
    assert (
        why_pair(record, 0, 1) == "Of 3 scores candidate 0's is the highest (3.25) and candidate 1's the lowest (-1)."
    )


def test_a_dropped_prompt_has_its_rule_in_words_and_its_two_ends():
    record = judged("r", TEXTS, lower_wins)
    assert why_dropped("min_margin", record) == (
        "No pair: the best and the worst score are too close (min_margin); best is candidate 0 with 1, worst "
        "candidate 2 with 0."
    )
    assert why_dropped("filter: refusal") == "No pair: filter: refusal."


def test_a_candidate_that_repeats_another_or_failed_has_no_place_of_its_own():
    record = judged("r", ["same", "other", "same"], lower_wins)
    record["candidates"].append(candidate("", error="timeout"))
    record |= {"scores": [1.0, 0.0, 1.0, None], "ranking": [0, 1]}
    found = candidates_of(record, {0: "chosen", 1: "rejected"})
    assert [one.place for one in found] == [1, 2, None, None]
    assert [one.same_as for one in found] == [None, None, 0, None]
    assert [one.role for one in found] == ["chosen", "rejected", "", ""]
    assert found[3].error == "timeout"
