"""The ramp by hand, and beside lines that are played through."""

import random
from math import exp
from statistics import NormalDist, median

import pytest

from moaa_ray.core.allocation import PoolSpec
from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.core.planning import plan_line
from moaa_ray.core.ramp import ramp_s
from moaa_ray.core.simulated_line import Conditions
from moaa_ray.core.simulation import simulate


def pool(seconds_per_row: float, **more) -> PoolSpec:
    name = f"p{seconds_per_row:g}"
    fields = {"num_gpus": 0, "num_cpus": 1.0, "length_sigma": 0.0, "concurrency": 4} | more
    return PoolSpec(name=name, engine=name, passes=(name,), seconds_per_row=seconds_per_row, **fields)


SLOW, FAST = pool(2.0), pool(0.5)  # 8 s and 2 s an answer


def longest(num: float, sigma: float = 0.8) -> float:
    return min(4.0, exp(sigma * NormalDist().inv_cdf((num - 0.375) / (num + 0.25)) - sigma**2 / 2))


def test_answers_that_are_all_alike_add_the_way_to_the_slowest_pool_and_from_it():
    assert ramp_s([SLOW], [1], block_rows=4, num_rows=100) == 0
    assert ramp_s([FAST, SLOW], [1, 1], block_rows=4, num_rows=100) == 2
    assert ramp_s([SLOW, FAST], [1, 1], block_rows=4, num_rows=100) == 2
    assert ramp_s([FAST, SLOW, FAST], [1, 1, 1], block_rows=8, num_rows=100) == 8, "eight rows in four places: twice"
    assert ramp_s([pool(0.0)], [1], block_rows=4, num_rows=100) == 0


def test_rows_that_do_not_fill_the_places_take_a_whole_answer_all_the_same():
    """Two rows are 4 s of work and take 8 s; six are 12 s and take twice 8 s."""
    assert ramp_s([SLOW], [1], block_rows=1, num_rows=2) == 4
    assert ramp_s([SLOW], [1], block_rows=1, num_rows=6) == 4


def test_a_pool_about_as_slow_ends_no_sooner_for_it():
    """Ten engines with 2 s a row: 0.2 s a row, with 100 rows 20 s; before them 0.19 s a row, whose last row comes after
    19 s and takes 8 s more: 7 s beyond the slowest pool's 20 s, where the way to it is 0.76 s alone."""
    assert ramp_s([pool(0.19), SLOW], [1, 10], block_rows=4, num_rows=100) == pytest.approx(7)


def test_lengths_that_differ_add_the_longest_answer_of_a_block_and_at_the_end_of_all():
    slow, fast = (pool(seconds, length_sigma=0.8) for seconds in (2.0, 0.5))
    end_s = 8 * (longest(4) - 1)
    assert ramp_s([slow], [1], block_rows=4, num_rows=100) == pytest.approx(end_s)
    assert ramp_s([fast, slow], [1, 1], block_rows=2, num_rows=100) == pytest.approx(2 * longest(2) + end_s)
    several = pool(2.0, length_sigma=0.8, fan_out=5.0)
    assert ramp_s([several], [1], block_rows=4, num_rows=100) == pytest.approx(8 * (longest(20) - 1))


def test_what_waits_for_memory_is_not_worked_on_and_a_limit_holds_all_up():
    crowded = pool(2.0, concurrency=64, most_running=4)
    assert ramp_s([FAST, crowded], [1, 1], block_rows=4, num_rows=100) == 2
    limited = pool(0.5, floor_s_per_row=1.0)
    assert ramp_s([limited, SLOW], [1, 1], block_rows=4, num_rows=100) == 4, "four at a time, a second apart"
    slow = pool(0.1, concurrency=64, floor_s_per_row=6.4)
    assert ramp_s([slow], [1], block_rows=1, num_rows=8) == 0, "one after the other, however many might be there"
    plan = plan_line([slow], Cluster(nodes=(Node(num_gpus=0, num_cpus=8),)), num_rows=8)
    assert simulate(plan, num_rows=8, conditions=Conditions()).makespan_s == pytest.approx(plan.makespan_s, abs=0.1)


def test_it_is_what_lines_that_are_played_through_take_in_the_median():
    rng, errors = random.Random(5), []
    for _ in range(100):
        sigma, concurrency = rng.choice([0, 0.4, 0.8]), rng.choice([4, 16, 64])
        pools = [
            pool(10 ** rng.uniform(-1.5, 0.3), length_sigma=sigma, concurrency=concurrency)
            for _ in range(rng.randint(1, 5))
        ]
        num_rows, cluster = (
            rng.choice([100, 300, 1000]),
            Cluster(nodes=(Node(num_gpus=0, num_cpus=rng.choice([8, 32])),)),
        )
        plan = plan_line(pools, cluster, num_rows=num_rows, phases=1)
        played_s = simulate(plan, num_rows=num_rows, conditions=Conditions()).makespan_s
        errors.append(abs(plan.makespan_s / played_s - 1))
    assert median(errors) < 0.04
    assert sum(error > 0.1 for error in errors) < 25
