from itertools import permutations
from random import Random

import pytest

from moaa_ray.core.judge_rounds import Round, num_rounds
from moaa_ray.core.ranking import Choice, choose
from moaa_ray.types import Failure, Request
from tests.core.judges import (
    again,
    always_a,
    better,
    candidates,
    judge_row,
    jury,
    line_of,
    llm,
    pass_of,
    script,
    shown,
)
from tests.core.rows import said

ROUNDS = {2: 1, 3: 2, 4: 2, 5: 3, 6: 3, 7: 3, 8: 3}
MATCHES = {2: 1, 3: 3, 4: 4, 5: 6, 6: 7, 7: 9, 8: 10}
"""n - 1 for the winner and n - 1 for the last place, of which the n // 2 of the first round serve both."""


def knockout(num: int):
    return line_of(llm(schedule="knockout"), num)


def by_number(text: str) -> float:
    return float(text)


def numbers(num: int, order=None):
    return candidates(*(str(i) for i in order or range(num)))


def met(judged) -> list[list[tuple[str, str]]]:
    """Who met whom, round by round, by text."""
    return [
        sorted({tuple(sorted((shown(request).a, shown(request).b))) for request in requests})
        for requests in judged.requests.values()
    ]


@pytest.mark.parametrize("num", range(2, 9))
def test_a_knockout_has_one_match_less_than_candidates_for_each_end(num):
    assert MATCHES[num] == 2 * (num - 1) - num // 2
    assert num_rounds(num) == ROUNDS[num] == len(knockout(num).passes)
    rng = Random(num)
    for _ in range(10):
        judged = judge_row(knockout(num), numbers(num), script(lambda request: rng.choice(["[[A]]", "[[B]]"])))
        matches = [pair for pairs in met(judged) for pair in pairs]
        assert len(matches) == len(set(matches)) == MATCHES[num]
        assert len(judged.all_requests) == 2 * MATCHES[num]
        assert len(met(judged)[0]) == num // 2


@pytest.mark.parametrize("num", range(2, 9))
def test_a_knockout_by_a_perfect_judge_ends_with_the_best_and_the_worst(num):
    line = knockout(num)
    rng = Random(num)
    orders = list(permutations(range(num))) if num < 5 else [rng.sample(range(num), num) for _ in range(40)]
    for order in orders:
        judged = judge_row(line, numbers(num, order), better(by_number))
        ranking = line.reading.ranking(judged.row)
        choice = choose(ranking, [str(i) for i in order], min_margin=0.0, max_length_ratio=None)
        assert isinstance(choice, Choice)
        assert (order[choice.chosen], order[choice.rejected]) == (num - 1, 0)
        assert (ranking.top_tie, ranking.bottom_tie) == ("", "")


def test_winners_meet_winners_and_losers_losers_and_who_was_left_over_plays_next():
    """Five: two matches and one left over; then one match in each bracket with the one left over; then the finals."""
    for row_id in ("r1", "r2", "r3", "r4"):
        given = candidates("0", "1", "2", "3", "4", row_id=row_id)
        first, second, third = met(judge_row(knockout(5), given, better(by_number)))
        (low, high), (low2, high2) = first
        (left_over,) = set("01234") - {low, high, low2, high2}
        assert len(second) == len(third) == 2
        assert all(left_over in pair for pair in second)
        up, down = sorted(second, key=lambda pair: set(pair) <= {high, high2, left_over}, reverse=True)
        assert set(up) <= {high, high2, left_over}
        assert set(down) <= {low, low2, left_over}
        assert set(third[0]) | set(third[1]) == {
            max(up),
            ({high, high2} - set(up)).pop(),
            min(down),
            ({low, low2} - set(down)).pop(),
        }


def test_who_meets_whom_first_is_drawn_for_every_row_anew():
    firsts = {str(met(judge_row(knockout(8), candidates(*"01234567", row_id=f"r{i}"), always))[0]) for i in range(10)}
    assert len(firsts) == 10


def always(request: Request):
    return said(always_a(request))


def test_a_judge_that_always_says_a_gives_equal_scores_in_a_knockout_too():
    for num in range(2, 9):
        line = knockout(num)
        judged = judge_row(line, numbers(num), always)
        ranking = line.reading.ranking(judged.row)
        assert set(ranking.scores) == {0.5}
        assert choose(ranking, [str(i) for i in range(num)], min_margin=0.0, max_length_ratio=None) == "equal_scores"
        assert len(judged.all_requests) == 2 * MATCHES[num]


def test_fewer_candidates_than_the_line_has_rounds_for_are_judged_in_the_first_of_them():
    line = knockout(8)
    judged = judge_row(line, candidates("1", "2", "1", Failure(reason="empty")), better(by_number))
    assert [len(requests) for requests in judged.requests.values()] == [2, 0, 0]
    assert judged.row.status == "ok"
    assert line.reading.results(judged.row) == {(0, 1): 0.0}


def test_later_rounds_hang_on_the_verdicts_of_earlier_ones_alone():
    """What is answered in the last round changes nothing that is asked; what is answered in the first one does."""
    line = knockout(8)

    def turned(wrong_round: str):
        def decide(request) -> str:
            told = shown(request)
            is_a = by_number(told.a) > by_number(told.b)
            return "[[A]]" if is_a != pass_of(request).endswith(wrong_round) else "[[B]]"

        return judge_row(line, numbers(8), script(decide))

    right, last_wrong, first_wrong = turned(".none"), turned(".r3"), turned(".r1")
    assert last_wrong.requests == right.requests
    assert met(first_wrong)[0] == met(right)[0]
    assert set(met(first_wrong)[1]) == set(met(right)[1])  # all winners now lose, so both brackets change places
    assert met(first_wrong)[2] != met(right)[2]


def test_a_round_that_is_asked_again_forgets_the_rounds_after_it():
    """Rounds one and two have verdicts for all but two of eight matches; the second run asks for them and goes on."""
    line = knockout(8)
    silent = set(met(judge_row(line, numbers(8), better(by_number)))[0][:2])

    def half_silent(request):
        told = shown(request)
        is_silent = tuple(sorted((told.a, told.b))) in silent or pass_of(request).endswith(".r3")
        return Failure(reason="timeout") if is_silent else better(by_number)(request)

    failed = judge_row(line, numbers(8), half_silent).row
    assert failed.status == "failed"
    assert failed.reason.startswith("judge: missing_verdicts: 4 of 10 pairs")
    opened = line.work("judge").reopen(failed)
    assert set(opened.answers) == {"candidates", "decide.qwen.r1"}
    done = again(line, failed, better(by_number))
    assert [len(requests) for requests in done.requests.values()] == [4, 8, 4]
    assert done.row == judge_row(line, numbers(8), better(by_number)).row


def test_a_round_with_all_its_verdicts_stays_and_only_the_one_after_it_is_asked_again():
    line = knockout(8)

    def late(request):
        return Failure(reason="timeout") if pass_of(request).endswith(".r2") else better(by_number)(request)

    failed = judge_row(line, numbers(8), late).row
    done = again(line, failed, better(by_number))
    assert [len(requests) for requests in done.requests.values()] == [0, 8, 4]
    assert done.row == judge_row(line, numbers(8), better(by_number)).row


def verdicts(**by_member: tuple[str, str]):
    """Jurors by what they say of 0 as answer A and of 1 as answer A."""

    def answer(request):
        said_of_0, said_of_1 = by_member[pass_of(request).removeprefix("decide.")]
        return said(f"[[{said_of_0 if shown(request).a == '0' else said_of_1}]]")

    return answer


@pytest.mark.parametrize(
    ("members", "result"),
    [
        ({"x": "AB", "y": "AB", "z": "BA"}, 1.0),
        ({"x": "BA", "y": "AB", "z": "BA"}, 0.0),
        ({"x": "AB", "y": "BA"}, 0.5),
        ({"x": "AB", "y": "AA"}, 1.0),  # y is for whoever is shown first, and abstains
        ({"x": "BA", "y": "BB", "z": "AA"}, 0.0),
        ({"x": "AA", "y": "BB", "z": "AA"}, 0.5),
        ({"x": "AB", "y": "?A"}, 1.0),  # one order of y does not parse
        ({"x": "A?", "y": "?A"}, None),
        ({"x": "AB", "y": "BA", "z": "??"}, 0.5),
    ],
)
def test_a_jury_goes_by_the_majority_of_those_whose_orders_agree(members, result):
    line = line_of(jury(*members), 2)
    judged = judge_row(line, candidates("0", "1"), verdicts(**members))
    assert line.reading.results(judged.row) == {(0, 1): result}
    assert judged.row.status == ("failed" if result is None else "ok")


def test_the_matches_of_a_knockout_cost_no_more_than_its_rounds():
    """A jury of three over 64 candidates: brackets that were worked out anew at every look would take hours here."""
    members = {"x": "AB", "y": "AB", "z": "AB"}

    def answer(request):
        told = shown(request)
        return said("[[A]]" if by_number(told.a) > by_number(told.b) else "[[B]]")

    line = line_of(jury(*members, schedule="knockout"), 64)
    judged = judge_row(line, numbers(64), answer)
    assert len(judged.all_requests) == 3 * 2 * (2 * 63 - 32)
    ranking = line.reading.ranking(judged.row)
    assert (ranking.order[0], ranking.order[-1]) == (63, 0)


def test_a_round_names_what_it_hangs_on():
    first = Round(run_seed=0, criteria=("c",), assessments=("a",), deciders=("d", "e"), is_knockout=True)
    second = Round(run_seed=0, criteria=("c2",), deciders=("d2",), is_knockout=True, earlier=first)
    third = Round(run_seed=0, deciders=("d3",), is_knockout=True, earlier=second)
    assert (first.settled_by, first.reads, first.passes) == ((), ("c",), ("c", "a", "d", "e"))
    assert (second.settled_by, second.reads) == (("d", "e"), ("d", "e", "c2"))
    assert third.settled_by == ("d", "e", "d2")
