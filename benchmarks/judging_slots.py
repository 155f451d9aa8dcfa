"""How full a mixture of judges keeps its slowest pool, where one prompt means 80 calls.

    python benchmarks/judging_slots.py --rows 400 --repeats 3 --out benchmarks/results/judging_slots_<where>.json

Five candidates a prompt, judged in all 20 orders by two proposers and an aggregator, each an engine that sleeps: it has
`concurrency` slots and answers of heavy-tailed length, so its tokens/s in the plateau (the middle half of the time
between its first and its last answer, by the stage's own timeline) say what part of its slots was busy. The first
proposer also chooses the criteria and so is the slowest, the others are `--faster` times as fast for what they do.
Fakes babble, so no verdict parses; the calls are the same.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import _common
import yaml

CALLS = {"criteria1+criteria2+assess.first": 40, "assess.second": 20, "decide.agg": 20}
"""Of one prompt, by pool: a babbled choice of criteria is asked for twice, once for each pair."""


def write_recipe(folder: Path, arguments: argparse.Namespace) -> Path:
    """Engines whose speeds stand in the ratio of their calls, the first proposer's lowest."""
    engine = {"engine": "fake", "completion_tokens": arguments.words, "length_sigma": arguments.sigma}
    engine |= {"concurrency": arguments.concurrency, "replicas": 1}
    part = arguments.faster * arguments.tokens_per_s / 2
    prompts = str(_common.write_prompts(folder, arguments.rows, num_chars=200))
    recipe = {
        "name": folder.name,
        "run_dir": str(folder / "run"),
        "ray": {"num_cpus": 16},
        "models": {
            "student": {"engine": "fake", "completion_tokens": 60},
            "first": engine | {"tokens_per_s": arguments.tokens_per_s},
            "second": engine | {"tokens_per_s": part},
            "agg": engine | {"tokens_per_s": part},
        },
        "sample": {
            "model": "student",
            "sources": [{"path": prompts}],
        },
        "judges": {
            "mixture": {
                "kind": "mixture",
                "proposers": [{"model": "first"}, {"model": "second"}],
                "aggregator": {"model": "agg"},
            }
        },
        "judge": {"max_failed_fraction": 1.0, "phases": 1},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    folder.mkdir()
    recipe = write_recipe(folder, arguments)
    for stage in ("sample", "judge"):
        subprocess.run([sys.executable, "-m", "moaa_ray", stage, str(recipe)], check=True, stderr=subprocess.DEVNULL)
    (timeline,) = (folder / "run" / "judges" / "mixture" / "metrics" / "timeline" / "judge").glob("*.jsonl")
    lines = [json.loads(line) for line in timeline.read_text(encoding="utf-8").splitlines()]
    speeds = [arguments.tokens_per_s, *[arguments.faster * arguments.tokens_per_s / 2] * 2]
    return {name: plateau(lines, name) / speed for name, speed in zip(CALLS, speeds, strict=True)}


def plateau(lines: list[dict], pool: str) -> float:
    """Tokens/s of a pool in the middle half of the time in which it answers."""
    said = [(line["at"], line["pools"][pool]["completion_tokens"]) for line in lines if pool in line["pools"]]
    began = max(at for at, tokens in said if not tokens)
    ended = min(at for at, tokens in said if tokens == said[-1][1])
    inside = [one for one in said if began + 0.25 * (ended - began) <= one[0] <= ended - 0.25 * (ended - began)]
    (start, first), (stop, last) = inside[0], inside[-1]
    return (last - first) / (stop - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--words", type=int, default=100, help="mean words (tokens) of a completion")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the log of the length")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens-per-s", type=float, default=20_000, help="of the slowest engine, all slots busy")
    parser.add_argument("--faster", type=float, default=1.2)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    runs = []
    with _common.scratch(arguments.folder) as folder:
        for number in range(arguments.repeats):
            runs.append(measure(folder / f"run-{number}", arguments))
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    settings = {key: getattr(arguments, key) for key in ("rows", "words", "sigma", "concurrency", "tokens_per_s")}
    report = {**_common.about(load, **settings, faster=arguments.faster), "of_engine": _common.spreads(runs, CALLS)}
    _common.save({**report, "runs": runs}, arguments.out)


if __name__ == "__main__":
    main()
