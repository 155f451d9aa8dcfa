"""How many engines each pool gets, and where the line of pools is cut into phases, for the shortest makespan.

Pure arithmetic on expected seconds per row. A phase is a run of consecutive pools that stand on the cluster together
and work on different rows at the same time; between phases the rows rest in Parquet. The makespan is the sum over
phases of load + rows x the slowest pool's seconds per row + the ramp, in which not all pools have work.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil, exp, inf, log, sqrt

from moaa_ray.core.allocation import (
    LENGTH_SIGMA,
    SERVICE_CPUS,
    PoolSpec,
    allocate,
    does_not_fit,
    fits,
    most_replicas,
    slowest_s,
)
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.ramp import ramp_s
from moaa_ray.errors import ConfigError

PHASE_START_S = 6.0
"""Seconds to start one phase beside its engines (performance.md 1.3: Ray Data, 4 pools, measured)."""

BLOCK_S = 5.0
"""Seconds of one engine that a block should take, at most."""

MAX_BLOCKS_PER_S, MAX_HOPS_PER_S = 20, 100
"""Blocks a second that Ray Data's control plane is asked for, and times a second that one enters a pool: it takes about
17 ms for a block through four (performance.md 1.3)."""


@dataclass(frozen=True, kw_only=True)
class PlannedPool:
    """One pool with what it gets."""

    spec: PoolSpec
    replicas: int
    blocks_in_flight: int  # per engine
    busy_fraction: float  # expected part of the phase's working time that its engines are busy


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Pools that stand together."""

    pools: tuple[PlannedPool, ...]
    block_rows: int
    credits: int  # blocks admitted and not yet committed
    load_s: float  # over all rounds
    work_s: float
    ramp_s: float  # filling and draining, over all rounds
    num_ramps: float = 1.0  # how often it fills and drains, for later turns
    bottleneck: str  # the slowest pool's name
    num_gpus: int
    num_cpus: float  # slots, admission and commit included

    @property
    def duration_s(self) -> float:
        """Load, start, ramp and work."""
        return self.load_s + self.ramp_s + self.work_s


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The line on the cluster."""

    phases: tuple[Phase, ...]
    makespan_s: float
    work_bound_s: float  # engine-seconds over what the cluster has: no plan can be faster


def blocks_in_flight(block_rows: int, concurrency: int, fan_out: float = 1.0) -> int:
    """Blocks that one engine should hold so that it never drains, although a block leaves with its slowest row.

    Of n log-normal lengths the longest is at most about exp(sigma sqrt(2 ln n) - sigma^2 / 2) means, and a block holds
    its place for so long: that many times the concurrency in rows (Little's law), once more waiting, at least two.
    (Twice the concurrency kept an engine with such lengths busy for 0.59 of the time, measured; this rule 0.99.)
    fan_out: requests of one row that run side by side, so that it waits for the longest of these already. (A judge with
    20 a row used 0.6 of its slots, measured, when only rows were counted; this rule 0.97.)
    """
    longest = max(1.0, exp(LENGTH_SIGMA * sqrt(2 * log(block_rows * fan_out)) - LENGTH_SIGMA**2 / 2))
    return max(2, ceil((longest + 1) * concurrency / block_rows))


def block_rows(
    seconds_per_row: float, concurrency: int, replicas: int, rows: int, *, num_pools: int = 1
) -> tuple[int, int]:
    """Rows of one block, and blocks in flight per engine.

    A block takes at most about 5 s of one engine and half its concurrency in rows (small ones leave an engine fewer
    idle places, and a kill less to lose); but the pool makes no more than 20 blocks a second, and fewer in a line of
    more than five pools, which the control plane can follow, so that large pools have larger blocks. At most 1,000 rows
    (engines that take no time), at least one, and small enough for four blocks per engine over the dataset, so that the
    engines end together.
    Example: 0.5 s/row, concurrency 64, 8 engines, 60,000 rows: 10 rows, 33 blocks in flight.
    """
    wanted, blocks_per_s = 1000, min(MAX_BLOCKS_PER_S, MAX_HOPS_PER_S / num_pools)
    if seconds_per_row > 0:
        small = min(round(BLOCK_S / seconds_per_row), concurrency // 2)
        wanted = min(wanted, max(small, ceil(replicas / seconds_per_row / blocks_per_s)))
    size = max(1, min(wanted, rows // (4 * replicas)))
    return size, blocks_in_flight(size, concurrency)


def plan_line(
    pools: Sequence[PoolSpec],
    cluster: Cluster,
    *,
    num_rows: int,
    num_rounds: int = 1,
    phases: int | str = "auto",
    fixed_block_rows: int | None = None,
) -> Plan:
    """The fastest cut of the line into phases, and the replicas of every pool.

    num_rows counts a row once per turn it is asked. With several phases the engines are loaded once per round (turn);
    one phase answers all turns with one load. phases is "auto", or a number that is obeyed. Raises ConfigError with
    the sum where a pool alone or the forced phases do not fit. With equal makespans fewer phases win.
    """
    if isinstance(phases, int) and not 1 <= phases <= len(pools):
        raise ConfigError(f"generate.phases = {phases}, but the line has 1 to {len(pools)} pools to cut; try auto")
    for pool in pools:
        if not fits([pool.min_replicas], [pool], cluster):
            raise ConfigError(f"{does_not_fit([pool], cluster)}; add nodes, or lower what an engine takes or replicas")

    @cache
    def phase(start: int, stop: int) -> Phase | None:
        part = _sharing(pools[start:stop])
        replicas = allocate(part, cluster, num_rows)
        is_whole = stop - start == len(pools)
        if not replicas:
            return None
        return _phase(part, replicas, num_rows=num_rows, rounds=num_rounds, is_whole=is_whole, size=fixed_block_rows)

    def seconds(start: int, stop: int) -> float:
        planned = phase(start, stop)
        return planned.duration_s if planned else inf

    cuts = _best_cuts(len(pools), seconds, phases)
    if not cuts:
        way_out = "use phases: auto" if len(pools) > 1 else "use a larger cluster"
        raise ConfigError(f"generate.phases = {phases} is too few: the line {does_not_fit(pools, cluster)}; {way_out}")
    chosen = tuple(planned for start, stop in cuts if (planned := phase(start, stop)))
    return Plan(
        phases=chosen,
        makespan_s=sum(planned.duration_s for planned in chosen),
        work_bound_s=_work_bound_s(_sharing(pools), cluster, num_rows),
    )


def _sharing(pools: Sequence[PoolSpec]) -> list[PoolSpec]:
    """The pools with the limit of one engine divided among those that have it, by what a row asks of each.

    Each then takes as long for a row as the limit gives all of them together.
    """
    limits_s = [sum(other.floor_s_per_row for other in pools if other.engine == pool.engine) for pool in pools]
    return [
        replace(pool, floor_s_per_row=limit_s, share=pool.floor_s_per_row / limit_s) if limit_s else pool
        for pool, limit_s in zip(pools, limits_s, strict=True)
    ]


def _best_cuts(num_pools: int, cost: Callable[[int, int], float], phases: int | str) -> list[tuple[int, int]]:
    """The (start, stop) of every phase with the least sum of costs, by dynamic programming; empty: there is none."""
    best: dict[tuple[int, int], tuple[float, list[tuple[int, int]]]] = {(0, 0): (0.0, [])}
    for stop in range(1, num_pools + 1):
        for num in range(1, stop + 1):
            options = [
                (best[start, num - 1][0] + cost(start, stop), start)
                for start in range(stop)
                if (start, num - 1) in best
            ]
            seconds, start = min(options, default=(inf, 0))
            if seconds < inf:
                best[stop, num] = (seconds, [*best[start, num - 1][1], (start, stop)])
    allowed = range(1, num_pools + 1) if phases == "auto" else [int(phases)]
    ends = [(best[num_pools, num][0], num) for num in allowed if (num_pools, num) in best]
    return best[num_pools, min(ends)[1]][1] if ends else []


def _phase(
    pools: Sequence[PoolSpec], replicas: Sequence[int], *, num_rows: int, rounds: int, is_whole: bool, size: int | None
) -> Phase:
    """The phase of these pools. is_whole: it is the whole line, where a row's next turn follows in the same phase."""
    row_s = slowest_s(pools, replicas)
    size = size or min(
        block_rows(pool.seconds_per_row, pool.concurrency, count, num_rows, num_pools=len(pools))[0]
        for pool, count in zip(pools, replicas, strict=True)
    )
    planned = tuple(
        PlannedPool(
            spec=pool,
            replicas=count,
            blocks_in_flight=blocks_in_flight(size, pool.concurrency, pool.fan_out),
            busy_fraction=pool.row_s(count) / row_s if row_s else 0.0,
        )
        for pool, count in zip(pools, replicas, strict=True)
    )
    wanted_credits = sum(pool.replicas * pool.blocks_in_flight + 2 for pool in planned)
    credits = max(1, min(wanted_credits, ceil(num_rows / size)))
    num_starts, round_rows = 1 if is_whole else rounds, ceil(num_rows / rounds)
    # A row's next turn waits for its last one; nothing else fills the line where the rows of a turn are all in it.
    num_ramps = 1 + (rounds - 1) * min(1.0, credits * size / round_rows) if is_whole else rounds
    return Phase(
        pools=planned,
        block_rows=size,
        credits=credits,
        load_s=num_starts * (PHASE_START_S + max(pool.load_s for pool in pools)),
        work_s=num_rows * row_s,
        ramp_s=num_ramps * ramp_s(pools, replicas, block_rows=size, num_rows=round_rows),
        num_ramps=num_ramps,
        bottleneck=max(planned, key=lambda pool: pool.busy_fraction).spec.name,
        num_gpus=sum(pool.spec.num_gpus * pool.replicas for pool in planned),
        num_cpus=SERVICE_CPUS + sum(pool.spec.num_cpus * pool.replicas for pool in planned),
    )


def _work_bound_s(pools: Sequence[PoolSpec], cluster: Cluster, num_rows: int) -> float:
    """Seconds that any plan needs: engine-seconds over the GPUs, over the CPU slots, and what no engine can lower."""
    gpu_s = sum(pool.seconds_per_row * pool.num_gpus for pool in pools)
    cpu_s = sum(pool.seconds_per_row * pool.num_cpus for pool in pools)
    alone_s = max(max(pool.floor_s_per_row, pool.seconds_per_row / most_replicas(pool, num_rows)) for pool in pools)
    bounds = [alone_s, gpu_s / max(cluster.num_gpus, 1), cpu_s / max(cluster.num_cpus - SERVICE_CPUS, 1e-9)]
    return num_rows * max(bounds)
