"""From a YAML file and overrides to a checked recipe; every problem is told at once, before anything starts.

The files read are the recipe and the small JSON files of local model folders. No network, no Ray, no
engine. Secrets stay references (${NAME}) and are never resolved here. Whether prompts are there is
checked where they are read.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from moaa_ray import checks
from moaa_ray.data.locations import without_file_scheme
from moaa_ray.engines.weights import SCHEMES
from moaa_ray.errors import ConfigError
from moaa_ray.recipe import MixtureConfig, Recipe
from moaa_ray.recipe_models import Model, ModelConfig, VllmModel
from moaa_ray.recipe_yaml import parse_yaml

_MAX_RECIPE_BYTES = 128 * 1024
_MAX_JSON_BYTES = 64 * 2**20
_MAX_PROBLEMS = 50
_MAX_PROBLEM_CHARS = 1000
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_MODEL = TypeAdapter[Model](Model, config=ConfigDict(hide_input_in_errors=True))


@dataclass(frozen=True, kw_only=True)
class LoadedRecipe:
    """A checked recipe, and the folder from which its relative paths count."""

    recipe: Recipe
    base_dir: Path
    path: Path

    @property
    def run_dir(self) -> str:
        """A URI or an absolute path; runs/<name> by default. Relative ones count from the current directory."""
        return resolve_path(os.getcwd(), self.recipe.run_dir or f"runs/{self.recipe.name}")


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """The recipe in a file, with "dotted.field=value" overrides. Raises ConfigError with all problems, one per line."""
    path = Path(path)
    base_dir = Path(os.path.abspath(path)).parent
    data = parse_yaml(_read(path), str(path))
    if data is None:
        raise ConfigError(f"{path}: the file is empty; write a recipe into it, beginning with `name:`")
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must hold a mapping, not {checks.shown(data)}; begin with `name: my-run`")
    problems = [problem for number, text in enumerate(overrides, 1) if (problem := _override(data, text, number))]
    problems += checks.text_problems(data)
    recipe = None
    try:
        recipe = Recipe.model_validate(data, strict=True)
    except ValidationError as error:
        problems += checks.field_problems(error)
    problems += checks.name_problems(data) + _disk_problems(data, base_dir)
    if problems or recipe is None:
        more = [f"... and {len(problems) - _MAX_PROBLEMS} more"] if len(problems) > _MAX_PROBLEMS else []
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        told = [text if len(text) <= _MAX_PROBLEM_CHARS else f"{text[:_MAX_PROBLEM_CHARS]}..." for text in problems]
        raise ConfigError("\n  ".join([f"{path}: {count}", *told[:_MAX_PROBLEMS], *more]))
    return LoadedRecipe(recipe=recipe, base_dir=base_dir, path=path)


def resolve_path(base_dir: str | Path, value: str) -> str:
    """A URI as it is, a local path (also as file://) made absolute: relative ones count from base_dir, ~ is home."""
    value = without_file_scheme(value)
    if "://" in value:
        return value
    return os.path.abspath(os.path.join(base_dir, os.path.expanduser(value)))


def resolve_model(base_dir: str | Path, value: str) -> str:
    """Where a model is: the absolute path of a local folder; URIs and hub ids as they are."""
    if "://" in value:
        return resolve_path(base_dir, value)
    looks_local = value.startswith((".", "/", "~")) or value.endswith((".safetensors", ".gguf", *_PICKLES))
    folder = resolve_path(base_dir, value)
    return folder if looks_local or not _HUB_ID.fullmatch(value) or os.path.isdir(folder) else value


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
    problems, windows = [], {}
    for name, section in checks.mapping(data, "models").items():
        try:
            model = _MODEL.validate_python(section, strict=True)
        except ValidationError:
            continue
        windows[name] = window_of(model, base_dir)
        if isinstance(model, VllmModel):
            problems += _model_problems(f"models.{name}", model, base_dir)
    try:
        mixture = MixtureConfig.model_validate(data.get("mixture"), strict=True)
    except ValidationError:
        return problems
    return problems + checks.window_problems(mixture, windows)


def window_of(model: ModelConfig, base_dir: str | Path) -> int | None:
    """Tokens of prompt and completion together, as far as known: the recipe's word, else the local folder's.

    Where the folder's config stretches its positions (rope factor), the stretched length counts.
    """
    window = getattr(model, "context_window", None)
    if window or not isinstance(model, VllmModel):
        return window
    config = _json(Path(resolve_model(base_dir, model.model), "config.json"))
    config = {**config, **checks.mapping(config, "text_config")}
    tokens = config.get("max_position_embeddings")
    factor = {**checks.mapping(config, "rope_parameters"), **checks.mapping(config, "rope_scaling")}.get("factor", 1)
    if type(tokens) is not int or type(factor) not in (int, float) or not 0 < tokens < 2**40 or not 0 < factor < 2**20:
        return None
    return int(tokens * max(1, factor))


def _model_problems(path: str, model: VllmModel, base_dir: Path) -> list[str]:
    problems = []
    if model.chat_template and not os.path.isfile(template := resolve_path(base_dir, model.chat_template)):
        problems.append(f"{path}.chat_template: {checks.shown(template)} is no local file; correct the path")
    place = resolve_model(base_dir, model.model)
    lora = resolve_path(base_dir, model.lora) if model.lora else ""
    for field, uri in ((f"{path}.model", place), (f"{path}.lora", lora)):
        if "://" in uri and not uri.startswith(SCHEMES):
            known = ", ".join(SCHEMES)
            problems.append(f"{field}: weights are read from {known} or a folder; hub ids are written org/name")
    if lora and "://" not in lora:
        needs = {"adapter_config.json": "give the folder that PEFT's `save_pretrained` wrote"}
        problems += _folder_problems(f"{path}.lora", Path(lora), needs=needs)
    folder = Path(place)
    if folder.is_absolute():
        field = f"{path}.model = {checks.shown(model.model)}"
        problems += _folder_problems(
            field, folder, needs={"config.json": "give the folder that `save_pretrained` wrote"}
        )
        if os.path.isdir(folder):
            problems += [f"{field}: {folder} {lack}" for lack in _model_lacks(folder, bool(model.chat_template))]
    return problems


def _folder_problems(field: str, folder: Path, *, needs: Mapping[str, str]) -> list[str]:
    try:
        files = os.listdir(folder)
    except (OSError, ValueError) as error:
        why = "is not a folder" if isinstance(error, NotADirectoryError) else "cannot be opened"
        why = "does not exist" if isinstance(error, FileNotFoundError) else why
        return [
            f"{field}: {folder} {why}; correct it: relative paths count from the recipe's folder, hub ids are org/name"
        ]
    problems = [f"has no {name}; {way_out}" for name, way_out in needs.items() if name not in files]
    if not any(name.endswith(".safetensors") for name in files):
        pickled = any(name.endswith(_PICKLES) for name in files)
        only = "only pickled weights, which can run code; convert them with `save_pretrained` to *.safetensors"
        problems.append(f"has {only if pickled else 'no *.safetensors weights; copy them into it'}")
    return [f"{field}: {folder} {problem}" for problem in problems]


def _model_lacks(folder: Path, has_template: bool) -> list[str]:
    problems = []
    if os.path.exists(folder / "config.json"):
        config = _json(folder / "config.json")
        if not config:
            problems.append("has a config.json that is no JSON mapping; copy the folder anew")
        if "auto_map" in config:
            problems.append(
                "asks for code of its own (auto_map in config.json), which is never run; take a model that vLLM "
                "knows by itself, and if it does know this one, remove auto_map from config.json"
            )
    if not any(os.path.exists(folder / name) for name in _TOKENIZERS):
        problems.append("has no tokenizer (tokenizer.json, tokenizer.model, ...); copy the tokenizer's files into it")
    own = any(os.path.exists(folder / name) for name in ("chat_template.jinja", "chat_template.json"))
    if not has_template and not own and not _json(folder / "tokenizer_config.json").get("chat_template"):
        problems.append("has no chat template; take the instruction-tuned version, or set chat_template to a file")
    return problems


def _json(path: Path) -> dict:
    """The JSON mapping in a file; empty when there is none that can be read."""
    try:
        if os.path.getsize(path) > _MAX_JSON_BYTES:
            return {}
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
