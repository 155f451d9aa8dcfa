"""The two stages of an evaluation, for preference.stage to run: a model's answers, a judge's work on all of them."""

from collections.abc import Mapping, Sequence
from functools import partial

from moaa_ray.core.candidates import forget_failures
from moaa_ray.core.passes import Pass, StageWork
from moaa_ray.data.evaluation_schemas import ANSWERS, JUDGED
from moaa_ray.evaluation.answering import STAGE, answer_work
from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.contestants import Contestant
from moaa_ray.evaluation.judging import INPUTS, REPEAT, close_judged, judge_passes
from moaa_ray.evaluation.rows import (
    Asked,
    Task,
    answers_table,
    judged_table,
    unfinished_answers,
    unfinished_judgments,
)
from moaa_ray.fingerprint import section_fingerprint
from moaa_ray.lines.mixture import expected_completion
from moaa_ray.loading import LoadedPreference
from moaa_ray.planning.planner import PlanInput
from moaa_ray.planning.pool_estimate import PassLoad
from moaa_ray.preference.stage import RowStage
from moaa_ray.run_record import model_digests
from moaa_ray.types import Sampling

UNFINISHED = "unfinished"
"""Folder of rows that have failed with a part of them done, which counts."""
_TEMPLATE_TOKENS = 300
"""Tokens of a judge's prompt beside the question and the answers; an assumption."""


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
        plan=_plan(loaded, work, num_requests=1.0, num_shown=0),
        made_with=_made_with(loaded, one.engine) | ({f"models.{one.engine}.files": one.digest} if one.digest else {}),
        restart=restart,
        restart_command=f"moaa evaluate --restart {one.name}",
        folder="answers",
        schema=ANSWERS,
        usable=partial(answers_table, asked=asked),
        failed_folder=UNFINISHED,
        failed_record=partial(unfinished_answers, asked=asked),
        facts={"model": one.name},
    )


def judge_stage(
    loaded: LoadedPreference, judge: str, tasks: Mapping[str, Task], benches: Sequence[Bench], *, restart: bool
) -> RowStage:
    """One judge judges what all models have answered to the benchmarks that it is the judge of."""
    recipe = loaded.recipe
    protocols = {bench.name: bench.protocol for bench in benches if bench.config.judge == judge}
    passes = judge_passes(judge, protocols, run_seed=recipe.seed)
    work = StageWork(stage=STAGE, passes=passes, close=close_judged, reopen=forget_failures, inputs=INPUTS)
    return RowStage(
        work=work,
        plan=_plan(loaded, work, num_requests=2.0, num_shown=2),
        made_with=_made_with(loaded, judge) | model_digests({judge: recipe.models[judge]}, loaded.base_dir),
        restart=restart,
        restart_command=f"moaa evaluate --restart {judge}",
        folder="judged",
        schema=JUDGED,
        usable=partial(judged_table, tasks=tasks),
        failed_folder=UNFINISHED,
        failed_record=partial(unfinished_judgments, tasks=tasks),
        facts={"judge": judge},
    )


def _plan(loaded: LoadedPreference, work: StageWork, *, num_requests: float, num_shown: int) -> PlanInput:
    """For the planner; num_shown completions stand in a prompt, and a second reply is the exception."""
    recipe = loaded.recipe
    size = recipe.plan.prompt_tokens + num_shown * (recipe.plan.completion_tokens + _TEMPLATE_TOKENS // 2)

    def load(p: Pass, window: int | None) -> PassLoad:
        prompt = min(size, max(1.0, window - p.sampling.max_tokens)) if window else size
        num = 0.0 if p.name == REPEAT else num_requests
        return PassLoad(num_requests=num, prompt_tokens=prompt, completion_tokens=expected_completion(recipe, p))

    return PlanInput(
        stage=STAGE,
        passes=work.passes,
        loads=lambda windows: {p.name: load(p, windows[p.engine]) for p in work.passes},
        recipe=recipe,
        settings=recipe.evaluate,
        base_dir=loaded.base_dir,
    )


def _made_with(loaded: LoadedPreference, model: str) -> dict[str, str]:
    fields = section_fingerprint(loaded.recipe.models[model])
    return {**{f"models.{model}.{name}": text for name, text in fields.items()}, "seed": str(loaded.recipe.seed)}
