"""Rows/s of a line of one slow pool with 1, 2, 4, 8 and 16 engines; what the line loses as it grows.

    python benchmarks/scaling.py --repeats 3 --out benchmarks/results/scaling_<where>.json

Engines sleep: each answers `--rows-per-s` rows of mean length a second, in `concurrency` slots, with heavy-tailed
lengths. The aggregator behind them is one engine that takes no time. plateau_rows_per_s is what the slots of the slow
pool did between the 10th and the 90th percentile of its answers, in rows of mean length; efficiency is that over n
times what one engine did. The default speed asks 48 rows/s at 16 engines, which are 6 blocks a second through two
pools; two cores, which carry workers, engines and control plane alike, were full at about 23 blocks a second into
pools (makespan.py with blocks of 2 rows), so the speed beyond that is not the line's to show here. Not measured: real
engines, several nodes, networks. start_s, in which two cores start n processes, stands apart.
"""

import argparse
import json
import sys
from pathlib import Path

import _common
import _logged
import _pools

COUNTS = (1, 2, 4, 8, 16)
SLOW, LAST = "a", "agg"
LONGEST = 4
"""Mean lengths at which max_tokens cuts an answer."""


def models(num_engines: int, arguments: argparse.Namespace) -> dict[str, dict]:
    slow = {
        "completion_tokens": arguments.words,
        "length_sigma": arguments.sigma,
        "concurrency": arguments.concurrency,
        "tokens_per_s": arguments.rows_per_s * arguments.words,
        "replicas": num_engines,
        "num_cpus": 1,
    }
    return {SLOW: slow, LAST: {"completion_tokens": arguments.words, "num_cpus": 1}}


def measure(num_engines: int, folder: Path, number: int, arguments: argparse.Namespace) -> dict:
    rows = arguments.rows_per_engine * num_engines
    prompts = _common.write_prompts(folder, rows, num_chars=200)
    name = f"n{num_engines}-{number}"
    limits = {"max_tokens": LONGEST * arguments.words, "block_rows": arguments.block_rows}
    recipe = _common.write_recipe(folder, name, prompts, models(num_engines, arguments), **limits)
    log = folder / f"{name}-log"
    _pools.run_all(num_engines + 1 + _pools.SERVICE_SLOTS, [(recipe, log)])
    (worked,) = _pools.phases_of(folder / name, log)
    mine = [question for question in _logged.read_log(log) if question.asked_by == f"l0.{SLOW}"]
    assert len(mine) == rows
    return {
        "plateau_rows_per_s": plateau_rows_per_s(mine, arguments),
        "rows": rows,
        "start_s": worked.start_s,
        "work_s": worked.work_s,
        "block_rows": worked.block_rows,
    }


def plateau_rows_per_s(questions: list[_logged.Question], arguments: argparse.Namespace) -> float:
    """Each answer's tokens count evenly over the time for which it held its slot."""
    ends = sorted(question.done_at for question in questions)
    start, stop = ends[len(ends) // 10], ends[len(ends) * 9 // 10]
    slot_tokens_s = arguments.rows_per_s * arguments.words / arguments.concurrency
    slot_s = sum(
        max(0.0, min(question.done_at, stop) - max(question.done_at - question.tokens / slot_tokens_s, start))
        for question in questions
    )
    return slot_s / arguments.concurrency * arguments.rows_per_s / (stop - start)


def report(runs: dict[int, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    keys = ("plateau_rows_per_s", "start_s", "work_s")
    settings = ("rows_per_engine", "rows_per_s", "words", "sigma", "concurrency", "block_rows")
    first = arguments.counts[0]
    efficiency = {
        num: _common.spread(
            [
                run["plateau_rows_per_s"] / num * first / one["plateau_rows_per_s"]
                for run, one in zip(of, runs[first], strict=True)
            ]
        )
        for num, of in runs.items()
    }
    return {
        **_common.about(load, **{key: getattr(arguments, key) for key in settings}),
        "efficiency": efficiency,
        "by_engines": {num: _common.spreads(of, keys) for num, of in runs.items()},
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows-per-engine", type=int, default=150)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="of engines; the first is compared with")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--rows-per-s", type=float, default=3.0, help="of one engine, all slots busy")
    parser.add_argument("--words", type=int, default=48, help="mean words (tokens) of a completion")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the log of the length")
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--block-rows", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    runs: dict[int, list[dict]] = {num: [] for num in arguments.counts}
    with _common.scratch(arguments.folder) as folder:
        for number in range(arguments.repeats):
            for num in arguments.counts:
                runs[num].append(measure(num, folder, number, arguments))
                print(num, json.dumps(runs[num][-1]), file=sys.stderr, flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
