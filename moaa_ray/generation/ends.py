"""The two ends of the line: blocks are admitted against tickets, and committed as files.

The first pool's workers admit and the last pool's workers commit, so that neither end costs a process
and a hop of its own: four pools make four hops, not six.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa

from moaa_ray.core.passes import StageWork
from moaa_ray.core.row_refs import RowRef
from moaa_ray.data import commit, schemas
from moaa_ray.data.store import open_store
from moaa_ray.errors import MoaaError
from moaa_ray.generation.blocks import BLOCK_COLUMN, in_flight_schema, key_of

TICKET_COLUMN = "ticket"


class Admit:
    """Ticket -> block: waits for a credit, then reads the block's rows and makes them ready to be asked."""

    def __init__(self, run_uri: str, work: StageWork, coordinator):
        self._run_uri = run_uri
        self._work = work
        self._coordinator = coordinator
        self._schema = in_flight_schema(work.columns)

    async def __call__(self, ticket: pa.Table) -> pa.Table:
        number = ticket.column(TICKET_COLUMN)[0].as_py()
        block = await self._coordinator.next_block.remote(number)
        if block is None:
            return self._schema.empty_table()
        return await asyncio.to_thread(self._read, block.key, block.refs)

    def _read(self, key: str, refs: Sequence[RowRef]) -> pa.Table:
        schema = self._schema.remove(self._schema.get_field_index(BLOCK_COLUMN))
        (rows,) = commit.read_rows(open_store(self._run_uri), refs, batch_rows=len(refs), schema=schema)
        if "failed" in rows.column("status").to_pylist():
            ready = [self._work.reopen(schemas.row_from(r)) for r in rows.to_pylist()]
            records = [schemas.row_record(row, pass_names=self._work.columns) for row in ready]
            rows = pa.Table.from_pylist(records, schema=schema)
        return rows.append_column(self._schema.field(BLOCK_COLUMN), pa.array([key] * rows.num_rows, pa.string()))


class Commit:
    """Block -> file: closes the turn where the line ends here, writes the block, gives its credit back."""

    def __init__(self, run_uri: str, work: StageWork, epoch: int, num_done: int, coordinator):
        self._run_uri = run_uri
        self._work = work
        self._epoch = epoch
        self._num_done = num_done
        self._coordinator = coordinator

    async def __call__(self, block: pa.Table) -> pa.Table:
        if not block.num_rows:
            return pa.table({"rows": pa.array([0], pa.int64())})
        try:
            key = key_of(block)
            turn, coming, statuses, reasons = await asyncio.to_thread(self._write, key, block)
        except MoaaError as error:  # Ray keeps only the text of what a worker raises; people get this one whole
            await self._coordinator.stop.remote(str(error))
            raise
        await self._coordinator.committed.remote(key, turn + 1, coming, statuses, reasons)
        return pa.table({"rows": pa.array([block.num_rows], pa.int64())})

    def _write(self, key: str, block: pa.Table) -> tuple[int, list[RowRef], Counter, Counter]:
        turn = block.column("turn")[0].as_py()
        rows = block.drop_columns([BLOCK_COLUMN])
        work = self._work
        is_end = self._num_done == len(work.passes)
        if is_end:
            closed = [work.close(schemas.row_from(record)) for record in rows.to_pylist()]
            records = [schemas.row_record(row, pass_names=work.columns) for row in closed]
            rows = pa.Table.from_pylist(records, schema=schemas.work_schema(work.columns))
        store = open_store(self._run_uri)
        path = commit.commit_block(store, work.stage, f"{turn}.{self._num_done}", self._epoch, key, rows)
        # A repeated call may bring other answers, and the first commit stands: what counts is in the file.
        rows = commit.read_block(store, path, columns=["status", "reason"])
        statuses = rows.column("status").to_pylist()
        coming = [(path, i) for i, status in enumerate(statuses) if is_end and status == "open"]
        reasons = [reason for reason in rows.column("reason").to_pylist() if reason]
        return turn, coming, Counter(statuses), Counter(reasons)
