"""Who is evaluated: models of the run, of the recipe, or files of answers that are there already."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from moaa_ray.data.store import open_store
from moaa_ray.data.student_files import digest_of_model, student_folder
from moaa_ray.errors import ConfigError
from moaa_ray.loading import RUN, LoadedPreference
from moaa_ray.model_folders import local_problems, resolve_model
from moaa_ray.recipe import PreferenceRecipe, RunConfig
from moaa_ray.run_folders import iteration_folder, round_folder, with_run_models
from moaa_ray.settings.checks import choices, shown
from moaa_ray.settings.evaluation import AlpacaEvalConfig, Benchmark, StoredAnswers
from moaa_ray.settings.models import ClassifierModel, Model, RuleModel, VllmModel
from moaa_ray.settings.slots import STUDENT

BASE = "base"


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """One line of the table. Either a model of the recipe answers for it, or its answers are stored."""

    name: str
    engine: str = ""
    """A name under `models` of the recipe that find_contestants gives back."""
    stored: StoredAnswers | None = None
    digest: str = ""
    """Of the model's files, where they are on this machine or in the run."""
    is_own: bool = False
    """Whether the model is one that this run trains."""


def find_contestants(loaded: LoadedPreference, *, is_ahead: bool = False) -> tuple[LoadedPreference, list[Contestant]]:
    """The models to evaluate, in the order of the table, and the recipe with an engine for each of them.

    is_ahead: the run's stages are still to come, so that what they will train counts as there. Raises ConfigError where
    there is none, and where one cannot answer.
    """
    recipe = loaded.recipe
    models: dict[str, Model] = dict(recipe.models)
    found: list[Contestant] = []
    for name, value in recipe.evaluate.models.items():
        if isinstance(value, str) and value not in models:
            models[value] = _run_model(recipe, value, field=f"evaluate.models.{name}")
        found.append(
            Contestant(name=name, engine=value) if isinstance(value, str) else Contestant(name=name, stored=value)
        )
    ahead = set(to_be_trained(recipe).values()) if is_ahead else set()
    for name, engine, model in () if found else _defaults(loaded, ahead):
        models[engine] = model
        found.append(Contestant(name=name, engine=engine))
    if not found:
        raise ConfigError(
            f"evaluate.models: empty, and there is no student in the recipe and no model in {loaded.run_dir}/models; "
            "train one first, or name the models to evaluate"
        )
    loaded = with_run_models(replace(loaded, recipe=recipe.model_copy(update={"models": models})))
    places = {place.replace(RUN, f"{loaded.run_dir}/", 1) for place in ahead}
    return loaded, [_checked(loaded, one, places) for one in found]


def run_students(run: RunConfig) -> dict[str, str]:
    """By their names in the table, the students of all rounds and iterations of a run, as RUN/... ."""
    found: dict[str, str] = {}
    for iteration in range(1, run.iterations + 1):
        place = iteration_folder(RUN.rstrip("/"), iteration)
        of_iteration = f"-iteration-{iteration}" if iteration > 1 else ""
        found[f"sft{of_iteration}"] = f"{place}/models/sft"
        for number in range(1, run.rounds + 1):
            of_round = f"-round-{number}" if number > 1 else ""
            found[f"dpo{of_iteration}{of_round}"] = f"{round_folder(place, number)}/models/dpo"
    return found


def to_be_trained(recipe: PreferenceRecipe) -> dict[str, str]:
    """Those of them that the stages of the run train."""
    return {name: place for name, place in run_students(recipe.run).items() if place.rsplit("/", 1)[1] in recipe.stages}


def check_judge(loaded: LoadedPreference, benchmark: Benchmark) -> None:
    """Raise ConfigError where the judge of a benchmark cannot say what it is asked for: text, or numbers."""
    section = loaded.recipe.evaluate.benchmarks[benchmark]
    field = f"evaluate.{benchmark}.judge"
    if not isinstance(section, AlpacaEvalConfig):
        _check_writes(loaded, section.judge, field=field)
    elif section.preference != "scores":
        way_out = "set evaluate.alpaca_eval.preference=scores, or take a model with engine vllm or openai"
        _check_writes(loaded, section.judge, field=field, way_out=way_out)
    elif not isinstance(loaded.recipe.models[section.judge], ClassifierModel | RuleModel):
        raise ConfigError(
            f"{field} = {shown(section.judge)}: writes text, and evaluate.alpaca_eval.preference = 'scores' compares "
            "numbers; take a model with engine classifier or rule, or set preference to verdict or logprobs"
        )


def _check_writes(loaded: LoadedPreference, model: str, *, field: str, way_out: str = "") -> None:
    """Raise ConfigError where a model cannot write text, as a judge or a contestant has to."""
    if isinstance(loaded.recipe.models[model], ClassifierModel | RuleModel):
        raise ConfigError(
            f"{field} = {shown(model)}: scores what others wrote and writes nothing itself, so it has no logprobs and "
            f"no verdict to give; {way_out or 'take a model with engine vllm or openai'}"
        )


def _defaults(loaded: LoadedPreference, ahead: Collection[str]) -> Iterator[tuple[str, str, Model]]:
    """The student before training, and what training has left or will leave; (name, engine, model)."""
    student = loaded.recipe.student
    if student is not None:
        place = {"model": student.model, "revision": student.revision, "chat_template": student.chat_template or None}
        yield BASE, f"{BASE}/student", _template(loaded.recipe).model_copy(update=place)
    for name, place in run_students(loaded.recipe.run).items():
        folder = place.replace(RUN, f"{loaded.run_dir}/", 1)
        if place in ahead or open_store(folder).exists("config.json"):
            yield name, place, _run_model(loaded.recipe, place, field=f"evaluate.models.{name}")


def _run_model(recipe: PreferenceRecipe, place: str, *, field: str) -> VllmModel:
    if not place.startswith(RUN):
        raise ConfigError(
            f"{field} = {shown(place)}: no such model under `models`, and no {RUN}... of this run; "
            f"{choices(place, recipe.models)}"
        )
    return _template(recipe).model_copy(update={"model": place, "revision": ""})


def _template(recipe: PreferenceRecipe) -> VllmModel:
    """How the student runs, from the model that candidates are sampled with."""
    model = recipe.models.get(recipe.sample.model or STUDENT)
    return model if isinstance(model, VllmModel) else VllmModel(engine="vllm", model="")


def _checked(loaded: LoadedPreference, one: Contestant, ahead: Collection[str]) -> Contestant:
    """The contestant with the digest of its files. Raises ConfigError where they are not there or cannot chat.

    ahead: folders of models that are still to be trained.
    """
    field = f"evaluate.models.{one.name}"
    if one.stored is not None:
        there, wanted = one.stored.model_dump(exclude_none=True), loaded.recipe.evaluate.benchmarks
        if wanted and not there.keys() & wanted.keys():
            raise ConfigError(
                f"{field}: answers {' and '.join(there) or 'nothing'}, so that it has no line in the table; give the "
                f"file with its answers to {' or '.join(wanted)}, or take it out"
            )
        return one
    _check_writes(loaded, one.engine, field=field)
    model = loaded.recipe.models[one.engine]
    if not isinstance(model, VllmModel):
        return one
    place = resolve_model(loaded.base_dir, model.model)
    is_own = place.startswith(f"{loaded.run_dir}/")
    if place in ahead:
        return replace(one, is_own=True)
    if is_own and not open_store(place).exists("config.json"):
        raise ConfigError(f"{field} = {shown(one.engine)}: no model in {place}; train it first, or name another one")
    folder = student_folder(place, field=field) if is_own else place
    if not os.path.isdir(folder):
        return one
    if problems := local_problems(field, Path(folder), has_template=bool(model.chat_template)):
        raise ConfigError("\n  ".join(["cannot evaluate this model:", *problems]))
    return replace(one, digest=digest_of_model(folder), is_own=is_own)
