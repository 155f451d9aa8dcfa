"""Learning rates by hand."""

from math import cos, pi

import pytest

from moaa_ray.training.schedule import learning_rate


def rates(num_steps: int, kind: str, **settings) -> list[float]:
    return [learning_rate(step, num_steps, peak=1.0, kind=kind, **settings) for step in range(num_steps)]


def test_warm_up_reaches_the_peak_in_its_last_step_and_decay_begins_there():
    assert rates(6, "linear", warmup_ratio=0.3) == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])
    assert rates(4, "constant", warmup_ratio=0.25) == [1.0, 1.0, 1.0, 1.0]


def test_cosine_ends_one_step_above_the_floor():
    assert rates(4, "cosine", warmup_ratio=0.0) == pytest.approx([(1 + cos(pi * i / 4)) / 2 for i in range(4)])
    floored = rates(4, "cosine", warmup_ratio=0.0, floor_ratio=0.1)
    assert floored[0] == 1.0
    assert floored[2] == pytest.approx(0.55)


def test_a_run_of_one_step_has_the_peak():
    assert rates(1, "cosine", warmup_ratio=0.1) == [1.0]
