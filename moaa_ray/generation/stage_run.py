"""One start of a stage and its rows: what it has taken over, what is left. For generating, sampling, judging."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from moaa_ray.core.passes import StageWork
from moaa_ray.data import commit, publish
from moaa_ray.data.store import Store
from moaa_ray.errors import StageError
from moaa_ray.generation import todo
from moaa_ray.generation.summary import Planned, PoolSummary
from moaa_ray.generation.todo import Prompts, Steps
from moaa_ray.planning.planner import PlanInput
from moaa_ray.run_record import set_stage


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
    line_restarts: int = 0
    """How often a line in which nothing moved any more was started again."""
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


def renew_stage(run: StageRun) -> None:
    """Go on under the next epoch, as if another driver went on: what this one's workers still commit never counts."""
    run.epoch = commit.renew_epoch(run.store, run.epoch)
    commit.adopt(run.store, run.work.stage, run.epoch)
    publish.fence_publish(run.store, run.epoch)
    set_stage(run.store, run.work.stage, status="running", epoch=run.epoch.number)


def statuses_of(run: StageRun) -> commit.Statuses:
    """What became of every row so far, by the committed files."""
    return commit.read_statuses(run.store, commit.committed(run.store, run.work.stage, run.epoch))


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


def next_steps(run: StageRun) -> Steps:
    """What every unfinished row needs next; a row that failed in this session waits for the next one."""
    failed = pa.array(run.failed_now, pa.large_string())
    has_failed = pc.call_function("is_in", [run.prompts.order], pc.SetLookupOptions(value_set=failed))
    order = run.prompts.order.filter(pc.call_function("invert", [has_failed]))
    return todo.next_steps(run.store, statuses_of(run), order, run.work)


def own_files(run: StageRun) -> list[commit.BlockFile]:
    """The blocks that this driver has committed under its present epoch."""
    return [f for f in commit.committed(run.store, run.work.stage, run.epoch) if f.epoch == run.epoch.number]


def note_failed(run: StageRun) -> None:
    """Rows that failed under this epoch wait for the next start."""
    order = run.prompts.order
    states = commit.read_statuses(run.store, own_files(run)).of(order)
    run.failed_now |= set(order.filter(pa.array([status == "failed" for status in states], pa.bool_())).to_pylist())
