"""From the passes of a stage and a cluster to its plan: pools, replicas, phases, tokens, time, cost.

Reads config.json of local model folders and the built-in table of published shapes; no network, no Ray, no torch. How
pools are built stands here, what one engine takes in pool_estimate.py, the search in core/planning.py, the text in
text.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil
from pathlib import Path

from moaa_ray.core.allocation import SERVICE_CPUS, PoolSpec
from moaa_ray.core.gpus import GPU_TYPES, GpuType, gpu_type
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.passes import Pass
from moaa_ray.core.planning import Phase, Plan, plan_line
from moaa_ray.errors import ConfigError
from moaa_ray.planning.pool_estimate import PassLoad, estimate_engine
from moaa_ray.recipe import Run
from moaa_ray.settings.inference import InferenceConfig
from moaa_ray.settings.models import Model, ReplicaRange, VllmModel

ASSUMED_ROWS = 10_000
"""Rows that a plan is made for when their number is not known yet."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What `moaa plan` prints of a stage, and the stage carries out."""

    stage: str
    line: Plan
    cluster: Cluster
    num_rows: int
    mean_turns: float
    pool_tokens: dict[str, float]  # prompt and completion tokens over all rows, by pool name
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
        return SERVICE_CPUS + sum(_least_replicas(model) * model.num_cpus for model in pools)


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
    pools, tokens = _pools(asked, cluster, notes)
    size = asked.settings.block_rows

    def planned(on: Cluster) -> Plan:
        return plan_line(
            pools,
            on,
            num_rows=row_turns,
            num_rounds=num_turns or ceil(mean_turns),
            phases=asked.settings.phases,
            fixed_block_rows=None if size == "auto" else size,
        )

    line = planned(cluster)
    pool_tokens = {pool.name: row_turns * tokens[pool.name] for pool in pools}
    return StagePlan(
        stage=asked.stage,
        line=line,
        cluster=cluster,
        num_rows=rows,
        mean_turns=mean_turns,
        pool_tokens=pool_tokens,
        cost_usd=_cost_usd(asked.recipe, pools, pool_tokens, cluster.num_gpus * line.makespan_s / 3600),
        limit=_limit(line, cluster, planned),
        notes=(*dict.fromkeys([*notes, *_copies(line)]),),
    )


def _pools(asked: PlanInput, cluster: Cluster, notes: list[str]) -> tuple[list[PoolSpec], dict[str, float]]:
    """Runs of passes on the same engine, in line order, and the expected tokens of one row in each."""
    gpu = weakest_gpu(cluster, notes)
    models = asked.recipe.models
    estimates = {
        name: estimate_engine(name, models[name], gpu=gpu, base_dir=Path(asked.base_dir))
        for name in dict.fromkeys(p.engine for p in asked.passes)
    }
    loads = asked.loads({name: e.window for name, e in estimates.items()})
    pools, tokens = [], {}
    for engine, group in groupby(asked.passes, key=lambda p: p.engine):
        own: Sequence[Pass] = list(group)
        model, estimate = models[engine], estimates[engine]
        notes.extend(estimate.notes)
        num_gpus = model.num_gpus if estimate.is_on_gpu else 0
        least, most = _replica_range(model)
        loads_here = [loads[p.name] for p in own]
        pools.append(
            PoolSpec(
                name="+".join(p.name for p in own),
                engine=engine,
                passes=tuple(p.name for p in own),
                num_gpus=num_gpus,
                num_cpus=model.num_cpus,
                seconds_per_row=sum(
                    load.num_requests * estimate.completion_s(load.prompt_tokens, load.completion_tokens)
                    for load in loads_here
                ),
                floor_s_per_row=sum(load.num_requests * estimate.floor_s for load in loads_here),
                min_replicas=least,
                max_replicas=most,
                load_s=estimate.load_s,
                concurrency=max(1, round(model.concurrency / max(load.num_requests for load in loads_here))),
                shape=_shape_words(model) if num_gpus else "",
            )
        )
        tokens[pools[-1].name] = sum(
            load.num_requests * (load.prompt_tokens + load.completion_tokens) for load in loads_here
        )
    return pools, tokens


def weakest_gpu(cluster: Cluster, notes: list[str]) -> GpuType | None:
    """The GPU with the least memory, on which every engine must fit; None without GPUs."""
    names = {node.gpu for node in cluster.nodes if node.num_gpus}
    if not names:
        return None
    known = []
    for name in sorted(names):
        try:
            known.append(gpu_type(name))
        except ConfigError:
            notes.append(
                f"GPU type {name or '(not told)'} is not known here: its speed and memory count as A100-80G's."
            )
            known.append(GPU_TYPES["A100-80G"])
    if len(names) > 1:
        notes.append(f"Several GPU types ({', '.join(sorted(names))}): every engine is planned as on the smallest.")
    return min(known, key=lambda gpu: (gpu.memory_bytes, gpu.bf16_flops))


def _replica_range(model: Model) -> tuple[int, int | None]:
    if isinstance(model.replicas, ReplicaRange):
        return model.replicas.min, model.replicas.max
    return (1, None) if model.replicas == "auto" else (model.replicas, model.replicas)


def _shape_words(model: Model) -> str:
    if not isinstance(model, VllmModel):
        return ""
    return f"tensor_parallel {model.tensor_parallel} x pipeline_parallel {model.pipeline_parallel}"


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


def _least_replicas(model: Model) -> int:
    if isinstance(model.replicas, ReplicaRange):
        return model.replicas.min
    return model.replicas if isinstance(model.replicas, int) else 1
