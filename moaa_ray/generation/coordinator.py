"""The one actor that sees the whole phase: admission, suspects of every pool, counts, the stop button.

It runs without a CPU slot on the driver's node and dies with the driver; nothing in it needs to
survive, because the committed files are the only ledger.
"""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field, replace

from moaa_ray.core.admission import Admission, RowRef, WorkBlock
from moaa_ray.core.passes import kind_of
from moaa_ray.core.suspects import Sorting, Suspects
from moaa_ray.generation.host_stats import GONE, HostStats, Pulse
from moaa_ray.generation.node_events import is_blameless_death


@dataclass
class WorkerState:
    """One incarnation of a pool worker: where it runs and which rows are with its engine."""

    node_id: str
    worker_id: str
    incarnation: int
    pid: int
    num_reports: int = 0
    open_ids: dict[str, None] = field(default_factory=dict)
    is_isolating: bool = False
    stats: HostStats = field(default_factory=HostStats)


@dataclass
class PoolState:
    """What is known of one pool. `past` adds up the engines of dead workers."""

    suspects: Suspects = field(default_factory=Suspects)
    placed: set[str] = field(default_factory=set)
    workers: dict[str, WorkerState] = field(default_factory=dict)
    past: list[HostStats] = field(default_factory=list)
    rows_done: int = 0
    rows_redone: int = 0
    worker_deaths: int = 0
    last_row_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PoolSnapshot:
    """A pool at one moment; stats of all its workers, living and dead."""

    name: str
    rows_done: int
    rows_redone: int = 0
    stats: list[HostStats]
    worker_deaths: int
    num_workers: int
    idle_s: float
    pulses: list[Pulse] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The phase at one moment."""

    pools: list[PoolSnapshot]
    statuses: Counter
    reasons: Counter
    num_blocks_in_line: int
    num_rows_in_line: int
    max_blocks_in_line: int
    stop_reason: str


class Coordinator:
    """All methods are async so that Ray runs them on one loop; none blocks."""

    def __init__(
        self,
        blocks: list[WorkBlock],
        *,
        pool_names: list[str],
        num_credits: int,
        block_rows: int,
        max_failed: int,
        stage: str,
    ):
        self._admission = Admission(blocks, num_credits=num_credits, block_rows=block_rows)
        self._changed = asyncio.Condition()
        self._pools = {name: PoolState(last_row_at=time.monotonic()) for name in pool_names}
        self._max_failed = max_failed
        self._stage = stage
        self._statuses: Counter = Counter()
        self._reasons: Counter = Counter()
        self._first_of: dict[str, str] = {}
        self._max_in_line = 0
        self._stop_reason = ""

    async def next_block(self, ticket: int) -> WorkBlock | None:
        """The block for a ticket, as soon as there is a credit for it; None when it gets no more."""
        async with self._changed:
            while True:
                block = self._admission.admit(ticket)
                self._max_in_line = max(self._max_in_line, self._admission.num_in_line)
                if block is not None or self._admission.is_over or self._admission.is_spent(ticket):
                    return block
                await self._changed.wait()

    async def committed(self, key: str, turn: int, coming: list[RowRef], statuses: Counter, reasons: Counter) -> None:
        """A block is durable: count it, give its credit back, queue its rows that have turns to come."""
        async with self._changed:
            if not self._admission.is_committed(key):
                self._statuses += statuses
                for reason, num in reasons.items():
                    self._reasons[kind_of(reason)] += num
                    self._first_of.setdefault(kind_of(reason), reason)
                self._admission.commit(key, coming, turn)
            if self._statuses["failed"] > self._max_failed and not self._stop_reason:
                most = self._reasons.most_common(3)
                common = "; ".join(f"{reason} ({n})" for reason, n in most)
                first = self._first_of[most[0][0]] if most else ""
                self._stop(
                    f"{self._statuses['failed']} rows have failed, more than the {self._max_failed} that "
                    f"{self._stage}.max_failed_fraction allows; the commonest reasons: {common}; "
                    f"of the commonest the first is {first[:500]}"
                )
            self._changed.notify_all()

    async def stop(self, reason: str) -> None:
        """Admit nothing more; what is in the line may finish."""
        async with self._changed:
            self._stop(reason)
            self._changed.notify_all()

    def _stop(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self._admission.stop()

    async def placed(self, pool: str, worker: str) -> None:
        """A pool worker has its resources; its engine starts with its first block."""
        self._pools[pool].placed.add(worker)

    async def join(self, pool: str, worker: str, node_id: str, worker_id: str, pid: int) -> None:
        """A pool worker begins. If it had a life before, the rows open then are suspects now."""
        state = self._pools[pool]
        before = state.workers.get(worker)
        if before is not None:
            if before.worker_id == worker_id:
                return
            state.worker_deaths += 1
            state.past.append(replace(before.stats, state=GONE, open_requests=0))
            state.rows_redone += len(before.open_ids)
            if before.open_ids:
                blameless = await asyncio.to_thread(is_blameless_death, before.node_id, before.worker_id)
                state.suspects.died(list(before.open_ids), is_blamed=not blameless, in_isolation=before.is_isolating)
        incarnation = before.incarnation + 1 if before else 1
        state.workers[worker] = WorkerState(node_id=node_id, worker_id=worker_id, incarnation=incarnation, pid=pid)

    async def open_rows(self, pool: str, worker: str, ids: list[str]) -> Sorting:
        """Sort a block's rows; the free ones count as being with the engine from now on."""
        state = self._pools[pool]
        sorting = state.suspects.sort(ids)
        state.workers[worker].is_isolating = False
        state.workers[worker].open_ids.update(dict.fromkeys(sorting.free))
        return sorting

    async def open_group(self, pool: str, worker: str, ids: list[str]) -> list[str]:
        """The next group out of these suspects; its rows count as being with the engine, alone, from now on."""
        state = self._pools[pool]
        group = state.suspects.next_group(ids)
        state.workers[worker].is_isolating = True
        state.workers[worker].open_ids = dict.fromkeys(group)
        return group

    async def close_rows(self, pool: str, worker: str, ids: list[str], stats: HostStats) -> None:
        """These rows have their answers and are with the engine no more."""
        state = self._pools[pool]
        for row_id in ids:
            state.workers[worker].open_ids.pop(row_id, None)
        state.suspects.clear(ids)
        state.rows_done += len(ids)
        state.workers[worker].stats = stats
        state.last_row_at = time.monotonic()

    async def engine_died(self, pool: str, worker: str, is_blamed: bool) -> None:
        """The engine died or hung inside a living worker: all rows with it are suspects."""
        state = self._pools[pool]
        mine = state.workers[worker]
        state.rows_redone += len(mine.open_ids)
        state.suspects.died(list(mine.open_ids), is_blamed=is_blamed, in_isolation=mine.is_isolating)
        mine.open_ids = {}

    async def sort_rows(self, pool: str, ids: list[str]) -> Sorting:
        """Sort rows without opening any."""
        return self._pools[pool].suspects.sort(ids)

    async def report(self, pool: str, worker: str, stats: HostStats) -> None:
        """A worker's counters, every second as long as its process lives and its event loop turns."""
        if worker in self._pools[pool].workers:
            self._pools[pool].workers[worker].stats = stats
            self._pools[pool].workers[worker].num_reports += 1

    async def snapshot(self) -> Snapshot:
        """Everything a display or a summary needs."""
        now = time.monotonic()
        pools = [
            PoolSnapshot(
                name=name,
                rows_done=state.rows_done,
                rows_redone=state.rows_redone,
                stats=[*state.past, *(worker.stats for worker in state.workers.values())],
                worker_deaths=state.worker_deaths,
                num_workers=len(state.placed),
                idle_s=now - state.last_row_at,
                pulses=[_pulse(worker, known) for worker, known in state.workers.items()],
            )
            for name, state in self._pools.items()
        ]
        return Snapshot(
            pools=pools,
            statuses=Counter(self._statuses),
            reasons=Counter(self._reasons),
            num_blocks_in_line=self._admission.num_in_line,
            num_rows_in_line=self._admission.num_rows_in_line,
            max_blocks_in_line=self._max_in_line,
            stop_reason=self._stop_reason,
        )


def _pulse(worker: str, known: WorkerState) -> Pulse:
    return Pulse(
        worker=worker,
        node_id=known.node_id,
        pid=known.pid,
        incarnation=known.incarnation,
        num_reports=known.num_reports,
        state=known.stats.state,
        open_requests=known.stats.open_requests,
        num_rows=len(known.open_ids),
    )
