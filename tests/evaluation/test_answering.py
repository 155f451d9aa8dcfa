"""How models answer the questions: each turn with those before it, each category at its temperature."""

from moaa_ray.evaluation.answering import AnswerPass, Said, answer_work, question_row, samplings_of
from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.mt_bench import Question
from moaa_ray.evaluation.protocols import protocol_of
from moaa_ray.evaluation.rows import Asked, answers_of, unfinished_answers
from moaa_ray.settings.evaluation import EvaluateConfig
from moaa_ray.types import Failure, Sampling
from tests.core.rows import run_pass, said

CONFIG = EvaluateConfig.model_validate(
    {
        "alpaca_eval": {"questions": "q", "judge": "j", "baseline": "b", "temperature": 0.4},
        "mt_bench": {"questions": "q", "judge": "j"},
    }
)
WRITING = Question(id="81", category="writing", turns=("Write.", "Again."))
MATH = Question(id="111", category="math", turns=("Count.", "On."))
PLAIN = Question(id="a", category="d", turns=("Say.",))
SAMPLINGS = samplings_of(CONFIG, {"alpaca_eval": [PLAIN], "mt_bench": [WRITING, MATH]})
PROTOCOL = protocol_of("mt_bench", CONFIG, run_seed=1)
WORK = answer_work("m", SAMPLINGS, run_seed=1)


def answer(row, reply):
    (answering,) = WORK.passes
    assert isinstance(answering, AnswerPass)
    return WORK.close(run_pass(answering, row, reply))


def test_mt_benchs_categories_have_their_temperatures_and_alpaca_eval_the_recipes():
    assert dict(SAMPLINGS) == {
        "alpaca_eval": Sampling(max_tokens=2048, temperature=0.4),
        "mt_bench/writing": Sampling(max_tokens=1024, temperature=0.7),
        "mt_bench/math": Sampling(max_tokens=1024, temperature=0.0),
    }


def test_the_second_turn_is_asked_with_the_first_answer_before_it():
    asked = []

    def reply(request):
        asked.append(request)
        return said(f"answer {len(asked)}", finish_reason="length" if len(asked) == 2 else "stop")

    row = answer(question_row("mt_bench", WRITING, SAMPLINGS["mt_bench/writing"]), reply)
    assert (row.status, row.turn) == ("open", 1)
    row = answer(row, reply)
    assert (row.status, row.flags) == ("ok", ("truncated:1",))
    assert [m["content"] for m in asked[1].messages] == ["Write.", "answer 1", "Again."]
    assert [m["content"] for m in row.messages] == ["Write.", "answer 1", "Again.", "answer 2"]
    assert len({request.id for request in asked}) == len({request.seed for request in asked}) == 2


def test_a_question_without_an_answer_has_failed_and_is_asked_again():
    row = question_row("alpaca_eval", PLAIN, SAMPLINGS["alpaca_eval"])
    failed = answer(row, lambda request: Failure(reason="timeout"))
    assert (failed.status, failed.reason) == ("failed", "answer: timeout")
    assert answer(WORK.reopen(failed), lambda request: said("now")).status == "ok"


def failing_second_turn(failure: Failure):
    row = answer(question_row("mt_bench", WRITING, SAMPLINGS["mt_bench/writing"]), lambda request: said("one"))
    return answer(row, lambda request: failure)


def test_a_second_turn_that_is_too_long_keeps_the_first_answer_and_says_what_is_lacking():
    row = failing_second_turn(Failure(reason="context_length", retryable=False))
    assert (row.status, row.flags) == ("ok", ("no_answer:1:context_length",))
    assert [m["content"] for m in row.messages if m["role"] == "assistant"] == ["one"]


def test_a_second_turn_that_may_yet_be_answered_is_asked_again_and_the_first_one_counts_meanwhile():
    row = failing_second_turn(Failure(reason="timeout"))
    assert (row.status, row.reason) == ("failed", "answer: timeout")
    bench = Bench(name="mt_bench", config=CONFIG.benchmarks["mt_bench"], questions=(WRITING,), protocol=PROTOCOL)
    record = unfinished_answers(row, asked={row.id: Asked(bench=bench, question=WRITING, row=row)})
    assert answers_of([record]) == {"mt_bench": {"81": Said(texts=("one",), lacks="timeout")}}
    again = answer(WORK.reopen(row), lambda request: said("two"))
    assert [m["content"] for m in again.messages if m["role"] == "assistant"] == ["one", "two"]
    assert (again.status, again.flags) == ("ok", ())


def test_a_question_of_which_no_turn_is_answered_has_no_answer():
    row = answer(
        question_row("alpaca_eval", PLAIN, SAMPLINGS["alpaca_eval"]), lambda request: Failure(reason="timeout")
    )
    bench = Bench(name="mt_bench", config=CONFIG.benchmarks["mt_bench"], questions=(PLAIN,), protocol=PROTOCOL)
    assert answers_of([unfinished_answers(row, asked={row.id: Asked(bench=bench, question=PLAIN, row=row)})]) == {}


def test_another_sampling_or_text_makes_another_row_of_a_question():
    ids = {
        question_row("alpaca_eval", question, sampling).id
        for question in (PLAIN, Question(id="a", category="d", turns=("Say!",)))
        for sampling in (SAMPLINGS["alpaca_eval"], Sampling(max_tokens=1))
    }
    assert len(ids) == 4
