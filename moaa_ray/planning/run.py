"""The plan of every stage of a recipe: what `moaa plan` prints."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil

from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.simulated_line import Conditions
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.evaluation.planning import Part, evaluation_parts
from moaa_ray.lines.judge import judge_in_use
from moaa_ray.lines.judge import plan_input as plan_judge
from moaa_ray.lines.mixture import STAGE as GENERATE
from moaa_ray.lines.mixture import plan_input
from moaa_ray.lines.sample import STAGE as SAMPLE
from moaa_ray.lines.sample import plan_input as plan_sample
from moaa_ray.loading import LoadedPreference, LoadedRecipe, LoadedTraining
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.counting import Counted, count_prompts, count_sources, count_training
from moaa_ray.planning.planner import PlanInput, StagePlan, plan_stage
from moaa_ray.planning.simulating import simulated_text
from moaa_ray.planning.text import duration, render
from moaa_ray.planning.training import Stage, TrainingPlan, plan_training
from moaa_ray.recipe import STAGES, Recipe
from moaa_ray.run_folders import with_student
from moaa_ray.settings.slots import unused_models

TRAINING: tuple[Stage, ...] = ("sft", "dpo")


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows that reach a stage; None: not known."""

    num: int | None
    mean_turns: float = 1.0


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A plan, and how often it is carried out, one time after the other."""

    title: str
    plan: StagePlan | TrainingPlan
    num_times: int = 1

    @property
    def seconds(self) -> float | None:
        """Of all times; None where it is not predicted."""
        once = self.plan.line.makespan_s if isinstance(self.plan, StagePlan) else self.plan.seconds
        return None if once is None else self.num_times * once


def plan_for_cli(
    loaded: LoadedRecipe | LoadedTraining,
    *,
    cluster: str,
    num_rows: int,
    simulated: Conditions | None = None,
    measured: Sequence[str] = (),
) -> str:
    """The plan of a recipe's stages as text, in the order in which they run; num_rows 0: count the prompts.

    An empty cluster is the local one that the stages start. simulated: also play the stages that ask models through.
    measured: run directories beside those of plan.measured.
    """
    loaded = _with_measured(loaded, measured)
    recipe = loaded.recipe
    first, later, notes = _rows_of(loaded, num_rows)
    rows_of = {GENERATE: first, "sft": first}
    plans: dict[str, StagePlan | TrainingPlan] = {}
    for one in stages_to_plan(loaded) if isinstance(loaded.recipe, Recipe) else []:  # pyright: ignore
        rows = rows_of.get(one.stage, later)
        plans[one.stage] = plan_stage(one, _shape(cluster, one), rows.num, rows.mean_turns)
    notes += [f"note: models.{name}: nothing uses it" for name in unused_models(recipe.model_dump())]
    shape = parse_cluster(cluster or f"cpus={os.cpu_count() or 1}")
    for stage in TRAINING:
        if recipe.student is not None and stage in recipe.stages:
            rows, note = _rows_to_train_on(loaded, stage, rows_of.get(stage, later), num_rows=num_rows)
            notes += [note] * bool(note)
            plans[stage] = plan_training(
                recipe, stage, recipe.student, shape, rows.num, mean_turns=rows.mean_turns, base_dir=loaded.base_dir
            )
    planned = [_Planned(title=stage, plan=plans[stage]) for stage in STAGES if stage in plans]
    parts, more = evaluation_to_plan(loaded)
    for part in parts:
        plan = plan_stage(part.asked, _shape(cluster, part.asked), part.num_rows, part.mean_turns)
        planned.append(_Planned(title=part.title, plan=plan, num_times=part.num_times))
    notes += more
    texts = [_told(one.plan, simulated) for one in planned]
    if len(planned) == 1:
        return "\n".join([*texts, *notes])
    titled = [f"{one.title}: {text}" for one, text in zip(planned, texts, strict=True)]
    return "\n\n".join([*titled, "\n".join([_in_all(planned), *notes])])


def _with_measured(loaded: LoadedRecipe | LoadedTraining, measured: Sequence[str]) -> LoadedRecipe | LoadedTraining:
    """The recipe that names these runs too."""
    recipe = loaded.recipe
    plan = recipe.plan.model_copy(update={"measured": [*recipe.plan.measured, *measured]})
    return replace(loaded, recipe=recipe.model_copy(update={"plan": plan}))  # pyright: ignore[reportArgumentType]: of its own kind


def _shape(cluster: str, asked: PlanInput) -> Cluster:
    """The cluster, or the local one that the stage would start."""
    return parse_cluster(cluster or f"cpus={max(os.cpu_count() or 1, ceil(asked.cpu_slots))}")


def _told(plan: StagePlan | TrainingPlan, simulated: Conditions | None) -> str:
    if simulated is None or isinstance(plan, TrainingPlan):
        return render(plan)
    return f"{render(plan)}\n\n{simulated_text(plan, simulated)}"


def _rows_of(loaded: LoadedRecipe | LoadedTraining, num_rows: int) -> tuple[_Rows, _Rows, list[str]]:
    """Rows of generate and sft, rows of the later stages, and notes on what could not be counted."""
    recipe, notes = loaded.recipe, []
    first, counted = _Rows(num=num_rows or None), None
    if not num_rows and recipe.prompts is not None:
        is_read = isinstance(recipe, Recipe) and GENERATE in recipe.stages
        counted = _counted(partial(count_prompts, recipe.prompts), loaded, is_read=is_read)
        first = _Rows(num=counted.num_rows, mean_turns=counted.mean_turns)
        notes += [f"note: prompts are not counted: {counted.why_not}"] * bool(counted.why_not)
    later = first.num
    if recipe.sample.sources:
        is_read = SAMPLE in recipe.stages and not num_rows
        counted = _counted(partial(count_sources, recipe.sample.sources), loaded, is_read=is_read)
        later = counted.num_rows
        notes += [f"note: sample.sources are not counted: {counted.why_not}"] * bool(counted.why_not)
    if (drawn := recipe.sample.rows) is not None:
        later = min(drawn, later or drawn)
    return first, _Rows(num=later), notes


def _counted(count: Callable[..., Counted], loaded: LoadedRecipe | LoadedTraining, *, is_read: bool) -> Counted:
    """What is counted; what cannot be read is refused where a stage is planned that reads it."""
    try:
        return count(seed=loaded.recipe.seed, base_dir=loaded.base_dir)
    except (ConfigError, DataError) as error:
        if is_read:
            raise type(error)(f"{error}; to plan where the data is not, say --rows") from error
        return Counted(num_rows=None, why_not=str(error))


def _rows_to_train_on(
    loaded: LoadedRecipe | LoadedTraining, stage: Stage, before: _Rows, *, num_rows: int
) -> tuple[_Rows, str]:
    """Rows of an epoch of a training stage, and a note where they are not counted.

    before: what the stages before leave it. num_rows: as said by the user, for what cannot be counted; 0 where not.
    """
    config = loaded.recipe.sft if stage == "sft" else loaded.recipe.dpo
    if not config.data:
        return before, ""
    counted = count_training(config, section=stage, num_of_run=before.num, base_dir=loaded.base_dir)
    if not counted.why_not:
        return _Rows(num=counted.num_rows), ""
    taken = f"; it is taken to have {num_rows:,} rows" if num_rows else ""
    return _Rows(num=num_rows or None), f"note: {stage}.data is not counted{taken}: {counted.why_not}"


def stages_to_plan(loaded: LoadedRecipe) -> list[PlanInput]:
    """The stages that ask models: generate, and sample and judge where the recipe has a judge."""
    asked = plan_input(loaded.recipe, base_dir=loaded.base_dir)
    return [asked, *preferences_to_plan(loaded)] if loaded.recipe.judges else [asked]


def preferences_to_plan(loaded: LoadedRecipe | LoadedPreference) -> list[PlanInput]:
    """Sample and judge, with a student as large as the one that is tuned."""
    recipe, base_dir = loaded.recipe, loaded.base_dir
    base = recipe.student.model if recipe.student else ""
    whole = with_student(loaded, base).recipe  # pyright: ignore[reportArgumentType]: one or the other
    judge = recipe.judges[judge_in_use(recipe)]
    return [
        plan_sample(whole, base_dir=base_dir),
        plan_judge(whole, judge, num_candidates=recipe.sample.num_candidates, base_dir=base_dir),
    ]


def evaluation_to_plan(loaded: LoadedRecipe | LoadedPreference | LoadedTraining) -> tuple[list[Part], list[str]]:
    """What the evaluate stage asks of models and judges, and notes; nothing where the run has no such stage."""
    return evaluation_parts(loaded) if "evaluate" in loaded.recipe.stages else ([], [])  # pyright: ignore[reportArgumentType]: one or the other


def _in_all(planned: Sequence[_Planned]) -> str:
    costs = [one.num_times * one.plan.cost_usd for one in planned if one.plan.cost_usd is not None]
    text = f"all stages: {duration(sum(one.seconds or 0.0 for one in planned))}"
    if hours := sum(one.num_times * one.plan.gpu_hours for one in planned):
        text += f", {hours:,.1f} GPU-hours"
    unknown = [one.title for one in planned if one.seconds is None]
    text += f", {sum(costs):,.2f} USD" if costs else ""
    return text + (f"; without {' and '.join(unknown)}, whose time is not predicted" if unknown else "")
