"""Lines of many fake engines that begin together; the child process of scaling.py, makespan.py and predicted.py.

    python benchmarks/_pools.py SLOTS CUT recipe.yaml LOG_FOLDER [recipe.yaml LOG_FOLDER]...

One local Ray of SLOTS CPU slots carries out all recipes, one after the other; an engine takes one slot, as it would a
GPU. Every engine of a phase waits until all of them are there, so that the seconds in which two cores start many
processes are told apart from those of the work. Nothing else of the stage is changed.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import _common
import _logged

SERVICE_SLOTS = 2
"""What the planner keeps for reading and committing."""
_START_LIMIT_S = 240.0
_POLL_S = 0.05


class TogetherEngine(_logged.LoggedEngine):
    """A logged engine that is up when all engines of its phase are there."""

    async def start(self) -> None:
        await super().start()
        folder = Path(self._folder)
        lines = _logged.lines_of(folder)
        mine = len(lines) - 1
        (folder / f"up-{mine}-{time.time_ns()}").touch()
        deadline = time.monotonic() + _START_LIMIT_S
        while len(list(folder.glob(f"up-{mine}-*"))) < lines[mine]["num_engines"]:
            assert time.monotonic() < deadline, f"not all engines of phase {mine} came within {_START_LIMIT_S:g} s"
            await asyncio.sleep(_POLL_S)


def together_engine(folder: str, *args, **settings) -> TogetherEngine:
    from moaa_ray.engines.build import build_engine

    return TogetherEngine(build_engine(*args, **settings), folder)


@dataclass(frozen=True, kw_only=True)
class Worked:
    """One phase of a run as it went."""

    start_s: float  # from the phase's start until its last engine was there
    work_s: float  # from then until its last block was committed
    num_engines: int
    block_rows: int
    num_credits: int


def phases_of(run_dir: Path, log: Path) -> list[Worked]:
    """The phases of a finished run, in order."""
    ends = sorted(
        max(path.stat().st_mtime for path in folder.glob("e*/b*.parquet"))
        for folder in run_dir.glob("work/generate/*.*")
        if not folder.name.endswith(".0")  # those are the prompts
    )
    found = []
    for i, (line, end) in enumerate(zip(_logged.lines_of(log), ends, strict=True)):
        up = sorted(int(path.name.split("-")[2]) / 1e9 for path in log.glob(f"up-{i}-*"))[line["num_engines"] - 1]
        facts = {key: line[key] for key in ("num_engines", "block_rows", "num_credits")}
        found.append(Worked(start_s=up - line["at"], work_s=end - up, **facts))
    return found


def run_all(num_slots: int, runs: Sequence[tuple[Path, Path]], *, cut: int = 0) -> None:
    """Carry out recipes, each with a log folder of its own, in a child process. cut: see above."""
    for _, log in runs:
        log.mkdir()
    arguments = [str(path) for pair in runs for path in pair]
    _common.run_apart([__file__, str(num_slots), str(cut), *arguments])


def engine_s(questions: Sequence[_logged.Question], token_s: Mapping[str, float]) -> float:
    """Engine-seconds of the work that was done. token_s: seconds of a full engine for a token, by pool."""
    return sum(question.tokens * token_s[question.asked_by] for question in questions)


def _run(num_slots: int, cut: int, runs: Sequence[tuple[str, str]]) -> None:
    import ray

    from moaa_ray.core import planning
    from moaa_ray.generation import phases, placing
    from moaa_ray.generation.stage import generate
    from moaa_ray.loading import load_recipe

    if cut:
        planning._best_cuts = lambda num_pools, *_: [(0, cut), (cut, num_pools)]
    start_coordinator = phases.start_coordinator
    ray.init(address="local", num_cpus=num_slots, include_dashboard=False, log_to_driver=False)
    for recipe, folder in runs:

        def noted(line, blocks, log=Path(folder)):
            facts = {
                "block_rows": line.block_rows,
                "num_credits": line.num_credits,
                "num_engines": sum(pool.min_replicas for pool in line.pools),
                "replicas": {pool.work.name: pool.min_replicas for pool in line.pools},
                "load": os.getloadavg()[0],
                "at": time.time(),
            }
            (log / f"line-{time.time_ns()}.json").write_text(json.dumps(facts))
            return start_coordinator(line, blocks)

        placing.build_engine = partial(together_engine, folder)
        phases.start_coordinator = noted
        generate(load_recipe(recipe, []))


if __name__ == "__main__":
    paths = sys.argv[3:]
    _run(int(sys.argv[1]), int(sys.argv[2]), list(zip(paths[::2], paths[1::2], strict=True)))
