"""The generate stage: prompts in, published mixture-of-agents data out; killed at any moment, it goes on.

The whole of it in order: open the run directory, take an epoch, read the prompts, see what the
committed files say is done, plan, run phase by phase, publish. Where nothing is left to do no engine
and no Ray is started.
"""

import time
from collections import Counter
from dataclasses import dataclass, field, replace

import ray
from rich.console import Console

from moaa_ray.core.admission import num_tickets
from moaa_ray.core.mixture import MixturePass
from moaa_ray.core.planning import Phase
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.sources import ingest
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import StageError
from moaa_ray.generation import results, todo
from moaa_ray.generation.coordinator import Snapshot
from moaa_ray.generation.line import Line, Pool, start_coordinator
from moaa_ray.generation.placing import line_pools, ray_cluster
from moaa_ray.generation.progress import Progress
from moaa_ray.generation.session import session
from moaa_ray.generation.summary import PoolSummary, Summary, pool_summary, render
from moaa_ray.generation.todo import STAGE, Prompts, Step
from moaa_ray.generation.watching import run_watched
from moaa_ray.loading import LoadedRecipe
from moaa_ray.mixture_line import mixture_passes, prompt_versions
from moaa_ray.planner import plan_generate, slots_wanted
from moaa_ray.run_record import open_run, set_stage


@dataclass
class _Session:
    """What one start of the stage gathers on its way."""

    loaded: LoadedRecipe
    store: Store
    epoch: commit.Epoch
    passes: tuple[MixturePass, ...]
    prompts: Prompts
    console: Console | None
    pools: list[PoolSummary] = field(default_factory=list)
    rows_done: int = 0
    rows_redone: int = 0
    max_blocks_in_line: int = 0
    failed_now: set[str] = field(default_factory=set)


def generate(loaded: LoadedRecipe, *, allow_changes: bool = False, console: Console | None = None) -> Summary:
    """Run, or go on with, the generate stage of a recipe; progress goes to the console (default: stderr).

    Returns what became of every prompt. Raises ConfigError or DataError before anything starts, and
    StageError when the run stopped short: what was finished stays committed for the next start.
    """
    began = time.monotonic()
    store = open_store(loaded.run_dir)
    is_mixed = open_run(store, loaded, prompt_versions=prompt_versions(), allow_changes=allow_changes)
    epoch = commit.take_epoch(store, commit.owner_record())
    commit.adopt(store, STAGE, epoch)
    publish.fence_publish(store, epoch)
    set_stage(store, STAGE, status="running", epoch=epoch.number)
    passes = mixture_passes(loaded.recipe)
    run = _Session(loaded, store, epoch, passes, _read_prompts(loaded, store, epoch, passes), console)
    if is_mixed:
        todo.restart_turns(store, epoch, _statuses(run), passes)
    if _next_steps(run):
        _run(run)
    summary = _publish(run)
    summary = replace(
        summary,
        pools=run.pools,
        seconds=time.monotonic() - began,
        rows_done_now=run.rows_done,
        rows_redone=run.rows_redone,
        max_blocks_in_line=run.max_blocks_in_line,
    )
    results.write_summary(store, summary)
    set_stage(store, STAGE, status="done", epoch=epoch.number, counts=dict(summary.statuses))
    _check_goal(run, summary)
    return summary


def _read_prompts(loaded: LoadedRecipe, store: Store, epoch: commit.Epoch, passes: tuple[MixturePass, ...]) -> Prompts:
    """Read the sources, publish prompts/, and commit the prompts that are new as rows at the beginning."""
    config = loaded.recipe.prompts
    read = ingest(config, seed=loaded.recipe.seed, base_dir=str(loaded.base_dir))
    files = commit.committed(store, STAGE, epoch)
    batches = todo.unchanged(read.batches(), store, files, read.turn_modes)
    publish.publish(store, epoch, "prompts", batches, schemas.PROMPTS, loaded.recipe.generate.shard_rows, facts={})
    known = commit.read_statuses(store, files)
    prompts = todo.seed_prompts(store, epoch, known=known, modes=read.turn_modes, passes=passes)
    return Prompts(order=prompts.order, later_turns=prompts.later_turns, rejected=read.rejected())


def _statuses(run: _Session) -> commit.Statuses:
    return commit.read_statuses(run.store, commit.committed(run.store, STAGE, run.epoch))


def _next_steps(run: _Session) -> dict[str, Step]:
    """What every unfinished row needs next; a row that failed in this session waits for the next one."""
    order = [row_id for row_id in run.prompts.order if row_id not in run.failed_now]
    return todo.next_steps(run.store, _statuses(run), order, run.passes)


def _run(run: _Session) -> None:
    recipe, prompts = run.loaded.recipe, run.prompts
    mean_turns = 1 + sum(prompts.later_turns.values()) / max(1, len(prompts.order))
    with session(recipe.ray, cpu_slots=slots_wanted(recipe)) as is_local:
        cluster = ray_cluster(recipe, is_local=is_local)
        num_turns = 1 + max(prompts.later_turns, default=0)
        plan = plan_generate(
            recipe,
            cluster,
            len(_next_steps(run)),
            mean_turns,
            num_turns=num_turns,
            base_dir=run.loaded.base_dir,
        )
        for turn in range(num_turns) if len(plan.phases) > 1 else [None]:
            for index, phase in enumerate(plan.phases):
                title = STAGE if len(plan.phases) == 1 else f"{STAGE} phase {index + 1}/{len(plan.phases)}"
                pools = line_pools(run.loaded, phase, run.passes, cluster)
                _run_phase(run, phase, pools, turn, title=title)


def _run_phase(run: _Session, phase: Phase, pools: list[Pool], turn: int | None, *, title: str) -> None:
    """One phase over the rows that stand before it; turn None: all turns, one after the other, in one line."""
    indices = [run.passes.index(p) for pool in pools for p in pool.work.passes]
    first, last = min(indices), max(indices)
    here = [
        step
        for step in _next_steps(run).values()
        if (turn is None or step.turn == turn) and first <= step.first_pass <= last
    ]
    if not here:
        return
    blocks = todo.blocks_for(here, block_rows=phase.block_rows)
    later = run.prompts.later_turns if turn is None else {}
    growth = sum((pool.max_replicas - pool.min_replicas) * pool.blocks_in_flight for pool in pools)
    line = Line(
        run_uri=run.store.uri,
        stage=STAGE,
        epoch=run.epoch.number,
        passes=run.passes,
        pools=tuple(pools),
        num_done=last + 1,
        num_credits=phase.credits + 2 * growth,
        block_rows=phase.block_rows,
        num_tickets=num_tickets(blocks, later),
        max_failed=int(run.loaded.recipe.generate.max_failed_fraction * len(run.prompts.order)),
        start_timeout_s=run.loaded.recipe.ray.start_timeout_s,
    )
    total = len(here) + sum(later.values())
    _watch(run, line, start_coordinator(line, blocks), title=title, total=total)


def _watch(run: _Session, line: Line, coordinator, *, title: str, total: int) -> None:
    recipe = run.loaded.recipe
    progress = Progress(title=title, total=total, warn_after_s=recipe.generate.warn_after_s, console=run.console)
    with progress:
        run.rows_done += run_watched(
            line, coordinator, progress, check_owner=lambda: commit.check_owner(run.store, run.epoch)
        )
    snapshot: Snapshot = ray.get(coordinator.snapshot.remote())  # pyright: ignore[reportAssignmentType]: Ray types lists
    run.rows_redone += sum(pool.rows_redone for pool in snapshot.pools)
    for pool, facts in zip(line.pools, snapshot.pools, strict=True):
        tokens_usd = recipe.models[pool.work.passes[0].engine].price_per_million_tokens
        prices = {"gpu_hour_usd": recipe.plan.gpu_hour_usd, "million_tokens_usd": tokens_usd}
        run.pools.append(pool_summary(facts, num_gpus=pool.num_gpus, **prices))
    run.max_blocks_in_line = max(run.max_blocks_in_line, snapshot.max_blocks_in_line)
    ray.kill(coordinator)
    if snapshot.stop_reason:
        raise StageError(f"{snapshot.stop_reason}. Finished rows are kept; run the same command again to go on")
    commit.check_owner(run.store, run.epoch)
    files = [f for f in commit.committed(run.store, STAGE, run.epoch) if f.epoch == run.epoch.number]
    states = commit.read_statuses(run.store, files).of(run.prompts.order)
    run.failed_now |= {row_id for row_id, s in zip(run.prompts.order, states, strict=True) if s == "failed"}


def _publish(run: _Session) -> Summary:
    commit.check_owner(run.store, run.epoch)
    return results.publish_results(
        run.store, run.epoch, run.prompts, _statuses(run), run.passes, shard_rows=run.loaded.recipe.generate.shard_rows
    )


def _check_goal(run: _Session, summary: Summary) -> None:
    failed = summary.statuses.get("failed", 0)
    allowed = int(run.loaded.recipe.generate.max_failed_fraction * summary.num_prompts)
    if not summary.is_conserved:
        raise StageError(f"rows do not add up: {render(summary)}; this is a defect of moaa_ray, please report it")
    if failed > allowed:
        common = "; ".join(f"{reason} ({n})" for reason, n in Counter(summary.failures).most_common(3))
        raise StageError(
            f"{failed} of {summary.num_prompts} rows failed, more than the {allowed} that generate.max_failed_fraction "
            f"allows; the commonest reasons: {common}. Run the same command again to ask only these rows"
        )
