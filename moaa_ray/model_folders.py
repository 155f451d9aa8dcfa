"""Where models are, and what the files of local model folders say and lack. Reads only their small JSON files."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from moaa_ray.data.locations import without_file_scheme
from moaa_ray.engines.weights import SCHEMES
from moaa_ray.settings import checks
from moaa_ray.settings.models import ClassifierModel, Model, ModelConfig, VllmModel, WeightsModel

_MAX_JSON_BYTES = 64 * 2**20
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_BY_LONGEST = ("dynamic", "longrope", "su")
"""Kinds of rope whose frequencies are others where a sequence is longer than a length under one of these names."""
_ORIGINAL = ("original_max_position_embeddings", "max_position_embeddings")
_STRETCHED_ALREADY = ("su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def resolve_path(base_dir: str | Path, value: str) -> str:
    """A URI as it is, a local path (also as file://) made absolute: relative ones count from base_dir, ~ is home."""
    value = without_file_scheme(value)
    if "://" in value:
        return value
    with suppress(UnicodeError):  # half a character after ~, of which the recipe's own checks tell
        value = os.path.expanduser(value)
    return os.path.abspath(os.path.join(base_dir, value))


def resolve_model(base_dir: str | Path, value: str) -> str:
    """Where a model is: the absolute path of a local folder; URIs and hub ids as they are."""
    if "://" in value:
        return resolve_path(base_dir, value)
    looks_local = value.startswith((".", "/", "~")) or value.endswith((".safetensors", ".gguf", *_PICKLES))
    folder = resolve_path(base_dir, value)
    return folder if looks_local or not _HUB_ID.fullmatch(value) or os.path.isdir(folder) else value


def with_absolute_paths(model: Model, base_dir: str | Path) -> Model:
    """The model with local folders as workers find them, whose working directory is another one."""
    if not isinstance(model, WeightsModel):
        return model
    changed = {"model": resolve_model(base_dir, model.model)}
    for name in ("lora", "chat_template"):
        if value := getattr(model, name, None):  # a classifier takes no lora
            changed[name] = resolve_path(base_dir, value)
    return model.model_copy(update=changed)


def window_of(model: ModelConfig, base_dir: str | Path) -> int | None:
    """Tokens of prompt and completion together, as far as known: the recipe's word, else the local folder's."""
    window = getattr(model, "context_window", None)
    if window or not isinstance(model, WeightsModel):
        return window
    return window_of_folder(resolve_model(base_dir, model.model))


def window_of_folder(folder: str) -> int | None:
    """Tokens that the model in a local folder reads at once, as far as its config.json says.

    Where the config stretches its positions (rope factor), the stretched length counts; the kinds of rope whose
    configs give the stretched length already are left as they are (vllm/config/model.py of 0.32).
    """
    config = _json(Path(folder, "config.json"))
    config = {**config, **checks.mapping(config, "text_config")}
    tokens = config.get("max_position_embeddings")
    rope = {**checks.mapping(config, "rope_parameters"), **checks.mapping(config, "rope_scaling")}
    factor = 1 if rope.get("rope_type", rope.get("type")) in _STRETCHED_ALREADY else rope.get("factor", 1)
    if type(tokens) is not int or type(factor) not in (int, float) or not 0 < tokens < 2**40 or not 0 < factor < 2**20:
        return None
    return int(tokens * max(1, factor))


def training_window_of_folder(folder: str) -> int | None:
    """The same in training: where rotary frequencies go by the longest sequence at hand, only so far as they do not.

    All documents of a pack are computed at once, and a longer one would turn the others' positions with its own.
    """
    config = _json(Path(folder, "config.json"))
    rope = {**checks.mapping(config, "rope_parameters"), **checks.mapping(config, "rope_scaling")}
    window = window_of_folder(folder)
    if window is None or rope.get("rope_type", rope.get("type")) not in _BY_LONGEST:
        return window
    told = [part.get(name) for part in (rope, config) for name in _ORIGINAL]
    return min([window, *(tokens for tokens in told if type(tokens) is int and tokens > 0)])


def model_problems(path: str, model: WeightsModel, base_dir: Path) -> list[str]:
    """What is wrong with the places and local folders that the model at `path` of the recipe names."""
    problems = []
    if model.chat_template and not os.path.isfile(template := resolve_path(base_dir, model.chat_template)):
        problems.append(f"{path}.chat_template: {checks.shown(template)} is no local file; correct the path")
    place = resolve_model(base_dir, model.model)
    lora = resolve_path(base_dir, model.lora) if isinstance(model, VllmModel) and model.lora else ""
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
        problems += local_problems(field, folder, has_template=bool(model.chat_template))
        if isinstance(model, ClassifierModel):
            problems += _head_problems(field, folder)
    return problems


def _head_problems(field: str, folder: Path) -> list[str]:
    """A language model in a judge's place, told before it is loaded; the engine looks at the weights themselves."""
    kinds = _json(folder / "config.json").get("architectures")
    if not isinstance(kinds, list) or not any(str(kind).endswith("ForCausalLM") for kind in kinds):
        return []
    return [
        f"{field}: {folder} holds a {', '.join(map(str, kinds))}, which has no head that scores; give a reward model "
        "(...ForSequenceClassification), or take it as a judge that writes (engine: vllm)"
    ]


def local_problems(field: str, folder: Path, *, has_template: bool) -> list[str]:
    """What a local model folder lacks. has_template: the recipe names a chat template, so it need not have one."""
    problems = _folder_problems(field, folder, needs={"config.json": "give the folder that `save_pretrained` wrote"})
    if os.path.isdir(folder):
        problems += [f"{field}: {folder} {lack}" for lack in _model_lacks(folder, has_template)]
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
                "asks for code of its own (auto_map in config.json), which is never run; take a model that vLLM (for "
                "a classifier: transformers) knows by itself, and if it does know this one, remove auto_map from "
                "config.json"
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
