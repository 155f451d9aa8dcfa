"""What a kill costs: rows asked again after SIGKILL of driver, Ray and engines at random moments, against the bound.

    python benchmarks/resume.py --rows 3000 --kills 6 --repeats 3 --out benchmarks/results/resume_<where>.json

A kill costs the rows that an engine was asked about in the session it ended and is asked about again in a later one;
at most the blocks in the line: credits x block_rows. (With --block-rows auto a run of minutes lies in the line as a
whole.) After the kills the run ends undisturbed, and is then started once more with nothing to do (rerun_s), where no
Ray can be reached. Engines log every question before they see it (_logged.py).
"""

import argparse
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import _common
import _logged
import psutil

LABELS = ("a", "b", "c", "agg")


def measure(folder: Path, number: int, arguments: argparse.Namespace) -> dict:
    """One run killed again and again, finished, and started once more."""
    rng = random.Random(number)
    model = {"completion_tokens": 48, "length_sigma": 0.8, "concurrency": 16, "tokens_per_s": 48 * arguments.rows_per_s}
    prompts = _common.write_prompts(folder, arguments.rows, num_chars=200)
    name = f"resume-{number}"
    extra = {} if arguments.block_rows == "auto" else {"block_rows": int(arguments.block_rows)}
    recipe = _common.write_recipe(folder, name, prompts, dict.fromkeys(LABELS, model), **extra)
    logs: list[Path] = []
    for kill in range(arguments.kills):
        logs.append(_new_log(folder, name, kill))
        if not run_and_kill(recipe, logs[-1], after_s=rng.uniform(1.0, arguments.longest_s)):
            break  # it was done before the kill came
    kills = len(logs)
    logs.append(_new_log(folder, name, kills))
    _common.run_apart([_logged.__file__, str(recipe), str(logs[-1])])
    again = time.time()
    nothing = _new_log(folder, name, kills + 1)
    _common.run_apart([_logged.__file__, str(recipe), str(nothing), "ray.address=nowhere:1"])
    assert not any(nothing.iterdir()), "a finished run started an engine"
    return count(logs, arguments.rows) | {"kills": kills, "rerun_s": time.time() - again}


def _new_log(folder: Path, name: str, session: int) -> Path:
    log = folder / f"{name}-log{session}"
    log.mkdir()
    return log


def run_and_kill(recipe: Path, log: Path, *, after_s: float) -> bool:
    """Start the stage and kill it with all its children so many seconds after its first question; whether it lived."""
    command = [sys.executable, _logged.__file__, str(recipe), str(log)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while child.poll() is None and not any(path.stat().st_size for path in log.glob("*.log")):
        time.sleep(0.1)
    try:
        child.wait(after_s)
        return False
    except subprocess.TimeoutExpired:
        driver = psutil.Process(child.pid)
        for process in [*driver.children(recursive=True), driver]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        child.wait()
        return True


def count(logs: list[Path], num_rows: int) -> dict:
    """Rows that every kill cost against what it may cost, and calls per call needed."""
    sessions = [_logged.read_log(log) for log in logs]
    asked = [{question.row for question in questions} for questions in sessions]
    lost, allowed = [], []
    for i in range(len(logs) - 1):
        lost.append(len(asked[i] & set().union(*asked[i + 1 :])))
        allowed.append(sum(line["num_credits"] * line["block_rows"] for line in _logged.lines_of(logs[i])))
    assert len(set().union(*asked)) == num_rows, "a row was never asked"
    calls, needed = sum(map(len, sessions)), num_rows * len(LABELS)
    return {
        "rows_redone": lost,
        "rows_allowed": allowed,
        "is_within_bound": all(got <= most for got, most in zip(lost, allowed, strict=True)),
        "calls": calls,
        "calls_needed": needed,
        "worst_of_bound": max((got / most for got, most in zip(lost, allowed, strict=True)), default=0.0),
        "mean_redone_per_kill": sum(lost) / max(1, len(lost)),
        "extra_calls_fraction": calls / needed - 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--kills", type=int, default=6, help="at most, in each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rows-per-s", type=float, default=50.0, help="of one full engine of every pool")
    parser.add_argument(
        "--longest-s", type=float, default=30.0, help="a kill comes 1 s to this after the first question"
    )
    parser.add_argument("--block-rows", default="50", help="auto: the planner's rule")
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    runs = []
    with _common.scratch(arguments.folder) as folder:
        for number in range(arguments.repeats):
            runs.append(measure(folder, number, arguments))
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    numbers = ("worst_of_bound", "mean_redone_per_kill", "extra_calls_fraction", "rerun_s")
    settings = {key: getattr(arguments, key) for key in ("rows", "kills", "rows_per_s", "longest_s", "block_rows")}
    head = _common.about(load, **settings)
    totals = {
        "kills": sum(run["kills"] for run in runs),
        "is_within_bound": all(run["is_within_bound"] for run in runs),
    }
    _common.save({**head, **totals, "numbers": _common.spreads(runs, numbers), "runs": runs}, arguments.out)


if __name__ == "__main__":
    main()
