"""Weights in: from a Hugging Face folder to a student, without the whole model in any process that needs a part of it.

build_student makes the model without weights; a strategy shards it; load_weights then fills each worker's part from
the safetensors files. Only local folders of config.json and safetensors: no pickles, no code that came with the model.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moaa_ray.errors import ConfigError
from moaa_ray.training.lora import is_adapter
from moaa_ray.training.shards import fill
from moaa_ray.training.student import Student
from moaa_ray.training.weight_files import WeightFiles, check_precision, stored_shapes, weight_map_of

_HEAD = "lm_head.weight"


def plain_name(name: str) -> str:
    """A parameter's name in the model's own files, from its name in a student, whatever is wrapped around that."""
    return name.replace("_checkpoint_wrapped_module.", "").removeprefix("module.").removeprefix("model.")


def build_student(folder: str | Path) -> Student:
    """The student of a local folder, float32, its parameters without storage (meta device), its buffers real.

    Raises ConfigError for a folder that does not hold a model in safetensors, or one that needs code of its own.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = Path(folder)
    _check_config(folder)
    weight_map_of(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with _parameters_without_storage():
            model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
            )
    except Exception as error:  # transformers raises any kind for a config that does not hold together
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ConfigError(
            f"student {folder}: transformers cannot build it: {said}; choose a Llama, Qwen, Gemma or Mistral model "
            "for text"
        ) from error
    return Student(model)


def check_weights(model: nn.Module, folder: str | Path) -> None:
    """Raise ConfigError where a folder's tensors are not a student's, by names, types and shapes; reads but headers.

    Also where it stores a head apart that its config.json ties to the embedding, and that differs from it.
    """
    folder = Path(folder)
    shapes, parameters = stored_shapes(folder), _own_parameters(model)
    is_tied = _HEAD not in parameters
    _check_names(folder, parameters, shapes, is_tied=is_tied)
    check_precision(folder)
    if is_tied and _HEAD in shapes:
        _check_tied(folder, parameters)
    for name, parameter in parameters.items():
        if shapes[name] != tuple(parameter.shape):
            raise ConfigError(
                f"student {folder}: {name} has shape {shapes[name]}, config.json makes it {tuple(parameter.shape)}; "
                "the two are not of one model: copy it once more"
            )


def load_weights(model: nn.Module, folder: str | Path) -> int:
    """Fill every parameter of a student, wrapped and sharded or not, from a folder; returns the bytes filled here.

    Of a sharded parameter (DTensor) only this worker's slice is read. Parameters still without storage get it on the
    CPU; adapters are in no folder and stay as they are. Raises ConfigError as check_weights does, and for values that
    are not finite.
    """
    check_weights(model, folder)
    weight_map = weight_map_of(Path(folder))
    give_storage(model, torch.device("cpu"))
    num_bytes = 0
    with WeightFiles(Path(folder)) as files:
        for name, p in _own_parameters(model).items():
            num_bytes += fill(p, files.slice_of(weight_map[name], name))
            _check_finite(folder, name, p.data.to_local() if isinstance(p.data, DTensor) else p.data)
    return num_bytes


def whole_weights(model: nn.Module, folder: str | Path) -> Iterator[tuple[str, Tensor]]:
    """(plain name, whole tensor) of every parameter, one at a time, for a strategy that shards them itself.

    The model may be on the meta device. Raises ConfigError where the names of the two differ or a value is not finite.
    """
    folder = Path(folder)
    weight_map = weight_map_of(folder)
    names = [plain_name(name) for name, _ in model.named_parameters()]
    with WeightFiles(folder) as files:
        _check_names(folder, names, weight_map, is_tied=_HEAD not in names)
        for name in names:
            tensor = files.slice_of(weight_map[name], name)[...]
            _check_finite(folder, name, tensor)
            yield name, tensor


def give_storage(model: nn.Module, device: torch.device) -> None:
    """Storage on the device, not initialised, for parameters without; tied ones keep sharing one parameter."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            if p.is_meta:
                if p not in made:
                    made[p] = nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad)
                module.register_parameter(name, made[p])


def _own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By plain name, what a folder has a tensor for."""
    return {plain_name(name): p for name, p in model.named_parameters() if not is_adapter(name)}


def _check_names(folder: Path, parameters: Iterable[str], stored: Iterable[str], *, is_tied: bool) -> None:
    lacking = sorted(set(parameters) - set(stored))
    unused = {name for name in set(stored) - set(parameters) if not name.endswith("rotary_emb.inv_freq")}
    unused = sorted(unused - ({_HEAD} if is_tied else set()))
    for names, what in ((lacking, "has no tensor for"), (unused, "has tensors that the model does not use:")):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            raise ConfigError(
                f"student {folder} {what} {', '.join(names[:4])}{more}; want the files of one causal language model, "
                "neither quantised nor an adapter: export or copy it as such"
            )


def _check_finite(folder: str | Path, name: str, values: Tensor) -> None:
    """Refuse weights with which every loss would be nan, whatever the learning rate."""
    if not torch.isfinite(values).all():
        raise ConfigError(f"student {folder}: {name} holds values that are not finite; copy the model once more")


def _check_tied(folder: Path, parameters: Iterable[str]) -> None:
    """Refuse an output layer that differs from the embedding it is said to be: it would be lost without a word."""
    embedding = next(name for name in parameters if name.endswith("embed_tokens.weight"))
    weight_map = weight_map_of(folder)
    with WeightFiles(folder) as files:
        head, words = (files.slice_of(weight_map[name], name) for name in (_HEAD, embedding))
        num_words = head.get_shape()[0]
        # A few hundred rows: whole layers may be gigabytes, and one that was trained differs in nearly every row.
        rows = [slice(i, i + 1) for i in range(0, num_words, max(1, num_words // 256))]
        is_same = head.get_shape() == words.get_shape() and all(torch.equal(head[row], words[row]) for row in rows)
    if not is_same:
        raise ConfigError(
            f"student {folder}: config.json ties the output layer to the embedding, but {_HEAD} differs from "
            f"{embedding}; set tie_word_embeddings to false in its config.json"
        )


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        raise ConfigError(f"student {folder} has no config.json; name a local Hugging Face folder with safetensors")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is not JSON: {error}; copy the model once more") from error
    if "auto_map" in config:
        raise ConfigError(
            f"{path} has auto_map, which would run code that came with the model; choose one that transformers knows"
        )
    if "quantization_config" in config:
        raise ConfigError(f"{path} has quantization_config: training needs unquantised weights; choose those")


@contextmanager
def _parameters_without_storage() -> Iterator[None]:
    """While a model is built, its parameters go to the meta device as they are registered.

    Not torch.device("meta"), which would take the buffers too: the rotary frequencies are computed at construction and
    are in no file.
    """
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta  # pyright: ignore
    try:
        yield
    finally:
        nn.Module.register_parameter = register
