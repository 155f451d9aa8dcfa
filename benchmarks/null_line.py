"""Rows/s and memory of the generate stage with engines that take no time, beside Ray Data alone.

    python benchmarks/null_line.py --rows 10000 50000 200000 --repeats 3 --out benchmarks/results/null_line_<where>.json

ours   `moaa generate`: 3 proposers and an aggregator, prompts from JSONL, durable blocks, published data; and once
       more on the finished run (rerun_s), which must find out that nothing is to do
bare   a Ray Data plan of the same shape and block size: tickets, then 4 actor pools that hand blocks on; no engine,
       no row is looked at, nothing is written
loop   the same passes over the same rows and blocks in one process without Ray: what the rows themselves cost

start_s runs from the prompts being committed (ours), or ray.init (bare), to the first block at the end of the line.
line_rows_s is rows over the seconds from there to the last block. marginal_rows_s leaves the start out (rows after the
first block over the seconds after it: of use for tens of blocks only), and rows_s_between_sizes all that is fixed.
Times of `ours` are those of its own files, so nothing is measured inside it. The variants are interleaved.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import _common
from null_baselines import run_bare, run_loop

VARIANTS = ("ours", "bare", "loop")
LABELS = ("a", "b", "c", "agg")
RATES = ("start_s", "marginal_rows_s", "line_rows_s", "total_cpu_s")


def null_models(arguments: argparse.Namespace) -> dict[str, dict]:
    return {label: {"completion_tokens": arguments.words} for label in LABELS}


def planned_block_rows(recipe: Path, num_rows: int) -> int:
    """What the planner chooses for this recipe on this machine."""
    from moaa_ray.core.packing_gpus import Cluster, Node
    from moaa_ray.lines.mixture import plan_generate, plan_input
    from moaa_ray.loading import load_recipe

    loaded = load_recipe(recipe)
    cluster = Cluster(nodes=(Node(num_gpus=0, num_cpus=max(2.0, plan_input(loaded.recipe).cpu_slots), gpu=""),))
    return plan_generate(loaded.recipe, cluster, num_rows, base_dir=loaded.base_dir).phases[0].block_rows


def run_ours(recipe: Path) -> dict:
    """The command from outside, then once more on its finished run."""
    watch = _common.Watch()
    began = time.time()
    _common.run_apart(["-m", "moaa_ray", "generate", str(recipe)], watch=watch)
    ended = time.time()
    run_dir = Path(json.loads(recipe.read_text())["run_dir"])
    facts = timeline(run_dir, began, ended) | watch.facts()
    # An address where no Ray is: the run fails if anything wants to start.
    again = time.time()
    _common.run_apart(["-m", "moaa_ray", "generate", str(recipe), "ray.address=nowhere:1"])
    return facts | {"rerun_s": time.time() - again}


def timeline(run_dir: Path, began: float, ended: float) -> dict:
    """Where the seconds of a finished run went, by the times of its files."""
    import pyarrow.parquet as pq

    files = sorted((path.stat().st_mtime, path) for path in run_dir.glob("work/generate/*/e*/*.parquet"))
    seeded = max(at for at, path in files if path.name.startswith("new-"))
    blocks = [(at, path) for at, path in files if not path.name.startswith("new-")]
    sizes = [pq.read_metadata(path).num_rows for _, path in blocks]
    first, last = blocks[0][0], blocks[-1][0]
    return {
        "rows": sum(sizes),
        "block_rows": max(sizes),
        "seed_s": seeded - began,
        "start_s": first - seeded,
        "marginal_rows_s": sum(sizes[1:]) / max(last - first, 1e-9),
        "line_rows_s": sum(sizes) / (last - seeded),
        "publish_s": ended - last,
        "seconds": ended - began,
    }


def measure(variant: str, num_rows: int, folder: Path, number: int, arguments: argparse.Namespace) -> dict:
    prompts = _common.write_prompts(folder, num_rows, arguments.prompt_chars)
    name = f"{variant}-{num_rows}-{number}"
    extra = {} if arguments.block_rows == "auto" else {"block_rows": int(arguments.block_rows)}
    recipe = _common.write_recipe(folder, name, prompts, null_models(arguments), **extra)
    if variant == "ours":
        return run_ours(recipe)
    size = planned_block_rows(recipe, num_rows)
    command = [__file__, "--one", variant, "--rows", str(num_rows), "--block-rows", str(size)]
    command += ["--words", str(arguments.words), "--prompt-chars", str(arguments.prompt_chars), "--folder", str(folder)]
    watch = _common.Watch()
    found = json.loads(_common.run_apart(command, watch=watch))
    return {"rows": num_rows, "block_rows": size, **found, **watch.facts()}


def report(runs: dict[str, dict[int, list[dict]]], load: float, arguments: argparse.Namespace) -> dict:
    """Spreads of every number by variant and rows, and how rates and memory compare."""
    sizes = {
        variant: {rows: _common.spreads(of, _numbers(of)) for rows, of in by_rows.items()}
        for variant, by_rows in runs.items()
    }
    return {
        **_common.about(load, words=arguments.words, prompt_chars=arguments.prompt_chars, rows=arguments.rows),
        "of_bare": {rows: _ratios(runs, rows) for rows in arguments.rows if {"ours", "bare"} <= runs.keys()},
        "rows_s_between_sizes": {variant: _between(by_rows, arguments.rows) for variant, by_rows in sizes.items()},
        "memory_growth": {variant: _growth(by_rows, arguments.rows) for variant, by_rows in sizes.items()},
        "by_variant": sizes,
        "runs": runs,
    }


def _numbers(runs: list[dict]) -> list[str]:
    return [key for key, value in runs[0].items() if isinstance(value, int | float) and all(key in r for r in runs)]


def _ratios(runs: dict, rows: int) -> dict:
    """Ours over bare, run by run."""
    pairs = list(zip(runs["ours"][rows], runs["bare"][rows], strict=True))
    return {key: _common.spread([ours[key] / bare[key] for ours, bare in pairs]) for key in RATES}


def _between(by_rows: dict, rows: list[int]) -> float:
    """Rows/s without any fixed cost: the rows that the largest run has more, over the seconds its line takes longer."""
    least, most = min(rows), max(rows)
    line_s = {num: num / by_rows[num]["line_rows_s"]["median"] for num in (least, most)}
    return (most - least) / (line_s[most] - line_s[least]) if most > least else 0.0


def _growth(by_rows: dict, rows: list[int]) -> dict:
    """Peak memory at the most rows over that at the fewest."""
    least, most = by_rows[min(rows)], by_rows[max(rows)]
    return {key: most[key]["median"] / least[key]["median"] for key in least if key.endswith("_mb") and key in most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000, 200_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--words", type=int, default=200, help="words of a completion (about 6 characters each)")
    parser.add_argument("--prompt-chars", type=int, default=400)
    parser.add_argument("--block-rows", default="auto", help="auto: the planner's rule")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=VARIANTS[1:], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one = {"bare": run_bare, "loop": run_loop}[arguments.one]
        print(json.dumps(one(arguments.rows[0], int(arguments.block_rows), arguments)))
        return
    load = _common.load_before()
    runs: dict[str, dict[int, list[dict]]] = {v: {n: [] for n in arguments.rows} for v in arguments.variants}
    with _common.scratch(arguments.folder) as folder:
        for number in range(arguments.repeats):
            for num_rows in arguments.rows:
                for variant in arguments.variants:
                    found = measure(variant, num_rows, folder, number, arguments)
                    runs[variant][num_rows].append(found)
                    print(variant, num_rows, json.dumps(found), file=sys.stderr, flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
