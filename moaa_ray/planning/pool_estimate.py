"""What one engine of a recipe's model is expected to take; what is assumed because it is not known is said in notes."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from moaa_ray.core.gpus import GpuType
from moaa_ray.core.model_size import ModelShape, bytes_per_weight, published_shape, shape_of_config
from moaa_ray.core.throughput import (
    CPU_BANDWIDTH,
    CPU_FLOPS,
    EFFICIENCY,
    RESERVE_BYTES,
    EngineSize,
    check_memory,
    cpu_row_s,
    gpu_row_s,
    num_side_by_side,
)
from moaa_ray.errors import ConfigError
from moaa_ray.model_folders import resolve_model, window_of
from moaa_ray.planning.measured import Measured
from moaa_ray.settings.models import ClassifierModel, FakeModel, Model, OpenaiModel, RuleModel, VllmModel, WeightsModel

DISK_BYTES_PER_S, START_S = 1.0e9, 30.0
"""Speed at which one node reads weights, and the rest of an engine's start; assumptions."""

UNKNOWN_S, UNKNOWN_LOAD_S = 1.0, 60.0
"""Seconds per completion, and to load, of an engine about which nothing is known; assumptions."""


@dataclass(frozen=True, kw_only=True)
class PassLoad:
    """What one pass is expected to ask of one row."""

    num_requests: float
    prompt_tokens: float
    completion_tokens: float


@dataclass(frozen=True, kw_only=True)
class EngineEstimate:
    """One engine of a model."""

    model: Model
    load_s: float
    is_on_gpu: bool = False
    gpu: GpuType | None = None
    size: EngineSize | None = None  # None: not a transformer of known shape
    floor_s: float = 0.0  # seconds per completion below which no number of engines comes
    basis: str = "assumed"  # where the speed is from
    measured: Measured | None = None
    notes: tuple[str, ...] = ()

    def completion_s(self, prompt_tokens: float, out_tokens: float) -> float:
        """Seconds of one engine that is kept full, per completion."""
        model = self.model
        if self.measured is not None:
            return self._measured_s(self.measured, prompt_tokens, out_tokens)
        if isinstance(model, FakeModel):
            return out_tokens / model.tokens_per_s if model.tokens_per_s else 0.0
        if isinstance(model, OpenaiModel):
            return UNKNOWN_S / model.concurrency
        if isinstance(model, RuleModel):
            return 0.0
        if self.size is None:
            return UNKNOWN_S
        return self._roofline_s(self.size, prompt_tokens, out_tokens)

    def num_running(self, prompt_tokens: float, out_tokens: float) -> float:
        """Requests that a full engine works on at a time; others wait in it for room in the KV cache."""
        if self.size is None or self.gpu is None or not self.is_on_gpu:
            return self.model.concurrency
        room = self.size.kv_room_bytes(self.gpu)
        return num_side_by_side(self.size, kv_room_bytes=room, context=prompt_tokens + out_tokens / 2)

    def _measured_s(self, measured: Measured, prompt_tokens: float, out_tokens: float) -> float:
        """As measured, carried over to these tokens and to full slots.

        An engine of known size has an efficiency: the roofline at the measured mean of tokens and of filled slots over
        what was measured. Slots that do not slow each other down (endpoints, the fake engine) take as long for a token
        when all are full. Otherwise nothing is known of fuller slots, and the measured speed stands.
        """
        if self.size is not None:
            then = replace(self.size, concurrency=measured.filled_slots)
            ideal_s = self._roofline_s(then, measured.prompt_mean, measured.completion_mean)
            return self._roofline_s(self.size, prompt_tokens, out_tokens) * measured.busy_s / measured.calls / ideal_s
        is_alone = not isinstance(self.model, VllmModel | ClassifierModel)
        seconds = measured.slot_s / self.model.concurrency if is_alone else measured.busy_s
        tokens = measured.completion_tokens
        return seconds / tokens * out_tokens if tokens else seconds / measured.calls

    def _roofline_s(self, size: EngineSize, prompt_tokens: float, out_tokens: float) -> float:
        if isinstance(
            self.model, ClassifierModel
        ):  # one pass over the conversation, whose last token counts as written
            prompt_tokens, out_tokens = max(0.0, prompt_tokens - 1), 1.0
        if self.is_on_gpu and self.gpu is not None:
            return gpu_row_s(size, self.gpu, prompt_tokens=prompt_tokens, out_tokens=out_tokens)
        return cpu_row_s(size, self.model.num_cpus, prompt_tokens=prompt_tokens, out_tokens=out_tokens)


def estimate_engine(name: str, model: Model, *, gpu: GpuType | None, num_gpus: int, base_dir: Path) -> EngineEstimate:
    """What is known of one engine of the model section `name`. Raises ConfigError when it cannot fit into its GPUs.

    num_gpus: those of the nodes on which it may stand.
    """
    if isinstance(model, FakeModel):
        return EngineEstimate(model=model, load_s=model.start_s, basis="the recipe's tokens_per_s")
    if isinstance(model, OpenaiModel):
        note = f"{name}: the endpoint's speed is assumed, {UNKNOWN_S:g} s per request, {model.concurrency} at a time."
        rate = model.requests_per_minute
        return EngineEstimate(model=model, load_s=0.0, floor_s=60 / rate if rate else 0.0, notes=(note,))
    if isinstance(model, RuleModel):
        note = f"{name}: calls of {model.function} are assumed to take no time."
        return EngineEstimate(model=model, load_s=0.0, notes=(note,))
    return _loaded(name, model, gpu=gpu, num_gpus=num_gpus, base_dir=base_dir)


def with_measured(name: str, estimate: EngineEstimate, measured: Measured | None) -> EngineEstimate:
    """The estimate of the model section `name` with what earlier runs have measured of such engines, if any have."""
    if measured is None:
        return estimate
    notes = []
    full = estimate.model.concurrency
    if measured.filled_slots < full / 2:
        is_known = estimate.size is not None or not isinstance(estimate.model, VllmModel | ClassifierModel)
        notes.append(
            f"{name}: the measured run filled {measured.filled_slots:.1f} of {full} slots of an engine on average; "
            + ("its speed with full ones is reckoned from that." if is_known else "with full ones it may be faster.")
        )
    if isinstance(estimate.model, VllmModel) and estimate.size is None:
        notes.append(f"{name}: its size is not known here, so memory is not checked.")
    return replace(
        estimate,
        measured=measured,
        load_s=measured.start_s / measured.num_starts if measured.num_starts else estimate.load_s,
        basis=f"measured in {', '.join(measured.runs)} ({measured.calls:,} calls)",
        notes=tuple(notes),
    )


def _loaded(
    name: str, model: VllmModel | ClassifierModel, *, gpu: GpuType | None, num_gpus: int, base_dir: Path
) -> EngineEstimate:
    """An engine that loads weights."""
    is_on_gpu = uses_gpu(model, gpu)
    shape = shape_of_model(model.model, base_dir, writes_tokens=not isinstance(model, ClassifierModel))
    size = engine_size(model, shape, base_dir, is_on_gpu=is_on_gpu) if shape else None
    if shape is None or size is None:
        what = f"the size of {model.model}" if shape is None else f"quantization {getattr(model, 'quantization', '')}"
        note = (
            f"{name}: {what} is not known here; {UNKNOWN_S:g} s per answer and {UNKNOWN_LOAD_S:g} s to load are "
            "assumed, memory is not checked."
        )
        return EngineEstimate(model=model, load_s=UNKNOWN_LOAD_S, is_on_gpu=is_on_gpu, gpu=gpu, notes=(note,))
    speed = f"Speed on CPUs: {CPU_FLOPS / 1e9:g} GFLOP/s and {CPU_BANDWIDTH / 1e9:g} GB/s per CPU slot are assumed."
    if is_on_gpu and gpu is not None:
        if isinstance(model, VllmModel):
            check_memory(name, size, gpu, most=num_gpus)
        else:
            _check_weights(name, size, gpu)
        speed = f"Speed on GPUs: {EFFICIENCY:.0%} of the roofline of model and GPU is assumed."
    load = f"Loading: {DISK_BYTES_PER_S / 1e9:g} GB/s per node and {START_S:g} s per engine are assumed."
    return EngineEstimate(
        model=model,
        load_s=START_S + shape.weight_bytes(shape.checkpoint_bytes_per_weight) / DISK_BYTES_PER_S,
        is_on_gpu=is_on_gpu,
        gpu=gpu,
        size=size,
        basis=f"{EFFICIENCY:.0%} of the roofline",
        notes=(speed, load),
    )


def uses_gpu(model: WeightsModel, gpu: GpuType | None) -> bool:
    """Whether its engines run on GPUs; gpu None: the cluster has none."""
    return model.device == "gpu" or (model.device == "auto" and gpu is not None)


def engine_window(model: Model, base_dir: Path) -> int | None:
    """Tokens of prompt and completion together; None where neither the recipe nor the model's config is known."""
    if (window := window_of(model, base_dir)) or not isinstance(model, WeightsModel):
        return window
    shape = shape_of_model(model.model, base_dir)
    return shape.context_window if shape else None


def engine_size(
    model: VllmModel | ClassifierModel, shape: ModelShape, base_dir: Path, *, is_on_gpu: bool
) -> EngineSize | None:
    """What the engine holds; None where its quantisation is not known here."""
    window = window_of(model, base_dir) or shape.context_window
    if isinstance(model, ClassifierModel):
        width = 4.0 if model.dtype == "float32" or (model.dtype == "auto" and not is_on_gpu) else 2.0
        return EngineSize(
            shape=shape,
            bytes_per_weight=width,
            kv_bytes_per_value=width,
            context_window=window,
            concurrency=model.concurrency,
            gpu_memory_fraction=1.0,
        )
    weight = bytes_per_weight(shape, dtype=model.dtype, quantization=model.quantization)
    if weight is None:
        return None
    return EngineSize(
        shape=shape,
        bytes_per_weight=weight,
        kv_bytes_per_value=1.0 if model.kv_cache_dtype == "fp8" else 4.0 if model.dtype == "float32" else 2.0,
        context_window=window,
        concurrency=model.concurrency,
        num_gpus=model.num_gpus,
        tensor_parallel=model.split[0],
        gpu_memory_fraction=model.gpu_memory_fraction,
    )


def _check_weights(name: str, size: EngineSize, gpu: GpuType) -> None:
    """Raise ConfigError unless a classifier's weights, which are never split, fit into one GPU."""
    weights, room = size.shape.weight_bytes(size.bytes_per_weight), gpu.memory_bytes - RESERVE_BYTES
    if weights >= room:
        raise ConfigError(
            f"models.{name}: {weights / 1e9:.1f} GB of weights, but a classifier stands on one GPU, and a {gpu.name} "
            f"has {room / 1e9:.1f} GB for them ({gpu.memory_bytes / 1e9:g} GB - {RESERVE_BYTES / 1e9:g} GB for "
            "activations); use a GPU with more memory, dtype: bfloat16, or a smaller model"
        )


def shape_of_model(place: str, base_dir: Path, *, writes_tokens: bool = True) -> ModelShape | None:
    """From the local folder's config.json, or by hub id from the built-in table; None where neither tells."""
    file = Path(resolve_model(base_dir, place), "config.json")
    if not file.is_file():
        return published_shape(place)
    config = json.loads(file.read_text(encoding="utf-8"))
    if not writes_tokens:
        config["tie_word_embeddings"] = True  # there are no output embeddings
    try:
        return shape_of_config(config)
    except ConfigError as error:
        raise ConfigError(f"{file.parent}: {error}") from error
