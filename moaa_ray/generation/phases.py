"""A stage's passes on Ray: the plan, and phase by phase a line that is watched, and started again where it stalls."""

from collections.abc import Iterator

import ray

from moaa_ray.core.admission import WorkBlock, num_tickets
from moaa_ray.core.planning import Phase
from moaa_ray.data import commit
from moaa_ray.doctor.asking import check_nodes
from moaa_ray.errors import StageError
from moaa_ray.generation import todo
from moaa_ray.generation.coordinator import Snapshot
from moaa_ray.generation.line import Line, start_coordinator
from moaa_ray.generation.placing import line_pools, ray_cluster
from moaa_ray.generation.pool import Pool
from moaa_ray.generation.progress import Progress
from moaa_ray.generation.session import log_folder, session
from moaa_ray.generation.stage_run import StageRun, next_steps, note_failed, own_files, renew_stage
from moaa_ray.generation.summary import Planned, PoolSummary, pool_summary
from moaa_ray.generation.telling import tell
from moaa_ray.generation.timeline import Timeline
from moaa_ray.generation.todo import Step
from moaa_ray.generation.usage import write_usage
from moaa_ray.generation.watching import LineStalledError, run_watched
from moaa_ray.planning.planner import plan_stage
from moaa_ray.run_record import put_progress
from moaa_ray.telemetry import Telemetry

_MAX_RESTARTS = 5
"""Of the line of one phase, in one start of the stage."""


def run_stage(run: StageRun) -> None:
    """All rows that are not finished through their passes; without any no engine and no Ray is started.

    Raises StageError when it stopped short: what was finished stays committed for the next start.
    """
    if not next_steps(run):
        return
    recipe, prompts = run.plan.recipe, run.prompts
    mean_turns = 1 + sum(prompts.later_turns.values()) / max(1, len(prompts.order))
    with session(recipe.ray, cpu_slots=run.plan.cpu_slots) as is_local:
        if not is_local:
            check_nodes(run.store.uri)
        cluster = ray_cluster(run.plan.cpu_slots, is_local=is_local)
        num_turns = 1 + max(prompts.later_turns, default=0)
        plan = plan_stage(run.plan, cluster, len(next_steps(run)), mean_turns, num_turns=num_turns)
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


def _run_phase(run: StageRun, phase: Phase, pools: list[Pool], turn: int | None, *, title: str) -> None:
    """One phase over the rows that stand before it; turn None: all turns, one after the other, in one line.

    A line that stalls is started again from what is committed, at most _MAX_RESTARTS times, and only once where it has
    committed nothing since. Raises StageError then.
    """
    restarts, is_second_try = 0, False
    while blocks := todo.blocks_for(_steps_of_phase(run, pools, turn), block_rows=phase.block_rows):
        num_committed = len(own_files(run))
        try:
            _run_line(run, phase, pools, blocks, turn, title=title)
            return
        except LineStalledError as stall:
            is_stuck = is_second_try and len(own_files(run)) == num_committed
            if is_stuck or restarts == _MAX_RESTARTS:
                raise StageError(
                    f"{title}: {stall}; it was started again {restarts} times, and it stalls; what is committed is "
                    f"kept, the same command goes on. Logs of Ray and the engines: {log_folder()}"
                ) from stall
            restarts, is_second_try = restarts + 1, True
            run.line_restarts += 1
            renew_stage(run)


def _steps_of_phase(run: StageRun, pools: list[Pool], turn: int | None) -> Iterator[Step]:
    indices = [run.work.passes.index(p) for pool in pools for p in pool.work.passes]
    first, last = min(indices), max(indices)
    return (
        step for step in next_steps(run) if (turn is None or step.turn == turn) and first <= step.first_pass <= last
    )


def _run_line(
    run: StageRun, phase: Phase, pools: list[Pool], blocks: list[WorkBlock], turn: int | None, *, title: str
) -> None:
    settings = run.plan.settings
    later = run.prompts.later_turns if turn is None else {}
    growth = sum((pool.max_replicas - pool.min_replicas) * pool.blocks_in_flight for pool in pools)
    line = Line(
        run_uri=run.store.uri,
        epoch=run.epoch.number,
        work=run.work,
        pools=tuple(pools),
        num_done=max(run.work.passes.index(p) for pool in pools for p in pool.work.passes) + 1,
        num_credits=phase.credits + 2 * growth,
        block_rows=phase.block_rows,
        num_tickets=num_tickets(blocks, later),
        max_failed=run.max_failed,
        start_timeout_s=run.plan.recipe.ray.start_timeout_s,
        hang_after_s=settings.hang_after_s,
        restart_after_s=settings.restart_after_s,
    )
    total = sum(len(block.refs) for block in blocks) + sum(later.values())
    with Telemetry(run=run.plan.recipe.name, stage=run.work.stage) as telemetry:
        coordinator = start_coordinator(line, blocks)
        try:
            _watch(run, line, coordinator, telemetry, title=title, total=total)
        finally:
            ray.kill(coordinator)  # pyright: ignore[reportArgumentType]: Ray types handles apart from actors


def _watch(run: StageRun, line: Line, coordinator, telemetry: Telemetry, *, title: str, total: int) -> None:
    settings, before = run.plan.settings, list(run.pools)
    progress = Progress(title=title, total=total, warn_after_s=settings.warn_after_s, console=run.console)
    part = f"e{run.epoch.number:06d}-{run.num_phases_begun:03d}"
    timeline = Timeline(run.store, run.work.stage, part)
    last: list[Snapshot] = []

    def show(snapshot: Snapshot) -> None:
        last[:] = [snapshot]
        progress.show(snapshot)
        timeline.note(snapshot)
        tell(telemetry, snapshot, total=total)

    def record(snapshot: Snapshot) -> None:
        run.pools = [*before, *_pool_summaries(run, line, snapshot)]
        write_usage(run.store, run.work.stage, part, run.pools[len(before) :])
        put_progress(run.store, run.work.stage, epoch=run.epoch.number, text=progress.describe(snapshot))

    def close(snapshot: Snapshot) -> None:
        run.rows_redone += sum(pool.rows_redone for pool in snapshot.pools)
        record(snapshot)
        timeline.note(snapshot, is_last=True)
        run.max_blocks_in_line = max(run.max_blocks_in_line, snapshot.max_blocks_in_line)
        if progress.worked:
            run.worked = (run.worked or progress.worked)[0], progress.worked[1]

    run.num_phases_begun += 1
    try:
        with progress:
            run.rows_done += run_watched(
                line,
                coordinator,
                show=show,
                check_owner=lambda: commit.check_owner(run.store, run.epoch),
                record=record,
                note=progress.note,
            )
    except LineStalledError as stall:
        progress.note(f"{stall}; the line is started again from what is committed")
        for snapshot in last:
            close(snapshot)
        note_failed(run)
        raise
    except BaseException as error:
        if not isinstance(error, Exception):  # a signal: what was asked since the last record has its cost too
            for snapshot in last:
                record(snapshot)
        raise
    snapshot: Snapshot = ray.get(coordinator.snapshot.remote())  # pyright: ignore[reportAssignmentType]: Ray types lists
    close(snapshot)
    # A phase that came to its end has none left, though a row that failed never gets to its later turns.
    tell(telemetry, snapshot, total=total if snapshot.stop_reason else 0)
    if snapshot.stop_reason:
        raise StageError(f"{snapshot.stop_reason}. Finished rows are kept; run the same command again to go on")
    commit.check_owner(run.store, run.epoch)
    note_failed(run)


def _pool_summaries(run: StageRun, line: Line, snapshot: Snapshot) -> list[PoolSummary]:
    recipe, found = run.plan.recipe, []
    for pool, facts in zip(line.pools, snapshot.pools, strict=True):
        tokens_usd = recipe.models[pool.work.passes[0].engine].price_per_million_tokens
        prices = {"gpu_hour_usd": recipe.plan.gpu_hour_usd, "million_tokens_usd": tokens_usd}
        num_slots = pool.work.num_slots
        found.append(pool_summary(facts, num_gpus=pool.num_gpus, num_slots=num_slots, setup=pool.setup, **prices))
    return found
