"""Length-controlled win rates of AlpacaEval 2: what the judge would say if both completions were equally long.

    logit p_i = length_effect x tanh(d_i / std(d)) + difficulty_effect x difficulty_i + model_effect

with d_i = baseline length - model length in characters and std over all instructions (n - 1, not centred); the win
rate is the mean of p_i over all instructions without the first term.

The effects are fitted per model as published: L1 penalty, its strength chosen by five-fold cross-validation. The
difficulties are the published ones, which belong to one judge and one baseline, GPT-4 Turbo for both; or, for each
model, those fitted to the other models' annotations: a slope and an effect for each of these and a ridged difficulty
for each instruction. A model's own annotations stay out, as difficulties that know them explain them: with verdicts of
0 and 1 the fit of a single model would then be its raw win rate again. A single model has no difficulties.
Beside the leaderboard, over 56 of its annotation files (measured with this code): with those fitted to all others
0.6 points off in the median; in groups of 14 models 1.1, of 3 models 2.6, both mostly too high; without any 4.8.
Source: Dubois et al. 2024, arXiv:2404.04475; tatsu-lab/alpaca_eval metrics/glm_winrate.py at 1020da2, and
notebooks/instruction_difficulty.ipynb for the joint fit.
"""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.core.seeds import seed_for
from moaa_ray.errors import DataError
from moaa_ray.evaluation.alpaca_eval import Annotation, checked
from moaa_ray.evaluation.logistic import fit_difficulties, fit_lasso, loss
from moaa_ray.evaluation.resampling import NUM_REFITS, estimate, resamples

_GAMED_WEIGHT = 0.1  # 0.2 in all, divided among two gamed baselines
_NUM_FOLDS = 5
_STRENGTHS = np.logspace(-4, 4, 10)
_SAME_LOSS = 1e-9  # nats
_RIDGE = 1.0  # of a difficulty, so that one instruction cannot follow its labels alone


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
    """With a 95 % interval over instructions, given the difficulties; count is the number of preferences fitted."""
    standard_error: float | None
    """As the leaderboard gives it: that of the mean of the fitted p_i. It knows of the instructions' spread alone, the
    interval of the judge's noise too. None with a single instruction."""
    length_effect: float
    difficulty_effect: float
    model_effect: float


def length_controlled(
    annotations: Iterable[Annotation],
    *,
    difficulties: Mapping[str, float],
    gamed: Sequence[GamedAnnotation] = (),
    seed: int,
) -> LengthControlled:
    """The published fit, with published difficulties by id; the order of the annotations does not matter.

    gamed rows count 0.1 each and have no model effect; without them the fit is the unregularised variant.
    Raises DataError as win_rates does, and on an id without a difficulty.
    """
    known = checked(annotations)
    missing = [a.id for a in known if a.id not in difficulties]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(known)} annotations have no instruction difficulty, {missing[0]!r} first: "
            "give a file that has them all, or none, so that difficulties are fitted"
        )
    lengths, targets, weights = _columns(known)
    plain = np.stack([np.zeros(len(known)), [difficulties[a.id] for a in known], np.ones(len(known))], axis=1)
    own = plain + np.outer(lengths, [1, 0, 0])
    held = np.array([[np.tanh(g.length_difference), g.difficulty, 0.0] for g in gamed]).reshape(-1, 3)
    rows = np.concatenate([held, own])
    all_targets = np.concatenate([[g.preference for g in gamed], targets])
    all_weights = np.concatenate([np.full(len(gamed), _GAMED_WEIGHT), weights])
    strength = _best_strength(rows, all_targets, all_weights)
    effects = fit_lasso(rows, all_targets, all_weights, strength=strength, start=np.zeros(3))

    def refitted(drawn: np.ndarray) -> float:
        counts = np.concatenate([np.ones(len(gamed)), drawn])
        c = fit_lasso(rows, all_targets, all_weights * counts, strength=strength, start=effects)
        return np.average(expit(plain @ c), weights=drawn)

    draws = resamples(len(known), seed=seed_for(seed, "alpaca_eval"), num_resamples=NUM_REFITS)
    return _result(expit(plain @ effects), np.array([refitted(drawn) for drawn in draws]), effects, int(weights.sum()))


def length_controlled_jointly(
    annotations: Mapping[str, Iterable[Annotation]], *, seed: int
) -> dict[str, LengthControlled]:
    """By model, with difficulties fitted to the other models' annotations; the more of them, the better.

    An instruction that no other model was judged on has difficulty 0. Raises DataError as win_rates does, naming the
    model.
    """
    known = {model: _checked_of(model, given) for model, given in annotations.items()}
    results = {}
    for model, own in known.items():
        others = [known[other] for other in sorted(known) if other != model]
        difficulties = dict.fromkeys((a.id for a in own), 0.0) | _fitted_difficulties(others)
        results[model] = length_controlled(own, difficulties=difficulties, seed=seed)
    return results


def _checked_of(model: str, annotations: Iterable[Annotation]) -> list[Annotation]:
    try:
        return checked(annotations)
    except DataError as error:
        raise DataError(f"model {model!r}: {error}") from error


def _fitted_difficulties(models: Sequence[Sequence[Annotation]]) -> dict[str, float]:
    """By id, of all instructions that any of the models was judged on."""
    ids = sorted({a.id for known in models for a in known})
    row_of = {row_id: i for i, row_id in enumerate(ids)}
    columns = np.zeros((3, len(models), len(ids)))
    for number, known in enumerate(models):
        columns[:, number, [row_of[a.id] for a in known]] = _columns(known)
    lengths, targets, weights = columns
    return dict(zip(ids, map(float, fit_difficulties(lengths, targets, weights, ridge=_RIDGE)), strict=True))


def _columns(known: Sequence[Annotation]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By instruction: the length term, the preference (0 without one), its weight (0 without one)."""
    differences = np.array([a.baseline_length - a.length for a in known], float)
    spread = differences.std(ddof=1) if len(known) > 1 else 0.0
    lengths = np.tanh(differences / spread) if spread else np.zeros(len(known))
    targets = np.array([a.preference or 0.0 for a in known])
    return lengths, targets, np.array([float(a.preference is not None) for a in known])


def _best_strength(rows: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """The strength whose fits to four fifths of the rows predict the other fifth best; the smallest of equals."""
    used = np.flatnonzero(weights)
    if len(used) < _NUM_FOLDS:
        return float(_STRENGTHS[-1])
    losses = np.zeros(len(_STRENGTHS))
    for first in range(_NUM_FOLDS):
        fold = used[first::_NUM_FOLDS]
        others = np.setdiff1d(used, fold)
        c = np.zeros(rows.shape[1])
        for number, strength in enumerate(_STRENGTHS):
            c = fit_lasso(rows[others], targets[others], weights[others], strength=strength, start=c)
            losses[number] += (weights[fold] * loss(rows[fold] @ c, targets[fold])).mean() / _NUM_FOLDS
    # Where the curve is flat, the last digits of a fit must not choose.
    return float(_STRENGTHS[np.flatnonzero(losses <= losses.min() + _SAME_LOSS)[0]])


def _result(
    fitted: np.ndarray, drawn: np.ndarray, effects: tuple[float, ...] | np.ndarray, count: int
) -> LengthControlled:
    length_effect, difficulty_effect, model_effect = (float(effect) for effect in effects)
    return LengthControlled(
        win_rate=estimate(100 * fitted.mean(), 100 * drawn, count=count),
        standard_error=float(100 * fitted.std(ddof=1) / np.sqrt(len(fitted))) if len(fitted) > 1 else None,
        length_effect=length_effect,
        difficulty_effect=difficulty_effect,
        model_effect=model_effect,
    )


def is_extreme(win_rate: float, controlled: float) -> bool:
    """Whether length control has moved a win rate (percent) so far that the fit may have failed.

    The published rule: by more than 10 points, and by more than a quarter of the way to 0 or to 100.
    """
    lowest = min(win_rate - win_rate / 4, win_rate - 10)
    highest = max(win_rate + (100 - win_rate) / 4, win_rate + 10)
    return not lowest <= controlled <= highest


def parse_difficulties(text: str, ids: Sequence[str]) -> dict[str, float]:
    """The published instruction_difficulty.csv by id: its `index` counts the instructions in the order of ids.

    Raises DataError on missing columns, on what is no number, and where an id has no row.
    """
    rows = _numbers(text, "instruction_difficulty.csv", ("index", "instruction_difficulty"))
    by_index = {int(index): value for index, value in rows}
    missing = [row_id for i, row_id in enumerate(ids) if i not in by_index]
    if missing:
        raise DataError(
            f"instruction_difficulty.csv has no row for {len(missing)} of {len(ids)} instructions, {missing[0]!r} "
            "first: it belongs to the 805 instructions of AlpacaEval in their order; leave it out for others"
        )
    return {row_id: by_index[i] for i, row_id in enumerate(ids)}


def parse_gamed(text: str) -> tuple[GamedAnnotation, ...]:
    """The rows of the published df_gamed.csv.

    Raises DataError on missing columns, on what is no number, and on a preference outside [0, 1].
    """
    columns = ("preference", "std_delta_len", "instruction_difficulty")
    rows = _numbers(text, "df_gamed.csv", columns)
    for number, (preference, *_) in enumerate(rows, 2):
        if not 0 <= preference <= 1:
            raise DataError(
                f"df_gamed.csv, row {number}: preference = {preference:g} is not from 0 (baseline) to 1 (model); "
                "unlike annotations, the published file does not count from 1 to 2; give it as it is"
            )
    return tuple(
        GamedAnnotation(preference=preference, length_difference=difference, difficulty=difficulty)
        for preference, difference, difficulty in rows
    )


def _numbers(text: str, name: str, columns: Sequence[str]) -> list[list[float]]:
    """The named columns of a CSV file, row by row."""
    reader = csv.DictReader(io.StringIO(text))
    lacking = [column for column in columns if column not in (reader.fieldnames or ())]
    if lacking:
        raise DataError(
            f"{name} has no column {lacking[0]!r}: {', '.join(columns)} are wanted; give the published file"
        )
    rows = []
    for number, row in enumerate(reader, 2):
        try:
            values = [float(row[column]) for column in columns]
        except (TypeError, ValueError):
            values = [float("nan")]
        if not np.isfinite(values).all():
            raise DataError(f"{name}, row {number}: {dict(row)} has no number in each of {', '.join(columns)}; mend it")
        rows.append(values)
    return rows
