import numpy as np
import pytest
from scipy.special import expit, logit

from moaa_ray.evaluation.logistic import fit_difficulties, fit_lasso, fit_ridge

RNG = np.random.default_rng(4)
FEATURES = np.column_stack([RNG.normal(size=(80, 2)), np.ones(80)])
TARGETS = expit(FEATURES @ [1.0, 0.02, -0.5] + RNG.normal(size=80))
WEIGHTS = RNG.uniform(0.5, 2, size=80)


@pytest.mark.parametrize("strength", [1e-3, 0.1, 1.0, 30.0, 1e4])
def test_a_lasso_fit_meets_the_conditions_of_its_minimum(strength):
    """strength x slope of the losses is -sign(c) where c is not 0, and between -1 and 1 where it is."""
    c = fit_lasso(FEATURES, TARGETS, WEIGHTS, strength=strength, start=np.zeros(3))
    slope = strength * FEATURES.T @ (WEIGHTS * (expit(FEATURES @ c) - TARGETS))
    near = 1e-4 * max(1, strength)
    assert np.abs(slope + np.sign(c))[c != 0] == pytest.approx(0, abs=near)
    assert (np.abs(slope)[c == 0] <= 1 + near).all()
    assert (c == 0).all() == (strength == 1e-3)


def test_a_lasso_fit_does_not_depend_on_where_it_starts():
    fits = [fit_lasso(FEATURES, TARGETS, WEIGHTS, strength=5.0, start=np.full(3, s)) for s in (0.0, 2.0, -2.0)]
    assert fits[1] == pytest.approx(fits[0], abs=1e-5)
    assert fits[2] == pytest.approx(fits[0], abs=1e-5)


def test_without_a_ridge_the_strength_of_each_model_is_the_logit_of_its_weighted_mean():
    """Bradley-Terry against one baseline: the fit of all models is the closed form of each."""
    models = RNG.integers(0, 3, size=200)
    results, battles = RNG.choice([0, 0.5, 1.0], size=200), RNG.choice([1.0, 3.0], size=200)
    c = fit_ridge(np.eye(3)[models], results, battles, ridge_K=np.zeros(3), start=np.zeros(3))
    means = [np.average(results[models == m], weights=battles[models == m]) for m in range(3)]
    assert c == pytest.approx(logit(means), abs=1e-9)


def test_a_ridge_keeps_what_always_wins_finite():
    """One feature, target 1 ten times: ridge c = 10 (1 - p)."""
    (c,) = fit_ridge(np.ones((10, 1)), np.ones(10), np.ones(10), ridge_K=np.array([0.1]), start=np.zeros(1))
    assert 0.1 * c == pytest.approx(10 * (1 - expit(c)))


def test_difficulties_are_those_of_the_same_regression_with_a_column_for_each_prompt():
    num_models, num_prompts = 3, 7
    lengths = RNG.normal(size=(num_models, num_prompts))
    targets, weights = RNG.uniform(size=lengths.shape), RNG.choice([0.0, 1.0], size=lengths.shape, p=[0.2, 0.8])
    found = fit_difficulties(lengths, targets, weights, ridge=0.7)
    columns = [
        np.concatenate([lengths[m, p] * np.eye(num_models)[m], np.eye(num_models)[m], np.eye(num_prompts)[p]])
        for m in range(num_models)
        for p in range(num_prompts)
    ]
    ridge = np.array([0.01] * 6 + [0.7] * num_prompts)
    whole = fit_ridge(np.array(columns), targets.ravel(), weights.ravel(), ridge_K=ridge, start=np.zeros(len(ridge)))
    assert found == pytest.approx(whole[6:], abs=1e-8)


def test_models_that_always_win_leave_difficulties_finite():
    assert fit_difficulties(np.zeros((2, 4)), np.ones((2, 4)), np.ones((2, 4)), ridge=1.0) == pytest.approx(0, abs=0.1)
