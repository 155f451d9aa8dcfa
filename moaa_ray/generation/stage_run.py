"""The rows of one stage through its passes: plan, phases, commits. The same for generating, sampling and judging."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import ray
from rich.console import Console

from moaa_ray.core.admission import num_tickets
from moaa_ray.core.passes import StageWork
from moaa_ray.core.planning import Phase
from moaa_ray.data import commit, publish
from moaa_ray.data.store import Store
from moaa_ray.errors import StageError
from moaa_ray.generation import todo
from moaa_ray.generation.coordinator import Snapshot
from moaa_ray.generation.line import Line, Pool, start_coordinator
from moaa_ray.generation.placing import line_pools, ray_cluster
from moaa_ray.generation.progress import Progress
from moaa_ray.generation.session import session
from moaa_ray.generation.summary import Planned, PoolSummary, pool_summary
from moaa_ray.generation.telling import tell
from moaa_ray.generation.timeline import Timeline
from moaa_ray.generation.todo import Prompts, Step
from moaa_ray.generation.usage import write_usage
from moaa_ray.generation.watching import run_watched
from moaa_ray.planning.planner import PlanInput, plan_stage
from moaa_ray.run_record import put_progress, set_stage
from moaa_ray.telemetry import Telemetry


@dataclass(kw_only=True)
class StageRun:
    """One start of a stage, and what it gathers on its way."""

    plan: PlanInput
    work: StageWork
    store: Store
    epoch: commit.Epoch
    prompts: Prompts
    console: Console | None
    on_missing: str = "fail"  # fail | continue | wait
    pools: list[PoolSummary] = field(default_factory=list)
    rows_done: int = 0
    rows_redone: int = 0
    max_blocks_in_line: int = 0
    num_phases_begun: int = 0
    planned: Planned | None = None
    """What the planner expected of this start; None where nothing was left to do."""
    worked: tuple[float, float] | None = None
    """Unix times of the first and the last work of this start."""
    failed_now: set[str] = field(default_factory=set)

    @property
    def max_failed(self) -> int:
        """So many rows may fail before the stage stops."""
        return int(self.plan.settings.max_failed_fraction * len(self.prompts.order))


def begin_stage(store: Store, stage: str, *, forget: bool = False) -> commit.Epoch:
    """Take the run over for this driver, and note that the stage runs. forget: no row of earlier drivers counts."""
    epoch = commit.take_epoch(store, commit.owner_record())
    commit.adopt(store, stage, epoch, only=frozenset() if forget else None)
    publish.fence_publish(store, epoch)
    set_stage(store, stage, status="running", epoch=epoch.number)
    return epoch


def statuses_of(run: StageRun) -> commit.Statuses:
    """What became of every row so far, by the committed files."""
    return commit.read_statuses(run.store, commit.committed(run.store, run.work.stage, run.epoch))


def run_stage(run: StageRun) -> None:
    """All rows that are not finished through their passes; without any no engine and no Ray is started.

    Raises StageError when it stopped short: what was finished stays committed for the next start.
    """
    if not _next_steps(run):
        return
    recipe, prompts = run.plan.recipe, run.prompts
    mean_turns = 1 + sum(prompts.later_turns.values()) / max(1, len(prompts.order))
    with session(recipe.ray, cpu_slots=run.plan.cpu_slots) as is_local:
        cluster = ray_cluster(run.plan.cpu_slots, is_local=is_local)
        num_turns = 1 + max(prompts.later_turns, default=0)
        plan = plan_stage(run.plan, cluster, len(_next_steps(run)), mean_turns, num_turns=num_turns)
        run.planned = Planned(
            seconds=plan.line.makespan_s,
            tokens=round(sum(plan.pool_tokens.values())),
            gpu_hours=plan.gpu_hours,
            cost_usd=plan.cost_usd,
        )
        for turn in range(num_turns) if len(plan.phases) > 1 else [None]:
            for index, phase in enumerate(plan.phases):
                part = "" if len(plan.phases) == 1 else f" phase {index + 1}/{len(plan.phases)}"
                pools = line_pools(run.plan, plan, phase, run.work.passes, on_missing=run.on_missing)
                _run_phase(run, phase, pools, turn, title=f"{plan.stage}{part}")


def check_goal(run: StageRun, statuses: Mapping[str, int], failures: Mapping[str, int]) -> None:
    """Raise StageError when more rows have failed than the recipe allows, with the commonest reasons."""
    failed, total = statuses.get("failed", 0), sum(statuses.values())
    allowed = int(run.plan.settings.max_failed_fraction * total)
    if failed > allowed:
        common = "; ".join(f"{reason} ({n})" for reason, n in Counter(failures).most_common(3))
        raise StageError(
            f"{failed} of {total} rows failed, more than the {allowed} that {run.plan.stage}.max_failed_fraction "
            f"allows; the commonest reasons: {common}. Run the same command again to ask only these rows"
        )


def _next_steps(run: StageRun) -> dict[str, Step]:
    """What every unfinished row needs next; a row that failed in this session waits for the next one."""
    order = [row_id for row_id in run.prompts.order if row_id not in run.failed_now]
    return todo.next_steps(run.store, statuses_of(run), order, run.work)


def _run_phase(run: StageRun, phase: Phase, pools: list[Pool], turn: int | None, *, title: str) -> None:
    """One phase over the rows that stand before it; turn None: all turns, one after the other, in one line."""
    indices = [run.work.passes.index(p) for pool in pools for p in pool.work.passes]
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
        epoch=run.epoch.number,
        work=run.work,
        pools=tuple(pools),
        num_done=last + 1,
        num_credits=phase.credits + 2 * growth,
        block_rows=phase.block_rows,
        num_tickets=num_tickets(blocks, later),
        max_failed=run.max_failed,
        start_timeout_s=run.plan.recipe.ray.start_timeout_s,
    )
    total = len(here) + sum(later.values())
    with Telemetry(run=run.plan.recipe.name, stage=run.work.stage) as telemetry:
        _watch(run, line, start_coordinator(line, blocks), telemetry, title=title, total=total)


def _watch(run: StageRun, line: Line, coordinator, telemetry: Telemetry, *, title: str, total: int) -> None:
    settings, before = run.plan.settings, list(run.pools)
    progress = Progress(title=title, total=total, warn_after_s=settings.warn_after_s, console=run.console)
    part = f"e{run.epoch.number:06d}-{run.num_phases_begun:03d}"
    timeline = Timeline(run.store, run.work.stage, part)

    def show(snapshot: Snapshot) -> None:
        progress.show(snapshot)
        timeline.note(snapshot)
        tell(telemetry, snapshot, total=total)

    def record(snapshot: Snapshot) -> None:
        run.pools = [*before, *_pool_summaries(run, line, snapshot)]
        write_usage(run.store, run.work.stage, part, run.pools[len(before) :])
        put_progress(run.store, run.work.stage, epoch=run.epoch.number, text=progress.describe(snapshot))

    run.num_phases_begun += 1
    with progress:
        run.rows_done += run_watched(
            line,
            coordinator,
            show=show,
            check_owner=lambda: commit.check_owner(run.store, run.epoch),
            record=record,
        )
    snapshot: Snapshot = ray.get(coordinator.snapshot.remote())  # pyright: ignore[reportAssignmentType]: Ray types lists
    run.rows_redone += sum(pool.rows_redone for pool in snapshot.pools)
    record(snapshot)
    timeline.note(snapshot, is_last=True)
    # A phase that came to its end has none left, though a row that failed never gets to its later turns.
    tell(telemetry, snapshot, total=total if snapshot.stop_reason else 0)
    run.max_blocks_in_line = max(run.max_blocks_in_line, snapshot.max_blocks_in_line)
    ray.kill(coordinator)
    if progress.worked:
        run.worked = (run.worked or progress.worked)[0], progress.worked[1]
    if snapshot.stop_reason:
        raise StageError(f"{snapshot.stop_reason}. Finished rows are kept; run the same command again to go on")
    commit.check_owner(run.store, run.epoch)
    files = [f for f in commit.committed(run.store, run.work.stage, run.epoch) if f.epoch == run.epoch.number]
    states = commit.read_statuses(run.store, files).of(run.prompts.order)
    run.failed_now |= {row_id for row_id, s in zip(run.prompts.order, states, strict=True) if s == "failed"}


def _pool_summaries(run: StageRun, line: Line, snapshot: Snapshot) -> list[PoolSummary]:
    recipe, found = run.plan.recipe, []
    for pool, facts in zip(line.pools, snapshot.pools, strict=True):
        tokens_usd = recipe.models[pool.work.passes[0].engine].price_per_million_tokens
        prices = {"gpu_hour_usd": recipe.plan.gpu_hour_usd, "million_tokens_usd": tokens_usd}
        num_slots = pool.work.num_slots
        found.append(pool_summary(facts, num_gpus=pool.num_gpus, num_slots=num_slots, setup=pool.setup, **prices))
    return found
