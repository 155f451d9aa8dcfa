"""One phase as one linear Ray Data plan: tickets -> pool -> pool -> ... -> counts of committed rows.

No fan-out, no join, no barrier: every pool works on different blocks at the same time, and a block
carries all its answers along. This file only arranges; the work is in worker.py and ends.py.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moaa_ray.core.admission import WorkBlock
from moaa_ray.core.passes import StageWork
from moaa_ray.generation.coordinator import Coordinator
from moaa_ray.generation.ends import TICKET_COLUMN, Admit, Commit
from moaa_ray.generation.pool import Pool
from moaa_ray.generation.seats import SeatOf, seats
from moaa_ray.generation.worker import PassWorker

_NO_PROGRESS_LIMIT_S = 6 * 3600
_SPARE_CALLS = 4
"""Calls beside those that wait for a credit: for admitted blocks that Ray asks for again when a node is lost."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One phase: the work of the stage, the pools that run now, and where its blocks are committed."""

    run_uri: str
    epoch: int
    work: StageWork
    pools: tuple[Pool, ...]
    num_done: int
    """Passes that are done when a block of this phase is committed."""
    num_credits: int
    block_rows: int
    num_tickets: int
    max_failed: int
    start_timeout_s: float
    hang_after_s: float
    restart_after_s: float


def start_coordinator(line: Line, blocks: Sequence[WorkBlock]):
    """The phase's coordinator actor, on the driver's own node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(Coordinator).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
    return actor.remote(
        list(blocks),
        pool_names=[pool.work.name for pool in line.pools],
        num_credits=line.num_credits,
        block_rows=line.block_rows,
        max_failed=line.max_failed,
        stage=line.work.stage,
    )


def run_line(line: Line, coordinator) -> Iterator[int]:
    """Run the phase; yields the number of rows of each block as it is committed."""
    context = ray.data.DataContext.get_current().copy()
    context.execution_no_progress_timeout_s = _NO_PROGRESS_LIMIT_S
    grow_at = _grow_at(line.pools)
    context.autoscaling_config.actor_pool_util_upscaling_threshold = grow_at
    context.autoscaling_config.actor_pool_util_downscaling_threshold = grow_at / 2
    with ray.data.DataContext.current(context), seats(line.pools) as seat_of:
        tickets = [pa.table({TICKET_COLUMN: pa.array([i], pa.int64())}) for i in range(line.num_tickets)]
        data = ray.data.from_arrow(tickets)
        admit = Admit(line.run_uri, line.work, coordinator)
        commit = Commit(line.run_uri, line.work, line.epoch, line.num_done, coordinator)
        for i, pool in enumerate(line.pools):
            is_last = i == len(line.pools) - 1
            rest = (coordinator, None if i else admit, commit if is_last else None)
            data = _through(data, pool, rest, seat_of[i])
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield sum(cast(pa.Table, batch).column("rows").to_pylist())


def _grow_at(pools: Sequence[Pool]) -> float:
    """The use of a pool from which it grows, as Ray counts it: tasks that its workers have over calls they can run.

    A worker is given no more tasks than _num_tasks, so that this is the most there can be: Ray's own 1.75 never comes.
    One value holds for the whole line, so it is that of the growing pool with the fewest tasks a worker.
    """
    growing = [pool for pool in pools if pool.max_replicas > pool.min_replicas]
    return min((_num_tasks(pool) / _num_calls(pool) for pool in growing), default=1.0)


def _num_tasks(pool: Pool) -> int:
    return pool.blocks_in_flight + 2


def _num_calls(pool: Pool) -> int:
    """More calls at once than there can be tasks.

    A restarted actor gets its tasks back in any order, and a queued one that holds an admitted block would wait for
    ever behind running ones that wait for that block's credit.
    """
    return _num_tasks(pool) + _SPARE_CALLS


def _through(data, pool: Pool, rest: tuple, seat: SeatOf):
    """The dataset through a pool. An engine over several nodes has its resources from its placement group."""
    num_cpus, num_gpus = (0, 0) if pool.spans_nodes else (pool.num_cpus, pool.num_gpus)
    # map_batches itself refuses GPUs without a batch size; with one it would lay blocks together, or cut them.
    return data.map_batches_internal(
        PassWorker,
        fn_constructor_args=(pool.work, *rest),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        compute=ray.data.ActorPoolStrategy(
            min_size=pool.min_replicas,
            max_size=pool.max_replicas,
            max_tasks_in_flight_per_actor=_num_tasks(pool),
            max_concurrent_calls_per_actor=_num_calls(pool),
        ),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        ray_remote_args_fn=seat,
    )
