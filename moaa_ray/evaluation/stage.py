"""`moaa evaluate`: models answer the benchmarks' questions, judges judge, and the table of the paper comes of it.

    questions -> RUN/evaluation/answers/<model>/answers -> RUN/evaluation/judges/<judge>/judged -> summary.json, .md

Answers and judgments are rows through passes as in every stage. Each model has a directory of its own, and so has each
judge, for all models and benchmarks together, so that its engine is loaded once. A row's id holds a hash of all that it
is asked and how: what has changed is asked anew, and nothing else is.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from moaa_ray.data import publish, schemas
from moaa_ray.data.store import Store, open_store
from moaa_ray.errors import ConfigError
from moaa_ray.evaluation.answering import STAGE, samplings_of
from moaa_ray.evaluation.benchmarks import Bench, check_opponent, read_benchmarks
from moaa_ray.evaluation.contestants import Contestant, find_contestants
from moaa_ray.evaluation.rows import Said, answers_of, outcomes_of, question_rows, tasks_of
from moaa_ray.evaluation.scores import Outcomes, Scored, score
from moaa_ray.evaluation.stages import answer_stage, judge_stage
from moaa_ray.evaluation.table import markdown
from moaa_ray.generation.session import one_session
from moaa_ray.loading import LoadedPreference
from moaa_ray.preference.check import Cost
from moaa_ray.preference.stage import RowStage, put_through
from moaa_ray.run_record import join_run, put_summary, set_stage
from moaa_ray.settings.checks import choices
from moaa_ray.settings.evaluation import Benchmark
from moaa_ray.types import Row

FOLDER = "evaluation"
_BATCH_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What has been found; RUN/evaluation/summary.json."""

    scored: Scored
    about: Mapping[Benchmark, Mapping[str, Any]]
    """How each benchmark was run: questions, answers, judge, prompt version, sampling, baseline."""
    costs: Mapping[str, Cost]
    """By directory under RUN/evaluation, over all its starts."""
    folder: str


def evaluate(
    loaded: LoadedPreference,
    *,
    only: Sequence[str] = (),
    restart: Sequence[str] = (),
    console: Console | None = None,
) -> Evaluation:
    """Run, or go on with, the evaluation; all that the recipe names is read and checked before anything starts.

    Args: only, benchmarks by name, instead of all of the recipe's; restart, models and judges whose answers of earlier
    starts are forgotten. Raises as `judge` does.
    """
    given = loaded
    loaded, contestants = find_contestants(given)
    benches = read_benchmarks(loaded, only)
    _check_restart(restart, contestants, benches)
    answers = {one.name: _stored(loaded, one, benches) for one in contestants}
    samplings = samplings_of(loaded.recipe.evaluate, {bench.name: bench.questions for bench in benches})
    asked = question_rows(benches, samplings)
    answering = {
        one.name: answer_stage(loaded, one, asked, samplings, restart=one.name in restart)
        for one in contestants
        if one.engine
    }
    judges = list(dict.fromkeys(bench.config.judge for bench in benches))
    plans = [stage.plan for stage in answering.values()]
    plans += [judge_stage(loaded, judge, {}, benches, restart=False).plan for judge in judges]
    join_run(open_store(given.run_dir), given)
    costs: dict[str, Cost] = {}
    with one_session(cpu_slots=max(plan.cpu_slots for plan in plans), with_dashboard=False):
        for name, stage in answering.items():
            rows = [each.row for each in asked.values()]
            records, costs[f"answers/{name}"] = _run(given, f"answers/{name}", stage, rows, console)
            answers[name] = answers_of(records)
        tasks = {task.row.id: task for name in answers for task in tasks_of(name, answers[name], benches)}
        judged: list[schemas.Record] = []
        for judge in judges:
            own = {row_id: task for row_id, task in tasks.items() if task.bench.config.judge == judge}
            stage = judge_stage(loaded, judge, own, benches, restart=judge in restart)
            rows = [task.row for task in own.values()]
            records, costs[f"judges/{judge}"] = _run(given, f"judges/{judge}", stage, rows, console)
            judged += records
    outcomes: dict[Benchmark, Outcomes] = {bench.name: outcomes_of(bench, answers, judged) for bench in benches}
    scored = score(outcomes, benches, list(answers), seed=loaded.recipe.seed)
    about: dict[Benchmark, Mapping[str, Any]] = {bench.name: _about(loaded, bench) for bench in benches}
    done = Evaluation(scored=scored, about=about, costs=costs, folder=f"{loaded.run_dir}/{FOLDER}")
    _keep(loaded, done)
    return done


def _check_restart(restart: Sequence[str], contestants: Sequence[Contestant], benches: Sequence[Bench]) -> None:
    known = [*(one.name for one in contestants), *dict.fromkeys(bench.config.judge for bench in benches)]
    for name in restart:
        if name not in known:
            raise ConfigError(f"--restart {name}: no model that is evaluated, and no judge; {choices(name, known)}")


def _stored(loaded: LoadedPreference, one: Contestant, benches: Sequence[Bench]) -> dict[Benchmark, dict[str, Said]]:
    """The answers that are there already. Raises where they are not complete, or are the baseline's own."""
    found: dict[Benchmark, dict[str, Said]] = {}
    for bench in benches:
        if one.stored is None:
            check_opponent(bench, one, loaded.recipe.models[one.engine].model, {})
        elif (stored := bench.stored(one, base_dir=str(loaded.base_dir))) is not None:
            check_opponent(bench, one, stored.model, stored.texts)
            found[bench.name] = {question: Said(texts=texts) for question, texts in stored.texts.items()}
    return found


def _run(
    loaded: LoadedPreference, place: str, stage: RowStage, rows: Iterable[Row], console: Console | None
) -> tuple[list[schemas.Record], Cost]:
    """Put the rows through a stage in a directory of its own; the published records, and the cost of all starts.

    loaded is the recipe as it was given, for the record: in the stage's own, models of the run have engines.
    """
    store = open_store(f"{loaded.run_dir}/{FOLDER}/{place}")
    join_run(store, loaded)
    if console is not None:
        console.print(f"{STAGE}: {place}", style="dim")
    summary = put_through(stage, store, rows, console=console)
    return _records(store, stage), Cost.of(summary)


def _records(store: Store, stage: RowStage) -> list[schemas.Record]:
    """What is published of a stage, rows included that have failed with a part of them done."""
    folders = (stage.folder, stage.failed_folder)
    tables = (table for folder in folders for table in publish.read_batches(store, folder, batch_rows=_BATCH_ROWS))
    return [record for table in tables for record in table.to_pylist()]


def _about(loaded: LoadedPreference, bench: Bench) -> dict[str, Any]:
    model = loaded.recipe.models[bench.config.judge]
    return {
        "num_questions": len(bench.questions),
        "baseline": bench.baseline.model if bench.baseline else None,
        "settings": bench.config.model_dump(mode="json"),
        "judge": {"name": bench.config.judge, "model": model.model, "revision": model.revision},
        "prompt_version": bench.protocol.version,
        "sampling": asdict(bench.protocol.sampling),
    }


def _keep(loaded: LoadedPreference, done: Evaluation) -> None:
    """summary.json and summary.md under evaluation/, and the section in the run's own summary.json."""
    store = open_store(loaded.run_dir)
    facts = {
        "models": {name: asdict(scores) for name, scores in done.scored.models.items()},
        "benchmarks": done.about,
        "notes": done.scored.notes,
        "problems": done.scored.problems,
        "costs": {place: asdict(cost) for place, cost in done.costs.items()},
    }
    store.put(f"{FOLDER}/summary.json", (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode())
    store.put(f"{FOLDER}/summary.md", markdown(done.scored, done.about).encode())
    put_summary(store, STAGE, facts)
    set_stage(store, STAGE, status="done", epoch=0, counts={"models": len(done.scored.models)})
