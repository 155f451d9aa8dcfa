"""What sampling and judging have in common: rows of an earlier stage through passes, into a public folder."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
from rich.console import Console

from moaa_ray.core.passes import StageWork
from moaa_ray.data import commit, schemas
from moaa_ray.data.schemas import Record
from moaa_ray.data.store import Store
from moaa_ray.generation import results, todo
from moaa_ray.generation.phases import run_stage
from moaa_ray.generation.stage_run import StageRun, begin_stage, check_goal
from moaa_ray.generation.summary import Summary
from moaa_ray.planning.planner import PlanInput
from moaa_ray.run_record import check_stage, noting_stop, set_stage
from moaa_ray.types import Row


@dataclass(frozen=True, kw_only=True)
class RowStage:
    """A stage over rows that an earlier one has left."""

    work: StageWork
    plan: PlanInput
    made_with: Mapping[str, str]
    """What its rows are made with, by name; it may not change between starts."""
    restart: bool
    """Forget the rows of earlier starts."""
    restart_command: str
    """What an error names for beginning anew."""
    folder: str
    schema: pa.Schema
    usable: results.Usable
    failed_folder: str = ""
    """Where rows that have failed are published, in the same schema; empty: they are in failures/ only."""
    failed_record: Callable[[Row], Record] = lambda row: {}
    rejected: pa.Table = field(default_factory=schemas.FAILURES.empty_table)
    """What was read and is no row of the stage, in the FAILURES schema: counted, and kept in failures/."""
    facts: Mapping[str, Any]


def put_through(stage: RowStage, store: Store, rows: Iterable[Row], *, console: Console | None) -> Summary:
    """Run, or go on with, the stage in its directory: the public folder, failures/, summary.json.

    Raises ConfigError or DataError before anything starts, StageError when it stopped short.
    """
    began, work = time.monotonic(), stage.work
    with noting_stop(store, work.stage):
        epoch = begin(stage, store)
        known = commit.read_statuses(store, commit.committed(store, work.stage, epoch))
        same = todo.same_rows(store, epoch, work, rows, restart_command=stage.restart_command)
        prompts = todo.seed_rows(store, epoch, work, same, known=known)
        prompts = replace(prompts, rejected=stage.rejected)
        run = StageRun(plan=stage.plan, work=work, store=store, epoch=epoch, prompts=prompts, console=console)
        run_stage(run)
        summary, failures = results.publish_rows(
            run, stage.folder, stage.schema, usable=stage.usable, facts=stage.facts
        )
        if stage.failed_folder:
            results.publish_failed(run, stage.failed_folder, stage.schema, record=stage.failed_record)
        results.write_failures(store, work.stage, failures)
        summary = replace(summary, seconds=time.monotonic() - began)
        results.write_summary(store, work.stage, summary)
        set_stage(store, work.stage, status="done", epoch=run.epoch.number, counts=dict(summary.statuses))
        check_goal(run, summary.statuses, summary.failures)
        return summary


def begin(stage: RowStage, store: Store) -> commit.Epoch:
    """Take the directory over, with or without the rows that are in it.

    Rows are forgotten before what makes the new ones is noted: a kill in between leaves a directory that still says
    what it was made with, never one that takes old rows for new ones.
    """
    if stage.restart:
        epoch = begin_stage(store, stage.work.stage, forget=True)
        check_stage(store, stage.work.stage, stage.made_with, restart_command="")
        return epoch
    check_stage(store, stage.work.stage, stage.made_with, restart_command=stage.restart_command)
    return begin_stage(store, stage.work.stage)
