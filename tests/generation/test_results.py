"""Publishing rows and prompts: what a rule keeps back stands among the failures whole, wherever it lay."""

from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest

from moaa_ray.core.turns import turn_proposals
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.local_store import LocalStore
from moaa_ray.data.store import open_store
from moaa_ray.generation import results, stage
from moaa_ray.generation.stage_run import StageRun, begin_stage
from moaa_ray.generation.todo import Prompts
from moaa_ray.lines.mixture import prompt_versions
from moaa_ray.loading import load_recipe
from moaa_ray.run_record import digest_of_run, open_run
from tests.core.rows import aggregator, proposer, row, said, work_of
from tests.generation import runs

WORK = work_of(proposer("a"), aggregator(("l0.a",)))


@pytest.fixture
def run(tmp_path) -> StageRun:
    """Nine rows in two files, the third of which has failed; the prompts are in another order than the files."""
    store = LocalStore(str(tmp_path / "run"))
    epoch = commit.take_epoch(store, {})
    commit.adopt(store, WORK.stage, epoch)
    for key, numbers in (("a", range(5)), ("b", range(5, 9))):
        rows = [
            row(f"r{i}", text=f"t{i}", status="failed" if i == 2 else "ok", answers={"l0.a": (said(f"A{i}"),)})
            for i in numbers
        ]
        table = pa.Table.from_pylist(
            [schemas.row_record(one, pass_names=WORK.columns) for one in rows], schema=schemas.work_schema(WORK.columns)
        )
        commit.commit_block(store, WORK.stage, "0.2", epoch.number, key, table)
    order = pa.array([f"r{i}" for i in reversed(range(9))], pa.large_string())
    plan = SimpleNamespace(settings=SimpleNamespace(shard_rows=4), stage=WORK.stage)
    prompts = Prompts(order=order, later_turns={})
    return StageRun(plan=cast(Any, plan), work=WORK, store=store, epoch=epoch, prompts=prompts, console=None)


def test_rows_that_are_kept_back_are_named_and_whole_in_whichever_table_they_were_read(run, monkeypatch):
    monkeypatch.setattr(results, "_BATCH_ROWS", 2)
    kept_back = {"r7": "too_short", "r4": "refusal", "r0": "leak"}

    def usable(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
        assert table.schema.names == schemas.SFT.names  # and none of the answers behind them
        ids = table.column("id").to_pylist()
        reasons = {i: kept_back[row_id] for i, row_id in enumerate(ids) if row_id in kept_back}
        return table.filter(pa.array([i not in reasons for i in range(len(ids))])), reasons

    summary, failures = results.publish_rows(
        run,
        "sft",
        schemas.SFT,
        usable=usable,
        reads=schemas.SFT,
        held=lambda row: turn_proposals(row, WORK.passes),
    )
    ids = [row_id for table in publish.read_batches(run.store, "sft", 100) for row_id in table["id"].to_pylist()]
    assert ids == ["r8", "r6", "r5", "r3", "r1"]
    told = [
        (one["id"], one["status"], one["reason"], one["messages"][-1]["content"], one["proposals"][0]["completion"])
        for one in failures.to_pylist()
    ]
    assert told == [
        ("r2", "failed", "", "t2", "A2"),
        ("r7", "dropped", "too_short", "t7", "A7"),
        ("r4", "dropped", "refusal", "t4", "A4"),
        ("r0", "dropped", "leak", "t0", "A0"),
    ]
    assert summary.statuses == {"ok": 5, "failed": 1, "dropped": 3}
    assert summary.dropped == {"too_short": 1, "refusal": 1, "leak": 1}
    assert summary.is_conserved


def test_prompts_are_published_with_the_hash_of_what_made_them(tmp_path):
    runs.write_prompts(tmp_path / "prompts.jsonl", 3)
    loaded = load_recipe(runs.write_recipe(tmp_path))
    store = open_store(loaded.run_dir)
    open_run(store, loaded, prompt_versions=prompt_versions())
    stage._read_prompts(loaded, store, begin_stage(store, "generate"), stage.generate_work(loaded))
    assert publish.read_manifest(store, "prompts").facts == {"made_with": digest_of_run(store)}
