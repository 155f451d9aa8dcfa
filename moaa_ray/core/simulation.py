"""A plan played through: blocks of rows through pools of engines, as a discrete-event simulation without a clock.

The planner (planning.py) divides the work by the slowest pool; what it leaves out is simulated here: the ramp, blocks
that wait for their longest row, credits, the driver's time per block, engines that are lost. An engine has
`concurrency` slots and takes rows in order; a row holds a slot for its length times `concurrency x seconds_per_row`,
as in a full batch. The same seed gives the same result.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from moaa_ray.core.planning import PHASE_START_S, Plan
from moaa_ray.core.simulated_line import Conditions, SimulatedLine, SimulatedPhase, SimulatedPool


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """The whole run."""

    phases: tuple[SimulatedPhase, ...]

    @property
    def makespan_s(self) -> float:
        """Seconds from the first phase's start to the last one's end."""
        return self.phases[-1].end_s

    @property
    def num_redone(self) -> int:
        """Blocks that were lost with their engine."""
        return sum(pool.num_redone for phase in self.phases for pool in phase.pools)


def simulate(plan: Plan, *, num_rows: int, conditions: Conditions) -> Simulation:
    """Play the plan through with so many rows (a row counts once per turn)."""
    phases, now = [], 0.0
    for number, phase in enumerate(plan.phases):
        # The first start of its engines and the first ramp are simulated; later turns' cost what the planner says.
        rounds_s = phase.load_s - PHASE_START_S - max(pool.spec.load_s for pool in phase.pools)
        rounds_s += phase.ramp_s * (1 - 1 / phase.num_ramps)
        phases.append(SimulatedLine(phase, now + max(0.0, rounds_s), num_rows, conditions, number).run())
        now = phases[-1].end_s
    return Simulation(phases=tuple(phases))


def busy_engines(pool: SimulatedPool, edges: Sequence[float]) -> Iterator[float]:
    """The mean number of engines at work between consecutive times; a block's work counts evenly over its time."""
    seconds = [0.0] * (len(edges) - 1)
    width = edges[1] - edges[0]
    for began, ended, work in pool.work:
        rate = work / (ended - began) if ended > began else 0.0
        first = max(0, int((began - edges[0]) / width))
        for i in range(first, min(len(seconds), int((ended - edges[0]) / width) + 1)):
            seconds[i] += rate * max(0.0, min(ended, edges[i + 1]) - max(began, edges[i]))
    return (each / width for each in seconds)
