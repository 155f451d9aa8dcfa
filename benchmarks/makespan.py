"""Makespan of five unequal proposers and an aggregator on one Ray, beside the work bound and beside other ways to run.

    python benchmarks/makespan.py --out benchmarks/results/makespan_<where>.json

The cluster is pretended: local Ray with `--engines` CPU slots, of which every fake engine takes one, as it would a GPU.
Engines sleep, with heavy-tailed lengths. makespan_s runs from the moment at which all engines of a phase are there to
the last committed block, summed over phases; start_s, in which two cores start all the processes (24 in 90 s), stands
apart. The work bound is the engine-seconds of the answers that were given, over the slots. The default speed puts nine
blocks a second into pools, which leaves two cores room; with blocks of 2 rows and 45 a second they were full, and the
makespan was 2.0 x the bound. Variants, interleaved:

    ours      one line, with the planner's shares
    handed_on generate.phases=auto, as a recipe has it unless told: where engines load in no time, pools of a first
              phase finish and hand their slots on to those of a second
    stages    layer by layer with the same shares: the aggregator begins when the proposers have answered all rows
    phases    each pool in turn over all slots: the engines are loaded six times, which is not in makespan_s;
              load_for_equal_s is the load from which ours is faster, load_for_1.6x_s from which it is 1.6 x as fast
    equal     one line, every pool with the same number of engines
    elastic   ours, and the aggregator may take every slot that another pool gives back (Ray Data's autoscaling)

freed_fraction says what re-roling could win at most, with loads that take no time: of the slots' seconds those after
the last answer of a slot's pool. Not measured: real engines and their loads, several nodes, lost nodes.
"""

import argparse
import json
import sys
from pathlib import Path

import _common
import _logged
import _pools

ENGINE_S = {"p0": 0.5, "p1": 0.2, "p2": 1.0, "p3": 1.1, "p4": 0.7, "agg": 2.5}
"""Seconds of one engine for a row, up to a common factor; the spread of 9B, 27B and 70B models (performance.md 2.1)."""
VARIANTS = ("ours", "handed_on", "stages", "phases", "equal", "elastic")
PHASES = {"handed_on": "auto", "stages": 2, "phases": len(ENGINE_S)}
WORDS, LONGEST = 48, 4
"""Mean length of an answer, and mean lengths at which max_tokens cuts one."""


def pool_of(label: str) -> str:
    return "aggregate" if label == "agg" else f"l0.{label}"


def row_s(label: str, arguments: argparse.Namespace) -> float:
    """Seconds of one engine for a row, such that all of them do rows_per_s."""
    return ENGINE_S[label] * arguments.engines / sum(ENGINE_S.values()) / arguments.rows_per_s


def models(arguments: argparse.Namespace, replicas: dict) -> dict[str, dict]:
    return {
        label: {
            "completion_tokens": WORDS,
            "length_sigma": arguments.sigma,
            "concurrency": arguments.concurrency,
            "tokens_per_s": WORDS / row_s(label, arguments),
            "replicas": replicas.get(label, "auto"),
            "num_cpus": 1,
        }
        for label in ENGINE_S
    }


def replicas_of(variant: str, arguments: argparse.Namespace, ours: dict[str, int]) -> dict:
    if variant == "equal":
        return dict.fromkeys(ENGINE_S, arguments.engines // len(ENGINE_S))
    if variant == "stages":
        return ours
    if variant == "elastic":
        return {**ours, "agg": {"min": ours["agg"], "max": arguments.engines}}
    return {}


def planned(arguments: argparse.Namespace, folder: Path, prompts: Path) -> dict[str, int]:
    """The planner's own shares."""
    from moaa_ray.lines.mixture import plan_generate
    from moaa_ray.loading import load_recipe
    from moaa_ray.planning.cluster import parse_cluster

    limits = {"max_tokens": LONGEST * WORDS, "phases": 1, "block_rows": arguments.block_rows}
    recipe = _common.write_recipe(folder, "planned", prompts, models(arguments, {}), **limits)
    cluster = parse_cluster(f"cpus={arguments.engines + _pools.SERVICE_SLOTS}")
    plan = plan_generate(load_recipe(recipe, []).recipe, cluster, arguments.rows, base_dir=folder)
    return {pool.spec.engine: pool.replicas for phase in plan.phases for pool in phase.pools}


def measure(variant: str, folder: Path, number: int, arguments: argparse.Namespace) -> dict:
    prompts = _common.write_prompts(folder, arguments.rows, num_chars=200)
    shares = replicas_of(variant, arguments, planned(arguments, folder, prompts))
    name = f"{variant}-{number}"
    recipe = _common.write_recipe(
        folder,
        name,
        prompts,
        models(arguments, shares),
        max_tokens=LONGEST * WORDS,
        phases=PHASES.get(variant, 1),
        block_rows=arguments.block_rows,
    )
    log = folder / f"{name}-log"
    cut = len(ENGINE_S) - 1 if variant == "stages" else 0
    _pools.run_all(arguments.engines + _pools.SERVICE_SLOTS, [(recipe, log)], cut=cut)
    phases, lines = _pools.phases_of(folder / name, log), _logged.lines_of(log)
    questions = _logged.read_log(log)
    token_s = {pool_of(label): row_s(label, arguments) / WORDS for label in ENGINE_S}
    makespan_s = sum(phase.work_s for phase in phases)
    bound_s = _pools.engine_s(questions, token_s) / arguments.engines
    found = {
        "makespan_s": makespan_s,
        "bound_s": bound_s,
        "of_bound": makespan_s / bound_s,
        "start_s": sum(phase.start_s for phase in phases),
        "replicas": [line["replicas"] for line in lines],
        "num_engines_seen": len(list(log.glob("up-*"))),
        "block_rows": [phase.block_rows for phase in phases],
        "num_credits": [phase.num_credits for phase in phases],
    }
    if variant in PHASES:
        return found
    began = questions[0].asked_at
    lasts = {pool: max(q.done_at for q in questions if q.asked_by == pool) - began for pool in token_s}
    idle_s = sum(count * (makespan_s - lasts[pool]) for pool, count in lines[0]["replicas"].items())
    return {**found, "last_answer_s": lasts, "freed_fraction": idle_s / (arguments.engines * makespan_s)}


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    settings = ("rows", "engines", "rows_per_s", "sigma", "concurrency", "block_rows")
    head = _common.about(load, **{key: getattr(arguments, key) for key in settings}, engine_s=ENGINE_S)
    of = {name: _common.spreads(found, ("makespan_s", "of_bound", "start_s")) for name, found in runs.items()}
    ratios, ours = {}, runs.get("ours", [])
    for name in runs.keys() - {"ours"} if ours else ():
        pairs = list(zip(runs[name], ours, strict=True))
        ratios[f"{name}_over_ours"] = _common.spread(
            [other["makespan_s"] / mine["makespan_s"] for other, mine in pairs]
        )
    if ours and "phases" in runs:
        for times, key in ((1.0, "load_for_equal_s"), (1.6, "load_for_1.6x_s")):
            loads = [
                (times * mine["makespan_s"] - other["makespan_s"]) / (len(ENGINE_S) - times)
                for other, mine in zip(runs["phases"], ours, strict=True)
            ]
            ratios[key] = _common.spread(loads)
    return {**head, "ratios": ratios, "by_variant": of, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--engines", type=int, default=24, help="slots for engines: the pretended GPUs")
    parser.add_argument("--rows-per-s", type=float, default=12.0, help="of all engines together, at the work bound")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the log of the length")
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--block-rows", type=int, default=8)
    parser.add_argument("--variants", nargs="+", default=["ours"], choices=VARIANTS)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    runs: dict[str, list[dict]] = {variant: [] for variant in arguments.variants}
    with _common.scratch(arguments.folder) as folder:
        for number in range(arguments.repeats):
            for variant in arguments.variants:
                runs[variant].append(measure(variant, folder, number, arguments))
                print(variant, json.dumps(runs[variant][-1]), file=sys.stderr, flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
