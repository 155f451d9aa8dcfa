"""How long one engine takes per row, from the model's shape and the GPU, before anything has run.

The roofline of performance.md 1.1 times one efficiency factor. It orders pools well enough to divide GPUs among them;
as an absolute figure it is a first estimate. The memory check is exact in its sum, up to the reserve for activations.
"""

from dataclasses import dataclass
from math import ceil, log
from statistics import NormalDist

from moaa_ray.core.gpus import GpuType
from moaa_ray.core.model_size import ModelShape
from moaa_ray.errors import ConfigError

EFFICIENCY = 0.45
"""Part of the roofline that an engine reaches. Source: TensorRT-LLM's published Llama-3.1-8B FP8 figures on H200 stand
at 43 % (1000 in, 1000 out) to 63 % (2048 in, 128 out) of the ideal (performance.md 1.1)."""

RESERVE_BYTES = 2e9
"""Memory per GPU for activations, CUDA graphs and libraries, inside gpu_memory_fraction; an assumption."""

CPU_FLOPS, CPU_BANDWIDTH = 50e9, 10e9
"""FLOP/s and bytes/s of one CPU slot; an assumption, for engines without a GPU."""


@dataclass(frozen=True, kw_only=True)
class EngineSize:
    """What one engine runs on, and what it holds."""

    shape: ModelShape
    bytes_per_weight: float
    kv_bytes_per_value: float
    context_window: int
    concurrency: float  # requests side by side
    num_gpus: int = 1
    tensor_parallel: int = 1
    gpu_memory_fraction: float = 0.92

    @property
    def kv_bytes_per_token(self) -> float:
        """KV-cache bytes of one token on all GPUs of the engine."""
        return self.shape.kv_bytes_per_token(self.kv_bytes_per_value, self.tensor_parallel)

    def kv_room_bytes(self, gpu: GpuType) -> float:
        """Bytes that all GPUs of the engine have left for the KV cache; negative when the weights do not fit."""
        return self.num_gpus * gpu_bytes(self, gpu) - self.shape.weight_bytes(self.bytes_per_weight)

    def fits(self, gpu: GpuType) -> bool:
        """Whether the weights and one full context window fit."""
        return self.kv_room_bytes(gpu) >= self.kv_bytes_per_token * self.context_window


def gpu_bytes(engine: EngineSize, gpu: GpuType) -> float:
    """Bytes of one GPU for weights and KV cache."""
    return gpu.memory_bytes * engine.gpu_memory_fraction - RESERVE_BYTES


def needed_gpus(name: str, engine: EngineSize, gpu: GpuType) -> int:
    """The fewest GPUs whose memory holds the weights and one full context window. Raises ConfigError where none can."""
    if gpu_bytes(engine, gpu) <= 0:
        raise ConfigError(
            f"models.{name}.gpu_memory_fraction = {engine.gpu_memory_fraction:g}: of {gpu.memory_bytes / 1e9:g} GB of "
            f"{gpu.name} that leaves nothing beside {RESERVE_BYTES / 1e9:g} GB for activations; raise it, e.g. to 0.92"
        )
    weights = engine.shape.weight_bytes(engine.bytes_per_weight)
    return ceil((weights + engine.kv_bytes_per_token * engine.context_window) / gpu_bytes(engine, gpu))


def memory_sum(engine: EngineSize) -> str:
    """What the engine must hold at least, in words."""
    weights = engine.shape.weight_bytes(engine.bytes_per_weight)
    window = engine.kv_bytes_per_token * engine.context_window
    return (
        f"{weights / 1e9:.1f} GB of weights + {window / 1e9:.1f} GB of KV cache for one context window "
        f"of {engine.context_window:,} tokens = {(weights + window) / 1e9:.1f} GB"
    )


def check_memory(name: str, engine: EngineSize, gpu: GpuType, *, most: int) -> None:
    """Raise ConfigError, with the sum and the smallest size that fits, unless one full context window fits.

    most: the GPUs of the cluster.
    """
    if engine.fits(gpu):
        return
    per_gpu, needed = gpu_bytes(engine, gpu), needed_gpus(name, engine, gpu)
    fits = next((size for size in (1, 2, 4, 8, 16, 32, 64) if size >= needed and size > engine.num_gpus), None)
    way_out = f"set tensor_parallel: {fits}" if fits else "use a GPU with more memory"
    if fits and fits > gpu.gpus_per_node:
        way_out = f"set tensor_parallel: {gpu.gpus_per_node} and pipeline_parallel: {fits // gpu.gpus_per_node}"
    if fits and fits > most:
        way_out = (
            f"{fits} of them would hold it, and there {'is' if most == 1 else 'are'} {most}: add nodes or use others"
        )
    raise ConfigError(
        f"models.{name}: {memory_sum(engine)}, but {engine.num_gpus} x {gpu.name} have "
        f"{engine.num_gpus * per_gpu / 1e9:.1f} GB (gpu_memory_fraction {engine.gpu_memory_fraction:g} of "
        f"{gpu.memory_bytes / 1e9:g} GB - {RESERVE_BYTES / 1e9:g} GB for activations, each); {way_out}, "
        "or quantise (quantization: fp8), or lower context_window"
    )


def num_side_by_side(engine: EngineSize, *, kv_room_bytes: float, context: float) -> float:
    """Sequences that a full engine works on at a time: as many as the concurrency and the KV cache admit."""
    return max(1.0, min(engine.concurrency, kv_room_bytes / (context * engine.kv_bytes_per_token)))


def tokens_per_s(
    engine: EngineSize, *, flops: float, bandwidth: float, kv_room_bytes: float, prompt_tokens: float, out_tokens: float
) -> float:
    """Completion tokens per second that the hardware allows one full engine: the roofline, without the efficiency.

    b / max((weights + b ctx kv) / BW, b (2P + 4 L d ctx + in/out (2P + 2 L d in)) / FLOPS), with ctx = in + out/2 and
    b = the sequences that the KV cache and the concurrency admit. P counts active parameters, the weights all: a
    full batch touches every expert. Source: performance.md 1.1. Example: Llama-3.1-8B bf16, 790e12 FLOP/s,
    4.3e12 B/s, 250 in, 600 out: 34.2k (FLOPS); 1000/1000: 19.2k (memory).
    """
    shape = engine.shape
    context = prompt_tokens + out_tokens / 2
    batch = num_side_by_side(engine, kv_room_bytes=kv_room_bytes, context=context)
    width = shape.num_layers * shape.num_heads * shape.head_dim
    weights = shape.weight_bytes(engine.bytes_per_weight)
    read_s = (weights + batch * context * engine.kv_bytes_per_token) / bandwidth
    decode_flop = 2 * shape.num_active_params + 4 * width * context
    prefill_flop = 2 * shape.num_active_params + 2 * width * prompt_tokens
    compute_s = batch * (decode_flop + prompt_tokens / out_tokens * prefill_flop) / flops
    return batch / max(read_s, compute_s)


def gpu_row_s(engine: EngineSize, gpu: GpuType, *, prompt_tokens: float, out_tokens: float) -> float:
    """Seconds of one engine on GPUs per completion, at EFFICIENCY of the roofline; all its GPUs count as one."""
    uses_fp8 = engine.bytes_per_weight == 1.0 and gpu.fp8_flops > 0
    rate = tokens_per_s(
        engine,
        flops=engine.num_gpus * (gpu.fp8_flops if uses_fp8 else gpu.bf16_flops),
        bandwidth=engine.num_gpus * gpu.bandwidth,
        kv_room_bytes=engine.kv_room_bytes(gpu),
        prompt_tokens=prompt_tokens,
        out_tokens=out_tokens,
    )
    return out_tokens / (EFFICIENCY * rate)


def cpu_row_s(engine: EngineSize, num_cpus: float, *, prompt_tokens: float, out_tokens: float) -> float:
    """Seconds of one engine on CPU slots per completion; assumes that the KV cache fits."""
    slots = max(num_cpus, 1.0)
    rate = tokens_per_s(
        engine,
        flops=slots * CPU_FLOPS,
        bandwidth=slots * CPU_BANDWIDTH,
        kv_room_bytes=float("inf"),
        prompt_tokens=prompt_tokens,
        out_tokens=out_tokens,
    )
    return out_tokens / (EFFICIENCY * rate)


def mean_until(limit: float, *, mean: float, sigma: float) -> float:
    """The mean of log-normal lengths of this mean and spread that end at a limit.

    Example: a spread of 0.8 and a limit of one mean leave 0.69 of it.
    """
    if not sigma:
        return float(min(mean, limit))
    at, normal = log(limit / mean) / sigma, NormalDist().cdf
    return mean * normal(at - sigma / 2) + limit * (1 - normal(at + sigma / 2))
