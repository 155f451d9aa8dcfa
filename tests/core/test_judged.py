import pickle
from dataclasses import replace
from itertools import permutations
from math import sqrt
from pathlib import Path
from random import Random

import pytest

from moaa_ray.core.candidates import CANDIDATES
from moaa_ray.core.judge_prompts import FALLBACK_CRITERIA
from moaa_ray.core.judge_stats import JudgedPrompt, judge_stats
from moaa_ray.core.judged import Assessment
from moaa_ray.core.ranking import Choice, Verdict, choose
from moaa_ray.types import Completion, Failure
from tests.core.judges import (
    again,
    always_a,
    better,
    candidates,
    judge_row,
    jury,
    kind_of,
    line_of,
    llm,
    mixture,
    script,
    shown,
)
from tests.core.rows import said

FIVE = ("a", "bb", "ccc", "dddd", "eeeee")
COMPLETIONS = Path(__file__).parents[3] / "shared" / "data" / "alpaca_eval_completions.parquet"


def chosen(line, judged, texts=FIVE):
    return choose(line.reading.ranking(judged.row), texts, min_margin=0.0, max_length_ratio=None)


def silent_on(*orders: tuple[str, str]):
    """A judge that says nothing in form on these ordered pairs of texts."""

    def answer(request):
        is_silent = kind_of(request) == "decide" and (shown(request).a, shown(request).b) in orders
        return said("I cannot say.") if is_silent else better(len)(request)

    return answer


@pytest.mark.parametrize(
    ("judge", "texts", "rate"),
    [
        (llm(), "ab", 1 / 2),
        (mixture(), "abc", 27 / 32),
        (llm(), "abcde", 0.9926),
        (llm(), "aabbb", 1 / 2),
        (jury("gemma", "llama", "qwen"), "ab", 11 / 16),
        (llm(schedule="knockout"), "abc", 27 / 32),
        (llm(schedule="knockout"), "abcd", 15 / 16),
    ],
)
def test_a_judge_of_coins_keeps_what_its_kind_and_the_different_candidates_let_it_keep(judge, texts, rate):
    """Per pair a decider has 0, 1/2, 1 with 1/4, 1/2, 1/4; equal scores are dropped.

    Two candidates: dropped where the orders disagree, 1/2; where a jury of three is balanced, C(6, 3) / 64 = 5/16.
    Three: all pairs tie (1/8), or one of two circles (2/64); a knockout of three has all pairs too. Five: by a
    convolution over the pairs. Knockout of four: two matches, then the winners and the losers meet. All are equal only
    where all four tie, 1/16: a decided first match has no circle to close.
    """
    line, rng = line_of(judge, len(texts)), Random(1)
    kept = []
    for number in range(500):
        ranking = line.reading.coin_ranking(candidates(*texts, row_id=str(number)), rng)
        kept.append(isinstance(choose(ranking, texts, min_margin=0.0, max_length_ratio=None), Choice))
    assert sum(kept) / 500 == pytest.approx(rate, abs=4 * sqrt(rate * (1 - rate) / 500))


@pytest.mark.parametrize("make", [mixture, llm, lambda: jury("gemma", "llama")])
def test_a_perfect_judge_chooses_the_best_and_rejects_the_worst_however_they_are_numbered(make):
    line = line_of(make())
    for texts in Random(0).sample(list(permutations(FIVE)), 12):
        judged = judge_row(line, candidates(*texts), better(len))
        choice = chosen(line, judged, texts)
        assert isinstance(choice, Choice)
        assert (texts[choice.chosen], texts[choice.rejected], choice.margin) == ("eeeee", "a", 1.0)
        ranking = line.reading.ranking(judged.row)
        assert [texts[i] for i in ranking.order] == list(reversed(FIVE))
        assert sorted(ranking.scores) == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("make", [mixture, llm, lambda: jury("gemma", "llama", "qwen")])
def test_a_judge_that_always_says_a_gives_no_pair(make):
    line = line_of(make())
    judged = judge_row(line, candidates(*FIVE), script(always_a))
    assert judged.row.status == "ok"
    assert line.reading.ranking(judged.row).scores == (0.5,) * 5
    assert chosen(line, judged) == "equal_scores"


def test_a_judge_that_always_says_a_gives_no_pair_also_where_a_tenth_of_its_verdicts_do_not_parse():
    line = line_of(llm())
    num_ok = 0
    for number in range(100):
        rng = Random(number)
        judged = judge_row(
            line,
            candidates(*FIVE, row_id=f"r{number}"),
            script(lambda request, rng=rng: "Hm." if rng.random() < 0.1 else "[[A]]"),
        )
        num_ok += judged.row.status == "ok"
        assert chosen(line, judged) in ("equal_scores", "unranked")
    assert 50 < num_ok < 90  # at most 2 of 10 pairs missing, each missing by 0.19: 70 %


def test_two_of_ten_pairs_may_be_missing():
    line = line_of(mixture())
    judged = judge_row(line, candidates(*FIVE), silent_on(("a", "bb"), ("bb", "a"), ("eeeee", "dddd")))
    assert (judged.row.status, judged.row.reason) == ("ok", "")
    results = line.reading.results(judged.row)
    assert [pair for pair, result in results.items() if result is None] == [(0, 1), (3, 4)]
    assert line.reading.ranking(judged.row).scores == (0.0, 0.0, 0.5, 1.0, 1.0)  # "bb" did not beat "a"


def test_a_row_with_three_of_ten_pairs_missing_fails_and_says_how_many_and_why():
    def answer(request):
        told = shown(request)
        if kind_of(request) == "decide" and told.a == "a" and told.b in ("bb", "ccc"):
            return Failure(reason="timeout", detail="no answer within 60 s")
        return silent_on(("eeeee", "dddd"))(request)

    judged = judge_row(line_of(mixture()), candidates(*FIVE), answer)
    assert (judged.row.status, judged.row.reason) == (
        "failed",
        "judge: missing_verdicts: 3 of 10 pairs without a verdict in both orders (timeout 2, no_verdict 1: no answer "
        "within 60 s)",
    )


def test_a_judge_that_never_answers_in_form_is_told_apart_from_one_that_fails():
    judged = judge_row(line_of(llm()), candidates(*FIVE), script(lambda request: "Both are good."))
    assert judged.row.reason == (
        "judge: missing_verdicts: 10 of 10 pairs without a verdict in both orders (no_verdict 20: answers without "
        "[[A]] or [[B]]; raise max_tokens if they are cut off, or change judges)"
    )


@pytest.mark.parametrize(("part", "status"), [(0.0, "failed"), (0.09, "failed"), (0.1, "ok"), (0.2, "ok")])
def test_how_many_pairs_may_be_missing_is_the_recipes_word(part, status):
    line = line_of(llm(max_missing_fraction=part))
    assert judge_row(line, candidates(*FIVE), silent_on(("a", "bb"))).row.status == status


def test_the_only_pair_of_two_candidates_may_not_be_missing():
    assert judge_row(line_of(llm(), 2), candidates("a", "bb"), silent_on(("a", "bb"))).row.status == "failed"


def test_a_failed_row_is_asked_only_for_what_failed_or_did_not_parse():
    """Not in form for two orders and late for one: these three are decided again, all else stays to the letter."""
    line = line_of(mixture())

    def answer(request):
        if kind_of(request) == "decide" and (shown(request).a, shown(request).b) == ("ccc", "bb"):
            return Failure(reason="timeout")
        return silent_on(("a", "bb"), ("eeeee", "dddd"))(request)

    failed = judge_row(line, candidates(*FIVE), answer).row
    assert failed.status == "failed"
    done = again(line, failed, better(len))
    assert {name: len(requests) for name, requests in done.requests.items() if requests} == {"decide.qwen": 3}
    asked = {(shown(request).a, shown(request).b) for request in done.requests["decide.qwen"]}
    assert asked == {("a", "bb"), ("eeeee", "dddd"), ("ccc", "bb")}
    calm = judge_row(line, candidates(*FIVE), better(len))
    assert done.row == calm.row
    assert [r for r in calm.requests["decide.qwen"] if (shown(r).a, shown(r).b) in asked] == done.requests[
        "decide.qwen"
    ]


def test_a_second_run_that_fails_too_can_be_followed_by_a_third():
    line = line_of(mixture())
    failed = judge_row(line, candidates(*FIVE), script(lambda request: "No.")).row
    still = again(line, failed, silent_on(*permutations(FIVE[:4], 2))).row
    assert still.reason.startswith("judge: missing_verdicts: 6 of 10 pairs")
    done = again(line, still, better(len))
    assert len(done.all_requests) == 12
    assert done.row == judge_row(line, candidates(*FIVE), better(len)).row


def test_assessments_that_failed_are_made_anew_only_for_orders_without_a_verdict():
    """gemma fails on everything with "a" as A; llama and qwen too where "eeeee" is B: one order is not decided.

    Of the four orders with "a" first gemma is asked again for that one alone, with the two others: what stood before a
    verdict that is kept must not change. Two more orders of other pairs do not parse, so that the row fails.
    """
    line = line_of(mixture())

    def answer(request):
        told = shown(request)
        if kind_of(request) == "assess" and told.a == "a" and ("gemma" in request.id or told.b == "eeeee"):
            return Failure(reason="timeout")
        return silent_on(("bb", "ccc"), ("dddd", "ccc"))(request)

    failed = judge_row(line, candidates(*FIVE), answer).row
    assert failed.reason.startswith("judge: missing_verdicts: 3 of 10 pairs")
    done = again(line, failed, better(len))
    assert {name: len(requests) for name, requests in done.requests.items()} == {
        "criteria1": 0,
        "criteria2": 0,
        "assess.gemma": 1,
        "assess.llama": 1,
        "assess.qwen": 1,
        "decide.qwen": 3,
    }
    assert done.row.status == "ok"
    told = {(one.first, one.second): len(one.assessments) for one in line.reading.judgments(done.row)}
    assert [told[0, other] for other in (1, 2, 3, 4)] == [2, 2, 2, 3]


def test_criteria_that_failed_stay_the_fixed_ones_once_something_was_judged_by_them():
    """Otherwise the verdicts that are kept and those that are asked for again would go by different criteria."""
    line = line_of(mixture())

    def answer(request):
        if kind_of(request) == "criteria":
            return Failure(reason="timeout")
        return silent_on(("a", "bb"), ("a", "ccc"), ("a", "dddd"))(request)

    failed = judge_row(line, candidates(*FIVE), answer).row
    done = again(line, failed, better(len))
    assert {name: len(requests) for name, requests in done.requests.items() if requests} == {"decide.qwen": 3}
    assert {shown(request).criteria for request in done.all_requests} == {FALLBACK_CRITERIA}
    assert {one.criteria for one in line.reading.judgments(done.row)} == {FALLBACK_CRITERIA}


def test_where_nothing_was_judged_yet_criteria_are_asked_for_again():
    line = line_of(mixture())
    failed = judge_row(line, candidates(*FIVE), lambda request: Failure(reason="timeout", detail="60 s")).row
    assert failed.status == "failed"
    done = again(line, failed, better(len))
    assert [len(requests) for requests in done.requests.values()] == [10, 0, 20, 20, 20, 20]
    assert done.row == judge_row(line, candidates(*FIVE), better(len)).row


def test_opening_a_row_again_leaves_its_candidates_as_they_are():
    broken = Failure(reason="context_length", retryable=False)
    given = candidates("a", broken, "bb")
    for judge in (mixture(), llm(schedule="knockout")):
        line = line_of(judge, 3)
        failed = judge_row(line, given, script(lambda request: "No.")).row
        assert line.work("judge").reopen(failed).answers[CANDIDATES] == given.answers[CANDIDATES]


@pytest.mark.parametrize("status", ["ok", "open", "dropped", "quarantined"])
def test_a_row_that_did_not_fail_is_not_opened_again(status):
    row = replace(judge_row(line_of(llm()), candidates(*FIVE), script(always_a)).row, status=status)
    assert line_of(llm()).reading.reopen(row) == row


def test_a_juror_without_a_verdict_is_asked_again_and_the_others_are_not():
    """llama never decides; gemma's verdicts are enough, but for one order that is late."""
    line = line_of(jury("gemma", "llama"), 3)

    def answer(request):
        if "llama" in request.id:
            return said("Hm.")
        is_late = (shown(request).a, shown(request).b) == ("a", "bb")
        return Failure(reason="timeout") if is_late else better(len)(request)

    failed = judge_row(line, candidates("a", "bb", "ccc"), answer).row
    assert failed.reason.startswith(
        "judge: missing_verdicts: 1 of 3 pairs without a verdict in both orders (no_verdict 6,"
    )
    assert {name: len(requests) for name, requests in again(line, failed, better(len)).requests.items()} == {
        "decide.gemma": 1,
        "decide.llama": 6,
    }


def test_equal_candidates_are_judged_once_and_share_the_score_and_a_failed_one_has_none():
    """Three texts: the best wins both pairs, the middle one of them, and "a" none."""
    line = line_of(mixture(), 6)
    given = candidates("bb", "a", Failure(reason="empty", retryable=False), "a", "ccc", "bb")
    judged = judge_row(line, given, better(len))
    assert [len(requests) for requests in judged.requests.values()] == [3, 0, 6, 6, 6, 6]
    ranking = line.reading.ranking(judged.row)
    assert ranking.scores == (0.5, 0.0, None, 0.0, 1.0, 0.5)
    assert ranking.order == (4, 0, 1)
    choice = chosen(line, judged, ["bb", "a", "", "a", "ccc", "bb"])
    assert choice == Choice(chosen=4, rejected=1, margin=1.0)


def test_candidates_that_are_all_the_same_are_dropped_without_asking():
    for judge in (mixture(), llm(schedule="knockout")):
        judged = judge_row(line_of(judge), candidates("a", "a", "a", "a", "a"), better(len))
        assert judged.all_requests == []
        assert (judged.row.status, judged.row.reason) == ("dropped", "identical_candidates")


def test_a_judgment_tells_everything_that_led_to_it():
    line = line_of(mixture(), 2)
    judged = judge_row(line, candidates("a", "bb"), silent_on(("bb", "a")), close=False)
    first, second = line.reading.judgments(judged.row)
    assert (first.first, first.second, first.judge) == (0, 1, "decide.qwen")
    assert (first.verdict, first.text, first.error) == ("second", "[[B]]", "")
    assert (first.criteria, first.criteria_chosen) == (("Accuracy", "Depth", "Clarity"), True)
    assert first.assessments == tuple(
        Assessment(judge=f"assess.{model}", text=f"assess.{model}: A is a, B is bb. [[A]]")
        for model in ("gemma", "llama", "qwen")
    )
    assert (second.first, second.second, second.verdict) == (1, 0, "")
    assert (second.text, second.error) == ("I cannot say.", "no_verdict")


def test_a_row_that_is_not_open_is_not_closed_again():
    dropped = replace(candidates("a", "a"), status="dropped", reason="why")
    assert line_of(llm()).reading.close(dropped) == dropped


def prompt_of(line, judged) -> JudgedPrompt:
    ranking = line.reading.ranking(judged.row)
    texts = [answer.text for answer in judged.row.answers[CANDIDATES] if isinstance(answer, Completion)]
    told = line.reading.judgments(judged.row)
    return JudgedPrompt(
        verdicts=tuple(Verdict(first=one.first, second=one.second, winner=one.verdict or None) for one in told),
        scores=ranking.scores,
        lengths=tuple(map(len, texts)),
        top_tie=ranking.top_tie,
        bottom_tie=ranking.bottom_tie,
        is_kept=isinstance(choose(ranking, texts, min_margin=0.0, max_length_ratio=None), Choice),
    )


def test_a_judge_of_known_accuracy_and_bias_is_found_out():
    """It says nothing with f = 0.05; else [[A]] with b = 0.2; else what is right with p = 0.8.

    Said first: h = b + (1 - b) p = 0.84 where the better one is first and l = b + (1 - b)(1 - p) = 0.36 else, 0.6 in
    the mean. Both orders say first with h l = 0.3024 and second with (1 - h)(1 - l) = 0.1024: 0.4048 disagree. A pair
    goes to the better one with h (1 - l) = 0.5376, which makes 0.5376 + 0.4048 / 2 = 0.74 in the mean, of variance
    0.5376 + 0.4048 / 4 - 0.74^2 = 0.0912. 200 rows x 10 pairs, each order parsed with 0.95.
    """
    line, rows = line_of(llm()), []
    for number in range(200):

        def decide(request) -> str:
            rng = Random(request.id)
            if rng.random() < 0.05:
                return "I cannot say."
            if rng.random() < 0.2:
                return "[[A]]"
            is_right, is_a_better = rng.random() < 0.8, len(shown(request).a) > len(shown(request).b)
            return "[[A]]" if is_right == is_a_better else "[[B]]"

        texts = Random(number).sample(FIVE, 5)
        rows.append(judge_row(line, candidates(*texts, row_id=f"r{number}"), script(decide)))
    stats = judge_stats([prompt_of(line, judged) for judged in rows], seed=0, num_resamples=0)

    def check(estimate, value: float, variance: float) -> None:
        assert abs(estimate.value - value) < 4 * sqrt(variance / estimate.count)

    check(stats.parse_failure_rate, 0.05, 0.05 * 0.95)
    check(stats.first_rate, 0.6, (0.84 * 0.16 + 0.36 * 0.64) / 2)
    check(stats.disagreement_rate, 0.4048, 0.4048 * 0.5952)
    check(stats.both_first_rate, 0.3024, 0.3024 * 0.6976)
    check(stats.both_second_rate, 0.1024, 0.1024 * 0.8976)
    assert stats.parse_failure_rate.count == 4000
    assert abs(stats.disagreement_rate.count - 2000 * 0.95**2) < 4 * sqrt(2000 * 0.9025 * 0.0975)
    for_the_better = [
        result if len(texts[i]) > len(texts[j]) else 1 - result
        for judged in rows
        for texts in [[answer.text for answer in judged.row.answers[CANDIDATES]]]
        for (i, j), result in line.reading.results(judged.row).items()
        if result is not None
    ]
    mean = sum(for_the_better) / len(for_the_better)
    assert abs(mean - 0.74) < 4 * sqrt(0.0912 / len(for_the_better))


@pytest.mark.skipif(not COMPLETIONS.exists(), reason=f"needs {COMPLETIONS}")
def test_recorded_completions_judged_by_their_length_are_ranked_by_their_length():
    """Seven published models on 100 prompts; a score is the part of the other texts that is shorter, equals half."""
    import pyarrow.parquet as pq

    by_prompt: dict[str, list[str]] = {}
    for record in pq.read_table(COMPLETIONS, columns=["id", "completion"]).to_pylist():
        by_prompt.setdefault(record["id"], []).append(record["completion"].strip())

    def longer(request):
        told = shown(request)
        return said("[[A]]" if len(told.a) >= len(told.b) else "[[B]]")  # of equals the first, so their orders disagree

    line = line_of(llm(), 7)
    assert len(by_prompt) == 805
    for row_id, texts in list(by_prompt.items())[::8]:
        judged = judge_row(line, candidates(*texts, row_id=row_id), longer)
        ranking = line.reading.ranking(judged.row)
        distinct = [len(text) for text in set(texts)]
        shorter = [sum(other < len(text) for other in distinct) for text in texts]
        equal = [distinct.count(len(text)) - 1 for text in texts]
        expected = [(less + same / 2) / (len(distinct) - 1) for less, same in zip(shorter, equal, strict=True)]
        assert ranking.scores == pytest.approx(expected)
        lengths = [len(texts[i]) for i in ranking.order]
        assert lengths == sorted(lengths, reverse=True)


def test_how_answers_are_read_can_be_sent_to_a_worker():
    for judge in (mixture(), jury("gemma", "llama"), llm(schedule="knockout")):
        reading = line_of(judge).reading
        assert pickle.loads(pickle.dumps(reading)) == reading
