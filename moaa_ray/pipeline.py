"""The whole of Mixture of Agents Alignment on one page: the stages of a run, in order, and where each works.

    RUN/sft                      generate   prompts through the mixture
    RUN/models/sft               sft        the student tuned on them
    RUN/candidates               sample     what the tuned student answers itself
    RUN/pairs                    judge      the best and the worst of it, by the judge in use
    RUN/models/dpo               dpo        the student tuned on the pairs
    RUN/rounds/2/...             sample, judge and dpo again, from the model of the round before, on other prompts
    RUN/iterations/2/...         all of it again, with the tuned student in the place of one of the mixture's models
    RUN/evaluation               evaluate   at the end, where the recipe has benchmarks: the student before training
                                            and after each of these, in one table

Each stage can be run alone, from the files of the one before, and goes on where it was killed; so does the whole.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich.console import Console

from moaa_ray.data.filtering import Filter
from moaa_ray.loading import (
    Loaded,
    LoadedPreference,
    LoadedRecipe,
    LoadedTraining,
    load_preference,
    load_recipe,
    load_training,
)
from moaa_ray.planning.run import evaluation_to_plan, preferences_to_plan, stages_to_plan
from moaa_ray.recipe import Run, StageName
from moaa_ray.run_folders import iteration_folder, round_folder, with_run_models
from moaa_ray.run_stages import REPEATED, check_stages
from moaa_ray.training_stage.tracker_kinds import check_trackers

R = TypeVar("R", bound=Run)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One stage in one directory."""

    stage: StageName
    run_dir: str
    round_number: int = 1
    student: str = ""
    """The model that is sampled from and tuned on the pairs; empty: models/sft of the same directory."""
    prompts_from: str = ""
    """The run directory whose sft/ gives the prompts to sample for."""
    improved: str = ""
    """The model that takes its place in the mixture."""

    @property
    def title(self) -> str:
        """The stage, and the part of the run that it belongs to where there are several."""
        parts = Path(self.run_dir).parts
        where = [f"{kind[:-1]} {parts[i + 1]}" for i, kind in enumerate(parts) if kind in ("rounds", "iterations")]
        return ", ".join([self.stage, *where])


@dataclass(frozen=True, kw_only=True)
class Views:
    """One recipe as the three kinds of stages read it."""

    preference: LoadedPreference
    generation: LoadedRecipe | None
    training: LoadedTraining | None

    @property
    def run_dir(self) -> str:
        """The directory of the whole run."""
        return self.preference.run_dir


@dataclass(frozen=True, kw_only=True)
class Done:
    """A step that has ended, what it said, and how long it took."""

    step: Step
    text: str
    seconds: float
    worked: tuple[float, float] | None = None
    """Unix times of its first and its last work; None where it was found finished."""
    problem: str = ""
    """What it could not do, though it has ended."""


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> Views:
    """The recipe of a whole run, checked for every stage that it names. Raises ConfigError."""
    preference = load_preference(path, overrides)
    stages = preference.recipe.stages
    check_stages(preference)
    Filter(preference.recipe.filters, base_dir=str(preference.base_dir))  # raises where an evaluation file is missing
    if "evaluate" in stages:
        from moaa_ray.evaluation.checking import check_evaluation

        check_evaluation(preference)
    return Views(
        preference=preference,
        generation=load_recipe(path, overrides) if "generate" in stages else None,
        training=load_training(path, overrides) if {"sft", "dpo"} & set(stages) else None,
    )


def steps_of(recipe: Run, run_dir: str) -> Iterator[Step]:
    """Every step of a run, in order."""
    config, improved = recipe.run, ""
    stages: list[StageName] = [stage for stage in recipe.stages if stage != "evaluate"]
    for iteration in range(1, config.iterations + 1):
        place = iteration_folder(run_dir, iteration)
        for stage in stages:
            yield Step(stage=stage, run_dir=place, improved=improved)
        last = place
        for number in range(2, config.rounds + 1):
            student, last = f"{last}/models/dpo", round_folder(place, number)
            for stage in stages:
                if stage in REPEATED:
                    yield Step(
                        stage=stage, run_dir=last, round_number=number, student=student, prompts_from=place
                    )  # fmt: skip
        improved = f"{last}/models/dpo"
    if "evaluate" in recipe.stages:
        yield Step(stage="evaluate", run_dir=run_dir)


def run(views: Views, *, console: Console, begin: Callable[[Step, int, int], None] | None = None) -> list[Done]:
    """Run, or go on with, every step; what is finished is found so and takes seconds. Ray is started once, if at all.

    begin is told each step before it starts, its number from 1 and how many there are. Raises what the stages raise.
    """
    from moaa_ray.generation.session import one_session

    recipe = views.preference.recipe
    steps = list(steps_of(recipe, views.run_dir))
    for stage, config in (("sft", recipe.sft), ("dpo", recipe.dpo)):
        if stage in recipe.stages:
            check_trackers(stage, config.track)
    if "evaluate" in recipe.stages:
        from moaa_ray.evaluation.probing import probe_judge

        probe_judge(views.preference)
    done = []
    with one_session(cpu_slots=_cpu_slots(views), with_dashboard=views.training is not None):
        for number, step in enumerate(steps, 1):
            if begin is not None:
                begin(step, number, len(steps))
            started = time.monotonic()
            told = run_step(step, views, console)
            done.append(Done(step=step, seconds=time.monotonic() - started, **told._asdict()))
    return done


class Told(NamedTuple):
    """What a stage has said at its end; see Done."""

    text: str
    worked: tuple[float, float] | None
    problem: str = ""


def run_step(step: Step, views: Views, console: Console) -> Told:
    """One stage in its directory."""
    if step.stage == "generate":
        from moaa_ray.generation.stage import generate
        from moaa_ray.generation.summary import render

        assert views.generation is not None  # load_run reads it where the stage is named
        summary = generate(_with_improved(_at(views.generation, step), step.improved), console=console)
        return Told(render(summary), summary.worked)
    if step.stage == "sample":
        from moaa_ray.generation.summary import render
        from moaa_ray.preference.sample import sample

        summary = sample(
            _at(views.preference, step),
            student=step.student,
            prompts_from=step.prompts_from,
            round_number=step.round_number,
            console=console,
        )
        return Told(render(summary), summary.worked)
    if step.stage == "judge":
        from moaa_ray.preference.judge import judge
        from moaa_ray.preference.judge_text import render_judge

        judged = judge(_at(views.preference, step), console=console)
        return Told(render_judge(judged), judged.rows.worked)
    if step.stage == "evaluate":
        from moaa_ray.evaluation.stage import evaluate
        from moaa_ray.evaluation.summary import problem_of, render_evaluation

        found = evaluate(_at(views.preference, step), console=console)
        return Told(render_evaluation(found), found.worked, problem_of(found))
    from moaa_ray.training_stage.stage import train_stage

    assert views.training is not None
    loaded = _at(views.training, step)
    if step.student and step.stage == "dpo":
        dpo = loaded.recipe.dpo.model_copy(update={"student": step.student})
        loaded = replace(loaded, recipe=loaded.recipe.model_copy(update={"dpo": dpo}))
    trained = train_stage(loaded, step.stage, console=console)
    return Told(trained.text(), trained.worked)


def _cpu_slots(views: Views) -> float:
    """CPU slots of the stage that needs most of them."""
    recipe = views.preference.recipe
    asked = [] if views.generation is None else stages_to_plan(views.generation)
    if views.generation is None and {"sample", "judge"} & set(recipe.stages):
        asked = preferences_to_plan(views.preference)
    asked += [part.asked for part in evaluation_to_plan(views.preference)[0]]
    return max(*(one.cpu_slots for one in asked), recipe.sft.cpu_slots, recipe.dpo.cpu_slots)


def _at(loaded: Loaded[R], step: Step) -> Loaded[R]:
    """The recipe with the step's directory as its run directory."""
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"run_dir": step.run_dir}))


def _with_improved(loaded: LoadedRecipe, improved: str) -> LoadedRecipe:
    """The mixture with the tuned student in the place of run.improves."""
    loaded = with_run_models(loaded)
    if not improved:
        return loaded
    recipe = loaded.recipe
    name = recipe.run.improves
    model = recipe.models[name].model_copy(update={"model": improved, "revision": ""})
    return replace(loaded, recipe=recipe.model_copy(update={"models": {**recipe.models, name: model}}))
