"""The generate stage: prompts in, published mixture-of-agents data out; killed at any moment, it goes on.

The whole of it in order: open the run directory, take an epoch, read the prompts, see what the
committed files say is done, plan, run phase by phase, publish. Where nothing is left to do no engine
and no Ray is started.
"""

import time
from dataclasses import replace
from functools import partial

import pyarrow as pa
from rich.console import Console

from moaa_ray.core.passes import StageWork
from moaa_ray.core.turns import close_turn, reopen, turn_proposals
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.filtering import Filter
from moaa_ray.data.sources import ingest
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import StageError
from moaa_ray.generation import results, todo
from moaa_ray.generation.phases import run_stage
from moaa_ray.generation.stage_run import StageRun, begin_stage, check_goal, statuses_of
from moaa_ray.generation.summary import Summary, render
from moaa_ray.generation.todo import Prompts
from moaa_ray.lines.mixture import STAGE, mixture_passes, plan_input, prompt_versions
from moaa_ray.loading import LoadedRecipe
from moaa_ray.run_record import digest_of_run, noting_stop, open_run, set_stage


def generate(loaded: LoadedRecipe, *, allow_changes: bool = False, console: Console | None = None) -> Summary:
    """Run, or go on with, the generate stage of a recipe; progress goes to the console (default: stderr).

    Returns what became of every prompt. Raises ConfigError or DataError before anything starts, and
    StageError when the run stopped short: what was finished stays committed for the next start.
    """
    began = time.monotonic()
    Filter(loaded.recipe.filters, base_dir=str(loaded.base_dir))  # raises where an evaluation file is missing
    store = open_store(loaded.run_dir)
    is_mixed = open_run(store, loaded, prompt_versions=prompt_versions(), allow_changes=allow_changes)
    with noting_stop(store, STAGE):
        epoch = begin_stage(store, STAGE)
        work = generate_work(loaded)
        prompts = _read_prompts(loaded, store, epoch, work)
        mean_turns = 1 + sum(prompts.later_turns.values()) / max(1, len(prompts.order))
        run = StageRun(
            plan=plan_input(loaded.recipe, base_dir=loaded.base_dir, mean_turns=mean_turns),
            work=work,
            store=store,
            epoch=epoch,
            prompts=prompts,
            console=console,
            on_missing=loaded.recipe.generate.on_missing_proposer,
        )
        if is_mixed:
            todo.restart_turns(store, epoch, statuses_of(run), work)
        run_stage(run)
        summary = replace(_publish(loaded, run), seconds=time.monotonic() - began)
        results.write_summary(store, STAGE, summary)
        set_stage(store, STAGE, status="done", epoch=run.epoch.number, counts=dict(summary.statuses))
        if not summary.is_conserved:
            raise StageError(f"rows do not add up: {render(summary)}; this is a defect of moaa_ray, please report it")
        check_goal(run, summary.statuses, summary.failures)
        return summary


def generate_work(loaded: LoadedRecipe) -> StageWork:
    """The passes of the mixture, and how its turns are closed."""
    passes = mixture_passes(loaded.recipe)
    return StageWork(
        stage=STAGE, passes=passes, close=partial(close_turn, passes=passes), reopen=partial(reopen, passes=passes)
    )


def _read_prompts(loaded: LoadedRecipe, store: Store, epoch: commit.Epoch, work: StageWork) -> Prompts:
    """Read the sources, publish prompts/, and commit the prompts that are new as rows at the beginning."""
    config = loaded.recipe.prompts
    read = ingest(config, seed=loaded.recipe.seed, base_dir=str(loaded.base_dir))
    files = commit.committed(store, STAGE, epoch)
    batches = todo.unchanged(read.batches(), store, files, read.turn_modes)
    facts = {"made_with": digest_of_run(store)}
    publish.publish(store, epoch, "prompts", batches, schemas.PROMPTS, loaded.recipe.generate.shard_rows, facts)
    known = commit.read_statuses(store, files)
    published = publish.read_batches(store, "prompts", batch_rows=todo.SEED_ROWS)
    prompts = todo.seed_rows(store, epoch, work, todo.first_rows(published, read.turn_modes), known=known)
    return replace(prompts, rejected=read.rejected())


def _publish(loaded: LoadedRecipe, run: StageRun) -> Summary:
    """sft/ and failures/generate.parquet."""
    filters = Filter(loaded.recipe.filters, base_dir=str(loaded.base_dir))
    passes = mixture_passes(loaded.recipe)

    def usable(table: pa.Table) -> tuple[pa.Table, dict[int, str]]:
        reasons = [_why_dropped(filters, row) for row in table.select(["id", "messages", "flags"]).to_pylist()]
        kept = table.filter(pa.array([not reason for reason in reasons], pa.bool_()))
        return kept, {i: reason for i, reason in enumerate(reasons) if reason}

    summary, failures = results.publish_rows(
        run,
        "sft",
        schemas.SFT,
        usable=usable,
        reads=schemas.SFT,
        held=lambda row: (*row.proposals, *turn_proposals(row, passes)),
        facts={"made_with": digest_of_run(run.store)},
    )
    results.write_failures(run.store, STAGE, failures)
    return summary


def _why_dropped(filters: Filter, row: schemas.Record) -> str:
    *prompt, last = schemas.messages_from(row["messages"])
    is_truncated = any(flag.startswith("truncated:") for flag in row["flags"])
    return filters.why_dropped(row["id"], prompt, completion=last["content"], is_truncated=is_truncated)
