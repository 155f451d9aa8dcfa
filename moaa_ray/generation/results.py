"""From committed rows to what users read: sft/, failures/, summary.json, every prompt in exactly one place."""

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from moaa_ray.core.mixture import MixturePass
from moaa_ray.core.turns import turn_proposals
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import Store
from moaa_ray.generation.summary import Summary
from moaa_ray.generation.todo import Prompts
from moaa_ray.mixture_line import STAGE

_BATCH_ROWS = 1024
_SUMMARY = "summary.json"


def publish_results(
    store: Store,
    epoch: commit.Epoch,
    prompts: Prompts,
    statuses: commit.Statuses,
    passes: tuple[MixturePass, ...],
    *,
    shard_rows: int,
) -> Summary:
    """Write failures/generate.parquet and publish sft/ in prompt order; returns the proof that rows add up."""
    order, rejected = prompts.order, prompts.rejected
    known = list(zip(order, statuses.of(order), strict=True))
    ok = statuses.refs([row_id for row_id, status in known if status == "ok"])
    bad = statuses.refs([row_id for row_id, status in known if status in ("failed", "quarantined", "dropped")])
    failures = pa.concat_tables([rejected, *(_failures(table, passes) for table in _read(store, bad))])
    _put_parquet(store, f"failures/{STAGE}.parquet", failures)
    flags: Counter = Counter()
    manifest = publish.publish(
        store, epoch, "sft", _usable(store, ok, flags), schemas.SFT, shard_rows, facts={"failures": failures.num_rows}
    )  # fmt: skip
    statuses, reasons = failures.column("status").to_pylist(), failures.column("reason").to_pylist()
    pairs = list(zip(statuses, reasons, strict=True))
    return Summary(
        run_dir=store.uri,
        num_prompts=len(order) + rejected.num_rows,
        statuses={"ok": manifest.rows, **Counter(statuses)},
        dropped=dict(Counter(reason for status, reason in pairs if status == "dropped")),
        failures=dict(Counter(_kind(reason) for status, reason in pairs if status != "dropped").most_common()),
        flags=dict(flags.most_common()),
    )


def _read(store: Store, refs: list) -> Iterator[pa.Table]:
    return iter(commit.read_rows(store, refs, batch_rows=_BATCH_ROWS)) if refs else iter(())


def _usable(store: Store, refs: list, flags: Counter) -> Iterator[pa.Table]:
    for table in _read(store, refs):
        flags.update(flag.split(":")[0] for row in table.column("flags").to_pylist() for flag in row)
        yield table.select(schemas.SFT.names).cast(schemas.SFT)


def _failures(table: pa.Table, passes: tuple[MixturePass, ...]) -> pa.Table:
    """Rows that are not usable, with what they held: the proposals of closed turns and of the broken one."""
    records = []
    for record in table.to_pylist():
        row = schemas.row_from(record)
        records.append(
            {
                "id": row.id,
                "source": row.source,
                "status": row.status,
                "reason": _kind(row.reason),
                "detail": row.reason,
                "messages": [dict(message) for message in row.messages],
                "proposals": [dict(vars(p)) for p in (*row.proposals, *turn_proposals(row, passes))],
            }
        )
    return pa.Table.from_pylist(records, schema=schemas.FAILURES)


def _kind(reason: str) -> str:
    """A reason without its details, so that equal ones are counted together."""
    return ": ".join(reason.split(": ")[:2]).split(" (")[0]


def _put_parquet(store: Store, path: str, table: pa.Table) -> None:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    store.put(path, sink.getvalue())


def write_summary(store: Store, stage: str, summary: Summary) -> None:
    """summary.json: the facts of every stage by name; what is not known (a cost without a price) is left out."""
    facts = asdict(summary, dict_factory=lambda items: {name: value for name, value in items if value is not None})
    cost = {} if summary.cost_usd is None else {"cost_usd": summary.cost_usd}
    known = json.loads(store.read(_SUMMARY)) if store.exists(_SUMMARY) else {}
    text = json.dumps({**known, stage: {**facts, **cost}}, indent=2, ensure_ascii=False)
    store.put(_SUMMARY, (text + "\n").encode())
