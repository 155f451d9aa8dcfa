"""Does the loop learn? base -> SFT on a mixture -> DPO, on skills with checkable answers, beside other kinds of data.

    python -m benchmarks.skills.run --seeds 10 --out benchmarks/results/skills_<where>.json

Models are trained from scratch on first use (--models) and frozen. The learning rate of each arm is chosen from one
grid, on validation prompts with seeds of their own; then every seed trains all arms with the same number of steps and
tests them on the same held-out prompts. What a seed found is kept in --work, so the same command goes on after a stop.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import _common
from benchmarks.skills.one_seed import Settings, run_seed, share
from benchmarks.skills.report import report, table
from benchmarks.skills.specialists import SPECIALISTS, make_models, propose
from moaa_ray.data.student_files import digest_of_model
from moaa_ray.demo.tasks import accuracy, questions

SFT_RATES = (1.25e-4, 2.5e-4, 5e-4, 1e-3)
DPO_RATES = (2.5e-5, 5e-5, 1e-4, 2e-4)
FIRST_TUNING_SEED = 1000
FIRST_SEED = 10
"""Seeds below it, and the held-out prompts of draw 0, were looked at while the benchmark was made."""
PROMPT_DRAWS = {"validation": 0, "held_out": 1}
NUM_TESTED = 150
"""Held-out prompts of each skill, and validation prompts of each skill."""


class Grid(dict[str, Sequence[float]]):
    """The learning rates that are tried for an arm, by its name."""

    def __missing__(self, arm: str) -> Sequence[float]:
        return DPO_RATES if arm.startswith("DPO") else SFT_RATES


def best_single(folders: Mapping[str, Path]) -> str:
    """The specialist that is right most often on validation prompts."""
    asked = questions("validation", NUM_TESTED, seed=0)
    columns = zip(*propose([folders[name] for name in SPECIALISTS], asked, seed=0), strict=True)
    shares = [share([accuracy(q.prompt, text) for q, text in zip(asked, texts, strict=True)]) for texts in columns]
    return max(zip(shares, SPECIALISTS, strict=True))[1]


def kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What make returned when the file was not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        found = {**make(), "wall_s": round(time.perf_counter() - began, 1)}
        path.write_text(json.dumps(found), encoding="utf-8")
        print(f"{path.stem}: {found['wall_s']} s", file=sys.stderr, flush=True)
    return json.loads(path.read_text(encoding="utf-8"))


def _key(config: Mapping[str, Any]) -> str:
    """A name for what seeds found with these models and settings."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def chosen_rates(tuned: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each arm the rate with the highest mean accuracy over the tuning seeds; the lower one of equals."""
    first, *_ = (found["by_rate"] for found in tuned)
    return {
        arm: float(max(sorted(rates, key=float), key=lambda rate: share([one["by_rate"][arm][rate] for one in tuned])))
        for arm, rates in first.items()
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--tuning-seeds", type=int, default=2)
    parser.add_argument("--models", type=Path, default=Path("runs/skills/models"), help="made here where missing")
    parser.add_argument("--work", type=Path, default=Path("runs/skills/work"), help="what each seed found")
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    load, settings = _common.load_before(), Settings()
    folders = make_models(arguments.models)
    best = best_single(folders)
    config = {
        **asdict(settings),
        "sft_rates": SFT_RATES,
        "dpo_rates": DPO_RATES,
        "best_single": best,
        "draws": PROMPT_DRAWS,
    }
    work = arguments.work / _key({**config, "models": [digest_of_model(str(folder)) for folder in folders.values()]})

    def seed_run(kind: str, seed: int, grid: Mapping[str, Sequence[float]]) -> dict[str, Any]:
        asked = questions(kind, NUM_TESTED, seed=PROMPT_DRAWS[kind])  # pyright: ignore
        return kept(
            work / f"{kind}-{seed}.json",
            lambda: vars(run_seed(folders, work / "students", asked, settings, grid, best=best, seed=seed)),
        )

    tuning = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + arguments.tuning_seeds)
    rates = chosen_rates([seed_run("validation", seed, Grid()) for seed in tuning])
    grid = {arm: (rate,) for arm, rate in rates.items()}
    first = arguments.first_seed
    outcomes = {seed: seed_run("held_out", seed, grid) for seed in range(first, first + arguments.seeds)}
    found = report(questions("held_out", NUM_TESTED, seed=PROMPT_DRAWS["held_out"]), outcomes)
    print(table(found, outcomes[first]["facts"]))
    head = _common.about(load, **config, tuning_seeds=list(tuning))
    facts = {seed: {"wall_s": outcome["wall_s"], "arms": outcome["facts"]} for seed, outcome in outcomes.items()}
    if arguments.out:
        arguments.out.write_text(json.dumps({**head, **found, "facts": facts}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
