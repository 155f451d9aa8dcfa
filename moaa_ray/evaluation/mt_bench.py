"""MT-Bench: two-turn questions in eight categories, each answer graded alone from 1 to 10.

The second turn is graded with the whole conversation; math, reasoning and coding with reference answers. A grade that
cannot be read, or whose answer is lacking, is left out of the means and counted with its reason.
Source: lm-sys/FastChat fastchat/llm_judge (common.py, gen_model_answer.py) at 0e6d3e4; Zheng et al. 2023,
arXiv:2306.05685. The wording is ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from moaa_ray.core.judge_parsing import last_match
from moaa_ray.core.judge_prompts import DATA_RULE, conversation, fenced
from moaa_ray.core.judge_stats import Estimate
from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import DataError
from moaa_ray.evaluation.resampling import ratio
from moaa_ray.types import Answer, Completion, Message

PROMPT_VERSION = "mt_bench/1"
TEMPERATURES: Mapping[str, float] = {
    "writing": 0.7,
    "roleplay": 0.7,
    "reasoning": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "extraction": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
"""By category, in the benchmark's order: at which temperature the graded model answers."""
REFERENCE_CATEGORIES = ("reasoning", "math", "coding")
NUM_TURNS = 2

_NUMBER = r"\s*(10(?:\.0+)?|[1-9](?:\.\d+)?)\s*"
_GRADE = re.compile(rf"\[\[{_NUMBER}\]\]")
_IN_SINGLE_BRACKETS = re.compile(rf"\[{_NUMBER}\](?!\()")  # not a link
_JUDGE = """\
You are an impartial expert who grades {what}. Consider how helpful, relevant, accurate, deep and original it is, and \
how much detail it gives{reference}. Do not let its length or any name in it influence you. Explain your grade in a \
few sentences, then end with it on a line of its own: a number from 1 (very poor) to 10 (excellent) in double \
brackets, in this form: [[5]]

"""
_ONE = "the answer to a request"
_LAST = "the last answer of a conversation, as the reply to the second request and in the light of the first"
_REFERENCE = (
    "; above all, whether it is correct: a reference answer is given, so compare the two, and find and correct the "
    "mistakes of the graded one"
)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question: its turns, and a reference answer for each of them, or none at all."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Graded:
    """The grade of one answer; turn counts from 0; None: there is none, and `lacks` may say why."""

    question_id: str
    category: str
    turn: int
    grade: float | None
    lacks: str = ""


@dataclass(frozen=True, kw_only=True)
class MtBenchScores:
    """Mean grades from 1 to 10, with 95 % intervals over questions; each count is the number of grades."""

    overall: Estimate
    turns: tuple[Estimate, ...]
    categories: Mapping[str, Estimate]
    """In the benchmark's order. One of which no grade could be read has no value."""
    num_valid: int
    num_total: int
    lacking: Mapping[str, int] = field(default_factory=dict)
    """Grades that are not there, by turn (from 1) and reason, the commonest first."""


def temperature_of(category: str) -> float:
    """The temperature of a category. Raises DataError for an unknown one."""
    if category not in TEMPERATURES:
        shown = repr(category[:80])
        raise DataError(f"category = {shown}: one of {', '.join(TEMPERATURES)} is wanted; mend the question file")
    return TEMPERATURES[category]


def check_question(question: Question) -> None:
    """Raises DataError on an unknown category, on other than two turns, and where references are lacking."""
    temperature_of(question.category)
    if len(question.turns) != NUM_TURNS:
        raise DataError(
            f"question {question.id!r} has {len(question.turns)} turns: {NUM_TURNS} are wanted; mend the file"
        )
    if question.category in REFERENCE_CATEGORIES and len(question.references) != NUM_TURNS:
        raise DataError(
            f"question {question.id!r} has {len(question.references)} reference answers: {NUM_TURNS} are wanted in "
            f"{', '.join(REFERENCE_CATEGORIES)}, one a turn; add them to the question file"
        )


def grade_messages(question: Question, answers: Sequence[str], *, fence: str) -> tuple[Message, ...]:
    """Ask for the grade of the last of the answers: one for turn 1, two for turn 2."""
    assert 1 <= len(answers) <= NUM_TURNS, answers
    is_first = len(answers) == 1
    has_reference = question.category in REFERENCE_CATEGORIES
    blocks = []
    for turn, answer in enumerate(answers):
        name = "" if is_first else f" {turn + 1}"
        blocks.append(fenced(f"Request{name}", question.turns[turn], fence, f"Q{turn + 1}"))
        if has_reference:
            blocks.append(fenced(f"Reference answer{name}", question.references[turn], fence, f"R{turn + 1}"))
        blocks.append(fenced(f"Answer{name}", answer, fence, f"A{turn + 1}"))
    system = _JUDGE.format(what=_ONE if is_first else _LAST, reference=_REFERENCE if has_reference else "")
    end = "Grade:" if is_first else "Grade of answer 2:"
    return conversation(system + DATA_RULE.format(fence=fence), "\n\n".join([*blocks, end]))


def parse_grade(answer: Answer | None) -> float | None:
    """The last [[n]] of a completion, else its last [n], 1 to 10, whole or decimal; None without one."""
    is_in_form = isinstance(answer, Completion) and _GRADE.search(answer.text)
    match = last_match(_GRADE if is_in_form else _IN_SINGLE_BRACKETS, answer)
    return None if match is None else float(match)


def mt_bench_scores(grades: Iterable[Graded], *, seed: int) -> MtBenchScores:
    """Means over all, by turn, by category. The order of the grades does not matter.

    Raises DataError where there is no grade at all, on two of one answer, and on an unknown category or turn.
    """
    known = sorted(grades, key=lambda g: (g.question_id, g.turn))
    _check(known)
    seed = seed_for(seed, "mt_bench")
    categories = [category for category in TEMPERATURES if any(g.category == category for g in known)]
    return MtBenchScores(
        overall=_mean(known, seed),
        turns=tuple(_mean([g for g in known if g.turn == turn], seed) for turn in range(NUM_TURNS)),
        categories={category: _mean([g for g in known if g.category == category], seed) for category in categories},
        num_valid=sum(g.grade is not None for g in known),
        num_total=len(known),
        lacking=dict(
            Counter(f"turn {g.turn + 1}: {g.lacks or 'unknown'}" for g in known if g.grade is None).most_common()
        ),
    )


def _check(grades: Sequence[Graded]) -> None:
    for graded in grades:
        temperature_of(graded.category)
        if graded.turn not in range(NUM_TURNS):
            raise DataError(f"question {graded.question_id!r}: turn = {graded.turn}, but turns are 0 and 1; mend it")
    twice = [key for key, count in Counter((g.question_id, g.turn) for g in grades).items() if count > 1]
    if twice:
        raise DataError(f"question {twice[0][0]!r}, turn {twice[0][1]}, is graded more than once; leave one grade")
    if all(graded.grade is None for graded in grades):
        raise DataError(
            f"none of {len(grades)} answers has a grade, so there is no score; see why, and ask the judge again"
        )


def _mean(grades: Sequence[Graded], seed: int) -> Estimate:
    """Over the grades that could be read; the interval draws whole questions, both turns together."""
    total = dict.fromkeys((g.question_id for g in grades), 0.0)
    count = dict.fromkeys(total, 0)
    for graded in grades:
        if graded.grade is not None:
            total[graded.question_id] += graded.grade
            count[graded.question_id] += 1
    return ratio(list(total.values()), list(count.values()), seed=seed)
