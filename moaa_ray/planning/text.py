"""A plan as text that reads well in a terminal and in a log."""

from moaa_ray.planning.planner import StagePlan
from moaa_ray.planning.training import TrainingPlan


def render(plan: StagePlan | TrainingPlan) -> str:
    """The plan of any stage as plain text."""
    return render_plan(plan) if isinstance(plan, StagePlan) else render_training(plan)


def render_training(plan: TrainingPlan) -> str:
    """The plan of a training stage as plain text."""
    place = f"{plan.num_workers} x {plan.gpu or 'CPU worker'}"
    work = plan.work.tokens + plan.work.forward_tokens
    lines = [
        f"{plan.num_rows:,} rows on {place}",
        "",
        f"{plan.num_epochs} epochs in {plan.num_steps:,} steps, {work / 1e6:,.1f} M tokens"
        + (f", {plan.work.forward_tokens / 1e6:,.1f} M of them forward only" if plan.work.forward_tokens else ""),
    ]
    if plan.state_bytes is not None:
        lines.append(f"memory: {plan.state_bytes / 1e9:,.1f} GB a GPU of weights, gradients and optimizer")
    total = "in all: " + (duration(plan.seconds) if plan.seconds is not None else "time not predicted")
    if plan.gpu_hours:
        total += f", {plan.gpu_hours:,.1f} GPU-hours"
    total += f", {plan.cost_usd:,.2f} USD" if plan.cost_usd is not None else ", no price in the recipe"
    return "\n".join([*lines, total, *(f"note: {note}" for note in plan.notes)])


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
    lines += ["  * the slowest pool of its phase; busy and work are expected values"]
    lines += [*(f"  {name}: {told}" for name, told in plan.told.items()), ""]
    for number, phase in enumerate(plan.phases, 1):
        lines.append(
            f"phase {number}: {duration(phase.duration_s)} ({duration(phase.load_s)} to load, "
            f"{duration(phase.ramp_s)} to fill and drain), "
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
