"""The simulator against arithmetic: single pools, tandems, slots, the bottleneck, losses."""

from dataclasses import replace
from math import ceil, sqrt

import pytest

from moaa_ray.core.allocation import PoolSpec
from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.core.planning import PHASE_START_S, Phase, Plan, PlannedPool, plan_line
from moaa_ray.core.simulated_line import HOP_S, Conditions
from moaa_ray.core.simulation import busy_engines, simulate
from moaa_ray.errors import ConfigError

ALIKE = Conditions(length_sigma=0.0)


def spec(name: str, seconds_per_row: float, *, load_s: float = 0.0, concurrency: int = 1, **fields) -> PoolSpec:
    known = {"engine": name, "passes": (name,), "num_gpus": 1, "num_cpus": 1.0, "load_s": load_s}
    return PoolSpec(name=name, seconds_per_row=seconds_per_row, concurrency=concurrency, **{**known, **fields})


def phase_of(*pools: tuple[PoolSpec, int], block_rows: int = 1, in_flight: int = 2, num_credits: int = 10_000) -> Plan:
    planned = tuple(
        PlannedPool(spec=each, replicas=count, blocks_in_flight=in_flight, busy_fraction=1.0) for each, count in pools
    )
    phase = Phase(
        pools=planned,
        block_rows=block_rows,
        credits=num_credits,
        load_s=PHASE_START_S + max(each.load_s for each, _ in pools),
        work_s=0.0,
        ramp_s=0.0,
        bottleneck=pools[0][0].name,
        num_gpus=0,
        num_cpus=0.0,
    )
    return Plan(phases=(phase,), makespan_s=0.0, work_bound_s=0.0)


def worked_s(plan: Plan, num_rows: int, conditions: Conditions = ALIKE) -> float:
    return simulate(plan, num_rows=num_rows, conditions=conditions).makespan_s - plan.phases[0].load_s


@pytest.mark.parametrize(("num_engines", "num_rows"), [(1, 10), (3, 10), (4, 8)])
def test_rows_that_are_alike_take_as_many_rounds_as_there_are_per_engine(num_engines, num_rows):
    plan = phase_of((spec("a", 10.0, load_s=20.0), num_engines))
    assert worked_s(plan, num_rows) == pytest.approx(ceil(num_rows / num_engines) * 10.0, abs=num_rows * HOP_S)


def test_a_tandem_of_equal_pools_takes_one_row_more():
    plan = phase_of((spec("a", 10.0), 1), (spec("b", 10.0), 1), (spec("c", 10.0), 1))
    assert worked_s(plan, 20) == pytest.approx((20 + 2) * 10.0, abs=1.0)


def test_a_row_is_as_slow_in_an_empty_batch_as_in_a_full_one():
    """8 slots at 1 s a row: each row takes 8 s, so 8 rows take 8 s, and so does one."""
    plan = phase_of((spec("a", 1.0, concurrency=8), 1), block_rows=8)
    assert worked_s(plan, 1) == pytest.approx(8.0, abs=0.1)
    assert worked_s(plan, 8) == pytest.approx(8.0, abs=0.1)
    assert worked_s(plan, 9) == pytest.approx(16.0, abs=0.1)


def test_one_credit_leaves_one_block_in_the_line():
    plan = phase_of((spec("a", 10.0), 1), (spec("b", 10.0), 1), num_credits=1)
    assert worked_s(plan, 5) == pytest.approx(5 * 20.0, abs=0.5)


def test_a_long_run_takes_what_the_slowest_pool_takes():
    plan = phase_of(
        (spec("a", 1.0, concurrency=16), 2),
        (spec("b", 4.0, concurrency=16), 3),
        (spec("c", 1.0, concurrency=16), 2),
        block_rows=8,
        in_flight=12,
    )
    took = worked_s(plan, 6000, Conditions(length_sigma=0.8))
    longest_s = 4 * 16 * 4.0
    assert 8000 < took < 8000 + 2 * longest_s
    done = simulate(plan, num_rows=6000, conditions=Conditions()).phases[0]
    assert [pool.busy_fraction for pool in done.pools] == pytest.approx([0.375, 1.0, 0.375], rel=0.05)


def test_phases_follow_each_other_and_load_once_a_round():
    one = phase_of((spec("a", 1.0, load_s=30.0), 1)).phases[0]
    two = replace(one, load_s=2 * one.load_s)
    run = simulate(Plan(phases=(one, two), makespan_s=0.0, work_bound_s=0.0), num_rows=10, conditions=ALIKE)
    first, second = run.phases
    assert (first.start_s, first.end_s) == (0.0, pytest.approx(46.0, abs=0.1))
    assert second.end_s == pytest.approx(46.0 + 72.0 + 10.0, abs=0.1)


def test_the_same_seed_gives_the_same_run_and_another_another():
    plan = phase_of((spec("a", 1.0, concurrency=4), 3), block_rows=4)
    runs = [simulate(plan, num_rows=500, conditions=Conditions(seed=seed)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0].makespan_s != runs[2].makespan_s


def test_engines_are_lost_as_often_as_told_and_their_blocks_are_made_again():
    """20 engines for about 6 hours with one loss in an hour of each: about 110."""
    plan = phase_of((spec("a", 50.0, load_s=60.0), 20))
    conditions = Conditions(length_sigma=0.0, hours_between_losses=1.0, away_s=240.0)
    run = simulate(plan, num_rows=8_000, conditions=conditions)
    pool = run.phases[0].pools[0]
    assert len(pool.work) == 8_000
    num_losses = 20 * run.makespan_s / 3600 / (1 + 300 / 3600)
    assert pool.num_redone / 2 == pytest.approx(num_losses, abs=4 * sqrt(num_losses))
    away = num_losses * 300 + pool.num_redone / 2 * 25  # half of the block at work was done; the other had not begun
    assert run.makespan_s * 20 == pytest.approx(8_000 * 50 + away, rel=0.02)


def test_losses_that_let_no_block_end_are_refused():
    plan = phase_of((spec("a", 3600.0), 1))
    with pytest.raises(ConfigError, match="no run would end"):
        simulate(plan, num_rows=10, conditions=Conditions(hours_between_losses=0.01))


def test_hours_without_end_between_losses_are_none():
    plan = phase_of((spec("a", 1.0), 1))
    assert simulate(plan, num_rows=10, conditions=Conditions(hours_between_losses=float("inf"))).num_redone == 0


def test_busy_engines_add_up_to_the_work():
    plan = phase_of((spec("a", 1.0, concurrency=4), 3), block_rows=4)
    run = simulate(plan, num_rows=100, conditions=Conditions())
    edges = [run.makespan_s * i / 50 for i in range(51)]
    busy = list(busy_engines(run.phases[0].pools[0], edges))
    assert sum(busy) * run.makespan_s / 50 == pytest.approx(sum(work for _, _, work in run.phases[0].pools[0].work))


@pytest.mark.parametrize("num_rows", [1_000, 12_000])
@pytest.mark.parametrize("sigma", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("num_gpus", [2, 8, 32])
def test_a_plan_of_the_planner_is_played_through_in_its_own_time(num_rows, sigma, num_gpus):
    pools = [
        spec(name, s, load_s=60.0, concurrency=64, length_sigma=sigma)
        for name, s in (("a", 0.2), ("b", 0.5), ("agg", 1.0))
    ]
    cluster = Cluster(nodes=(Node(num_gpus=min(8, num_gpus), num_cpus=64, gpu="H100"),) * ceil(num_gpus / 8))
    plan = plan_line(pools, cluster, num_rows=num_rows)
    run = simulate(plan, num_rows=num_rows, conditions=Conditions())
    assert plan.makespan_s == pytest.approx(run.makespan_s, rel=0.13 if num_rows < 10_000 else 0.09)
