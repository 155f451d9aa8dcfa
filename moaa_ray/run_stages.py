"""Whether the stages that a run names go together, before any of them starts."""

from moaa_ray.errors import ConfigError
from moaa_ray.lines.judge import judge_in_use
from moaa_ray.loading import LoadedPreference
from moaa_ray.recipe import STAGES, StageName
from moaa_ray.run_folders import with_student
from moaa_ray.settings.models import WeightsModel

REPEATED: tuple[StageName, ...] = ("sample", "judge", "dpo")
"""The stages of a further round."""


def check_stages(loaded: LoadedPreference) -> None:
    """Raise ConfigError where a stage that is named lacks what it needs, before any of them starts."""
    recipe = loaded.recipe
    stages, names = recipe.stages, ", ".join(recipe.stages)
    if stages != sorted(set(stages), key=STAGES.index):
        raise ConfigError(f"run.stages = [{names}]: each at most once and in the order {', '.join(STAGES)}; sort them")
    if "judge" in stages:
        judge_in_use(recipe)
    if recipe.run.rounds > 1 and not set(REPEATED) <= set(stages):
        raise ConfigError(
            f"run.rounds = {recipe.run.rounds} with run.stages = [{names}]: a further round needs all of "
            f"{', '.join(REPEATED)}; add them, or set rounds to 1"
        )
    if recipe.run.rounds > 1 or recipe.run.iterations > 1:
        _check_sampled(loaded)
    if recipe.run.iterations > 1:
        _check_improves(loaded, names)


def _check_sampled(loaded: LoadedPreference) -> None:
    """Further candidates come from the model that was tuned on the last ones, which an endpoint does not have."""
    recipe = with_student(loaded).recipe
    name = recipe.sample.model
    if not isinstance(recipe.models[name], WeightsModel):
        raise ConfigError(
            f"models.{name}.engine = {recipe.models[name].engine!r}: with run.rounds = {recipe.run.rounds} and "
            f"run.iterations = {recipe.run.iterations} the student that is sampled from is another one each time, so "
            "it has to be loaded from the run's own folders; take engine vllm, or set both to 1"
        )


def _check_improves(loaded: LoadedPreference, names: str) -> None:
    recipe = loaded.recipe
    improves, needed = recipe.run.improves, STAGES[: STAGES.index("evaluate")]
    if not set(needed) <= set(recipe.stages):
        raise ConfigError(
            f"run.iterations = {recipe.run.iterations} with run.stages = [{names}]: an iteration is all of "
            f"{', '.join(needed)}; leave run.stages out, or set iterations to 1"
        )
    if not isinstance(recipe.models.get(improves), WeightsModel):
        raise ConfigError(
            f"run.improves = {improves!r}: the tuned student can only take the place of a model with weights of its "
            "own (engine: vllm) under `models`; name one of them"
        )
