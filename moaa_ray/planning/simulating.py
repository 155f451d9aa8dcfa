"""What `moaa plan --simulate` adds to a stage's plan: the run played through, as figures and as a picture."""

from itertools import pairwise

from moaa_ray.core.simulated_line import Conditions, SimulatedPhase, SimulatedPool
from moaa_ray.core.simulation import Simulation, busy_engines, simulate
from moaa_ray.planning.planner import StagePlan
from moaa_ray.planning.text import duration

_COLUMNS = 60
_SHADES = " ░▒▓█"


def simulated_text(plan: StagePlan, conditions: Conditions) -> str:
    """The simulated time beside the planned one, and every pool's busy engines over time."""
    row_turns = max(1, round(plan.num_rows * plan.mean_turns))
    run = simulate(plan.line, num_rows=row_turns, conditions=conditions)
    bound_s = plan.line.work_bound_s
    text = f"simulated: {duration(run.makespan_s)}, where the plan says {duration(plan.line.makespan_s)}"
    text += f"; {run.makespan_s / bound_s:.2f} x the work bound" if bound_s else ""
    if conditions.hours_between_losses is not None:
        text += f"; {run.num_redone:,} blocks made again after their engine was lost"
    return "\n".join([text, *_picture(run)])


def _picture(run: Simulation) -> list[str]:
    """One line per pool over the time of the whole run; the darker, the more of its engines are at work."""
    names = max(len(pool.name) for phase in run.phases for pool in phase.pools)
    edges = [run.makespan_s * i / _COLUMNS for i in range(_COLUMNS + 1)]
    lines = []
    for phase in run.phases:
        lines += [f"  {pool.name:<{names}}  {_bar(pool, phase, edges)}  {_told(pool)}" for pool in phase.pools]
    ends = f"0{duration(run.makespan_s):>{_COLUMNS - 1}}"
    legend = f"{_SHADES[-1]} all engines at work, {_SHADES[1]} few, blank none, . another phase"
    return [*lines, f"  {'':<{names}}  {ends}  {legend}"]


def _bar(pool: SimulatedPool, phase: SimulatedPhase, edges: list[float]) -> str:
    busy = busy_engines(pool, edges)
    whole = pool.num_engines
    marks = (_SHADES[min(len(_SHADES) - 1, round(each / whole * (len(_SHADES) - 1)))] for each in busy)
    inside = (phase.start_s < right and left < phase.end_s for left, right in pairwise(edges))
    return "".join(mark if is_inside else "." for mark, is_inside in zip(marks, inside, strict=True))


def _told(pool: SimulatedPool) -> str:
    gpus = f"{pool.num_gpus} GPUs, " if pool.num_gpus else ""
    return f"{gpus}busy {pool.busy_fraction:.0%}, {duration(pool.first_s)} to {duration(pool.last_s)}"
