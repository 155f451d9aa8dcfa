"""What a run has to serve: which names, which engines behind them, and how each is asked. Starts nothing."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.lines.mixture import DIRECT, mixture_passes, sampling_of
from moaa_ray.loading import LoadedPreference
from moaa_ray.model_folders import local_problems, resolve_model, with_absolute_paths
from moaa_ray.recipe import PreferenceRecipe, Recipe
from moaa_ray.run_folders import iteration_folder, round_folder, with_run_models
from moaa_ray.serving.chat import ChatRequest
from moaa_ray.settings.checks import choices
from moaa_ray.settings.mixture import SlotConfig
from moaa_ray.settings.models import ClassifierModel, FakeModel, Model, OpenaiModel, RuleModel, VllmModel, WeightsModel
from moaa_ray.settings.serving import MIXTURE, STUDENTS, ServeConfig
from moaa_ray.settings.slots import STUDENT

WritingModel = VllmModel | OpenaiModel | FakeModel


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What is offered to clients, and the engines that it takes, by their names as passes use them."""

    names: tuple[str, ...]
    alone: Mapping[str, MixturePass]
    """The one pass of each name that is a single model."""
    mixture: tuple[MixturePass, ...]
    """The passes of the mixture, the aggregator last; empty: it is not offered."""
    engines: Mapping[str, WritingModel]
    config: ServeConfig
    base_dir: str

    def passes_for(self, chat: ChatRequest, *, seed: int) -> tuple[MixturePass, ...]:
        """What answers a request; the last pass draws as the client wishes, all draw by the seed.

        With the recipe's seed and nothing else set, the passes are the very ones of the generate stage.
        """
        passes = self.mixture if chat.model == MIXTURE else (self.alone[chat.model],)
        passes = tuple(replace(p, rules=replace(p.rules, run_seed=seed)) for p in passes)
        return (*passes[:-1], replace(passes[-1], sampling=replace(passes[-1].sampling, **chat.sampling)))

    def lack_of(self, missing: Collection[str]) -> str:
        """What cannot be answered while these engines are missing; empty where all is offered that can be.

        The mixture bears the loss of proposers down to min_proposals in each of its layers.
        """
        if not self.mixture:
            return ", ".join(missing)
        *_, last = self.mixture
        if last.engine in missing:
            return last.engine
        for reads in {p.reads for p in self.mixture if p.reads}:
            living = [p for p in self.mixture if p.name in reads and p.engine not in missing]
            if sum(p.num_samples for p in living) < last.rules.min_proposals:
                return ", ".join(missing)
        return ""


def offer_of(loaded: LoadedPreference) -> Offer:
    """What `moaa serve` offers of a run. Raises ConfigError where a name is unknown, or a model is not there."""
    recipe = loaded.recipe
    config = recipe.serve
    known = _writing_models(loaded)
    mixture = _mixture(recipe) if recipe.mixture is not None else ()
    if mixture and MIXTURE in recipe.models:
        raise ConfigError(f"models.{MIXTURE}: this is the name of the mixture itself; rename the model to serve it")
    offered = [*([MIXTURE] if mixture else []), *known]
    for i, name in enumerate(config.models):
        if name not in offered:
            raise ConfigError(f"serve.models.{i} = {name!r}: nothing to serve; {choices(name, offered)}")
    names = tuple(dict.fromkeys(config.models)) or _default_names(loaded, mixture, known)
    mixture = mixture if MIXTURE in names else ()
    least = mixture[-1].rules.min_proposals if mixture else 0
    if config.quorum is not None and config.quorum < least:
        raise ConfigError(
            f"serve.quorum = {config.quorum}: below mixture.min_proposals = {least}, so that every request would go on "
            f"with too few proposals and fail; set it to {least} or more, or leave it out to wait for all"
        )
    alone = {name: _alone(recipe, name) for name in names if name != MIXTURE}
    wanted = dict.fromkeys([p.engine for p in (*mixture, *alone.values())])
    if not wanted:
        raise ConfigError(f"{loaded.path}: nothing to serve; name models under serve.models: {', '.join(offered)}")
    return Offer(
        names=names,
        alone=alone,
        mixture=mixture,
        engines={name: _there(loaded, name, known[name]) for name in wanted},
        config=config,
        base_dir=str(loaded.base_dir),
    )


def _writing_models(loaded: LoadedPreference) -> dict[str, WritingModel]:
    """Everything that could be served alone, by name; models that score and the student that is not there left out."""
    models = with_run_models(loaded).recipe.models
    known: dict[str, WritingModel] = {
        name: model for name, model in models.items() if not isinstance(model, ClassifierModel | RuleModel)
    }
    places = dict(_students(loaded))
    like = models.get(loaded.recipe.sample.model or STUDENT)
    like = like if isinstance(like, VllmModel) else VllmModel(engine="vllm", model="-")
    known |= {name: like.model_copy(update={"model": place, "revision": rev}) for name, (place, rev) in places.items()}
    return known


def _students(loaded: LoadedPreference) -> Iterator[tuple[str, tuple[str, str]]]:
    """Name, place and revision of the student before training, and of the newest that each stage has left."""
    recipe = loaded.recipe
    base, sft, dpo = STUDENTS
    if recipe.student is not None:
        yield base, (resolve_model(loaded.base_dir, recipe.student.model), recipe.student.revision)
    for name, stage in ((sft, "sft"), (dpo, "dpo")):
        for i in range(recipe.run.iterations, 0, -1):
            place = iteration_folder(loaded.run_dir, i)
            rounds = [f"{round_folder(place, n)}/models/{stage}" for n in range(recipe.run.rounds, 0, -1)]
            found = next((folder for folder in rounds if open_store(folder).exists("config.json")), "")
            if found:
                yield name, (found, "")
                break


def _default_names(
    loaded: LoadedPreference, mixture: Sequence[MixturePass], known: Mapping[str, Model]
) -> tuple[str, ...]:
    tuned = [name for name in STUDENTS[1:] if name in known]
    return tuple(dict.fromkeys([*([MIXTURE] if mixture else []), *(p.engine for p in mixture), *tuned]))


def _mixture(recipe: PreferenceRecipe) -> tuple[MixturePass, ...]:
    """The mixture's passes without the aggregator's direct answer, which nobody reads."""
    return tuple(p for p in mixture_passes(cast(Recipe, recipe)) if p.name != DIRECT)


def _alone(recipe: PreferenceRecipe, name: str) -> MixturePass:
    """One model asked alone, drawing as the first slot does that it fills."""
    mixture = recipe.mixture
    slots = [] if mixture is None else [slot for layer in mixture.stacked() for slot in layer]
    slots += [] if mixture is None else [mixture.aggregator]
    fits = [slot for slot in slots if slot.model == name]
    is_student = name in STUDENTS or name == (recipe.sample.model or STUDENT)
    slot = fits[0] if fits else recipe.sample if is_student else SlotConfig(model=name)
    return MixturePass(
        name=name,
        engine=name,
        speaker=Speaker(proposer=name, model=name, revision="", layer=0),
        sampling=sampling_of(slot),
        rules=MixtureRules(run_seed=recipe.seed),
        is_final=True,
    )


def _there(loaded: LoadedPreference, name: str, model: WritingModel) -> WritingModel:
    """The model with absolute paths. Raises ConfigError where a local folder is missing or lacks files."""
    model = cast(WritingModel, with_absolute_paths(model, loaded.base_dir))
    if isinstance(model, WeightsModel) and Path(model.model).is_absolute():
        problems = local_problems(name, Path(model.model), has_template=bool(model.chat_template))
        if problems:
            raise ConfigError("\n  ".join([f"{name} cannot be served:", *problems]))
    return model
