"""The two stages of an evaluation, for preference.stage to run: a model's answers, a judge's work on all of them."""

from collections.abc import Mapping, Sequence
from functools import partial

from moaa_ray.data.evaluation_schemas import ANSWERS, JUDGED
from moaa_ray.evaluation.answering import answer_work
from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.contestants import Contestant
from moaa_ray.evaluation.planning import answers_plan, judge_plan, judging_of
from moaa_ray.evaluation.rows import (
    Asked,
    Task,
    answers_table,
    judged_table,
    unfinished_answers,
    unfinished_judgments,
)
from moaa_ray.fingerprint import section_fingerprint
from moaa_ray.loading import LoadedPreference
from moaa_ray.preference.stage import RowStage
from moaa_ray.run_record import model_digests
from moaa_ray.settings.evaluation import Benchmark
from moaa_ray.types import Sampling

UNFINISHED = "unfinished"
"""Folder of rows that have failed with a part of them done, which counts."""


def answer_stage(
    loaded: LoadedPreference,
    one: Contestant,
    asked: Mapping[str, Asked],
    samplings: Mapping[str, Sampling],
    *,
    restart: bool,
) -> RowStage:
    """One model answers all questions."""
    work = answer_work(one.engine, samplings, run_seed=loaded.recipe.seed)
    return RowStage(
        work=work,
        plan=answers_plan(loaded, work),
        made_with=answers_made_with(loaded, one),
        restart=restart,
        restart_command=f"moaa evaluate --restart {one.name}",
        folder="answers",
        schema=ANSWERS,
        usable=partial(answers_table, asked=asked),
        failed_folder=UNFINISHED,
        failed_record=partial(unfinished_answers, asked=asked),
        facts={"model": one.name, "files": one.digest},
    )


def judge_stage(
    loaded: LoadedPreference, judge: str, tasks: Mapping[str, Task], benches: Sequence[Bench], *, restart: bool
) -> RowStage:
    """One judge judges what all models have answered to the benchmarks that it is the judge of."""
    counts: dict[Benchmark, int] = {
        bench.name: len(bench.questions) for bench in benches if bench.config.judge == judge
    }
    work = judging_of(loaded, judge, counts)
    return RowStage(
        work=work,
        plan=judge_plan(loaded, work, counts),
        made_with=judge_made_with(loaded, judge),
        restart=restart,
        restart_command=f"moaa evaluate --restart {judge}",
        folder="judged",
        schema=JUDGED,
        usable=partial(judged_table, tasks=tasks),
        failed_folder=UNFINISHED,
        failed_record=partial(unfinished_judgments, tasks=tasks),
        facts={"judge": judge, "models": list(dict.fromkeys(task.model for task in tasks.values()))},
    )


def answers_made_with(loaded: LoadedPreference, one: Contestant) -> dict[str, str]:
    """What a model answers with, by name; one of the run is known by its files, wherever the run lies."""
    known = _made_with(loaded, one.engine, without=("model",) if one.is_own else ())
    return known | ({files_field(one): one.digest} if one.digest else {})


def judge_made_with(loaded: LoadedPreference, judge: str) -> dict[str, str]:
    """What a judge judges with, by name."""
    return _made_with(loaded, judge) | model_digests({judge: loaded.recipe.models[judge]}, loaded.base_dir)


def files_field(one: Contestant) -> str:
    """The name under which the digest of a model's files stands."""
    return f"models.{one.engine}.files"


def _made_with(loaded: LoadedPreference, model: str, *, without: Sequence[str] = ()) -> dict[str, str]:
    fields = section_fingerprint(loaded.recipe.models[model], without=without)
    return {**{f"models.{model}.{name}": text for name, text in fields.items()}, "seed": str(loaded.recipe.seed)}
