"""From the passes of a stage and a cluster to its plan: pools, replicas, phases, tokens, time, cost.

Reads config.json of local model folders and the built-in table of published shapes; no network, no Ray, no torch. How
pools are built stands in pools.py, over how many GPUs a model is split in splitting.py, on which types of them in
gpu_types.py and searching.py, what one engine takes in pool_estimate.py, the search for replicas and phases in
core/planning.py, the text in text.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import ceil
from pathlib import Path

from moaa_ray.core.allocation import SERVICE_CPUS, PoolSpec
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.passes import Pass
from moaa_ray.core.planning import Phase, Plan, plan_line
from moaa_ray.model_folders import with_absolute_paths
from moaa_ray.planning.gpu_types import with_selectors
from moaa_ray.planning.measured import Measurements, read_measurements
from moaa_ray.planning.pool_estimate import PassLoad, engine_window
from moaa_ray.planning.pools import StagePools, least_replicas, nodes_for, stage_pools, unchecked_labels
from moaa_ray.planning.searching import Build, fastest_option
from moaa_ray.planning.splitting import fastest_split, smallest_split
from moaa_ray.recipe import Run
from moaa_ray.settings.inference import InferenceConfig
from moaa_ray.settings.models import Model

ASSUMED_ROWS = 10_000
"""Rows that a plan is made for when their number is not known yet."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What `moaa plan` prints of a stage, and the stage carries out."""

    stage: str
    line: Plan
    cluster: Cluster
    models: Mapping[str, Model]
    """The models that it asks, with the numbers that the planner has chosen for them."""
    num_rows: int
    mean_turns: float
    pool_tokens: dict[str, float]  # prompt and completion tokens over all rows, by pool name
    told: Mapping[str, str]  # how an engine is split and where its speed is from, by pool name
    cost_usd: float | None  # None: no price in the recipe
    limit: str  # what limits the makespan, and what one more engine there would bring
    notes: tuple[str, ...]

    @property
    def phases(self) -> tuple[Phase, ...]:
        """In the order in which they run."""
        return self.line.phases

    @property
    def gpu_hours(self) -> float:
        """GPU-hours of the whole cluster, busy or not, for as long as the plan runs."""
        return self.cluster.num_gpus * self.line.makespan_s / 3600


@dataclass(frozen=True, kw_only=True)
class PlanInput:
    """The passes of a stage, and what is known of their work before anything runs."""

    stage: str
    passes: Sequence[Pass]
    loads: Callable[[Mapping[str, int | None]], Mapping[str, PassLoad]]
    """From the context windows of the engines (None: not known) to what each pass asks of a row, by pass name."""
    recipe: Run
    settings: InferenceConfig
    base_dir: str | Path = "."

    @property
    def cpu_slots(self) -> float:
        """CPU slots that a local cluster needs for the least engines of every pool, admission and commit included."""
        pools = [self.recipe.models[engine] for engine, _ in groupby(p.engine for p in self.passes)]
        return SERVICE_CPUS + sum(least_replicas(model) * model.num_cpus for model in pools)


def plan_stage(
    asked: PlanInput,
    cluster: Cluster,
    num_rows: int | None,
    mean_turns: float = 1.0,
    *,
    num_turns: int | None = None,
) -> StagePlan:
    """The plan of one stage.

    Args: num_rows, prompts still to be answered, None where unknown; mean_turns and num_turns, the mean and the
    largest number of user turns (with several phases every turn loads the engines again). Raises ConfigError, with the
    sum, when a model fits into no engine or an engine onto no node.
    """
    notes: list[str] = []
    if num_rows is None:
        notes.append(f"The number of rows is not known: the figures are for {ASSUMED_ROWS:,} rows.")
    rows = ASSUMED_ROWS if num_rows is None else num_rows
    row_turns = max(1, round(rows * mean_turns))
    size = asked.settings.block_rows

    def planned(pools: StagePools, on: Cluster) -> Plan:
        return plan_line(
            pools.specs,
            on,
            num_rows=row_turns,
            num_rounds=num_turns or ceil(mean_turns),
            phases=asked.settings.phases,
            fixed_block_rows=None if size == "auto" else size,
        )

    used = {p.engine: asked.recipe.models[p.engine] for p in asked.passes}
    for name, model in used.items():
        nodes_for(name, model, cluster)
    notes += unchecked_labels(used, cluster)
    cluster = with_selectors(cluster, used.values())
    option, told = fastest_option(
        used, cluster, build=_build(asked, cluster, notes), planned=lambda pools: planned(pools, cluster)
    )
    pools, line = option.pools, option.line
    pool_tokens = {name: row_turns * tokens for name, tokens in pools.row_tokens.items()}
    return StagePlan(
        stage=asked.stage,
        line=line,
        cluster=cluster,
        models=pools.models,
        num_rows=rows,
        mean_turns=mean_turns,
        pool_tokens=pool_tokens,
        told=pools.told,
        cost_usd=_cost_usd(asked.recipe, pools.specs, pool_tokens, cluster.num_gpus * line.makespan_s / 3600),
        limit=_limit(line, cluster, lambda on: planned(pools, on)),
        notes=(*dict.fromkeys([*notes, *told, *pools.notes, *_copies(line)]),),
    )


def _build(asked: PlanInput, cluster: Cluster, notes: list[str]) -> Build:
    """Makes the pools with models over the fewest GPUs that fit and, where it differs, over as many as is fastest per
    GPU."""
    base_dir = Path(asked.base_dir)
    models = asked.recipe.models
    known = read_measurements(asked.recipe.plan.measured)
    loads = asked.loads({p.engine: engine_window(models[p.engine], base_dir) for p in asked.passes})
    loads, num_known = _measured_loads(asked, known, loads)
    if num_known:
        notes.append(f"The mean tokens of a call are as measured in {num_known} of {len(loads)} passes.")

    def build(models: Mapping[str, Model]) -> list[StagePools]:
        smallest, fastest = (
            stage_pools(asked.passes, models, loads, cluster=cluster, base_dir=base_dir, choose=choose, known=known)
            for choose in (smallest_split, fastest_split)
        )
        return [smallest, fastest] if smallest.models != fastest.models else [smallest]

    return build


def _measured_loads(
    asked: PlanInput, known: Measurements, loads: Mapping[str, PassLoad]
) -> tuple[dict[str, PassLoad], int]:
    """The loads with the mean tokens that the same pass of the same model had before, and of how many passes."""
    found = {}
    for p in asked.passes:
        place = with_absolute_paths(asked.recipe.models[p.engine], asked.base_dir).model
        if means := known.passes.get((asked.stage, p.name, place)):
            found[p.name] = replace(loads[p.name], prompt_tokens=means[0], completion_tokens=means[1])
    return {**loads, **found}, len(found)


def _cost_usd(recipe: Run, pools: Sequence[PoolSpec], tokens: dict[str, float], gpu_hours: float) -> float | None:
    """GPU-hours and tokens at their prices; a GPU pool's token price counts only where GPU-hours have none."""
    hour = recipe.plan.gpu_hour_usd
    costs = [gpu_hours * hour] if hour is not None and gpu_hours else []
    for pool in pools:
        price = recipe.models[pool.engine].price_per_million_tokens
        if price is not None and not (pool.num_gpus and hour is not None):
            costs.append(tokens[pool.name] * price / 1e6)
    return sum(costs) if costs else None


def _limit(line: Plan, cluster: Cluster, planned: Callable[[Cluster], Plan]) -> str:
    """The slowest pool of the longest phase, and what room for one more of its engines would save."""
    longest = max(line.phases, key=lambda phase: phase.work_s)
    pool = next(p for p in longest.pools if p.spec.name == longest.bottleneck)
    spec = pool.spec
    if pool.replicas == spec.max_replicas:
        return f"{spec.name} is slowest; its replicas are fixed to {pool.replicas} by models.{spec.engine}.replicas"
    if spec.floor_s_per_row and pool.replicas * spec.floor_s_per_row >= spec.seconds_per_row:
        return f"{spec.name} is slowest; models.{spec.engine}.requests_per_minute allows no more"
    cpus_per_gpu = cluster.num_cpus / max(cluster.num_gpus, 1)
    grown = cluster.grown(spec.num_gpus, max(spec.num_cpus, spec.num_gpus * cpus_per_gpu))
    saved = line.makespan_s - planned(grown).makespan_s
    num, what = (spec.num_gpus, "GPU") if spec.num_gpus else (spec.num_cpus, "CPU slot")
    room = f"{num:g} more {what}{'s' * (num != 1)}"
    share = 100 * saved / line.makespan_s
    return f"{spec.name} is slowest; {room} (room for one more engine of it) would save {share:.0f} % of the time"


def _copies(line: Plan) -> list[str]:
    """Sentences on engines that several pools use."""
    where: dict[str, list[tuple[int, str]]] = {}
    for number, phase in enumerate(line.phases, 1):
        for pool in phase.pools:
            where.setdefault(pool.spec.engine, []).append((number, pool.spec.name))
    notes = []
    for engine, uses in where.items():
        if len(uses) > 1:
            places = ", ".join(f"{name} (phase {number})" for number, name in uses)
            together = len({number for number, _ in uses}) < len(uses)
            cost = "each has its own copy in memory" if together else "it is loaded once for each"
            notes.append(
                f"{engine} stands in {len(uses)} pools: {places}; {cost}. Neighbouring passes would share one."
            )
    return notes
