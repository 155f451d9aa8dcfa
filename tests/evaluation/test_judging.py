"""What judges are asked of each benchmark, what is read out of their replies, and what becomes of the rows."""

from dataclasses import replace

import pytest

from moaa_ray.core.candidates import forget_failures
from moaa_ray.core.passes import Room, StageWork
from moaa_ray.evaluation.judging import INPUTS, REPEAT, VERDICT, close_judged, judge_passes, readings
from moaa_ray.evaluation.protocols import (
    BASELINE,
    MODEL,
    REFERENCES,
    digest_of_judging,
    protocol_of,
)
from moaa_ray.settings.evaluation import Benchmark, EvaluateConfig
from moaa_ray.types import Failure, Message, Row
from tests.core.rows import UNLIMITED, count_words, run_pass, said

SECTION = {"questions": "q", "judge": "j", "baseline": "b"}
CONFIG = EvaluateConfig.model_validate(
    {"alpaca_eval": SECTION, "arena_hard": SECTION, "mt_bench": {"questions": "q", "judge": "j"}}
)
PROTOCOLS = {name: protocol_of(name, CONFIG, run_seed=7) for name in CONFIG.benchmarks}


def judged_row(benchmark: Benchmark, *texts: str, baseline: str = "theirs", source: str = "") -> Row:
    turns = ("First?", "Second?")[: len(texts)]
    columns = {MODEL: texts, BASELINE: () if benchmark == "mt_bench" else (baseline,), REFERENCES: ()}
    return Row(
        id="m/q",
        source=source or benchmark,
        messages=tuple(Message(role="user", content=turn) for turn in turns),
        answers={name: tuple(map(said, given)) for name, given in columns.items()},
    )


def judge(row: Row, reply, again=lambda request: said("still nothing"), room=UNLIMITED) -> tuple[Row, list]:
    """The closed row, and every request that was made of it."""
    asked = []

    def answered(request, say):
        asked.append(request)
        return say(request)

    first, second = judge_passes("j", PROTOCOLS, run_seed=7)
    row = run_pass(first, row, lambda request: answered(request, reply), room)
    row = run_pass(second, row, lambda request: answered(request, again), room)
    return close_judged(row), asked


def first_token(**logprobs: float):
    return lambda request: said("x", first_logprobs=tuple(logprobs.items()))


def test_alpaca_eval_asks_once_for_one_token_and_its_logprobs_and_weighs_the_two_labels():
    """p(A) = 0.6 and p(B) = 0.2: the one shown as A has 0.6 / 0.8 = 0.75."""
    row, (request,) = judge(judged_row("alpaca_eval", "ours"), first_token(A=-0.510826, B=-1.609438))
    assert (request.sampling.max_tokens, request.sampling.logprobs, request.sampling.temperature) == (1, 20, 0.0)
    ((reading, _),) = readings(PROTOCOLS["alpaca_eval"], row)
    text = request.messages[-1]["content"]
    assert reading.is_model_first == (text.index("ours") < text.index("theirs"))
    assert reading.value == pytest.approx(0.75 if reading.is_model_first else 0.25)
    assert row.status == "ok"


def test_a_judge_without_logprobs_fails_the_row_and_says_what_to_set():
    row, _ = judge(judged_row("alpaca_eval", "ours"), lambda request: said("A"))
    assert row.status == "failed"
    assert "no_logprobs" in row.reason
    assert "set evaluate.alpaca_eval.preference=verdict" in row.reason
    assert judge_passes("j", PROTOCOLS, run_seed=7)[0].is_open(forget_failures(row))


def test_a_first_token_of_white_space_is_a_reply_as_its_logprobs_count():
    row, _ = judge(judged_row("alpaca_eval", "ours"), lambda request: said("\n", first_logprobs=(("A", -0.1),)))
    assert row.status == "ok"
    assert readings(PROTOCOLS["alpaca_eval"], row)[0][0].is_read


def test_by_verdict_alpaca_eval_asks_for_reasons_and_takes_the_decision():
    config = CONFIG.model_copy(
        update={"alpaca_eval": CONFIG.alpaca_eval.model_copy(update={"preference": "verdict"})}  # pyright: ignore
    )
    protocol = protocol_of("alpaca_eval", config, run_seed=7)
    row = judged_row("alpaca_eval", "ours")
    assert (protocol.sampling.max_tokens, protocol.sampling.logprobs) == (2048, 0)
    reading = protocol.read(row, 0, said("So [[A]]"))
    assert (reading.value, reading.grade) == ((1.0, "model") if reading.is_model_first else (0.0, "baseline"))


def test_by_scores_alpaca_eval_asks_for_a_number_of_each_answer():
    config = EvaluateConfig.model_validate({"alpaca_eval": {**SECTION, "preference": "scores"}})
    protocol = protocol_of("alpaca_eval", config, run_seed=7)
    row = judged_row("alpaca_eval", "ours")
    asked = [protocol.messages(row, game, fence="7f") for game in range(protocol.num_games(row))]
    assert [[m["content"] for m in messages] for messages in asked] == [["First?", "ours"], ["First?", "theirs"]]
    assert [messages[-1]["role"] for messages in asked] == ["assistant", "assistant"]
    assert protocol.read(row, 0, said("0.25")).value == 0.25
    assert not protocol.read(row, 0, said("good")).is_read
    assert protocol.num_games(judged_row("alpaca_eval", "theirs")) == 0


@pytest.mark.parametrize("benchmark", ["alpaca_eval", "arena_hard"])
def test_equal_texts_are_not_shown_to_a_judge(benchmark):
    row, asked = judge(judged_row(benchmark, "theirs"), lambda request: said("[[A>>B]]"))
    assert (row.status, asked) == ("ok", [])


def test_arena_hard_asks_in_both_orders_and_again_where_no_grade_came():
    def reply(request):
        text = request.messages[-1]["content"]
        return said("[[A>>B]]") if text.index("theirs") < text.index("ours") else said("I cannot tell.")

    row, asked = judge(judged_row("arena_hard", "ours"), reply, again=lambda request: said("Well: [[A=B]]"))
    assert [request.id for request in asked] == ["m/q/verdict/0", "m/q/verdict/1", "m/q/repeat/1"]
    found = [(reading.is_model_first, reading.grade) for reading, _ in readings(PROTOCOLS["arena_hard"], row)]
    assert found == [(False, "A>>B"), (True, "A=B")]
    assert asked[2].messages != asked[1].messages


def test_what_stays_without_a_grade_is_counted_and_no_failure():
    row, asked = judge(judged_row("arena_hard", "ours"), lambda request: said("Hm."))
    assert (row.status, len(asked)) == ("ok", 4)
    assert not any(reading.is_read for reading, _ in readings(PROTOCOLS["arena_hard"], row))


def test_mt_bench_grades_both_turns_the_second_with_the_first_before_it():
    row = judged_row("mt_bench", "answer one", "answer two", source="mt_bench/writing")
    row, asked = judge(row, lambda request: said("[[7]]" if request.id.endswith("0") else "[[8.5]]"))
    assert [(r.turn, r.value) for r, _ in readings(PROTOCOLS["mt_bench"], row)] == [(0, 7.0), (1, 8.5)]
    assert "answer two" not in asked[0].messages[-1]["content"]
    assert all(text in asked[1].messages[-1]["content"] for text in ("First?", "answer one", "Second?", "answer two"))


def test_mt_bench_grades_the_first_turn_where_the_second_has_no_answer():
    row = judged_row("mt_bench", "answer one", source="mt_bench/writing")
    row = replace(row, messages=(*row.messages, Message(role="user", content="Second?")))
    row, asked = judge(row, lambda request: said("[[7]]"))
    assert [request.id for request in asked] == ["m/q/verdict/0"]
    assert (row.status, [(r.turn, r.value) for r, _ in readings(PROTOCOLS["mt_bench"], row)]) == ("ok", [(0, 7.0)])


def test_a_second_turn_that_is_too_long_for_the_judge_leaves_the_first_ones_grade():
    row = judged_row("mt_bench", "one", "word " * 200, source="mt_bench/writing")
    room = Room(window=2048 + 200, count_tokens=count_words)
    row, asked = judge(row, lambda request: said("[[7]]"), room=room)
    assert [request.id for request in asked] == ["m/q/verdict/0"]
    assert row.status == "ok"
    found = [(reading.value, answer) for reading, answer in readings(PROTOCOLS["mt_bench"], row)]
    assert found[0][0] == 7.0
    assert found[1] == (None, Failure(reason="context_length", retryable=False))


def test_a_judge_that_cannot_be_reached_fails_the_row_and_the_next_start_asks_only_for_what_lacks():
    def reply(request):
        return said("[[A>B]]") if request.id.endswith("0") else Failure(reason="connect", detail="nobody there")

    row, _ = judge(judged_row("arena_hard", "ours"), reply)
    assert (row.status, row.reason) == ("failed", "verdict: connect: nobody there")
    first, second = judge_passes("j", PROTOCOLS, run_seed=7)
    work = StageWork(
        stage="evaluate", passes=(first, second), close=close_judged, reopen=forget_failures, inputs=INPUTS
    )
    again = work.reopen(row)
    assert work.first_open_pass(again) == 0
    assert set(again.answers) >= {VERDICT, REPEAT}
    row, asked = judge(again, lambda request: said("[[B>A]]"))
    assert [request.id for request in asked] == ["m/q/verdict/1"]
    assert row.status == "ok"


def test_rows_of_another_answer_or_another_sampling_of_the_judge_are_other_rows():
    row, protocol = judged_row("arena_hard", "ours"), PROTOCOLS["arena_hard"]
    digest = digest_of_judging(protocol, row)
    assert digest == digest_of_judging(protocol, replace(row, id="other"))
    assert digest != digest_of_judging(protocol, judged_row("arena_hard", "ours!"))
    hotter = replace(protocol, sampling=replace(protocol.sampling, max_tokens=100))
    assert digest != digest_of_judging(hotter, row)
