"""A stage's own line with one pool, and a run of it that takes turns with others once its engine is up."""

import asyncio
import functools
import tempfile
import time
from collections.abc import Sequence

import _common
import _turns

from moaa_ray.core.passes import StageWork
from moaa_ray.core.planning import block_rows
from moaa_ray.data import commit, schemas
from moaa_ray.data.store import open_store
from moaa_ray.engines.build import build_engine
from moaa_ray.generation import todo
from moaa_ray.generation.host_stats import HostStats
from moaa_ray.generation.line import Line
from moaa_ray.generation.pool import Pool
from moaa_ray.generation.worker import PoolWork
from moaa_ray.settings.models import VllmModel
from moaa_ray.types import Row


def one_pool(
    rows: Sequence[Row], work: StageWork, model: VllmModel, *, row_seconds: float, rows_at_once: int
) -> tuple[Line, list]:
    """A line of one pool over rows in a fresh run directory, and its blocks.

    row_seconds and rows_at_once are what the planner would have estimated; they set the size of a block.
    """
    store = open_store(tempfile.mkdtemp())
    epoch = commit.take_epoch(store, commit.owner_record())
    commit.adopt(store, work.stage, epoch)
    path = _commit_rows(store, work, epoch, rows)
    size, in_flight = block_rows(row_seconds, rows_at_once, 1, len(rows))
    steps = [todo.Step(ref=(path, i), turn=0, first_pass=0) for i in range(len(rows))]
    blocks = todo.blocks_for(steps, block_rows=size)
    line = Line(
        run_uri=store.uri,
        epoch=epoch.number,
        work=work,
        pools=(_pool(work, model, in_flight),),
        num_done=1,
        num_credits=2 * in_flight,
        block_rows=size,
        num_tickets=len(blocks),
        max_failed=len(rows),
        start_timeout_s=600,
        hang_after_s=600,
        restart_after_s=3600,
    )
    return line, blocks


def _commit_rows(store, work: StageWork, epoch, rows: Sequence[Row]):
    """Rows as the stage commits them before a line begins; the file they lie in."""
    import pyarrow as pa

    records = [schemas.row_record(row, pass_names=work.columns) for row in rows]
    table = pa.Table.from_pylist(records, schema=schemas.work_schema(work.columns))
    return commit.commit_block(store, work.stage, "0.0", epoch.number, "new-0", table)


def _pool(work: StageWork, model: VllmModel, in_flight: int) -> Pool:
    on_gpu = model.device == "gpu"
    return Pool(
        work=PoolWork(
            name="m",
            passes=work.passes,
            make_engine=functools.partial(gated_engine, model, on_gpu=on_gpu),
            request_timeout_s=600,
            hang_after_s=600,
            num_slots=model.concurrency,
            on_missing="fail",
        ),
        min_replicas=1,
        max_replicas=1,
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
        spans_nodes=False,
        blocks_in_flight=in_flight,
        node_labels={},
        setup={},
    )


class GatedEngine(_common.WrappedEngine):
    """An engine that is up when it has passed the contender's gate."""

    async def start(self) -> None:
        await super().start()
        await asyncio.to_thread(_turns.pass_gate)


def gated_engine(model: VllmModel, **settings) -> GatedEngine:
    return GatedEngine(build_engine(model, **settings))


def run_timed(line: Line, blocks: list, num_rows: int) -> tuple[float, HostStats]:
    """(when the last block was committed, of time.monotonic(); what the pool's one worker counted)."""
    import ray

    from moaa_ray.generation.line import run_line, start_coordinator
    from moaa_ray.generation.session import session
    from moaa_ray.recipe import RayConfig

    with session(RayConfig(address="local"), cpu_slots=3):
        coordinator = start_coordinator(line, blocks)
        counts = [(count, time.monotonic()) for count in run_line(line, coordinator)]
        time.sleep(1.5)  # the workers' last report
        (stats,) = ray.get(coordinator.snapshot.remote()).pools[0].stats
    assert sum(count for count, _ in counts) == num_rows
    return max(at for count, at in counts if count), stats
