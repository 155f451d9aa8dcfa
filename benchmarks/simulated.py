"""The paper's first stage on large clusters, simulated: our plan beside two simple ones, and what planning takes.

    python benchmarks/simulated.py --out benchmarks/results/simulated_<where>.json

Pools, loads and speeds are those of jobs/paper_stage1_64gpu.yaml as `moaa plan` sees them (45 % of the roofline, an
assumption), so the times stand for nothing but each other. Beside our plan: every pool with an equal share of the
GPUs, all at once; stage by stage with our own shares, where the aggregator begins when the proposers have answered all
prompts; and one pool after the other, each on all GPUs. The goals: 4,096 GPUs and 20 models planned in a
second, ten million prompts simulated in a minute.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import _common

from moaa_ray.core.allocation import PoolSpec
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.planning import Plan, plan_line
from moaa_ray.core.simulated_line import Conditions
from moaa_ray.core.simulation import simulate
from moaa_ray.lines.mixture import plan_input
from moaa_ray.loading import load_recipe
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.planner import plan_stage

RECIPE = Path(__file__).parents[1] / "jobs" / "paper_stage1_64gpu.yaml"
CASES = ((64, 66_135), (1_024, 1_000_000))
"""(GPUs, prompts)."""
LARGEST = (4_096, 10_000_000)


def cluster_of(num_gpus: int) -> Cluster:
    return parse_cluster(f"gpus={num_gpus},gpu=H100,cpus={12 * num_gpus}")


def equal_split(pools: Sequence[PoolSpec], num_gpus: int) -> list[PoolSpec]:
    share = num_gpus // len(pools)
    counts = [max(1, share // pool.num_gpus) for pool in pools]
    return [replace(pool, min_replicas=n, max_replicas=n) for pool, n in zip(pools, counts, strict=True)]


def stage_by_stage(plan: Plan, cluster: Cluster, num_rows: int) -> Plan:
    """The plan's own shares, proposers first: a phase each for them and for the aggregator."""
    pools = [
        replace(pool.spec, min_replicas=pool.replicas, max_replicas=pool.replicas)
        for phase in plan.phases
        for pool in phase.pools
    ]
    parts = [plan_line(part, cluster, num_rows=num_rows, phases=1) for part in (pools[:-1], pools[-1:])]
    phases = tuple(phase for part in parts for phase in part.phases)
    return replace(plan, phases=phases, makespan_s=sum(part.makespan_s for part in parts))


def simulated(plan: Plan, num_rows: int, bound_s: float) -> dict:
    began = time.process_time()
    run = simulate(plan, num_rows=num_rows, conditions=Conditions())
    return {
        "makespan_s": round(run.makespan_s, 1),
        "planned_s": round(plan.makespan_s, 1),
        "over_work_bound": round(run.makespan_s / bound_s, 3),
        "num_phases": len(plan.phases),
        "cpu_s": round(time.process_time() - began, 2),
    }


def one_case(num_gpus: int, num_rows: int) -> dict:
    loaded = load_recipe(RECIPE, ["generate.phases=auto"])
    cluster = cluster_of(num_gpus)
    planned = plan_stage(plan_input(loaded.recipe, base_dir=loaded.base_dir), cluster, num_rows)
    pools = [pool.spec for phase in planned.phases for pool in phase.pools]
    plans = (
        {"ours": planned.line}
        if (num_gpus, num_rows) == LARGEST
        else {
            "ours": planned.line,
            "equal_split": plan_line(equal_split(pools, num_gpus), cluster, num_rows=num_rows, phases=1),
            "stage_by_stage": stage_by_stage(planned.line, cluster, num_rows),
            "one_after_the_other": plan_line(pools, cluster, num_rows=num_rows, phases=len(pools)),
        }
    )
    found = {name: simulated(plan, num_rows, planned.line.work_bound_s) for name, plan in plans.items()}
    return {"num_gpus": num_gpus, "num_rows": num_rows, **found}


def planning_s() -> float:
    """CPU seconds to plan a line of 20 pools of different models on 4,096 GPUs."""
    pools = [
        PoolSpec(
            name=f"m{i}",
            engine=f"m{i}",
            passes=(f"m{i}",),
            num_gpus=(1, 2, 4, 8)[i % 4],
            num_cpus=1.0,
            seconds_per_row=0.05 * (1 + i % 7),
            load_s=60.0 + 10 * i,
        )
        for i in range(20)
    ]
    began = time.process_time()
    plan_line(pools, cluster_of(4_096), num_rows=10_000_000)
    return round(time.process_time() - began, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    head = _common.about(_common.load_before(), recipe=RECIPE.name)
    cases = [one_case(*case) for case in (*CASES, LARGEST)]
    _common.save({**head, "plan_20_models_on_4096_gpus_cpu_s": planning_s(), "cases": cases}, out)


if __name__ == "__main__":
    main()
