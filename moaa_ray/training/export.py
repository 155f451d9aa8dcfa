"""Weights out: a Hugging Face folder that transformers and vLLM load, published whole or not at all.

Weights are gathered one parameter at a time, so no process ever holds the model for the export's sake.
"""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from moaa_ray.data.documents import Document
from moaa_ray.data.store import Store, open_store
from moaa_ray.data.student_files import fetched
from moaa_ray.errors import ConfigError
from moaa_ray.training.lora import LoraSettings, is_adapter, merged
from moaa_ray.training.microbatch import lay_out
from moaa_ray.training.strategies.base import Strategy, from_first
from moaa_ray.training.tensor_files import Layout, new_file, write_header, write_tensor
from moaa_ray.training.weight_files import INDEX, SINGLE, stored_shapes
from moaa_ray.training.weights import plain_name

MAX_SHARD_BYTES = 5 * 10**9
CONFIG, GENERATION = "config.json", "generation_config.json"
_COPIED = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    GENERATION,
    "LICENSE*",
    "NOTICE*",
)
"""What comes from the student's folder: its tokenizer, how it generates, and under which terms."""


def export(
    strategy: Strategy,
    folder_uri: str,
    *,
    source_folder: str | Path,
    dtype: torch.dtype,
    chat_template: str,
    card: str,
    end_token: int | None = None,
    lora: LoraSettings | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the student to a Hugging Face folder; all workers call it together, the first one writes.

    source_folder is what the student was loaded from; chat_template is the text it was trained with, card the
    README.md. end_token ends a turn of that template: generation stops at it too, which a base model's does not by
    itself. Adapters (lora) are merged into the weights. On a disk the folder appears in one step; in an object store
    config.json, which every loader needs, comes last. What was there is replaced. Raises StageError, in all workers,
    where it cannot be written.
    """
    tensors = strategy.full_parameters()

    def write() -> None:
        try:
            names = [plain_name(name) for name, _ in strategy.student.named_parameters() if not is_adapter(name)]
            shards = plan_shards(names, stored_shapes(source_folder), dtype, max_shard_bytes)
            texts = _texts(
                strategy, Path(source_folder), dtype, chat_template=chat_template, card=card, end_token=end_token
            )
            _publish(folder_uri, shards, merged(tensors, lora), texts)
        finally:
            _gather_rest(tensors)  # the other workers go on to the end

    if strategy.world.rank != 0:
        _gather_rest(tensors)
    from_first(write)


def check_generation(folder: str | Path) -> None:
    """Raise ConfigError for a generation_config.json that an export cannot take over, where a folder has one."""
    path = Path(folder) / GENERATION
    try:
        config = json.loads(path.read_bytes()) if path.exists() else {}
        stops = config.get("eos_token_id")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is no JSON mapping: {error}; copy it once more, or delete it") from error
    if not all(type(stop) is int for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None):
        raise ConfigError(
            f"{path}: eos_token_id = {stops!r:.60}, want a token's number or a list of them; copy it once more, or "
            "delete it"
        )


def plan_shards(
    names: Sequence[str], shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, max_bytes: int
) -> dict[str, dict[str, Layout]]:
    """File name -> its tensors in order, each file at most max_bytes, unless one tensor alone is larger."""
    groups: list[dict[str, Layout]] = [{}]
    num_bytes = 0
    for name in names:
        layout = Layout(dtype=dtype, shape=shapes[name])
        if groups[-1] and num_bytes + layout.num_bytes > max_bytes:
            groups.append({})
            num_bytes = 0
        groups[-1][name] = layout
        num_bytes += layout.num_bytes
    if len(groups) == 1:
        return {SINGLE: groups[0]}
    total = len(groups)
    return {f"model-{number:05d}-of-{total:05d}.safetensors": group for number, group in enumerate(groups, 1)}


def verify_export(strategy: Strategy, folder_uri: str, tokens: Sequence[int]) -> float:
    """The mean difference of the tokens' log-probabilities between an exported folder and the student, in nats.

    All workers call it together; the first one loads the folder with transformers, on the CPU, from an object store by
    way of a copy on its disk. The mean, as in bfloat16 single tokens of low probability are off by far more.
    """
    batch = lay_out([Document(tokens=np.array(tokens, dtype=np.int32), counts=np.ones(len(tokens), dtype=bool))])
    strategy.model.eval()
    with torch.no_grad(), strategy.microbatch(is_last=True):
        trained = strategy.model(batch.to(strategy.world.device)).cpu()
    strategy.model.train()

    def difference() -> float:
        with fetched(folder_uri) as folder:
            return float((_logprobs(folder, tokens) - trained).abs().mean())

    return from_first(difference)


def _logprobs(folder: str | Path, tokens: Sequence[int]) -> Tensor:
    """Log-probabilities [N-1] of all tokens but the first, by transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", trust_remote_code=False, local_files_only=True, use_safetensors=True
    ).eval()
    ids = torch.tensor([list(tokens)])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1].float(), dim=-1)
    return logprobs.gather(1, ids[0, 1:, None])[:, 0]


def _gather_rest(tensors: Iterator[tuple[str, Tensor]]) -> None:
    for _ in tensors:
        pass


def _publish(
    folder_uri: str,
    shards: Mapping[str, Mapping[str, Layout]],
    tensors: Iterator[tuple[str, Tensor]],
    texts: Mapping[str, bytes],
) -> None:
    """Write the folder under another name and move it into place; in an object store, with config.json last."""
    parent_uri, _, name = folder_uri.rstrip("/").rpartition("/")
    parent = open_store(parent_uri or "/")
    if not parent.can_rename:
        store = open_store(folder_uri)
        stale = set(store.list())
        store.delete(CONFIG)  # from here to the end nothing loads
        _write(store, shards, tensors, texts)
        for path in stale - shards.keys() - texts.keys() - {INDEX}:
            store.delete(path)
        if len(shards) == 1:
            store.delete(INDEX)
        return
    partial, replaced = f".{name}.partial", f".{name}.replaced"
    parent.delete_folder(partial)
    _write(open_store(f"{parent.uri}/{partial}"), shards, tensors, texts)
    if parent.list(name):
        parent.delete_folder(replaced)
        parent.rename_folder(name, replaced)
    parent.rename_folder(partial, name)
    parent.delete_folder(replaced)


def _write(
    store: Store,
    shards: Mapping[str, Mapping[str, Layout]],
    tensors: Iterator[tuple[str, Tensor]],
    texts: Mapping[str, bytes],
) -> None:
    """All files of the folder; tensors come in the shards' order."""
    for file, layouts in shards.items():
        with new_file(store.uri, file) as stream:
            write_header(stream, layouts)
            for name, layout in layouts.items():
                given, tensor = next(tensors)
                assert given == name, f"{given} was gathered where {name} was planned"
                write_tensor(stream, tensor.to(layout.dtype))
    if len(shards) > 1:
        store.put(INDEX, _index(shards))
    for name, data in texts.items():
        store.put(name, data)


def _index(shards: Mapping[str, Mapping[str, Layout]]) -> bytes:
    total = sum(layout.num_bytes for layouts in shards.values() for layout in layouts.values())
    weight_map = {name: file for file, layouts in shards.items() for name in layouts}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2).encode()


def _texts(
    strategy: Strategy, source: Path, dtype: torch.dtype, *, chat_template: str, card: str, end_token: int | None
) -> dict[str, bytes]:
    """Every file but the weights, config.json last."""
    texts = {
        path.name: path.read_bytes()
        for path in sorted(source.iterdir())
        if path.is_file() and any(fnmatch(path.name, pattern) for pattern in _COPIED)
    }
    if "tokenizer_config.json" in texts:
        # A second template there would be an older one; code that a tokenizer brings is not exported.
        settings = json.loads(texts["tokenizer_config.json"])
        kept = {key: value for key, value in settings.items() if key not in ("chat_template", "auto_map")}
        texts["tokenizer_config.json"] = json.dumps(kept, indent=2, ensure_ascii=False).encode()
    texts["chat_template.jinja"] = chat_template.encode()
    texts["README.md"] = card.encode()
    if end_token is not None:
        _stop_at(end_token, texts, strategy.student.model)
    texts[CONFIG] = _config(strategy.student.model, dtype)
    return texts


def _stop_at(end_token: int, texts: dict[str, bytes], model: nn.Module) -> None:
    """Add a token to those at which generation stops, by generation_config.json or config.json, if it is none."""
    generation = json.loads(texts.get(GENERATION, b"{}"))
    stops = generation.get("eos_token_id", getattr(model.config, "eos_token_id", None))
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if end_token not in stops:
        generation["eos_token_id"] = [*stops, end_token]
        texts[GENERATION] = json.dumps(generation, indent=2).encode()


def _config(model: nn.Module, dtype: torch.dtype) -> bytes:
    """config.json of the student, in the dtype of the export; our attention is not for others to look for."""
    config = copy.deepcopy(model.config)
    config._attn_implementation = None  # pyright: ignore
    config.dtype = dtype  # pyright: ignore
    return config.to_json_string().encode()  # pyright: ignore
