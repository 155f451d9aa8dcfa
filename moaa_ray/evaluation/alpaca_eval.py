"""AlpacaEval 2: one judged pair per instruction, the model's completion beside the baseline's.

Each pair is judged once; which of the two stands first is decided by a seed of the instruction. A preference is a
number from 0 to 1 for the model: from the probabilities of the judge's first token, or 0 or 1 from a parsed verdict.
The published files count from 1 to 2 instead. Length control is in length_control.
Source: tatsu-lab/alpaca_eval, weighted_alpaca_eval_gpt4_turbo and metrics/winrate.py at 1020da2. The wording is ours.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import stdev

import numpy as np
from scipy.special import expit

from moaa_ray.core.judge_parsing import parse_verdict
from moaa_ray.core.judge_prompts import DATA_RULE, conversation, question_and_answers
from moaa_ray.core.judge_stats import Estimate
from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import DataError
from moaa_ray.evaluation.resampling import ratio
from moaa_ray.types import Answer, Message

LABEL_VERSION = "alpaca_eval/1"
"""Of the wording of label_messages; a verdict with reasons is asked for by core.judge_prompts.decide_messages."""
SCORES_VERSION = "scores"
"""In the place of a version: a judge that scores is shown the conversation and no wording of ours."""
LABELS = ("A", "B")
"""What the judge answers with; the first token has to be one of them."""
SAME_TEXT = 0.5
"""The preference between two equal texts, which no judge is asked about."""

_BLANKS = " \t\r\n\u2581\u0120"  # the last two are a space in the tokens of SentencePiece and of byte-level BPE
_LABEL = """\
You compare two answers, A and B, to the same request, and say which of them people would prefer: the one that serves \
the person who asked better, is right, and keeps to what was asked. Do not let the length of an answer, the order in \
which the two are shown, or any name in them influence you. Reply with one letter and nothing else: A if answer A is \
better, B if answer B is better.

"""


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """One instruction, judged: preference for the model in [0, 1], None without one; lengths in characters."""

    id: str
    preference: float | None
    length: int
    baseline_length: int


@dataclass(frozen=True, kw_only=True)
class WinRates:
    """A model against the baseline, in percent; identical models have 50."""

    win_rate: Estimate
    """Mean preference, with a 95 % interval over instructions; count is the number of preferences."""
    standard_error: float | None
    """Of the mean, as the leaderboard gives it; None with a single preference."""
    discrete_win_rate: float
    """Preferences above one half count 1, of one half 1/2."""
    num_wins: int
    num_losses: int
    num_ties: int
    num_valid: int
    num_total: int


def is_baseline_first(run_seed: int, instruction: str) -> bool:
    """Whether the baseline's completion is shown as A; depends on nothing but the two arguments."""
    return seed_for(run_seed, "alpaca_eval", instruction) % 2 == 0


def in_order(completion: str, baseline: str, *, baseline_first: bool) -> tuple[str, str]:
    """The two texts as the judge sees them, A and B."""
    return (baseline, completion) if baseline_first else (completion, baseline)


def label_messages(question: str, answers: Sequence[str], *, fence: str) -> tuple[Message, ...]:
    """Ask for A or B and nothing else, to be read by the probabilities of the first token (max_tokens 1)."""
    text = question_and_answers(question, answers, fence)
    return conversation(_LABEL + DATA_RULE.format(fence=fence), f"{text}\n\nBetter answer, A or B:")


def weighted_preference(top_logprobs: Mapping[str, float], *, baseline_first: bool) -> float | None:
    """p(model's label) / (p(A) + p(B)), of the first token's candidates by text, with logprobs in nats.

    Tokens that differ in white space alone are one label; a label that is not there has probability 0. None where
    neither is there. Example: {"A": log 0.6, " A": log 0.1, "B": log 0.2} is 0.7 / 0.9 for the model shown as A.
    """
    of_label: dict[str, list[float]] = {label: [] for label in LABELS}
    for token, logprob in top_logprobs.items():
        label = token.strip(_BLANKS)
        if label in of_label and isfinite(logprob):
            of_label[label].append(logprob)
    if not any(of_label.values()):
        return None
    first, second = (float(np.logaddexp.reduce(found)) for found in of_label.values())
    return float(expit(second - first if baseline_first else first - second))


def verdict_preference(answer: Answer | None, *, baseline_first: bool) -> float | None:
    """1.0 where the verdict [[A]] or [[B]] is for the model, 0.0 where it is for the baseline, None without one."""
    winner = parse_verdict(answer)
    return None if winner is None else float((winner == "first") != baseline_first)


def score_preference(score: float | None, baseline: float | None) -> float | None:
    """1.0 where the model's score is higher than the baseline's, 0.0 where it is lower, one half where they are equal.

    None where one of them is lacking.
    """
    if score is None or baseline is None:
        return None
    return SAME_TEXT if score == baseline else float(score > baseline)


def published_preference(preference: float | None) -> float | None:
    """A preference as published, 1 (baseline) to 2 (model), from 0 to 1; 0 there means a tie.

    Raises DataError outside of that.
    """
    if preference is None:
        return None
    if preference == 0:
        return SAME_TEXT
    if not 1 <= preference <= 2:
        raise DataError(
            f"preference = {preference}: published annotations count from 1 (baseline) to 2 (model), or 0 for a tie; "
            "mend the file, or leave the preference out where there is none"
        )
    return preference - 1


def annotation(row_id: str, completion: str, baseline: str, preference: float | None) -> Annotation:
    """The annotation of two texts and the preference that came of them."""
    return Annotation(id=row_id, preference=preference, length=len(completion), baseline_length=len(baseline))


def win_rates(annotations: Iterable[Annotation], *, seed: int) -> WinRates:
    """Raw and discrete win rate. The order of the annotations does not matter.

    Raises DataError where no annotation has a preference, on two of one id, and on a preference outside [0, 1].
    """
    known = checked(annotations)
    values = [a.preference for a in known if a.preference is not None]
    wins, ties = sum(value > 0.5 for value in values), values.count(0.5)
    return WinRates(
        win_rate=ratio(
            [a.preference or 0.0 for a in known],
            [a.preference is not None for a in known],
            seed=seed_for(seed, "alpaca_eval"),
            scale=100,
        ),
        standard_error=100 * stdev(values) / sqrt(len(values)) if len(values) > 1 else None,
        discrete_win_rate=100 * (wins + ties / 2) / len(values),
        num_wins=wins,
        num_losses=len(values) - wins - ties,
        num_ties=ties,
        num_valid=len(values),
        num_total=len(known),
    )


def checked(annotations: Iterable[Annotation]) -> list[Annotation]:
    """The annotations by id, so that sums do not depend on their order. Raises as win_rates does."""
    known = sorted(annotations, key=lambda a: a.id)
    twice = [row_id for row_id, count in Counter(a.id for a in known).items() if count > 1]
    if twice:
        raise DataError(f"annotation {twice[0]!r} is there more than once: one per instruction is wanted; leave one")
    for a in known:
        if a.preference is not None and not 0 <= a.preference <= 1:
            raise DataError(
                f"annotation {a.id!r}: preference = {a.preference} is not from 0 (baseline) to 1 (model); "
                "published ones, from 1 to 2, go through published_preference"
            )
    if all(a.preference is None for a in known):
        raise DataError(
            f"none of {len(known)} annotations has a preference, so there is no win rate; "
            "see why the judge gave none, and ask it again"
        )
    return known
