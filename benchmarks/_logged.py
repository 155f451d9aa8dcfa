"""The generate stage with engines that write down every question and answer; run by the benchmarks as a child process.

    python benchmarks/_logged.py recipe.yaml LOG_FOLDER [FIELD=VALUE]...

A question is in the log before the engine sees it, so a kill loses none. Nothing else of the stage is changed.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import _common


class LoggedEngine(_common.WrappedEngine):
    """An engine and its log: "A <time> <request>" when asked, "D <time> <tokens> <request>" when done."""

    def __init__(self, engine, folder: str):
        super().__init__(engine)
        self._folder = folder
        self._log = -1

    async def start(self) -> None:
        name = f"{os.getpid()}-{time.time_ns()}.log"
        self._log = os.open(os.path.join(self._folder, name), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        await super().start()

    async def generate(self, request):
        os.write(self._log, f"A {time.time():.6f} {request.id}\n".encode())
        completion = await super().generate(request)
        os.write(self._log, f"D {time.time():.6f} {completion.completion_tokens} {request.id}\n".encode())
        return completion


def logged_engine(folder: str, *args, **settings) -> LoggedEngine:
    from moaa_ray.engines.build import build_engine

    return LoggedEngine(build_engine(*args, **settings), folder)


@dataclass(frozen=True)
class Question:
    """One question put to an engine; done_at is 0 for one that a kill cut off."""

    row: str
    asked_by: str
    asked_at: float
    done_at: float = 0.0
    tokens: int = 0


def read_log(folder: Path) -> list[Question]:
    """All questions in the logs of a folder, in the order in which they were asked."""
    found = [question for path in folder.glob("*.log") for question in _read(path)]
    return sorted(found, key=lambda question: question.asked_at)


def _read(path: Path) -> Iterator[Question]:
    open_questions: dict[str, Question] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        kind, at, *rest = line.split(" ")
        row, _, asked_by, _ = rest[-1].rsplit("/", 3)
        if kind == "A":
            open_questions[rest[-1]] = Question(row, asked_by, float(at))
        else:
            asked = open_questions.pop(rest[-1])
            yield dataclasses.replace(asked, done_at=float(at), tokens=int(rest[0]))
    yield from open_questions.values()


def lines_of(folder: Path) -> list[dict]:
    """block_rows and num_credits of every phase that was started with this log folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("line-*.json"))]


def run(recipe: str, folder: Path, overrides: Sequence[str]) -> None:
    from moaa_ray.generation import phases, placing, stage
    from moaa_ray.loading import load_recipe

    start_coordinator = phases.start_coordinator

    def noted(line, blocks):
        facts = {"block_rows": line.block_rows, "num_credits": line.num_credits}
        (folder / f"line-{time.time_ns()}.json").write_text(json.dumps(facts))
        return start_coordinator(line, blocks)

    placing.build_engine = partial(logged_engine, str(folder))
    phases.start_coordinator = noted
    summary = stage.generate(load_recipe(recipe, overrides))
    print(json.dumps({"rows": summary.statuses, "seconds": summary.seconds}))


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
