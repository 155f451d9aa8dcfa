from collections import Counter

import pytest

from moaa_ray.core.batches import BatchPlan, Source, check_divides, deal
from moaa_ray.errors import ConfigError


def test_every_unit_comes_once_an_epoch_and_batches_cross_epochs():
    plan = BatchPlan(sources=(Source(10),), batch=4, epochs=3, seed=7)
    assert (plan.num_steps, plan.num_unused) == (7, 2)
    units = [unit for step in range(plan.num_steps) for unit in plan.units_of(step)]
    assert Counter(units[:10]) == Counter(units[10:20]) == Counter(range(10))
    assert units[:10] != units[10:20]
    assert [step for step in range(plan.num_steps) if plan.ends_epoch(step)] == [2, 4, 6]
    assert plan.epoch_of(2) == 1.2


def test_a_step_depends_on_the_seed_and_on_nothing_before_it():
    plan = BatchPlan(sources=(Source(50),), batch=8, epochs=2, seed=7)
    again = BatchPlan(sources=(Source(50),), batch=8, epochs=2, seed=7)
    assert again.units_of(11) == plan.units_of(11)
    assert BatchPlan(sources=(Source(50),), batch=8, epochs=2, seed=8).units_of(11) != plan.units_of(11)


def test_a_weight_of_one_half_takes_the_other_half_in_the_next_epoch_and_of_two_all_of_it_twice():
    plan = BatchPlan(
        sources=(Source(8, weight=0.5), Source(3, weight=2), Source(2, epochs=1)), batch=1, epochs=2, seed=3
    )
    units = [plan.units_of(step)[0] for step in range(plan.num_steps)]
    first, second = Counter(units[:12]), Counter(units[12:])
    assert [sum(count for unit, count in half.items() if unit < 8) for half in (first, second)] == [4, 4]
    assert sorted(unit for unit in units if unit < 8) == list(range(8))
    assert all(first[unit] == second[unit] == 2 for unit in (8, 9, 10))
    assert (first[11], first[12], second[11], second[12]) == (1, 1, 0, 0)
    assert [step for step in range(plan.num_steps) if plan.ends_epoch(step)] == [11, 21]


def test_too_little_data_for_one_batch_is_refused():
    with pytest.raises(ConfigError, match="5 pairs in 1 epoch do not fill one batch of 8; lower batch"):
        BatchPlan(sources=(Source(5),), batch=8, epochs=1, seed=0, kind="pairs")


def test_a_batch_that_does_not_divide_names_the_product():
    with pytest.raises(ConfigError, match=r"batch = 10 is not a multiple of workers x micro_batch = 2 x 2 = 4"):
        check_divides(10, 2, 2)


def test_dealing_keeps_every_unit_and_gives_workers_equal_work():
    units, lengths = [10, 11, 12, 13, 14, 15, 16, 17], [1, 8, 2, 7, 3, 6, 4, 5]
    dealt = deal(units, lengths, 2, 2)
    assert dealt == [[[11, 17], [16, 10]], [[13, 15], [14, 12]]]
    work = dict(zip(units, lengths, strict=True))
    assert [[sum(work[u] for u in hand) for hand in hands] for hands in dealt] == [[13, 5], [13, 5]]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_every_number_of_workers_computes_the_same_step(num_workers):
    units, lengths = list(range(16)), [i * 37 % 11 for i in range(16)]
    dealt = deal(units, lengths, num_workers, 2)
    assert sorted(u for hands in dealt for hand in hands for u in hand) == units
