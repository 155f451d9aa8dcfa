"""Logistic regression with soft targets: by an L1 penalty, by a ridge, and with one ridged intercept a prompt.

The loss of a row with target y and logit z is log(1 + e^z) - y z, times its weight; two rows with the targets 1 and 0
and weights y and 1 - y give the same. Legend: N rows, K features, M models, P prompts.
"""

from collections.abc import Callable
from itertools import product

import numpy as np
from scipy.special import expit

_SMALLEST_STEP = 1e-10
_MOST_STEPS = 100
_SINGULAR = 1e-14
"""Relative: what is added to a curvature that may have none, where a feature is 0 or another one's multiple."""
_ROUNDING = 1e-13
"""Relative: what a sum of losses may seem to rise by where a step in truth lowers it."""
_EFFECT_RIDGE = 0.01
"""Keeps the effects of a model that always wins finite; against 805 preferences it moves a win rate by nothing."""


def loss(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """By row, in nats; also of large logits to the last digits, as the line search compares sums of it."""
    return np.log1p(np.exp(-np.abs(logits))) + logits * ((logits > 0) - targets)


def fit_lasso(
    features_NK: np.ndarray, targets_N: np.ndarray, weights_N: np.ndarray, *, strength: float, start: np.ndarray
) -> np.ndarray:
    """The K coefficients that minimise sum |c| + strength x sum of weighted losses; 3^K is a small number."""
    weights_N = strength * weights_N
    signs_SK = np.array(list(product((-1.0, 0.0, 1.0), repeat=features_NK.shape[1])))

    def objective(c: np.ndarray) -> float:
        return float(np.abs(c).sum() + weights_N @ loss(features_NK @ c, targets_N))

    def step(c: np.ndarray) -> np.ndarray:
        p_N = expit(features_NK @ c)
        slope = features_NK.T @ (weights_N * (p_N - targets_N))
        curvature = (features_NK.T * (weights_N * p_N * (1 - p_N))) @ features_NK
        return c - _lasso_of_quadratic(slope - curvature @ c, curvature, signs_SK)

    return _newton(start, objective, step)


def _lasso_of_quadratic(slope_K: np.ndarray, curvature_KK: np.ndarray, signs_SK: np.ndarray) -> np.ndarray:
    """The x of the smallest slope x + x curvature x / 2 + sum |x|.

    For every choice of signs the minimum is a linear system; of those that have the signs chosen, the lowest it is.
    Coordinate descent would crawl where features are nearly the same.
    """
    mask_SK = np.abs(signs_SK)
    floor = _SINGULAR * curvature_KK.diagonal().max() + np.finfo(float).tiny
    systems = (curvature_KK + floor * np.eye(len(slope_K))) * mask_SK[:, :, None] * mask_SK[:, None, :]
    systems += (1 - mask_SK)[:, :, None] * np.eye(len(slope_K))
    found_SK = np.linalg.solve(systems, (-(slope_K + signs_SK) * mask_SK)[:, :, None])[:, :, 0]
    found_SK = found_SK[(np.sign(found_SK) == signs_SK).all(axis=1)]
    heights = found_SK @ slope_K + ((found_SK @ curvature_KK) * found_SK).sum(1) / 2 + np.abs(found_SK).sum(1)
    return found_SK[heights.argmin()]


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
        part, deepest = 1.0, value + _ROUNDING * abs(value)
        while (after := objective(at - part * whole)) > deepest:
            part /= 2
            if part < _SMALLEST_STEP:
                return at
        at, value = at - part * whole, after
    return at
