"""Arena-Hard v0.1: every prompt judged in both orders against one baseline, in five grades.

A game is one judged order. ">>" counts as three games, a tie is half a win for both, a game without a grade counts
nothing. Since every game is against the baseline, the Bradley-Terry win rate is the weighted mean of a model's results;
style control needs the fit. Intervals draw whole prompts, as the games on one prompt are not independent.
Source: lmarena/arena-hard-auto at 561534a (utils_math.py, v0.1 configuration). The wording is ours.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, log10
from typing import Literal, get_args

import numpy as np
from scipy.special import expit

from moaa_ray.core.judge_parsing import last_match
from moaa_ray.core.judge_prompts import DATA_RULE, conversation, question_and_answers
from moaa_ray.core.judge_stats import Estimate
from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import DataError
from moaa_ray.evaluation.logistic import fit_ridge
from moaa_ray.evaluation.resampling import NUM_REFITS, estimate, ratio, resamples
from moaa_ray.evaluation.style import Style, style_differences
from moaa_ray.types import Answer, Completion, Message

PROMPT_VERSION = "arena_hard/1"
Grade = Literal["A>>B", "A>B", "A=B", "B>A", "B>>A"]

_OUTCOMES: Mapping[Grade, tuple[float, int]] = {
    "A>>B": (1.0, 3),
    "A>B": (1.0, 1),
    "A=B": (0.5, 1),
    "B>A": (0.0, 1),
    "B>>A": (0.0, 3),
}
"""By grade: the result for A, and how many battles it counts as."""
_GRADE = re.compile(rf"\[\[\s*({'|'.join(get_args(Grade))})\s*\]\]")
_RIDGE = 0.5
"""Of the coefficients of the style-controlled fit, strengths in units of log 10; with it a model that never loses stays
finite. That of the published fit: half a squared coefficient beside the losses of all battles, each counted twice."""

_JUDGE = """\
You are an impartial expert who compares two answers, A and B, to the same request. First write your own answer to \
the request. Then compare both answers with yours: find and correct their mistakes. Judge whether each is correct, \
whether it helps with what was asked, whether everything in it belongs there, and whether it is as short as it can be; \
then, where the request calls for it, how original it is; and last, what important things are missing. Do not let the \
length of an answer, the order in which the two are shown, or any name in them influence you. Give your reasons, then \
end with exactly one of these five verdicts on a line of its own:

[[A>>B]] answer A is much better
[[A>B]] answer A is a little better
[[A=B]] both are about as good
[[B>A]] answer B is a little better
[[B>>A]] answer B is much better

"""
_REMINDER = "\n\nAn earlier reply did not end with one of the five verdicts. End with one, in double brackets."


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
    text = question_and_answers(question, answers, fence) + (_REMINDER if is_repeated else "")
    return conversation(_JUDGE + DATA_RULE.format(fence=fence), text)


def parse_grade(answer: Answer | None) -> Grade | None:
    """The grade of a completion; None without one, and where it names two different ones."""
    last = last_match(_GRADE, answer)
    if last is None or not isinstance(answer, Completion) or len(set(_GRADE.findall(answer.text))) > 1:
        return None
    return next(grade for grade in _OUTCOMES if grade == last)


def arena_scores(
    games: Sequence[Game], *, seed: int, styles: Mapping[tuple[str, str], tuple[Style, Style]] | None = None
) -> dict[str, ArenaScore]:
    """By model, in the order of their first games. The order of the games does not change the numbers.

    styles are by (model, prompt id): the model's and the baseline's; with them, all models' strengths and one effect
    of each feature are fitted jointly. Raises DataError where a model has no game with a grade, on two games of one
    order, and where styles lack a game.
    """
    _check(games)
    prompts = sorted({game.prompt_id for game in games})
    seed = seed_for(seed, "arena_hard")
    by_model: dict[str, list[Game]] = {game.model: [] for game in games}
    for game in games:
        by_model[game.model].append(game)
    controlled = {} if styles is None else _style_controlled(games, prompts, styles, seed=seed)
    return {model: _score(own, prompts, controlled.get(model), seed=seed) for model, own in by_model.items()}


def _check(games: Sequence[Game]) -> None:
    if not games:
        raise DataError("there are no games to score: judge at least one prompt in both orders")
    twice = [
        key for key, count in Counter((g.model, g.prompt_id, g.is_model_first) for g in games).items() if count > 1
    ]
    if twice:
        model, prompt_id, is_first = twice[0]
        order = "first" if is_first else "second"
        raise DataError(f"model {model!r}, prompt {prompt_id!r}: two games with the model shown {order}; leave one")
    for model, num in Counter(game.model for game in games).items():
        if all(game.grade is None for game in games if game.model == model):
            raise DataError(
                f"none of the {num} games of model {model!r} has a grade, so it has no score; "
                "see why the judge gave none, and ask it again"
            )


def _outcome(game: Game) -> tuple[float, int]:
    """The result for the model, and how many battles it counts as; none without a grade."""
    if game.grade is None:
        return 0.0, 0
    result, num_battles = _OUTCOMES[game.grade]
    return result if game.is_model_first else 1 - result, num_battles


def _score(games: Sequence[Game], prompts: Sequence[str], controlled: Estimate | None, *, seed: int) -> ArenaScore:
    won, fought = dict.fromkeys(prompts, 0.0), dict.fromkeys(prompts, 0.0)
    for game in games:
        result, num_battles = _outcome(game)
        won[game.prompt_id] += result * num_battles
        fought[game.prompt_id] += num_battles
    rate = sum(won.values()) / sum(fought.values())
    return ArenaScore(
        win_rate=ratio(list(won.values()), list(fought.values()), seed=seed, scale=100),
        elo=400 * log10(rate / (1 - rate)) if 0 < rate < 1 else None,
        style_controlled=controlled,
        num_valid=sum(game.grade is not None for game in games),
        num_total=len(games),
    )


def _style_controlled(
    games: Sequence[Game], prompts: Sequence[str], styles: Mapping[tuple[str, str], tuple[Style, Style]], *, seed: int
) -> dict[str, Estimate]:
    """By model, the win rate of its Bradley-Terry strength when the effects of style are taken out.

    Differences are divided by their standard deviation over battles but not centred, so that 0 is equal style; the
    published code subtracts the mean, which with a single model takes back what it controls for.
    """
    valid = sorted((g for g in games if g.grade is not None), key=lambda g: (g.model, g.prompt_id, g.is_model_first))
    lacking = [(g.model, g.prompt_id) for g in valid if (g.model, g.prompt_id) not in styles]
    if lacking:
        raise DataError(
            f"model {lacking[0][0]!r}, prompt {lacking[0][1]!r}: {len(lacking)} games have no styles; "
            "give those of every game, or none"
        )
    models = sorted({game.model for game in valid})
    results, battles = np.array([_outcome(game) for game in valid]).T
    differences = np.array([style_differences(*styles[game.model, game.prompt_id]) for game in valid])
    spread = np.sqrt(np.average((differences - np.average(differences, 0, battles)) ** 2, 0, battles))
    differences = np.divide(differences, spread, out=np.zeros_like(differences), where=spread > 0)
    is_model = np.array([[game.model == model for model in models] for game in valid], float)
    features = np.concatenate([is_model, differences], axis=1)
    ridge = np.array([_RIDGE / log(10) ** 2] * len(models) + [_RIDGE] * differences.shape[1])
    row_of = {prompt_id: i for i, prompt_id in enumerate(prompts)}
    rows = [row_of[game.prompt_id] for game in valid]
    whole = fit_ridge(features, results, battles, ridge_K=ridge, start=np.zeros(len(ridge)))
    drawn = np.array(
        [
            fit_ridge(features, results, battles * counts[rows], ridge_K=ridge, start=whole)
            for counts in resamples(len(prompts), seed=seed, num_resamples=NUM_REFITS)
        ]
    )
    return {
        model: estimate(100 * expit(whole[m]), 100 * expit(drawn[:, m]), count=int(battles[is_model[:, m] > 0].sum()))
        for m, model in enumerate(models)
    }
