"""One line of four pools of known speeds, streaming and phase by phase, against the slowest pool's bound.

    python benchmarks/streaming.py --rows 2000 --repeats 3 --out benchmarks/results/streaming_<where>.json

Engines sleep, so they take no CPU and their speed is exact. makespan_s runs from the first question to the last
committed block; bound_s is what the slowest pool needs for all rows, fill_s what one block takes through the other
pools, before the slowest one has work and after it has none. The same recipe with generate.phases = 4 is the barrier:
every pool over all rows, then the next. Its gaps_s (no question open: a phase ends, the next one starts) are told
apart, as they shrink in proportion when a run is longer. Every pool keeps its one engine in both: what a scheduler
could win in phases by giving all engines to the running pool is not in here. The variants are interleaved.
"""

import argparse
import json
import sys
from math import ceil
from pathlib import Path

import _common
import _logged

VARIANTS = {"streaming": 1, "phases": 4}
ROWS_PER_S = {"a": 40.0, "b": 50.0, "c": 20.0, "agg": 25.0}
"""What one full engine of each pool answers; c is the slowest."""


def models(arguments: argparse.Namespace) -> dict[str, dict]:
    return {
        label: {
            "completion_tokens": arguments.words,
            "length_sigma": arguments.sigma,
            "concurrency": arguments.concurrency,
            "tokens_per_s": speed * arguments.words,
        }
        for label, speed in ROWS_PER_S.items()
    }


def measure(variant: str, folder: Path, number: int, arguments: argparse.Namespace) -> dict:
    prompts = _common.write_prompts(folder, arguments.rows, num_chars=200)
    name = f"{variant}-{number}"
    phases = VARIANTS[variant]
    recipe = _common.write_recipe(folder, name, prompts, models(arguments), phases=phases)
    log = folder / f"{name}-log"
    log.mkdir()
    facts = json.loads(_common.run_apart([_logged.__file__, str(recipe), str(log)]))
    assert facts["rows"] == {"ok": arguments.rows}, facts
    questions = _logged.read_log(log)
    committed = [path.stat().st_mtime for path in (folder / name).glob("work/generate/*/e*/b*.parquet")]
    began, ended = questions[0].asked_at, max(committed)
    return {
        "makespan_s": ended - began,
        "gaps_s": gaps_s(questions),
        "pool_s": {label: _busy_s(questions, label) for label in ROWS_PER_S},
        **bounds(arguments, _logged.lines_of(log)[0]["block_rows"]),
        **_logged.lines_of(log)[0],
        "seconds": facts["seconds"],
    }


def bounds(arguments: argparse.Namespace, block_rows: int) -> dict[str, float]:
    """The slowest pool's seconds for all rows, and one block's through the others; lengths without a tail."""
    slowest = min(ROWS_PER_S, key=lambda label: ROWS_PER_S[label])
    block_slots = ceil(block_rows / arguments.concurrency) * arguments.concurrency
    fill_s = sum(block_slots / speed for label, speed in ROWS_PER_S.items() if label != slowest)
    return {"bound_s": arguments.rows / ROWS_PER_S[slowest], "fill_s": fill_s}


def gaps_s(questions: list[_logged.Question]) -> float:
    """Seconds, between the first question and the last answer, in which no question was open."""
    total, busy_until = 0.0, questions[0].asked_at
    for question in questions:
        total += max(0.0, question.asked_at - busy_until)
        busy_until = max(busy_until, question.done_at)
    return total


def _busy_s(questions: list[_logged.Question], label: str) -> float:
    """Seconds from a pool's first question to its last answer."""
    asked_by = "aggregate" if label == "agg" else f"l0.{label}"
    mine = [question for question in questions if question.asked_by == asked_by]
    return max(question.done_at for question in mine) - mine[0].asked_at


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    found = {
        variant: _common.spreads(of, ("makespan_s", "gaps_s", "bound_s", "fill_s")) for variant, of in runs.items()
    }
    ours = runs.get("streaming", [])
    settings = {"rows": arguments.rows, "words": arguments.words, "sigma": arguments.sigma}
    ratios = {}
    if ours:
        ratios["of_bound_and_fill"] = _common.spread([r["makespan_s"] / (r["bound_s"] + r["fill_s"]) for r in ours])
        ratios["of_bound"] = _common.spread([r["makespan_s"] / r["bound_s"] for r in ours])
    if ours and "phases" in runs:
        pairs = list(zip(runs["phases"], ours, strict=True))
        ratios["phases_over_streaming"] = _common.spread([p["makespan_s"] / s["makespan_s"] for p, s in pairs])
        ratios["phases_without_gaps_over_streaming"] = _common.spread(
            [(p["makespan_s"] - p["gaps_s"]) / s["makespan_s"] for p, s in pairs]
        )
    head = _common.about(load, **settings, concurrency=arguments.concurrency, rows_per_s=ROWS_PER_S)
    return {**head, "ratios": ratios, "by_variant": found, "runs": runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--words", type=int, default=48)
    parser.add_argument("--sigma", type=float, default=0.0, help="of the log of the length; 0.8 is a heavy tail")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
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
