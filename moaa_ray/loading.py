"""From a YAML file and overrides to a checked recipe; every problem is told at once, before anything starts.

The files read are the recipe and the small JSON files of local model folders. No network, no Ray, no
engine. Secrets stay references (${NAME}) and are never resolved here. Whether prompts are there is
checked where they are read.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from moaa_ray.errors import ConfigError
from moaa_ray.leakage import leakage_problems
from moaa_ray.model_folders import model_problems, resolve_path, window_of
from moaa_ray.recipe import PreferenceRecipe, Recipe, Run, TrainingRecipe
from moaa_ray.settings import checks
from moaa_ray.settings.mixture import MixtureConfig
from moaa_ray.settings.models import ClassifierModel, Model, RuleModel, WeightsModel
from moaa_ray.settings.slots import model_slots, name_problems
from moaa_ray.settings.yaml_text import parse_yaml

_MAX_RECIPE_BYTES = 128 * 1024
_MAX_PROBLEMS = 50
_MAX_PROBLEM_CHARS = 1000
_SCORERS = (ClassifierModel, RuleModel)
_MODEL = TypeAdapter[Model](Model, config=ConfigDict(hide_input_in_errors=True))


R = TypeVar("R", bound=Run)


@dataclass(frozen=True, kw_only=True)
class Loaded(Generic[R]):
    """A checked recipe, and the folder from which its relative paths count."""

    recipe: R
    base_dir: Path
    path: Path

    @property
    def run_dir(self) -> str:
        """A URI or an absolute path; runs/<name> by default. Relative ones count from the current directory."""
        return resolve_path(os.getcwd(), self.recipe.run_dir or f"runs/{self.recipe.name}")


RUN = "RUN/"
"""How a recipe's model begins that an earlier stage of the same run makes: RUN/models/sft."""

LoadedRecipe = Loaded[Recipe]
LoadedPreference = Loaded[PreferenceRecipe]
LoadedTraining = Loaded[TrainingRecipe]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in a file, with "dotted.field=value" overrides. Raises ConfigError with all problems, one per line."""
    return _load(path, overrides, Recipe)


def load_preference(path: str | Path, overrides: Sequence[str] = (), *, base_dir: str = "") -> LoadedPreference:
    """The same of a recipe for sampling and judging, which needs no sections of generation.

    base_dir: the folder from which its relative paths count, where that is not the file's own.
    """
    return _load(path, overrides, PreferenceRecipe, base_dir=base_dir)


def load_training(path: str | Path, overrides: Sequence[str] = ()) -> LoadedTraining:
    """The same of a recipe for training, which needs a student, and no sections of generation."""
    return _load(path, overrides, TrainingRecipe)


def load_to_plan(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe | LoadedTraining:
    """The recipe of a run, or one for training alone: with a student and without a mixture."""
    data = parse_yaml(_read(Path(path)), str(path))
    is_training = isinstance(data, dict) and "student" in data and "mixture" not in data
    return load_training(path, overrides) if is_training else load_recipe(path, overrides)


def _load(path: str | Path, overrides: Sequence[str], kind: type[R], *, base_dir: str | Path = "") -> Loaded[R]:
    path = Path(path)
    base_dir = Path(base_dir or Path(os.path.abspath(path)).parent)
    data = parse_yaml(_read(path), str(path))
    if data is None:
        raise ConfigError(f"{path}: the file is empty; write a recipe into it, beginning with `name:`")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping, not {checks.shown(data)}; begin with `name: my-run`")
    problems = [problem for number, text in enumerate(overrides, 1) if (problem := _override(data, text, number))]
    problems += checks.text_problems(data)
    recipe = None
    try:
        recipe = kind.model_validate(data, strict=True)
    except ValidationError as error:
        problems += checks.field_problems(error)
    problems += name_problems(data) + _disk_problems(data, base_dir)
    problems += [] if recipe is None else leakage_problems(recipe, base_dir, own=RUN)
    if problems or recipe is None:
        more = [f"... and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        told = [text if len(text) <= _MAX_PROBLEM_CHARS else f"{text[:_MAX_PROBLEM_CHARS]}..." for text in problems]
        raise ConfigError("\n  ".join([f"{path}: {count}", *told[:_MAX_PROBLEMS], *more]))
    return Loaded(recipe=recipe, base_dir=base_dir, path=path)


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(_MAX_RECIPE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a path"
        raise ConfigError(
            f"{os.path.abspath(str(path).replace(chr(0), '?'))}: {why}; give the path of a recipe"
        ) from None
    if len(raw) > _MAX_RECIPE_BYTES:
        raise ConfigError(f"{path}: larger than {_MAX_RECIPE_BYTES} bytes; a recipe is small, is this one?")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text") from None


def _override(data: dict, text: str, number: int) -> str:
    """Sets one field in `data`; a sentence when that cannot be. Unknown keys are left to the recipe's own check."""
    key, equals, raw = text.partition("=")
    if not equals or not key.strip() or len(key) > 500:
        return f"override {number}: is not of the form field=value; write e.g. mixture.aggregator.temperature=0.3"
    try:
        value = parse_yaml(raw, f"override {key}")
    except ConfigError as error:
        return str(error)
    at: Any = data
    parts = key.strip().split(".")
    while True:
        if isinstance(at, dict):
            # a model's name may hold dots, so the longest key that is there wins
            size = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in at), 1)
            step: Any = ".".join(parts[:size])
            parts = parts[size:]
            at.setdefault(step, {})
        elif isinstance(at, list):
            if parts[0] not in map(str, range(len(at))):
                return f"override {key}: no entry {parts[0]!r} in a list of {len(at)}; count from 0 to {len(at) - 1}"
            step, parts = int(parts[0]), parts[1:]
        else:
            return f"override {key}: {'.'.join(parts)} would lie inside {checks.shown(at)}; set the field above it"
        if not parts:
            at[step] = value
            return ""
        at[step] = at = {} if at[step] is None else at[step]


def _disk_problems(data: Mapping, base_dir: Path) -> list[str]:
    """What the local files of models lack, and windows that are too small; sections wrong in themselves are skipped."""
    problems, models, windows = [], {}, {}
    for name, section in checks.mapping(data, "models").items():
        try:
            model = models[name] = _MODEL.validate_python(section, strict=True)
        except ValidationError:
            continue
        if isinstance(model, WeightsModel) and model.model.startswith(RUN):
            continue  # a stage of this run makes it
        if not isinstance(model, _SCORERS):
            windows[name] = window_of(model, base_dir)
        if isinstance(model, WeightsModel):
            problems += model_problems(f"models.{name}", model, base_dir)
    problems += _role_problems(data, models)
    try:
        mixture = MixtureConfig.model_validate(data.get("mixture"), strict=True)
    except ValidationError:
        return problems
    return problems + checks.window_problems(mixture, windows)


def _role_problems(data: Mapping, models: Mapping[str, Model]) -> list[str]:
    """Slots whose model gives a number where text is wanted, and judges that score whose model writes text."""
    judges = checks.mapping(data, "judges")
    scored = {f"judges.{name}.model" for name in judges if checks.mapping(judges, name).get("kind") == "score"}
    problems = []
    for field, name in model_slots(data):
        if field.startswith("evaluate.") or name not in models:
            continue  # an evaluation has rules of its own for who may judge
        is_scorer = isinstance(models[name], _SCORERS)
        told = f"{field} = {checks.shown(name)}: "
        if field in scored and not is_scorer:
            problems.append(
                f"{told}writes text and gives no number; take a model with engine classifier or rule, or a judge of "
                "kind llm or aspects"
            )
        elif is_scorer and field not in scored:
            problems.append(
                f"{told}scores what others wrote and writes nothing itself; take a model with engine vllm or openai"
                + (", or a judge of kind score" if field.startswith("judges.") else "")
            )
    return problems
