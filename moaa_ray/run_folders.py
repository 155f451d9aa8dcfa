"""Where a run keeps things, and the student's model that an earlier stage of the run has left.

RUN/models/sft in a recipe is the model that this very run trains. Rounds and iterations after the first are run
directories of their own inside the first one, and so is each judge's work.
"""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from moaa_ray.data.store import open_store
from moaa_ray.data.student_files import FILES, digest_of_model, student_folder
from moaa_ray.errors import ConfigError
from moaa_ray.loading import RUN, Loaded
from moaa_ray.model_folders import local_problems, resolve_model
from moaa_ray.recipe import PreferenceRecipe, Run
from moaa_ray.settings.models import VllmModel, WeightsModel
from moaa_ray.settings.slots import STUDENT

R = TypeVar("R", bound=Run)


def judge_folder(run_dir: str, judge: str) -> str:
    """The directory of one judge's work."""
    return f"{run_dir}/judges/{judge}"


def round_folder(run_dir: str, number: int) -> str:
    """The run directory of a round of sample, judge and dpo, counted from 1."""
    return run_dir if number == 1 else f"{run_dir}/rounds/{number}"


def iteration_folder(run_dir: str, number: int) -> str:
    """The run directory of an iteration of the whole, counted from 1."""
    return run_dir if number == 1 else f"{run_dir}/iterations/{number}"


def with_run_models(loaded: Loaded[R], run_dir: str = "") -> Loaded[R]:
    """The recipe with every RUN/... model where it is. run_dir: another run's directory; empty: the recipe's own."""
    base = run_dir or loaded.run_dir
    models = {
        name: model.model_copy(update={"model": f"{base}/{model.model.removeprefix(RUN)}"})
        if isinstance(model, WeightsModel) and model.model.startswith(RUN)
        else model
        for name, model in loaded.recipe.models.items()
    }
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"models": models}))


def with_student(loaded: Loaded[R], place: str = "") -> Loaded[R]:
    """The recipe with the model that is sampled from under `sample.model`, and all RUN/... models where they are.

    place: the folder of the student, instead of what the recipe says.
    """
    recipe = loaded.recipe
    name = recipe.sample.model or STUDENT
    model = recipe.models.get(name) or VllmModel(engine="vllm", model=f"{RUN}models/sft")
    if place and isinstance(model, WeightsModel):
        model = model.model_copy(update={"model": place})
    sample = recipe.sample.model_copy(update={"model": name})
    recipe = recipe.model_copy(update={"models": {**recipe.models, name: model}, "sample": sample})
    return with_run_models(replace(loaded, recipe=recipe))


def student_digest(loaded: Loaded[PreferenceRecipe]) -> str:
    """A hash of the model that is sampled from; of an engine without files, its name and revision.

    Raises ConfigError where it is not there or cannot be chatted with, before anything starts.
    """
    name = loaded.recipe.sample.model
    model = loaded.recipe.models[name]
    if not isinstance(model, VllmModel):
        return f"{model.engine}:{model.model}:{model.revision}"
    place = resolve_model(loaded.base_dir, model.model)
    is_own = place.startswith(f"{loaded.run_dir}/")
    if is_own and not open_store(place).exists("config.json"):
        raise ConfigError(
            f"models.{name}.model = {model.model}: no model there to sample from; run `moaa train sft` first, or name "
            "another one"
        )
    folder = student_folder(place, model.revision, field=f"models.{name}.model")
    if problems := local_problems(f"models.{name}.model", Path(folder), has_template=bool(model.chat_template)):
        raise ConfigError("\n  ".join(["cannot sample from this model:", *problems]))
    return FILES + digest_of_model(folder)
