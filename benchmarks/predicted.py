"""Makespans of 20 lines as `moaa plan` says them, and `--simulate` plays them through, beside real runs on Ray.

    python benchmarks/predicted.py --out benchmarks/results/predicted_<where>.json

Engines sleep, with lengths that the simulation does not know: it draws its own of the same spread. The lines differ in
the number of pools, engines and slots, in speeds, spread, blocks and phases; each takes 30 to 50 s. At most eight
blocks a second go into pools, as two cores carry not many more than twenty. error is simulated over real, less one,
plan_error the same of the plan; load is this machine's when the line began: where others use its cores, real runs are
slower. Not in it: the start of processes (start_s stands beside; here two cores start them all), and whether the speed
of a real engine is known, which no simulation mends.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import _common
import _logged
import _pools

from moaa_ray.core.planning import PHASE_START_S
from moaa_ray.core.simulated_line import Conditions
from moaa_ray.core.simulation import simulate
from moaa_ray.lines.mixture import plan_generate
from moaa_ray.loading import load_recipe
from moaa_ray.planning.cluster import parse_cluster

WORDS, LONGEST = 48, 8


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line; the last pool aggregates."""

    rows_per_s: tuple[float, ...]  # of one engine of each pool
    engines: tuple[int, ...]
    concurrency: int = 16
    sigma: float = 0.8
    rows: int = 900
    block_rows: int | str = 16
    phases: int = 1


CASES = (
    Case(rows_per_s=(30, 40), engines=(1, 1), block_rows="auto"),
    Case(rows_per_s=(40, 30), engines=(1, 1), concurrency=32, block_rows="auto"),
    Case(rows_per_s=(12, 12), engines=(2, 2), rows=700),
    Case(rows_per_s=(15, 8), engines=(2, 4), sigma=0.0),
    Case(rows_per_s=(30, 60, 40), engines=(1, 1, 1)),
    Case(rows_per_s=(60, 30, 40), engines=(1, 1, 1), block_rows=32),
    Case(rows_per_s=(40, 60, 30), engines=(1, 1, 1), sigma=0.4),
    Case(rows_per_s=(30, 30, 30), engines=(1, 1, 1), concurrency=4),
    Case(rows_per_s=(15, 30, 8), engines=(2, 1, 3), concurrency=8, rows=700),
    Case(rows_per_s=(10, 20, 8), engines=(3, 2, 4), rows=700),
    Case(rows_per_s=(20, 20, 20), engines=(2, 2, 2), concurrency=32, rows=700),
    Case(rows_per_s=(30, 40, 50, 30), engines=(1, 1, 1, 1)),
    Case(rows_per_s=(50, 50, 50, 25), engines=(1, 1, 1, 1), sigma=1.0),
    Case(rows_per_s=(10, 15, 30, 8), engines=(3, 2, 1, 4), rows=600),
    Case(rows_per_s=(25, 50, 50, 50), engines=(1, 1, 1, 1), block_rows=64, rows=800),
    Case(rows_per_s=(20, 20, 20, 20), engines=(1, 1, 1, 2), sigma=0.0, rows=600),
    Case(rows_per_s=(30, 40, 50, 40, 25), engines=(1, 1, 1, 1, 1)),
    Case(rows_per_s=(16, 30, 15, 25, 10), engines=(2, 1, 2, 1, 3), rows=600),
    Case(rows_per_s=(60, 60), engines=(1, 1), phases=2),
    Case(rows_per_s=(60, 80, 60), engines=(1, 1, 1), phases=2, sigma=0.4),
)


def recipe_of(number: int, folder: Path) -> Path:
    case = CASES[number]
    labels = [f"m{i}" for i in range(len(case.engines) - 1)] + ["agg"]
    models = {
        label: {
            "completion_tokens": WORDS,
            "length_sigma": case.sigma,
            "concurrency": case.concurrency,
            "tokens_per_s": speed * WORDS,
            "replicas": count,
            "num_cpus": 1,
        }
        for label, speed, count in zip(labels, case.rows_per_s, case.engines, strict=True)
    }
    prompts = _common.write_prompts(folder, case.rows, num_chars=200)
    limits = {"max_tokens": LONGEST * WORDS, "phases": case.phases, "block_rows": case.block_rows}
    return _common.write_recipe(folder, f"case-{number}", prompts, models, seed=number, **limits)


def slots_of(case: Case) -> int:
    return sum(case.engines) + _pools.SERVICE_SLOTS


def predicted_s(case: Case, recipe: Path) -> tuple[float, float]:
    """What the plan says, and the simulator of it, without the starts of phases."""
    cluster = parse_cluster(f"cpus={slots_of(case)}")
    plan = plan_generate(load_recipe(recipe, []).recipe, cluster, case.rows, base_dir=recipe.parent)
    run = simulate(plan.line, num_rows=case.rows, conditions=Conditions(longest=LONGEST))
    start_s = len(run.phases) * PHASE_START_S
    return plan.line.makespan_s - start_s, run.makespan_s - start_s


def measured(numbers: Sequence[int], folder: Path) -> Iterator[dict]:
    """One Ray for all of them."""
    runs = {i: (recipe_of(i, folder), folder / f"case-{i}-log") for i in numbers}
    _pools.run_all(max(slots_of(CASES[i]) for i in numbers), list(runs.values()))
    for i, (recipe, log) in runs.items():
        phases = _pools.phases_of(folder / f"case-{i}", log)
        real_s = sum(phase.work_s for phase in phases)
        planned_s, simulated_s = predicted_s(CASES[i], recipe)
        yield {
            "case": i,
            "real_s": real_s,
            "planned_s": planned_s,
            "plan_error": planned_s / real_s - 1,
            "simulated_s": simulated_s,
            "error": simulated_s / real_s - 1,
            "start_s": sum(phase.start_s for phase in phases),
            "load": max(line["load"] for line in _logged.lines_of(log)),
            "block_rows": [phase.block_rows for phase in phases],
        }


def report(runs: list[dict], load: float) -> dict:
    errors, plan_errors = (_common.spread([abs(run[key]) for run in runs]) for key in ("error", "plan_error"))
    head = _common.about(load, cases=[vars(case) for case in CASES], words=WORDS, longest=LONGEST)
    return {**head, "absolute_error": errors, "absolute_plan_error": plan_errors, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(len(CASES))))
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    with _common.scratch(arguments.folder) as folder:
        runs = []
        for run in measured(arguments.cases, folder):
            runs.append(run)
            print(json.dumps(run), file=sys.stderr, flush=True)
    _common.save(report(runs, load), arguments.out)


if __name__ == "__main__":
    main()
