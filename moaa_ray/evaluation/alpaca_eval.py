"""AlpacaEval 2: one judged pair per instruction, the model's completion beside the baseline's.

Each pair is judged once; which of the two stands first is decided by a seed of the instruction. A preference is a
number from 0 to 1 for the model: from the probabilities of the judge's first token, or 0 or 1 from a parsed verdict.
The published files count from 1 to 2 instead. Length control is in length_control.
Source: tatsu-lab/alpaca_eval, weighted_alpaca_eval_gpt4_turbo and metrics/winrate.py at 1020da2. The wording is ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.types import Answer, Message

LABEL_VERSION = "alpaca_eval/1"
"""Of the wording of label_messages; a verdict with reasons is asked for by core.judge_prompts.decide_messages."""
LABELS = ("A", "B")
"""What the judge answers with; the first token has to be one of them."""
SAME_TEXT = 0.5
"""The preference between two equal texts, which no judge is asked about."""


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
    raise NotImplementedError


def in_order(completion: str, baseline: str, *, baseline_first: bool) -> tuple[str, str]:
    """The two texts as the judge sees them, A and B."""
    raise NotImplementedError


def label_messages(question: str, answers: Sequence[str], *, fence: str) -> tuple[Message, ...]:
    """Ask for A or B and nothing else, to be read by the probabilities of the first token (max_tokens 1)."""
    raise NotImplementedError


def weighted_preference(top_logprobs: Mapping[str, float], *, baseline_first: bool) -> float | None:
    """p(model's label) / (p(A) + p(B)), of the first token's candidates by text, with logprobs in nats.

    Tokens that differ in white space alone are one label; a label that is not there has probability 0. None where
    neither is there.
    """
    raise NotImplementedError


def verdict_preference(answer: Answer | None, *, baseline_first: bool) -> float | None:
    """1.0 where the verdict [[A]] or [[B]] is for the model, 0.0 where it is for the baseline, None without one."""
    raise NotImplementedError


def published_preference(preference: float | None) -> float | None:
    """A preference as published, 1 (baseline) to 2 (model), from 0 to 1; 0 there means a tie.

    Raises DataError outside of that.
    """
    raise NotImplementedError


def annotation(row_id: str, completion: str, baseline: str, preference: float | None) -> Annotation:
    """The annotation of two texts and the preference that came of them."""
    raise NotImplementedError


def win_rates(annotations: Sequence[Annotation], *, seed: int) -> WinRates:
    """Raw and discrete win rate. The order of the annotations does not matter.

    Raises DataError where no annotation has a preference, on two of one id, and on a preference outside [0, 1].
    """
    raise NotImplementedError
