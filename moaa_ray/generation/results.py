"""From committed rows to what users read: a public folder, failures/, summary.json; every prompt is in one of them."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.core.passes import kind_of
from moaa_ray.core.row_refs import RowRefs
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import Store
from moaa_ray.generation.stage_run import StageRun, statuses_of
from moaa_ray.generation.summary import Summary
from moaa_ray.generation.usage import total_usage
from moaa_ray.run_record import put_summary
from moaa_ray.types import Proposal, Row

_BATCH_ROWS = 256

Usable = Callable[[pa.Table], tuple[pa.Table, Mapping[int, str]]]
"""From rows that are ok to what is published of them, and by places in the table why a rule keeps others back."""


def publish_rows(
    run: StageRun,
    folder: str,
    schema: pa.Schema,
    *,
    usable: Usable,
    reads: pa.Schema | None = None,
    held: Callable[[Row], Sequence[Proposal]] = lambda row: row.proposals,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Summary, pa.Table]:
    """Publish the usable rows in prompt order: the proof that rows add up, and the rows that are not in the folder.

    reads: the columns that usable looks at; None: all. held says what a broken row holds beside its closed turns.
    """
    commit.check_owner(run.store, run.epoch)
    prompts, statuses = run.prompts, statuses_of(run)
    ok = statuses.refs_of(prompts.order, ["ok"])
    bad = statuses.refs_of(prompts.order, ["failed", "quarantined", "dropped"])
    del statuses
    broken = [
        _failures([(schemas.row_from(r), r["status"], r["reason"]) for r in t.to_pylist()], held)
        for t in _read(run, bad)
    ]
    kept_back, why = RowRefs(), []
    flags: Counter = Counter()

    def batches() -> Iterator[pa.Table]:
        num_read = 0
        for table in _read(run, ok, reads):
            published, reasons = usable(table)
            for place, reason in reasons.items():
                kept_back.append(ok[num_read + place])
                why.append(reason)
            num_read += table.num_rows
            flags.update(flag.split(":")[0] for row in published.column("flags").to_pylist() for flag in row)
            yield published

    about = {} if facts is None else facts
    manifest = publish.publish(
        run.store, run.epoch, folder, batches(), schema, run.plan.settings.shard_rows, facts=about
    )  # fmt: skip
    rest = iter(why)
    dropped = [
        _failures([(schemas.row_from(r), "dropped", next(rest)) for r in t.to_pylist()], held)
        for t in _read(run, kept_back)
    ]
    failures = pa.concat_tables([prompts.rejected, *broken, *dropped])
    return _summary(run, manifest.rows, failures, flags), failures


def _summary(run: StageRun, num_published: int, failures: pa.Table, flags: Counter) -> Summary:
    statuses, reasons = failures.column("status").to_pylist(), failures.column("reason").to_pylist()
    pairs = list(zip(statuses, reasons, strict=True))
    return Summary(
        run_dir=run.store.uri,
        num_prompts=len(run.prompts.order) + run.prompts.rejected.num_rows,
        statuses={"ok": num_published, **Counter(statuses)},
        dropped=dict(Counter(reason for status, reason in pairs if status == "dropped")),
        failures=dict(Counter(reason for status, reason in pairs if status != "dropped").most_common()),
        flags=dict(flags.most_common()),
        pools=run.pools,
        usage=total_usage(run.store, run.work.stage),
        rows_done_now=run.rows_done,
        rows_redone=run.rows_redone,
        line_restarts=run.line_restarts,
        planned=run.planned,
        worked=run.worked,
        max_blocks_in_line=run.max_blocks_in_line,
    )


def publish_failed(run: StageRun, folder: str, schema: pa.Schema, *, record: Callable[[Row], schemas.Record]) -> None:
    """Publish what the failed rows hold, in prompt order; the folder is there, with no rows, where none has failed."""
    commit.check_owner(run.store, run.epoch)
    failed = statuses_of(run).refs_of(run.prompts.order, ["failed"])
    tables = (
        pa.Table.from_pylist([record(schemas.row_from(one)) for one in table.to_pylist()], schema=schema)
        for table in _read(run, failed)
    )
    publish.publish(run.store, run.epoch, folder, tables, schema, run.plan.settings.shard_rows, facts={})


def write_failures(store: Store, stage: str, failures: pa.Table) -> None:
    """failures/<stage>.parquet: every prompt that is not in the stage's public folder, with its reason."""
    sink = io.BytesIO()
    pq.write_table(failures, sink, compression="zstd")
    store.put(f"failures/{stage}.parquet", sink.getvalue())


def _read(run: StageRun, refs: RowRefs, schema: pa.Schema | None = None) -> Iterator[pa.Table]:
    return commit.read_rows(run.store, refs, batch_rows=_BATCH_ROWS, schema=schema)


def _failures(rows: Iterable[tuple[Row, str, str]], held: Callable[[Row], Sequence[Proposal]]) -> pa.Table:
    """Rows that are not usable, each with its status and why, and what they held."""
    records = [
        {
            "id": row.id,
            "source": row.source,
            "status": status,
            "reason": kind_of(reason),
            "detail": reason,
            "messages": [dict(message) for message in row.messages],
            "proposals": [dict(vars(p)) for p in held(row)],
        }
        for row, status, reason in rows
    ]
    return pa.Table.from_pylist(records, schema=schemas.FAILURES)


def write_summary(store: Store, stage: str, summary: Summary, more: Mapping[str, Any] | None = None) -> None:
    """summary.json: the facts of every stage by name; what is not known (a cost without a price) is left out."""
    facts = asdict(summary, dict_factory=lambda items: {name: value for name, value in items if value is not None})
    cost = {} if summary.cost_usd is None else {"cost_usd": summary.cost_usd}
    put_summary(store, stage, {**facts, **cost, **(more or {})})
