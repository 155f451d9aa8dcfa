"""What a line of pools takes to fill and drain, beside its work: most of a short run's time.

An estimate in closed form, for the planner, which compares thousands of lines; the simulation (simulated_line.py) plays
one through. Over 680 random lines of one to five pools it is off from that by 3 % of a run's time in the median.
"""

from collections.abc import Sequence
from math import ceil, exp
from statistics import NormalDist

from moaa_ray.core.allocation import PoolSpec, slowest_s

LONGEST = 4.0
"""Where max_tokens ends an answer, in mean lengths."""


def ramp_s(pools: Sequence[PoolSpec], replicas: Sequence[int], *, block_rows: int, num_rows: int) -> float:
    """Seconds that a line takes beyond num_rows times its slowest pool's seconds per row.

    For each pool it takes the way of a block to it, the pool's own work, its end, and the way of a block from it; the
    pool for which that is most counts, which need not be the slowest where others are about as slow.
    Example: two pools, one answer at a time, all alike, 2 and 8 s each: the slow one begins after 2 s, and ends full.
    """
    slowest = slowest_s(pools, replicas)
    if not slowest:
        return 0.0
    size, counted = min(block_rows, num_rows), list(zip(pools, replicas, strict=True))
    from_it = [_drain_s(pool, count, size, num_rows, slowest) for pool, count in counted]
    to_s, from_s, longest_s = 0.0, sum(from_it), 0.0
    for (pool, count), drain_s in zip(counted, from_it, strict=True):
        from_s -= drain_s
        longest_s = max(longest_s, to_s + num_rows * pool.row_s(count) + _end_s(pool, count, num_rows) + from_s)
        to_s += _fill_s(pool, count, size)
    return longest_s - num_rows * slowest


def _end_s(pool: PoolSpec, replicas: int, num_rows: int) -> float:
    """Seconds from when a pool runs out of rows that wait: the longest answer in it, whose mean is in its work."""
    places = pool.running(replicas) * replicas
    rounds = num_rows / places
    left = max(_longest(min(num_rows, places), pool) - min(1.0, rounds), ceil(rounds) - rounds)
    return pool.slot_s(replicas) * left


def _fill_s(pool: PoolSpec, replicas: int, block_rows: int) -> float:
    """Seconds until the first block leaves a pool, which it does with its longest answer."""
    own = min(block_rows, pool.running(replicas))
    return pool.slot_s(replicas) * (block_rows / own - 1 + _longest(own, pool))


def _drain_s(pool: PoolSpec, replicas: int, block_rows: int, num_rows: int, slowest_s: float) -> float:
    """Seconds of the last block in a pool: between its own longest answer and the longest of all that are there."""
    num_there = min(num_rows, pool.running(replicas) * replicas * pool.row_s(replicas) / slowest_s)
    own = min(block_rows, pool.running(replicas))
    more = _longest(max(own, num_there), pool) - _longest(own, pool)
    return _fill_s(pool, replicas, block_rows) + pool.slot_s(replicas) * more / 2


def _longest(num_rows: float, pool: PoolSpec) -> float:
    """The longest answer to so many rows, in means of log-normal lengths that max_tokens ends.

    Source: Blom 1958, the largest of n normal values is about the quantile (n - 3/8) / (n + 1/4).
    """
    num, sigma = num_rows * pool.fan_out, pool.length_sigma
    largest = NormalDist().inv_cdf((num - 0.375) / (num + 0.25))
    return min(LONGEST, max(1.0, exp(sigma * largest - sigma**2 / 2)))
