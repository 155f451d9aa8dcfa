"""How many engines each pool of one phase gets, so that the slowest pool is as fast as the cluster allows."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

from moaa_ray.core.packing_gpus import Cluster, Demand, Labels, packs

SERVICE_CPUS = 2
"""CPU slots that admission, reading and committing take beside the engines."""

LENGTH_SIGMA = 0.8
"""Spread of the logarithm of answer lengths that is expected of a model."""

SHORT_WORK_S = 2.0
"""Seconds of work below which a pool gets no further engine: it would be done before one more process is up."""


@dataclass(frozen=True, kw_only=True)
class PoolSpec:
    """One pool before planning: adjacent passes on the same engine."""

    name: str
    engine: str  # two pools with the same engine load it twice
    passes: tuple[str, ...]
    num_gpus: int  # of one engine; 0: it runs on CPUs
    num_cpus: float  # slots of one engine
    seconds_per_row: float  # of one engine that is kept full, over all its passes
    floor_s_per_row: float = 0.0  # what no further engine can lower, e.g. an endpoint's rate limit
    share: float = 1.0  # its part of that limit, where other pools of its phase have the same engine
    min_replicas: int = 1
    max_replicas: int | None = None  # equal to min_replicas: fixed; None: the planner decides
    load_s: float = 0.0
    concurrency: int = 64  # rows that an engine takes at a time
    most_running: int | None = None  # those of them that its memory holds at a time; None: all
    fan_out: float = 1.0  # requests that a row asks at a time
    length_sigma: float = LENGTH_SIGMA  # spread of the logarithm of its answers' lengths
    labels: Labels = frozenset()  # that its nodes must have
    shape: str = ""  # for messages: how num_gpus comes about, e.g. "tensor_parallel 8 x pipeline_parallel 1"

    def running(self, replicas: int) -> int:
        """Rows that one of so many full engines works on at a time; behind a limit those that it lets through while one
        is worked on."""
        most = min(self.concurrency, self.most_running or self.concurrency)
        limit_s = self.floor_s_per_row * replicas
        return max(1, round(most * self.seconds_per_row / limit_s)) if limit_s > self.seconds_per_row else most

    def row_s(self, replicas: int) -> float:
        """Seconds per row of the pool with so many engines."""
        return max(self.seconds_per_row / replicas, self.floor_s_per_row)

    def slot_s(self, replicas: int) -> float:
        """Seconds that a row is worked on in one of so many full engines, in the mean."""
        return self.running(replicas) * max(self.seconds_per_row, self.floor_s_per_row * replicas)


def allocate(pools: Sequence[PoolSpec], cluster: Cluster, num_rows: int) -> list[int]:
    """Engines per pool for the least slowest-pool time; empty when not even the least numbers fit.

    The slowest pool gets the next engine until that fits nowhere, it may have no more, or its work is short: nothing
    else can lower the slowest pool's time. Bisection over that time jumps most of the way there, so that thousands
    of engines take tens of packings.
    """
    counts = [pool.min_replicas for pool in pools]
    if not fits(counts, pools, cluster):
        return []
    most = [most_replicas(pool, num_rows) for pool in pools]
    low, high = _bound_s(pools, most, cluster), slowest_s(pools, counts)
    while high - low > 1e-6 * high:
        target = (low + high) / 2
        wanted = [_needed(pool, target) for pool in pools]
        is_allowed = all(count <= limit for count, limit in zip(wanted, most, strict=True))
        if is_allowed and slowest_s(pools, wanted) <= target and fits(wanted, pools, cluster):
            counts, high = wanted, slowest_s(pools, wanted)
        else:
            low = target
    while True:
        slowest = max(range(len(pools)), key=lambda i: pools[i].row_s(counts[i]))
        more = [count + (i == slowest) for i, count in enumerate(counts)]
        if more[slowest] > most[slowest] or not fits(more, pools, cluster):
            return counts
        counts = more


def _bound_s(pools: Sequence[PoolSpec], most: Sequence[int], cluster: Cluster) -> float:
    """Seconds per row that no numbers of engines undercut: by GPUs, by CPU slots, and by what each pool may have.

    A little less than that, so that a time of exactly so much is still looked at.
    """
    gpu_s = sum(pool.seconds_per_row * pool.num_gpus for pool in pools) / max(1, cluster.num_gpus)
    cpu_s = sum(pool.seconds_per_row * pool.num_cpus for pool in pools) / max(1.0, cluster.num_cpus)
    alone_s = max(pool.row_s(limit) for pool, limit in zip(pools, most, strict=True))
    return 0.999 * max(gpu_s, cpu_s, alone_s)


def _needed(pool: PoolSpec, row_s: float) -> int:
    """The fewest engines with which the pool takes at most row_s per row, as far as engines can."""
    return max(pool.min_replicas, ceil(pool.seconds_per_row / row_s - 1e-9))


def most_replicas(pool: PoolSpec, num_rows: int) -> int:
    """The most engines that are allowed and useful: four blocks of a row each, no short work, no rate limit below."""
    limits = [num_rows // 4, int(num_rows * pool.seconds_per_row / SHORT_WORK_S)]
    if pool.floor_s_per_row:
        limits.append(ceil(pool.seconds_per_row / pool.floor_s_per_row))
    if pool.max_replicas is not None:
        limits.append(pool.max_replicas)
    return max(pool.min_replicas, min(limits))


def slowest_s(pools: Sequence[PoolSpec], replicas: Sequence[int]) -> float:
    return max(pool.row_s(count) for pool, count in zip(pools, replicas, strict=True))


def fits(replicas: Sequence[int], pools: Sequence[PoolSpec], cluster: Cluster) -> bool:
    demands = [
        Demand(num_gpus=pool.num_gpus, num_cpus=pool.num_cpus, count=count, labels=pool.labels)
        for pool, count in zip(pools, replicas, strict=True)
    ]
    return packs([*demands, Demand(num_gpus=0, num_cpus=1, count=SERVICE_CPUS)], cluster)


def does_not_fit(pools: Sequence[PoolSpec], cluster: Cluster) -> str:
    """Why the least engines of these pools do not fit together, with the sum."""
    gpus = sum(pool.num_gpus * pool.min_replicas for pool in pools)
    cpus = SERVICE_CPUS + sum(pool.num_cpus * pool.min_replicas for pool in pools)
    what = " + ".join(
        f"{'one engine' if pool.min_replicas == 1 else f'{pool.min_replicas} engines'} of {pool.engine}"
        + (f" ({pool.shape})" if pool.shape else "")
        for pool in pools
    )
    for pool in pools:
        own = cluster.labelled(pool.labels)
        if (least := pool.num_gpus * pool.min_replicas) > own.num_gpus and pool.labels:
            wanted = ", ".join(f"{key}: {value}" for key, value in sorted(pool.labels))
            return f"needs {least} GPUs for {pool.engine} on nodes with the labels {wanted}; those have {own.num_gpus}"
    if gpus > cluster.num_gpus:
        return f"needs {gpus} GPUs for {what}; the cluster has {cluster.num_gpus}"
    if cpus > cluster.num_cpus:
        return (
            f"needs {cpus:g} CPU slots for {what} and {SERVICE_CPUS} for admission and commit; "
            f"the cluster has {cluster.num_cpus:g}"
        )
    nodes = ", ".join(f"{num} x {size}" for size, num in sorted(_node_sizes(cluster).items(), reverse=True))
    return (
        f"needs {gpus} GPUs and {cpus:g} CPU slots for {what}, each engine on one node; the cluster has as many, "
        f"but not together on its nodes (nodes x (GPUs, CPU slots): {nodes})"
    )


def _node_sizes(cluster: Cluster) -> Counter[tuple[int, float]]:
    return Counter((node.num_gpus, node.num_cpus) for node in cluster.nodes)
