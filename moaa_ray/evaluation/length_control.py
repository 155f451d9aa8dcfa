"""Length-controlled win rates of AlpacaEval 2: what the judge would say if both completions were equally long.

    logit p_i = length_effect x tanh(d_i / std(d)) + difficulty_effect x difficulty_i + model_effect

with d_i = baseline length - model length in characters and std over all instructions (n - 1, not centred); the win
rate is the mean of p_i over all instructions without the first term.

Two fits. With the published instruction difficulties, per model, as published: L1 penalty, its strength chosen by
five-fold cross-validation. Without them, difficulties are fitted jointly with the effects of all models that answered
the same instructions, held by a ridge (difficulty_effect is 1). Published difficulties belong to one judge and one
baseline, GPT-4 Turbo for both.
Source: Dubois et al. 2024, arXiv:2404.04475; tatsu-lab/alpaca_eval metrics/glm_winrate.py at 1020da2, and
notebooks/instruction_difficulty.ipynb for the joint fit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.evaluation.alpaca_eval import Annotation


@dataclass(frozen=True, kw_only=True)
class GamedAnnotation:
    """One row of the published gamed baselines (df_gamed.csv), by which the length effect is held.

    preference in [0, 1]; length_difference is already divided by its standard deviation.
    """

    preference: float
    length_difference: float
    difficulty: float


@dataclass(frozen=True, kw_only=True)
class LengthControlled:
    """A model's length-controlled win rate against the baseline, in percent."""

    win_rate: Estimate
    """With a 95 % interval over instructions; count is the number of preferences that were fitted."""
    standard_error: float | None
    """As the leaderboard gives it: that of the mean of the fitted p_i. Of the instructions' spread it says something,
    of the judge's noise nothing; the interval has both. None with a single instruction."""
    length_effect: float
    difficulty_effect: float
    model_effect: float


def length_controlled(
    annotations: Sequence[Annotation],
    *,
    difficulties: Mapping[str, float],
    gamed: Sequence[GamedAnnotation] = (),
    seed: int,
) -> LengthControlled:
    """The published fit, with published difficulties by id; the order of the annotations does not matter.

    gamed rows count 0.1 each and have no model effect; without them the fit is the unregularised variant.
    Raises DataError as win_rates does, and on an id without a difficulty.
    """
    raise NotImplementedError


def length_controlled_jointly(
    annotations: Mapping[str, Sequence[Annotation]], *, seed: int
) -> dict[str, LengthControlled]:
    """By model, with difficulties refitted from these annotations; the more models, the better they are known.

    Raises DataError as win_rates does, naming the model, and where the models have not answered the same instructions.
    """
    raise NotImplementedError


def is_extreme(win_rate: float, controlled: float) -> bool:
    """Whether length control has moved a win rate (percent) so far that the fit may have failed."""
    raise NotImplementedError


def parse_difficulties(text: str, ids: Sequence[str]) -> dict[str, float]:
    """The published instruction_difficulty.csv by id: its `index` counts the instructions in the order of ids.

    Raises DataError on missing columns, on what is no number, and where an id has no row.
    """
    raise NotImplementedError


def parse_gamed(text: str) -> tuple[GamedAnnotation, ...]:
    """The rows of the published df_gamed.csv. Raises DataError on missing columns and on what is no number."""
    raise NotImplementedError
