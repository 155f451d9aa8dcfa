import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.errors import DataError
from moaa_ray.evaluation.mt_bench import (
    REFERENCE_CATEGORIES,
    TEMPERATURES,
    Graded,
    Question,
    check_question,
    grade_messages,
    mt_bench_scores,
    parse_grade,
    temperature_of,
)
from moaa_ray.types import Completion, Failure

QUESTIONS = Path(__file__).parents[3] / "shared" / "data" / "mt_bench.jsonl"
WRITING = Question(id="q1", category="writing", turns=("Write.", "Shorten."))
MATH = Question(id="q2", category="math", turns=("1+1?", "And 2+2?"), references=("2", "4"))


def said(text: str) -> Completion:
    return Completion(text=text, finish_reason="stop", prompt_tokens=1, completion_tokens=1)


def graded(question: str, turn: int, grade: float | None, category: str = "writing") -> Graded:
    return Graded(question_id=question, category=category, turn=turn, grade=grade)


def test_temperatures_are_the_published_ones():
    warm, cool = ("writing", "roleplay"), ("stem", "humanities")
    assert [temperature_of(c) for c in TEMPERATURES] == [
        0.7 if c in warm else 0.1 if c in cool else 0.0 for c in TEMPERATURES
    ]
    assert len(TEMPERATURES) == 8


def test_an_unknown_category_is_refused():
    with pytest.raises(DataError, match=r"category = 'maths': one of writing, .* is wanted"):
        temperature_of("maths")


def test_the_first_turn_is_graded_alone():
    system, user = grade_messages(WRITING, ("Once.",), fence="7f")
    assert "[[5]]" in system["content"]
    assert "reference" not in system["content"]
    assert user["content"] == "Request:\n[7fQ1]\nWrite.\n[/7fQ1]\n\nAnswer:\n[7fA1]\nOnce.\n[/7fA1]\n\nGrade:"


def test_the_second_turn_is_graded_with_the_whole_conversation():
    system, user = grade_messages(WRITING, ("Once.", "1."), fence="7f")
    parts = ["[7fQ1]\nWrite.", "[7fA1]\nOnce.", "[7fQ2]\nShorten.", "[7fA2]\n1.", "Grade of answer 2:"]
    places = [user["content"].index(part) for part in parts]
    assert places == sorted(places)
    assert system != grade_messages(WRITING, ("Once.",), fence="7f")[0]


def test_math_reasoning_and_coding_are_graded_with_the_references_of_all_turns_shown():
    assert set(REFERENCE_CATEGORIES) == {"math", "reasoning", "coding"}
    system, user = grade_messages(MATH, ("two",), fence="7f")
    assert "reference answer" in system["content"]
    assert "[7fR1]\n2\n[/7fR1]" in user["content"]
    assert "7fR2" not in user["content"]
    _, user = grade_messages(MATH, ("two", "four"), fence="7f")
    assert user["content"].index("[7fR1]\n2") < user["content"].index("[7fR2]\n4")


def test_references_of_other_categories_are_not_shown():
    with_reference = replace(WRITING, references=("secret", "secret"))
    assert grade_messages(with_reference, ("Once.",), fence="7f") == grade_messages(WRITING, ("Once.",), fence="7f")


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("Good. [[7]]", 7.0),
        ("[[7.5]]", 7.5),
        ("[[ 10 ]]", 10.0),
        ("[[3]] at first, but [[4]]", 4.0),
        ("[[1]]", 1.0),
        ("Rating: [7]", 7.0),
        ("As in [3], so: [8.5]", 8.5),
        ("[[6]], see [2]", 6.0),
        ("[11]", None),
        ("See [4](https://example.org).", None),
        ("7/10", None),
        ("[[0]]", None),
        ("[[11]]", None),
        ("[[10.5]]", None),
        ("[[7/10]]", None),
        ("[[seven]]", None),
    ],
)
def test_a_grade_is_a_number_from_1_to_10_in_double_or_else_in_single_brackets(text, grade):
    assert parse_grade(said(text)) == grade


def test_no_answer_is_no_grade():
    assert parse_grade(None) is None
    assert parse_grade(Failure(reason="timeout")) is None


def test_means_by_hand():
    """(8 + 6 + 5 + 10 + 3) / 5 = 6.4; first turns (8 + 5 + 10) / 3, second (6 + 3) / 2; one grade is lacking."""
    grades = [
        graded("q1", 0, 8),
        graded("q1", 1, 6),
        graded("q2", 0, 5, "math"),
        graded("q2", 1, None, "math"),
        graded("q3", 0, 10),
        graded("q3", 1, 3),
    ]
    found = mt_bench_scores(grades, seed=1)
    assert (found.overall.value, found.overall.count) == (pytest.approx(6.4), 5)
    assert [turn.value for turn in found.turns] == pytest.approx([23 / 3, 4.5])
    assert {name: (e.value, e.count) for name, e in found.categories.items()} == {"writing": (6.75, 4), "math": (5, 1)}
    assert (found.num_valid, found.num_total) == (5, 6)
    assert found == mt_bench_scores(Random(1).sample(grades, k=6), seed=1)


def test_intervals_draw_questions_and_not_grades():
    """Both turns of a question have one grade, 2 or 8: 40 questions, so 5 -+ 1.96 x 3 / sqrt(40)."""
    found = mt_bench_scores([graded(f"q{i}", turn, 2 + 6 * (i % 2)) for i in range(40) for turn in (0, 1)], seed=1)
    assert (found.overall.high or 0) - (found.overall.low or 0) == pytest.approx(2 * 1.96 * 3 / 40**0.5, abs=0.3)


def test_a_category_without_a_grade_has_no_value():
    found = mt_bench_scores([graded("q1", 0, 4), graded("q2", 0, None, "stem")], seed=1)
    assert found.categories["stem"] == Estimate(value=None, low=None, high=None, count=0)
    assert found.turns[1].value is None


@pytest.mark.parametrize(
    ("grades", "message"),
    [
        ([], "none of 0 answers has a grade"),
        ([graded("q1", 0, None)], "none of 1 answers has a grade, so there is no score"),
        ([graded("q1", 0, 3), graded("q1", 0, 4)], "question 'q1', turn 0, is graded more than once"),
        ([graded("q1", 2, 3)], "question 'q1': turn = 2, but turns are 0 and 1"),
        ([graded("q1", 0, 3, "maths")], "category = 'maths'"),
    ],
)
def test_what_gives_no_score_is_refused_by_name(grades, message):
    with pytest.raises(DataError, match=message):
        mt_bench_scores(grades, seed=1)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (replace(WRITING, turns=("Write.",)), "question 'q1' has 1 turns: 2 are wanted"),
        (replace(MATH, references=("2",)), "question 'q2' has 1 reference answers: 2 are wanted in reasoning"),
        (replace(MATH, category="maths"), "category = 'maths'"),
    ],
)
def test_a_question_that_cannot_be_graded_is_refused(question, message):
    with pytest.raises(DataError, match=message):
        check_question(question)


@pytest.mark.skipif(not QUESTIONS.exists(), reason=f"needs {QUESTIONS}")
def test_the_published_questions_can_all_be_graded():
    with QUESTIONS.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    questions = [
        Question(id=r["id"], category=r["category"], turns=tuple(r["turns"]), references=tuple(r["reference"] or ()))
        for r in rows
    ]
    assert len(questions) == 80
    for question in questions:
        check_question(question)
        assert len(grade_messages(question, ("one", "two"), fence="7f")) == 2
