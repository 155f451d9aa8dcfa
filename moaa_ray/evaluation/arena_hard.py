"""Arena-Hard v0.1: every prompt judged in both orders against one baseline, in five grades.

A game is one judged order. ">>" counts as three games, a tie is half a win for both, a game without a grade counts
nothing. Since every game is against the baseline, the Bradley-Terry win rate is the weighted mean of a model's results;
style control needs the fit. Intervals draw whole prompts, as the games on one prompt are not independent.
Source: lmarena/arena-hard-auto at 561534a (utils_math.py, v0.1 configuration). The wording is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.evaluation.style import Style
from moaa_ray.types import Answer, Message

PROMPT_VERSION = "arena_hard/1"
Grade = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]


@dataclass(frozen=True, kw_only=True)
class Game:
    """One judged order of one prompt; grade is the judge's own, about A and B; None: it gave none."""

    prompt_id: str
    model: str
    is_model_first: bool
    """Whether the model's completion was A; the other was the baseline's."""
    grade: Grade | None


@dataclass(frozen=True, kw_only=True)
class ArenaScore:
    """One model against the baseline, which has 50."""

    win_rate: Estimate
    """In percent, with a 95 % interval over prompts; count is the number of battles (">>" is three)."""
    elo: float | None
    """Elo points above the baseline, 400 log10(p / (1 - p)); None at 0 and at 100 %."""
    style_controlled: Estimate | None
    """In percent, for texts of equal style; None where no styles were given."""
    num_valid: int
    num_total: int
    """Games, with and without those that have no grade."""


def judge_messages(
    question: str, answers: Sequence[str], *, fence: str, is_repeated: bool = False
) -> tuple[Message, ...]:
    """Ask for one of the five grades of answers A and B, after an answer of the judge's own.

    is_repeated reminds a judge, whose first reply held no grade, of the form.
    """
    raise NotImplementedError


def parse_grade(answer: Answer | None) -> Grade | None:
    """The grade of a completion; None without one, and where it names two different ones."""
    raise NotImplementedError


def arena_scores(
    games: Sequence[Game], *, seed: int, styles: Mapping[tuple[str, str], tuple[Style, Style]] | None = None
) -> dict[str, ArenaScore]:
    """By model, in the order of their first games. The order of the games does not change the numbers.

    styles are by (model, prompt id): the model's and the baseline's; with them, all models' strengths and one effect
    of each feature are fitted jointly. Raises DataError where a model has no game with a grade, on two games of one
    order, and where styles lack a game.
    """
    raise NotImplementedError
