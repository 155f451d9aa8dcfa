"""MT-Bench: two-turn questions in eight categories, each answer graded alone from 1 to 10.

The second turn is graded with the whole conversation; math, reasoning and coding with reference answers. A grade that
cannot be read is left out of the means and counted.
Source: lm-sys/FastChat fastchat/llm_judge (common.py, gen_model_answer.py); Zheng et al. 2023, arXiv:2306.05685. The
wording is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.types import Answer, Message

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


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question: its turns, and a reference answer for each of them, or none at all."""

    id: str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Graded:
    """The grade of one answer; turn counts from 0; None: the judge's reply had none."""

    question_id: str
    category: str
    turn: int
    grade: float | None


@dataclass(frozen=True, kw_only=True)
class MtBenchScores:
    """Mean grades from 1 to 10, with 95 % intervals over questions; each count is the number of grades."""

    overall: Estimate
    turns: tuple[Estimate, ...]
    categories: Mapping[str, Estimate]
    """In the benchmark's order. One of which no grade could be read has no value."""
    num_valid: int
    num_total: int


def temperature_of(category: str) -> float:
    """The temperature of a category. Raises DataError for an unknown one."""
    raise NotImplementedError


def check_question(question: Question) -> None:
    """Raises DataError on an unknown category, on other than two turns, and where references are lacking."""
    raise NotImplementedError


def grade_messages(question: Question, answers: Sequence[str], *, fence: str) -> tuple[Message, ...]:
    """Ask for the grade of the last of the answers: one for turn 1, two for turn 2."""
    raise NotImplementedError


def parse_grade(answer: Answer | None) -> float | None:
    """The last [[n]] of a completion, 1 to 10, whole or decimal; None without one."""
    raise NotImplementedError


def mt_bench_scores(grades: Sequence[Graded], *, seed: int) -> MtBenchScores:
    """Means over all, by turn, by category. The order of the grades does not matter.

    Raises DataError where there is no grade at all, on two of one answer, and on an unknown category or turn.
    """
    raise NotImplementedError
