"""A cluster in one line of text, and a plan as text that reads well in a terminal and in a log."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from math import ceil

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.errors import ConfigError
from moaa_ray.lines.judge import judge_in_use
from moaa_ray.lines.judge import plan_input as plan_judge
from moaa_ray.lines.mixture import STAGE as GENERATE
from moaa_ray.lines.mixture import plan_input
from moaa_ray.lines.sample import plan_input as plan_sample
from moaa_ray.loading import LoadedRecipe
from moaa_ray.planning.planner import PlanInput, StagePlan, plan_stage
from moaa_ray.run_folders import with_student

CPUS_PER_GPU = 8
"""CPU slots per GPU where a cluster's text names none."""

_KEYS = ("gpus", "gpu", "cpus", "nodes")


def plan_for_cli(loaded: LoadedRecipe, *, cluster: str, num_rows: int) -> str:
    """The plan of a recipe's stages as text; num_rows 0: not known.

    An empty cluster is the local one that the stages start.
    """
    plans = []
    for asked in stages_to_plan(loaded):
        here = max(os.cpu_count() or 1, ceil(asked.cpu_slots))
        shape = parse_cluster(cluster or f"cpus={here}")
        rows = num_rows or None
        if asked.stage != GENERATE and (drawn := loaded.recipe.sample.rows) is not None:
            rows = min(drawn, num_rows or drawn)
        plans.append(plan_stage(asked, shape, rows))
    if len(plans) == 1:
        return render_plan(plans[0])
    texts = [f"{plan.stage}: {render_plan(plan)}" for plan in plans]
    return "\n\n".join([*texts, _in_all(plans)])


def stages_to_plan(loaded: LoadedRecipe) -> list[PlanInput]:
    """The stages that ask models: generate, and sample and judge where the recipe has a judge."""
    recipe, base_dir = loaded.recipe, loaded.base_dir
    asked = [plan_input(recipe, base_dir=base_dir)]
    if not recipe.judges:
        return asked
    base = recipe.student.model if recipe.student else ""  # what the tuned student is as large as
    whole = with_student(loaded, base).recipe
    asked.append(plan_sample(whole, base_dir=base_dir))
    judge = recipe.judges[judge_in_use(recipe)]
    return [*asked, plan_judge(whole, judge, num_candidates=recipe.sample.num_candidates, base_dir=base_dir)]


def _in_all(plans: Sequence[StagePlan]) -> str:
    costs = [plan.cost_usd for plan in plans if plan.cost_usd is not None]
    text = f"these stages: {duration(sum(plan.line.makespan_s for plan in plans))}"
    if hours := sum(plan.gpu_hours for plan in plans):
        text += f", {hours:,.1f} GPU-hours"
    return text + (f", {sum(costs):,.2f} USD" if costs else "") + "; training is not planned"


def parse_cluster(text: str) -> Cluster:
    """The cluster that "gpus=8,gpu=H100,cpus=64[,nodes=1]" describes; gpus and cpus are totals over all nodes.

    nodes defaults to as many as GPUs of that type usually need (the last may hold fewer), cpus to 8 per GPU. Without
    GPUs, "cpus=16" is enough. Raises ConfigError for unknown keys and types, with the nearest.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in _KEYS or key in fields:
            near = get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]}? " if near and key not in _KEYS else ""
            raise ConfigError(f"cluster: {part.strip()!r} is not understood; {hint}Write e.g. gpus=8,gpu=H100,cpus=64")
        fields[key] = value
    num_gpus, num_nodes = _count(fields, "gpus", 0), _count(fields, "nodes", 0)
    gpu = gpu_type(fields["gpu"]) if "gpu" in fields else None
    if num_gpus and gpu is None:
        raise ConfigError(f"cluster: gpus={num_gpus} without a type; add e.g. gpu=H100")
    if not num_gpus and "cpus" not in fields:
        raise ConfigError("cluster: neither GPUs nor CPUs; write e.g. gpus=8,gpu=H100,cpus=64 or cpus=16")
    num_cpus = _count(fields, "cpus", CPUS_PER_GPU * num_gpus)
    if num_nodes and num_gpus % num_nodes:
        raise ConfigError(f"cluster: gpus={num_gpus} is not a multiple of nodes={num_nodes}; nodes hold equal numbers")
    if gpu is None or not num_gpus:
        num_nodes = num_nodes or 1
        return Cluster(nodes=(Node(num_gpus=0, num_cpus=num_cpus / num_nodes),) * num_nodes)
    size = num_gpus // num_nodes if num_nodes else min(num_gpus, gpu.gpus_per_node)
    sizes = [size] * (num_gpus // size) + [num_gpus % size] * (num_gpus % size > 0)
    nodes = (Node(num_gpus=each, num_cpus=num_cpus * each / num_gpus, gpu=gpu.name) for each in sizes)
    return Cluster(nodes=tuple(nodes))


def _count(fields: dict[str, str], key: str, default: int) -> int:
    value = fields.get(key, str(default))
    if not value.isdecimal() or (key in fields and key != "gpus" and int(value) == 0):
        raise ConfigError(f"cluster: {key}={value} is not a whole number above 0; write e.g. {key}=8")
    return int(value)


def render_plan(plan: StagePlan) -> str:
    """The plan as plain text, at most 120 columns where names are short."""
    line, cluster = plan.line, plan.cluster
    kinds = ", ".join(sorted({node.gpu or "GPU" for node in cluster.nodes if node.num_gpus}))
    gpus = f"{cluster.num_gpus} x {kinds}, " if cluster.num_gpus else ""
    nodes = f"{len(cluster.nodes)} node{'s' * (len(cluster.nodes) != 1)}"
    turns = f" x {plan.mean_turns:.2g} turns" if plan.mean_turns != 1 else ""
    rows = [("phase", "pool", "engine", "replicas", "GPUs", "CPUs", "busy", "load", "work", "M tokens")]
    for number, phase in enumerate(plan.phases, 1):
        for pool in phase.pools:
            spec = pool.spec
            rows.append((
                str(number),
                spec.name + (" *" if spec.name == phase.bottleneck else ""),
                spec.engine,
                str(pool.replicas),
                f"{pool.replicas} x {spec.num_gpus}" if spec.num_gpus else "-",
                f"{pool.replicas * spec.num_cpus:g}",
                f"{pool.busy_fraction:.0%}",
                duration(spec.load_s),
                duration(phase.work_s * pool.busy_fraction),
                f"{plan.pool_tokens[spec.name] / 1e6:,.1f}",
            ))  # fmt: skip
    lines = [f"{plan.num_rows:,} rows{turns} on {gpus}{cluster.num_cpus:g} CPU slots, {nodes}", "", *_table(rows)]
    lines += ["  * the slowest pool of its phase; busy and work are expected values", ""]
    for number, phase in enumerate(plan.phases, 1):
        lines.append(
            f"phase {number}: {duration(phase.duration_s)} ({duration(phase.load_s)} of it starting and loading), "
            f"{phase.num_gpus} GPU{'s' * (phase.num_gpus != 1)}, {phase.num_cpus:g} CPU slots, "
            f"blocks of {phase.block_rows} rows, "
            f"at most {phase.credits} admitted"
        )
    total = (
        f"in all: {duration(line.makespan_s)}, {line.makespan_s / max(line.work_bound_s, 1e-9):.2f} x the work bound"
        if line.work_bound_s
        else f"in all: {duration(line.makespan_s)}"
    )
    if plan.gpu_hours:
        total += f", {plan.gpu_hours:,.1f} GPU-hours"
    total += f", {sum(plan.pool_tokens.values()) / 1e6:,.1f} M tokens"
    total += f", {plan.cost_usd:,.2f} USD" if plan.cost_usd is not None else ", no price in the recipe"
    lines += [total, f"limit: {plan.limit}"]
    return "\n".join([*lines, *(f"note: {note}" for note in plan.notes)])


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns of equal width; the first three to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if i < 3 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
