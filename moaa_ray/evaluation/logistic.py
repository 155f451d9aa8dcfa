"""Logistic regression with soft targets: by an L1 penalty, by a ridge, and with one ridged intercept a prompt.

The loss of a row with target y and logit z is log(1 + e^z) - y z, times its weight; two rows with the targets 1 and 0
and weights y and 1 - y give the same. Legend: N rows, K features, M models, P prompts.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit

_SMALLEST_STEP = 1e-10
_MOST_STEPS = 200
_EFFECT_RIDGE = 0.01
"""Keeps the effects of a model that always wins finite; against 805 preferences it moves a win rate by nothing."""


def loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """By row, in nats."""
    return np.logaddexp(0, logits) - targets * logits


def fit_lasso(features_NK: np.ndarray, targets_N: np.ndarray, weights_N: np.ndarray, *, strength: float) -> np.ndarray:
    """The K coefficients that minimise sum |c| + strength x sum of weighted losses."""
    num = features_NK.shape[1]
    scale = strength * weights_N.sum()

    def objective(parts: np.ndarray) -> tuple[float, np.ndarray]:
        # c = positive - negative part: the penalty is then linear, and the bounds do the rest.
        logits = features_NK @ (parts[:num] - parts[num:])
        slope = strength * (features_NK.T @ (weights_N * (expit(logits) - targets_N)))
        value = parts.sum() + strength * (weights_N @ loss(logits, targets_N))
        return value / scale, np.concatenate([1 + slope, 1 - slope]) / scale

    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    found = minimize(
        objective, np.zeros(2 * num), jac=True, method="L-BFGS-B", bounds=[(0, None)] * (2 * num), options=options
    ).x
    return found[:num] - found[num:]


def fit_ridge(
    features_NK: np.ndarray, targets_N: np.ndarray, weights_N: np.ndarray, *, ridge_K: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """The K coefficients that minimise sum ridge c^2 / 2 + sum of weighted losses.

    Without a ridge there is no minimum where a coefficient separates the targets 0 and 1.
    """

    def objective(c: np.ndarray) -> float:
        return float(weights_N @ loss(features_NK @ c, targets_N) + (ridge_K * c * c).sum() / 2)

    def step(c: np.ndarray) -> np.ndarray:
        p_N = expit(features_NK @ c)
        slope = features_NK.T @ (weights_N * (p_N - targets_N)) + ridge_K * c
        curvature = (features_NK.T * (weights_N * p_N * (1 - p_N))) @ features_NK + np.diag(ridge_K)
        return np.linalg.solve(curvature, slope)

    return _newton(start, objective, step)


def fit_difficulties(
    features_MP: np.ndarray, targets_MP: np.ndarray, weights_MP: np.ndarray, *, ridge: float
) -> np.ndarray:
    """The P difficulties of logit_mp = slope_m x feature_mp + effect_m + difficulty_p.

    Minimises the sum of weighted losses and of ridge x difficulty^2 / 2 over slopes, effects and difficulties.
    """
    num, num_prompts = features_MP.shape
    penalty = np.concatenate([np.full(2 * num, _EFFECT_RIDGE), np.full(num_prompts, ridge)])

    def logits(c: np.ndarray) -> np.ndarray:
        return c[:num, None] * features_MP + c[num : 2 * num, None] + c[2 * num :]

    def objective(c: np.ndarray) -> float:
        return float((weights_MP * loss(logits(c), targets_MP)).sum() + (penalty * c * c).sum() / 2)

    def step(c: np.ndarray) -> np.ndarray:
        p_MP = expit(logits(c))
        error_MP, bend_MP = weights_MP * (p_MP - targets_MP), weights_MP * p_MP * (1 - p_MP)
        slope = np.concatenate([(error_MP * features_MP).sum(1), error_MP.sum(1), error_MP.sum(0)]) + penalty * c
        # The difficulties' part of the curvature is diagonal, so they are eliminated and filled in afterwards.
        own_P = bend_MP.sum(0) + ridge
        across = np.concatenate([bend_MP * features_MP, bend_MP])
        squares, products, plain = (bend_MP * features_MP**2).sum(1), (bend_MP * features_MP).sum(1), bend_MP.sum(1)
        effects = np.block([[np.diag(squares), np.diag(products)], [np.diag(products), np.diag(plain)]])
        effects = effects + np.diag(penalty[: 2 * num]) - (across / own_P) @ across.T
        first = np.linalg.solve(effects, slope[: 2 * num] - across @ (slope[2 * num :] / own_P))
        return np.concatenate([first, (slope[2 * num :] - across.T @ first) / own_P])

    return _newton(np.zeros(2 * num + num_prompts), objective, step)[2 * num :]


def _newton(
    start: np.ndarray, objective: Callable[[np.ndarray], float], step: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Newton's method on a convex objective; a step that would climb is halved."""
    at, value = start, objective(start)
    for _ in range(_MOST_STEPS):
        whole = step(at)
        if np.abs(whole).max(initial=0.0) < _SMALLEST_STEP:
            break
        part = 1.0
        while (after := objective(at - part * whole)) > value and part > _SMALLEST_STEP:
            part /= 2
        if after >= value:
            break  # as deep as rounding lets one see
        at, value = at - part * whole, after
    return at
