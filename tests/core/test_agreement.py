"""Two judges' agreement on hand-counted scores."""

import pytest

from moaa_ray.core.agreement import agreement


def test_comparisons_that_both_decide_are_counted_alike_or_not():
    """Prompt 1: (0,1) alike, (0,2) alike, (1,2) not. Prompt 2: the second judge sees no difference anywhere."""
    found = agreement([(3.0, 2.0, 1.0), (1.0, 0.0, 0.5)], [(9.0, 2.0, 5.0), (4.0, 4.0, 4.0)], seed=0)
    assert found.num_prompts == 2
    assert (found.order.value, found.order.count) == (pytest.approx(2 / 3), 3)
    assert (found.undecided.value, found.undecided.count) == (0.5, 6)
    assert (found.best.value, found.best.count) == (1.0, 1)


def test_a_judge_agrees_with_itself_and_disagrees_with_its_mirror():
    scores = [(0.1, 0.4, 0.2), (1.0, 0.0, 0.5)]
    mirrored = [tuple(-score for score in row) for row in scores]
    assert agreement(scores, scores, seed=0).order.value == agreement(scores, scores, seed=0).best.value == 1.0
    assert agreement(scores, mirrored, seed=0).order.value == agreement(scores, mirrored, seed=0).best.value == 0.0


def test_a_candidate_without_a_score_is_undecided_and_never_the_best():
    found = agreement([(None, 1.0)], [(2.0, 1.0)], seed=0)
    assert (found.order.count, found.undecided.value, found.best.value) == (0, 1.0, 0.0)


def test_without_shared_prompts_nothing_is_known():
    found = agreement([], [], seed=0)
    assert (found.num_prompts, found.order.value, found.best.value) == (0, None, None)


def test_the_interval_is_over_prompts():
    """Nine prompts alike and one not: drawing ten prompts, few draws have below 7 or above 10 alike."""
    one = [(1.0, 0.0)] * 10
    found = agreement(one, [(1.0, 0.0)] * 9 + [(0.0, 1.0)], seed=0)
    assert found.order.value == 0.9
    assert found.order.low in (0.6, 0.7)
    assert found.order.high == 1.0
