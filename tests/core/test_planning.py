"""The planner by hand on small lines, and against exhaustive search on random ones."""

import itertools
import random
from dataclasses import replace
from math import ceil

import pytest

from moaa_ray.core.allocation import SERVICE_CPUS, PoolSpec
from moaa_ray.core.packing_gpus import Cluster, Demand, Node, packs
from moaa_ray.core.planning import PHASE_START_S, Plan, block_rows, plan_line
from moaa_ray.core.simulated_line import Conditions
from moaa_ray.core.simulation import simulate
from moaa_ray.errors import ConfigError


def pool(name: str, seconds_per_row: float, *, num_gpus: int = 1, num_cpus: float = 1.0, **more) -> PoolSpec:
    spec = {"engine": name, "passes": (name,), **more}
    return PoolSpec(name=name, seconds_per_row=seconds_per_row, num_gpus=num_gpus, num_cpus=num_cpus, **spec)


def cluster(*gpus: int, num_cpus: float = 64) -> Cluster:
    return Cluster(nodes=tuple(Node(num_gpus=n, num_cpus=num_cpus, gpu="H100") for n in gpus))


def replicas(plan: Plan) -> list[list[int]]:
    return [[planned.replicas for planned in phase.pools] for phase in plan.phases]


# ------------------------------------------------------------------------------------------------ replicas and phases


def test_the_slowest_pool_gets_the_next_gpu():
    """3 and 1 s/row on 4 GPUs: 3 + 1 engines, 1 s/row, 1000 s. Any cut costs a load more."""
    plan = plan_line([pool("a", 3.0), pool("b", 1.0)], cluster(4), num_rows=1000)
    assert replicas(plan) == [[3, 1]]
    assert plan.makespan_s == 1000 + plan.phases[0].ramp_s + PHASE_START_S
    assert plan.work_bound_s == 1000


def test_models_that_do_not_fit_together_are_cut_into_phases():
    """One GPU, three pools, so three phases: 100 rows x (1 + 2 + 3) s, three loads of 10 s. No ramp, one by one."""
    pools = [
        pool(name, s, load_s=10, length_sigma=0, concurrency=1) for name, s in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    ]
    plan = plan_line(pools, cluster(1), num_rows=100)
    assert replicas(plan) == [[1], [1], [1]]
    assert plan.makespan_s == 600 + 3 * (10 + PHASE_START_S)


def test_a_cut_is_made_when_rounding_costs_more_than_a_load():
    """Two GPUs, 1.0 and 0.1 s/row, 10,000 rows: together 10,000 s; apart 5,000 + 500 s and one more load."""
    pools = [pool("a", 1.0, load_s=60), pool("b", 0.1, load_s=60)]
    assert replicas(plan_line(pools, cluster(2), num_rows=10_000)) == [[2], [2]]
    assert replicas(plan_line(pools, cluster(2), num_rows=10_000, phases=1)) == [[1, 1]]
    assert replicas(plan_line(pools, cluster(2), num_rows=100)) == [[1, 1]]


def test_several_rounds_load_the_engines_of_every_phase_again_but_of_one_phase_once():
    """Apart, a round's 34 rows are eight times four of 4 s and two more, which take 2 s longer than their share;
    together, the second pool has its last four rows 4 s after that, and again in each later turn as far as the line
    holds the 34 rows of a turn, here 32 of them."""
    pools = [pool(name, 1.0, load_s=10, length_sigma=0, concurrency=4) for name in "ab"]
    apart = plan_line(pools, cluster(1), num_rows=100, num_rounds=3)
    assert apart.makespan_s == 200 + 2 * 3 * (2 + 10 + PHASE_START_S)
    together = plan_line(pools, cluster(2), num_rows=100, num_rounds=3)
    phase = together.phases[0]
    assert phase.credits * phase.block_rows == 32
    assert together.makespan_s == pytest.approx(100 + (2 + 4) * (1 + 2 * 32 / 34) + 10 + PHASE_START_S)
    plan = plan_line(pools, cluster(2), num_rows=100_000, num_rounds=3)
    assert plan.phases[0].num_ramps == pytest.approx(1, abs=0.01), "in a long run others' rows fill the line"


def test_fixed_replicas_are_obeyed_and_ranges_bound_the_planner():
    pools = [pool("a", 1.0, min_replicas=2, max_replicas=2), pool("b", 9.0, min_replicas=1, max_replicas=3)]
    assert replicas(plan_line(pools, cluster(8), num_rows=1000, phases=1)) == [[2, 3]]


def test_an_engine_of_four_gpus_needs_four_on_one_node():
    """Nodes of 3 and 3 GPUs hold no engine of 4 on one node, but 4 > 3 takes whole nodes, so both."""
    plan = plan_line([pool("big", 1.0, num_gpus=4)], cluster(3, 3), num_rows=1000)
    assert replicas(plan) == [[1]]
    with pytest.raises(ConfigError, match="each engine on one node"):
        plan_line([pool("big", 1.0, num_gpus=3, min_replicas=2)], cluster(4, 2), num_rows=1000)


def test_an_engine_that_fits_nowhere_is_refused_with_the_sum():
    with pytest.raises(ConfigError) as refused:
        plan_line(
            [pool("agg", 1.0, num_gpus=8, shape="tensor_parallel 8 x pipeline_parallel 1")], cluster(4), num_rows=10
        )
    assert str(refused.value) == (
        "needs 8 GPUs for one engine of agg (tensor_parallel 8 x pipeline_parallel 1); the cluster has 4; "
        "add nodes, or lower what an engine takes or replicas"
    )


def test_cpu_slots_for_admission_and_commit_are_part_of_the_sum():
    with pytest.raises(ConfigError, match=r"needs 3 CPU slots .* and 2 for admission and commit; the cluster has 2"):
        plan_line([pool("a", 1.0, num_gpus=0)], cluster(0, num_cpus=2), num_rows=10)


def test_a_cluster_without_gpus_is_planned_in_cpu_slots():
    """8 slots - 2 = 6 engines of one slot: 4 + 2 for 2 : 1."""
    plan = plan_line([pool("a", 2.0, num_gpus=0), pool("b", 1.0, num_gpus=0)], cluster(0, num_cpus=8), num_rows=1000)
    assert replicas(plan) == [[4, 2]]
    assert plan.phases[0].num_cpus == 8


def test_a_forced_number_of_phases_is_obeyed_or_refused():
    pools = [pool("a", 1.0), pool("b", 1.0)]
    assert len(plan_line(pools, cluster(2), num_rows=10, phases=2).phases) == 2
    with pytest.raises(ConfigError, match=r"phases = 1 is too few: the line needs 2 GPUs .* phases: auto"):
        plan_line(pools, cluster(1), num_rows=10, phases=1)
    with pytest.raises(ConfigError, match="phases = 3"):
        plan_line(pools, cluster(2), num_rows=10, phases=3)


def test_no_more_engines_than_rows_can_feed():
    """20 rows give at most five engines (four blocks of one row each)."""
    assert replicas(plan_line([pool("a", 100.0)], cluster(8, 8), num_rows=20)) == [[5]]


def test_short_work_and_rate_limits_get_no_further_engines():
    """1000 rows x 0.001 s is 1 s of work. A limit of 0.25 s/row needs 4 engines of 1 s/row, not 16."""
    assert replicas(plan_line([pool("a", 0.001)], cluster(8), num_rows=1000)) == [[1]]
    assert replicas(plan_line([pool("a", 1.0, floor_s_per_row=0.25)], cluster(8, 8), num_rows=1000)) == [[4]]


def test_pools_of_one_engine_have_its_limit_together_while_they_stand_together():
    """3 and 1 requests a row at 0.25 s each are 1 s a row, of which they get 3/4 and 1/4; apart they take 0.75 + 0.25.

    Another engine's limit is its own.
    """
    both = [pool(name, 0.1, engine="e", floor_s_per_row=floor_s) for name, floor_s in (("a", 0.75), ("b", 0.25))]
    plan = plan_line([*both, pool("c", 0.1, floor_s_per_row=0.5)], cluster(3), num_rows=100, phases=1)
    assert [planned.spec.share for planned in plan.phases[0].pools] == [0.75, 0.25, 1.0]
    assert plan.phases[0].work_s == plan.work_bound_s == 100
    apart = plan_line(both, cluster(1), num_rows=100)
    assert [phase.pools[0].spec.share for phase in apart.phases] == [1.0, 1.0]
    assert [phase.work_s for phase in apart.phases] == [75, 25]


def test_thousands_of_gpus_are_planned_exactly():
    """4,096 GPUs in nodes of 8, engines of 1 and 4 GPUs: 1 x 1 + 4 x 0.5 = 3 GPU-seconds a row, so 3 / 4096 s."""
    plan = plan_line([pool("a", 1.0), pool("b", 0.5, num_gpus=4)], cluster(*[8] * 512), num_rows=10**7, phases=1)
    assert plan.phases[0].work_s == pytest.approx(plan.work_bound_s, rel=0.005)
    assert plan.phases[0].num_gpus <= 4096


# ------------------------------------------------------------------------------------------------ blocks and credits


def test_a_block_takes_at_most_five_seconds_of_an_engine():
    """10 rows at 0.5 s. The longest of 10 is 4.04 means: (4.04 + 1) x 64 / 10 = 32.3 blocks keep 64 places filled."""
    assert block_rows(0.5, 64, 8, 60_000) == (10, 33)


def test_a_block_has_at_most_half_the_requests_that_an_engine_takes_at_once():
    """0.02 s/row would allow 250 rows. The longest of 32 is 5.97 means: 6.97 x 64 / 32 = 13.9."""
    assert block_rows(0.02, 64, 1, 60_000) == (32, 14)


def test_the_control_plane_sees_at_most_twenty_blocks_a_second_of_a_pool():
    """100 engines of 0.02 s/row make 5,000 rows a second: 250 rows a block."""
    assert block_rows(0.02, 64, 100, 10**6)[0] == 250
    assert block_rows(0.02, 64, 100, 10**6, num_pools=5)[0] == 250
    assert block_rows(0.02, 64, 100, 10**6, num_pools=20)[0] == 1000, "100 blocks a second enter a pool, all together"


def test_a_line_of_many_pools_is_not_held_up_by_the_driver():
    """20 pools with 500 rows a second: of 25 rows 400 blocks a second would enter a pool, which takes 1.6 s of it."""
    pools = [pool(f"p{i}", 0.04, concurrency=8, min_replicas=20, max_replicas=20) for i in range(20)]
    plan = plan_line(pools, cluster(400, num_cpus=1000), num_rows=120_000)
    assert plan.phases[0].block_rows == 100
    run = simulate(plan, num_rows=120_000, conditions=Conditions())
    assert run.makespan_s == pytest.approx(plan.makespan_s, rel=0.15)


def test_engines_that_take_no_time_get_blocks_of_a_thousand():
    assert block_rows(0.0, 64, 4, 100_000) == (1000, 2)


def test_a_small_dataset_still_gives_every_engine_four_blocks():
    """64 rows, 4 engines: 4 rows a block; the longest of 4 is 2.75 means: 3.75 x 32 / 4 = 30.01."""
    assert block_rows(0.1, 32, 4, 64) == (4, 31)


def test_a_block_has_at_least_one_row():
    assert block_rows(100.0, 8, 10, 5) == (1, 16)


def test_a_row_of_many_requests_waits_for_the_longest_of_them():
    """3 rows of 20 requests fill 64 places. The longest of 20 is 5.15 means: 6.15 x 3 = 18.4 rows keep them filled."""
    judge = pool("judge", 10.0, concurrency=3, fan_out=20.0, max_replicas=1)
    (phase,) = plan_line([judge], cluster(1), num_rows=400).phases
    assert (phase.block_rows, phase.pools[0].blocks_in_flight) == (1, 19)
    alone = plan_line([replace(judge, fan_out=1.0)], cluster(1), num_rows=400).phases[0].pools[0]
    assert alone.blocks_in_flight == 6


def test_credits_are_what_all_engines_hold_and_two_a_pool_but_no_more_than_there_are_blocks():
    """One engine of 1 s/row, concurrency 4: blocks of 2 rows, 2.86 x 4 / 2 = 5.7 in flight; 10 rows are 5 blocks."""
    plan = plan_line([pool("a", 1.0, concurrency=4)], cluster(1), num_rows=1000)
    assert (plan.phases[0].block_rows, plan.phases[0].pools[0].blocks_in_flight, plan.phases[0].credits) == (2, 6, 8)
    assert plan_line([pool("a", 1.0, concurrency=64)], cluster(1), num_rows=10).phases[0].credits == 5


# ------------------------------------------------------------------------------------------------ against exhaustive


def random_line(seed: int) -> tuple[list[PoolSpec], Cluster, int]:
    rng = random.Random(seed)
    sizes = [rng.choice([1, 1, 2, 4]) for _ in range(rng.randint(1, 4))]
    pools = []
    for i, size in enumerate(sizes):
        fixed = {"min_replicas": 1, "max_replicas": rng.choice([1, 2])} if rng.random() < 0.15 else {}
        pools.append(
            pool(
                f"p{i}",
                10 ** rng.uniform(-1.5, 1),
                num_gpus=size,
                load_s=rng.uniform(0, 300),
                length_sigma=0,
                concurrency=1,
                **fixed,
            )
        )
    nodes = rng.choice([(4,), (8,), (4, 4), (8, 4), (4, 4, 4), (8, 8)])
    return pools, cluster(*nodes, num_cpus=rng.choice([5, 8, 64])), rng.choice([200, 2000, 20_000])


def really_packs(sizes: list[int], free: list[tuple[int, float]]) -> bool:
    """Every way of putting engines (GPUs, one CPU slot each) on nodes is tried; 0 stands for a service slot."""
    if not sizes:
        return True
    for i, (gpus, cpus) in enumerate(free):
        if gpus >= sizes[0] and cpus >= 1 and free[i] not in free[:i]:
            left = [*free[:i], (gpus - sizes[0], cpus - 1), *free[i + 1 :]]
            if really_packs(sizes[1:], left):
                return True
    return False


def exhaustive_phase_s(pools: list[PoolSpec], shape: Cluster, num_rows: int) -> float:
    """The least seconds of one phase over all numbers of engines."""
    free = [(node.num_gpus, node.num_cpus) for node in shape.nodes]
    most = [min(shape.num_gpus // p.num_gpus, p.max_replicas or 99, num_rows // 4) for p in pools]
    best = float("inf")
    for counts in itertools.product(*(range(1, n + 1) for n in most)):
        sizes = [p.num_gpus for p, n in zip(pools, counts, strict=True) for _ in range(n)]
        row_s = max(p.seconds_per_row / n for p, n in zip(pools, counts, strict=True))
        seconds = PHASE_START_S + max(p.load_s for p in pools) + num_rows * row_s
        if seconds < best and sum(sizes) <= shape.num_gpus:
            sizes = sorted(sizes, reverse=True) + [0] * SERVICE_CPUS
            best = seconds if really_packs(sizes, free) else best
    return best


def exhaustive_s(pools: list[PoolSpec], shape: Cluster, num_rows: int) -> float:
    """The least makespan over all cuts and all numbers of engines."""
    num, best = len(pools), float("inf")
    parts = {
        (start, stop): exhaustive_phase_s(pools[start:stop], shape, num_rows)
        for start in range(num)
        for stop in range(start + 1, num + 1)
    }
    for mask in range(2 ** (num - 1)):
        ends = [0, *(i + 1 for i in range(num - 1) if mask >> i & 1), num]
        best = min(best, sum(parts[pair] for pair in itertools.pairwise(ends)))
    return best


@pytest.mark.parametrize("seed", range(60))
def test_the_makespan_is_within_two_percent_of_exhaustive_search(seed):
    """P5: at most 5 % worse, moonshot 2 %; on at most 16 engines."""
    pools, shape, num_rows = random_line(seed)
    plan = plan_line(pools, shape, num_rows=num_rows)
    best = exhaustive_s(pools, shape, num_rows)
    makespan_s = plan.makespan_s - sum(phase.ramp_s for phase in plan.phases)  # next to nothing of one row at a time
    assert best * (1 - 1e-9) <= makespan_s <= best * 1.02


@pytest.mark.parametrize("seed", range(60, 120))
def test_a_plan_never_exceeds_the_cluster_and_is_the_same_every_time(seed):
    pools, shape, num_rows = random_line(seed)
    plan = plan_line(pools, shape, num_rows=num_rows)
    assert plan == plan_line(pools, shape, num_rows=num_rows)
    assert [p.spec for phase in plan.phases for p in phase.pools] == pools
    assert plan.makespan_s >= plan.work_bound_s * (1 - 1e-9)
    for phase in plan.phases:
        assert all(p.replicas >= 1 for p in phase.pools)
        assert phase.num_gpus <= shape.num_gpus
        assert phase.num_cpus <= shape.num_cpus
        sizes = sorted((p.spec.num_gpus for p in phase.pools for _ in range(p.replicas)), reverse=True)
        assert really_packs([*sizes, *[0] * SERVICE_CPUS], [(n.num_gpus, n.num_cpus) for n in shape.nodes])
        assert phase.credits <= max(1, ceil(num_rows / phase.block_rows))


# ------------------------------------------------------------------------------------------------ packing


def test_fractional_cpu_slots_add_up_exactly():
    """Ten engines of 0.1 fill one slot; eleven do not fit."""
    one = Cluster(nodes=(Node(num_gpus=0, num_cpus=1),))
    assert packs([Demand(num_gpus=0, num_cpus=0.1, count=10)], one)
    assert not packs([Demand(num_gpus=0, num_cpus=0.1, count=11)], one)


def test_an_engine_larger_than_a_node_takes_whole_empty_nodes():
    """16 GPUs on nodes of 8 are two nodes; nothing else fits on them."""
    three = cluster(8, 8, 8)
    big = Demand(num_gpus=16, num_cpus=1, count=1)
    assert packs([big, Demand(num_gpus=1, num_cpus=1, count=8)], three)
    assert not packs([big, Demand(num_gpus=1, num_cpus=1, count=9)], three)


def test_a_grown_cluster_has_full_nodes_first():
    grown = cluster(8).grown(12, 24)
    assert [node.num_gpus for node in grown.nodes] == [8, 8, 4]
    assert grown.num_cpus == 64 + 24


def test_engines_stand_only_on_nodes_with_their_labels():
    """Two nodes of 4 GPUs, one of them labelled: 4 engines of one GPU fit there, not 5."""
    big = frozenset({("pool", "big")})
    nodes = (Node(num_gpus=4, num_cpus=16, labels=big), Node(num_gpus=4, num_cpus=16, labels=frozenset()))
    both = Cluster(nodes=nodes)

    def fit(labelled: int, others: int) -> bool:
        wanted = Demand(num_gpus=1, num_cpus=1, count=labelled, labels=big)
        return packs([Demand(num_gpus=1, num_cpus=1, count=others), wanted], both)

    assert fit(4, 4)
    assert fit(1, 7)
    assert not fit(5, 0)
    assert not fit(4, 5)
    assert packs([Demand(num_gpus=1, num_cpus=1, count=8, labels=big)], Cluster(nodes=(Node(num_gpus=8, num_cpus=8),)))


def test_an_engine_larger_than_its_labelled_nodes_takes_several_of_them():
    """8 GPUs over two labelled nodes of 4, beside a node of 8 that it does not want."""
    big = frozenset({("pool", "big")})
    small = Node(num_gpus=4, num_cpus=16, labels=big)
    nodes = (small, small, Node(num_gpus=8, num_cpus=16, labels=frozenset()))
    assert packs([Demand(num_gpus=8, num_cpus=1, count=1, labels=big)], Cluster(nodes=nodes))
    assert not packs([Demand(num_gpus=8, num_cpus=1, count=1, labels=big)], Cluster(nodes=nodes[1:]))
