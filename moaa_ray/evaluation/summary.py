"""What an evaluation leaves under RUN/evaluation, and in the run's own summary."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from moaa_ray.data import publish
from moaa_ray.data.cleanup import runs_inside
from moaa_ray.data.manifest import MANIFEST
from moaa_ray.data.schemas import Record
from moaa_ray.data.store import Store, open_store
from moaa_ray.evaluation.answering import STAGE
from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.contestants import Contestant
from moaa_ray.evaluation.scores import Scored
from moaa_ray.evaluation.table import markdown, text_table
from moaa_ray.generation.summary import PoolSummary
from moaa_ray.generation.usage import total_usage
from moaa_ray.loading import RUN, LoadedPreference
from moaa_ray.run_record import put_summary, read_summary, set_stage
from moaa_ray.settings.evaluation import Benchmark

FOLDER = "evaluation"
SUMMARY = "summary.json"
_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What has been found; RUN/evaluation/summary.json."""

    scored: Scored
    evaluated: Mapping[str, Mapping[str, Any]]
    """What stands behind each line of the table: the model with its revision and files, or its files of answers."""
    about: Mapping[Benchmark, Mapping[str, Any]]
    """How each benchmark was run: questions, answers, judge, prompt version, sampling, baseline."""
    usage: Sequence[PoolSummary]
    """Of every model that answered and every judge, by directory under RUN/evaluation, over all their starts."""
    folder: str
    checks: Sequence[Mapping[str, Any]] = ()
    """check.json of every judge of evaluate.reward_bench."""
    worked: tuple[float, float] | None = None
    """Unix times of the first and the last work of this start; None where nothing was left to do."""


def place_of(run_dir: str, place: str) -> Store:
    """The directory of one model's answers, answers/<model>, or of one judge's work, judges/<judge>."""
    return open_store(f"{run_dir}/{FOLDER}/{place}")


def published(store: Store, *folders: str) -> list[Record]:
    """The records of published folders, one after the other; none of a folder that is not there."""
    there = [folder for folder in folders if store.exists(f"{folder}/{MANIFEST}")]
    tables = (table for folder in there for table in publish.read_batches(store, folder, batch_rows=_BATCH_ROWS))
    return [record for table in tables for record in table.to_pylist()]


def earlier_summary(loaded: LoadedPreference) -> dict[str, Any]:
    """summary.json of an earlier evaluation of the run; empty where there is none."""
    return read_summary(open_store(f"{loaded.run_dir}/{FOLDER}"))


def usage_of(run_dir: str, contestants: Sequence[Contestant]) -> list[PoolSummary]:
    """What all models and judges have done for evaluations of this run, also those that are no longer in it.

    The contestants come first, in the order of the table.
    """
    order = [f"answers/{one.name}" for one in contestants]
    there = runs_inside(open_store(f"{run_dir}/{FOLDER}"))
    places = [*(place for place in order if place in there), *(place for place in there if place not in order)]
    return [replace(pool, name=place) for place in places for pool in total_usage(place_of(run_dir, place), STAGE)]


def about_of(loaded: LoadedPreference, bench: Bench) -> dict[str, Any]:
    """How a benchmark is run, as plain JSON data."""
    model = loaded.recipe.models[bench.config.judge]
    facts = {
        "num_questions": len(bench.questions),
        "baseline": bench.baseline.model if bench.baseline else None,
        "settings": bench.config.model_dump(mode="json"),
        "judge": {"name": bench.config.judge, "model": model.model, "revision": model.revision},
        "prompt_version": bench.protocol.version,
        "sampling": asdict(bench.protocol.sampling),
    }
    return json.loads(json.dumps(facts))


def evaluated_of(loaded: LoadedPreference, one: Contestant) -> dict[str, Any]:
    """What stands behind a line of the table."""
    if one.stored is not None:
        return {"answers": one.stored.model_dump(mode="json", exclude_none=True)}
    model = loaded.recipe.models[one.engine]
    place = model.model.replace(f"{loaded.run_dir}/", RUN, 1) if one.is_own else model.model
    return {"model": place, "revision": model.revision, "files": one.digest}


def render_evaluation(done: Evaluation) -> str:
    """The table as text, and where everything is."""
    table = text_table(done.scored, done.about, done.checks)
    return f"{table}\n  data: {done.folder}/{{summary.json,summary.md,answers,judges}}"


def problem_of(done: Evaluation) -> str:
    """Why an evaluation that has ended is not a whole one; empty where it is."""
    problems = done.scored.problems
    if not problems:
        return ""
    return (
        f"{len(problems)} of the scores cannot be had: {problems[0]}; the judge's replies are in {done.folder}/judges"
    )


def keep_summary(loaded: LoadedPreference, done: Evaluation) -> None:
    """summary.json and summary.md under evaluation/, and the section in the run's own summary.json."""
    store = open_store(loaded.run_dir)
    facts = {
        "models": {name: asdict(scores) for name, scores in done.scored.models.items()},
        "evaluated": done.evaluated,
        "benchmarks": done.about,
        "reward_bench": list(done.checks),
        "notes": done.scored.notes,
        "problems": done.scored.problems,
        "usage": [asdict(pool) for pool in done.usage],
    }
    store.put(f"{FOLDER}/{SUMMARY}", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    store.put(f"{FOLDER}/summary.md", markdown(done.scored, done.about, done.checks).encode())
    put_summary(store, STAGE, facts)
    set_stage(store, STAGE, status="done", epoch=0, counts={"models": len(done.scored.models)})
