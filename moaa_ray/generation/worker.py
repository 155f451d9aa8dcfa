"""The body of a pool: rows in, an engine asked for each of them, the same rows out.

`ask` and `fold` of the passes (core/) say what is asked and what becomes of it; this file sees to it
that every row comes out again whatever happens to the engine. Rows that were with an engine when it
died are asked again apart from all others (core/suspects.py).
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import ray

from moaa_ray.core.passes import ENGINE_MISSING, CannotAskError, Pass, Room
from moaa_ray.core.suspects import MAX_ATTEMPTS, Sorting
from moaa_ray.engines.base import Engine
from moaa_ray.generation.blocks import rows_for_passes, with_answers
from moaa_ray.generation.ends import Admit, Commit
from moaa_ray.generation.engine_host import EngineDiedError, EngineHost, EngineMissingError
from moaa_ray.generation.gate import Gate
from moaa_ray.types import Answer, Failure, Row

_REPORT_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True)
class PoolWork:
    """What a pool's workers do: passes that share one engine, in line order, and how to make that engine."""

    name: str
    passes: tuple[Pass, ...]
    make_engine: Callable[[], Engine]
    request_timeout_s: float
    hang_after_s: float  # inf: the engine bounds what it has sent itself, and waiting for a turn is no timeout
    num_slots: int  # requests that one engine works on at a time
    on_missing: str  # fail | continue | wait


class PassWorker:
    """One worker of a pool, run by Ray Data: an asynchronous callable from block to block."""

    def __init__(self, work: PoolWork, coordinator, admit: Admit | None, commit: Commit | None):
        """The engine starts at once, with the event loop. admit stands in a line's first pool, commit in its last."""
        self._work = work
        self._coordinator = coordinator
        self._admit = admit
        self._commit = commit
        self._host = EngineHost(
            work.make_engine,
            on_death=lambda: self._tell("engine_died", self._me, True),
            request_timeout_s=work.request_timeout_s,
            hang_after_s=work.hang_after_s,
            keep_trying=work.on_missing == "wait",
            num_slots=work.num_slots,
        )
        self._gate = Gate()
        self._me = ray.get_runtime_context().get_actor_id()
        self._tell("placed", self._me)
        # Ray Data runs the calls on the event loop of the thread that makes the worker. Were the engine started by the
        # first block, a pool's engines would load one after the other pool's, and of a pool some after others.
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        self._joining = loop.create_task(self._join())

    async def __call__(self, block: pa.Table) -> pa.Table:
        """The same rows, each with this pool's answers. Several calls run at once."""
        if self._admit is not None:
            block = await self._admit(block)
        if block.num_rows:
            await asyncio.shield(self._joining)
            block = await self._answer_block(block)
        return block if self._commit is None else await self._commit(block)

    async def _answer_block(self, block: pa.Table) -> pa.Table:
        mine = [p.name for p in self._work.passes]
        seen = {name: None for p in self._work.passes for name in (p.name, *p.reads)}
        rows = rows_for_passes(block, list(seen))
        done = await self._answer_rows({row.id: row for row in rows if row.status == "open"})
        return with_answers(block, [done.get(row.id, row) for row in rows], mine)

    async def _join(self) -> None:
        context = ray.get_runtime_context()
        await self._tell("join", self._me, context.get_node_id(), context.get_worker_id(), os.getpid())
        self._reporter = asyncio.create_task(self._report())
        self._warm_up = asyncio.create_task(self._host.ready())

    async def _report(self) -> None:
        while True:
            self._tell("report", self._me, self._host.stats())
            await asyncio.sleep(_REPORT_EVERY_S)

    def _tell(self, method: str, *args):
        return getattr(self._coordinator, method).remote(self._work.name, *args)

    async def _answer_rows(self, rows: dict[str, Row]) -> dict[str, Row]:
        """Every row once more, answered, failed or quarantined."""
        done: dict[str, Row] = {}
        try:
            await self._host.ready()
            async with self._gate.shared():
                sorting: Sorting = await self._tell("open_rows", self._me, list(rows))
                done |= await self._run([rows[row_id] for row_id in sorting.free])
            left = self._settle(rows, done, sorting)
            while left:
                async with self._gate.alone():
                    await self._host.ready()
                    group = await self._tell("open_group", self._me, left)
                    done |= await self._run([rows[row_id] for row_id in group])
                left = self._settle(rows, done, await self._tell("sort_rows", left))
        except EngineMissingError as error:
            for row_id in rows.keys() - done.keys():
                done[row_id] = await self._without_engine(rows[row_id], error)
            self._tell("report", self._me, self._host.stats())
        return done

    def _settle(self, rows: dict[str, Row], done: dict[str, Row], sorting: Sorting) -> list[str]:
        """Write off the rows that may not be asked again; the ids still to ask."""
        where = self._work.name
        for row_id in sorting.quarantined:
            reason = f"{where}: the engine died while it had this row alone"
            done.setdefault(row_id, replace(rows[row_id], status="quarantined", reason=reason))
        for row_id in sorting.exhausted:
            reason = f"{where}: engine_died: with this row among others, {MAX_ATTEMPTS} times or more"
            done.setdefault(row_id, replace(rows[row_id], status="failed", reason=reason))
        return [row_id for row_id in rows if row_id not in done]

    async def _run(self, rows: Sequence[Row]) -> dict[str, Row]:
        """The rows that came through; the others were with an engine that died, and a new one is up."""
        if not rows:
            return {}
        results = await asyncio.gather(*(self._run_row(row) for row in rows), return_exceptions=True)
        done: dict[str, Row] = {}
        died: EngineDiedError | None = None
        for row, result in zip(rows, results, strict=True):
            if isinstance(result, EngineDiedError):
                died = result
            elif isinstance(result, BaseException):
                raise result
            else:
                done[row.id] = result
        self._tell("close_rows", self._me, list(done), self._host.stats())
        if died is not None:
            await self._host.ready(after=died.generation)
        return done

    async def _run_row(self, row: Row) -> Row:
        room = Room(window=self._host.window, count_tokens=self._host.count_tokens)
        for p in self._work.passes:
            try:
                requests = p.ask(row, room)
            except CannotAskError as error:
                row = p.fold(row, p.all_failed(row, error.failure))
                continue
            if len(requests) == 1:
                answers: list[Answer] = [await self._host.answer(requests[0])]
            else:
                answers = await asyncio.gather(*(self._host.answer(request) for request in requests))
            self._host.counts.add_pass(p.name, answers)
            row = p.fold(row, {request.id: answer for request, answer in zip(requests, answers, strict=True)})
        return row

    async def _without_engine(self, row: Row, error: EngineMissingError) -> Row:
        """What becomes of a row when this pool's engine cannot be had."""
        is_needed = self._work.on_missing == "fail" or any(p.is_final for p in self._work.passes)
        if is_needed:
            await self._coordinator.stop.remote(f"pool {self._work.name}: its engine cannot start: {error}")
            return replace(row, status="failed", reason=f"{self._work.name}: {ENGINE_MISSING}: {error}")
        failure = Failure(reason=ENGINE_MISSING, detail=str(error))
        for p in self._work.passes:
            answers = p.all_failed(row, failure)
            self._host.counts.failures[ENGINE_MISSING] += len(answers)
            row = p.fold(row, answers)
        return row
