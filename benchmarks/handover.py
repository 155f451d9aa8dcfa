"""What lies between the stages of a whole run: from the last work of one to the first work of the next.

    python benchmarks/handover.py --out benchmarks/results/handover_<where>.json

Runs a recipe as `moaa run` does (the demo's, where none is given), each repeat in a process and a run directory of its
own. The gap before a stage is what it takes to let the engines go, to start workers and to load the next models.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import _common

DEMO = Path(__file__).parent.parent / "jobs" / "demo.yaml"


def run_whole(recipe: Path, run_dir: str) -> dict:
    """Seconds of a whole run, and of its gaps by stage."""
    from rich.console import Console

    from moaa_ray.pipeline import load_run, run
    from moaa_ray.pipeline_text import handover_seconds

    done = run(load_run(recipe, [f"run_dir={run_dir}"]), console=Console(stderr=True))
    return {"whole_s": sum(one.seconds for one in done), "gaps_s": handover_seconds(done)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=DEMO)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_whole(arguments.recipe, arguments.one)))
        return
    head = _common.about(_common.load_before(), recipe=arguments.recipe.name)
    runs = []
    with _common.scratch(None) as folder:
        for number in range(arguments.repeats):
            command = [sys.executable, __file__, "--recipe", arguments.recipe, "--one", folder / str(number)]
            done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(json.dumps(runs[-1]), flush=True)
    gaps = _common.spreads([run["gaps_s"] for run in runs], runs[0]["gaps_s"])
    between = [sum(run["gaps_s"].values()) for run in runs]
    shares = [gap / run["whole_s"] for gap, run in zip(between, runs, strict=True)]
    found = {"between_stages_s": _common.spread(between), "of_the_whole": _common.spread(shares), "gaps_s": gaps}
    _common.save({**head, **found, "runs": runs}, arguments.out)


if __name__ == "__main__":
    main()
