"""What it takes to train a model: operations, seconds, bytes on a GPU; before anything has run."""

from collections.abc import Sequence
from dataclasses import dataclass

from moaa_ray.core.gpus import GpuType
from moaa_ray.core.model_size import ModelShape

ASSUMED_MFU = 0.35
"""Part of a GPU's dense bfloat16 operations that count. torchtitan reports 33 to 39 % for Llama-3.1-8B under FSDP2 on
H100 without float8, LLM Foundry 46 % for a 7B model (performance.md 3)."""
START_S = 60.0
"""Processes, loading and the first compilation; an assumption."""
RESERVE_BYTES = 6e9
"""Activations of one micro-batch with recomputation, gathered layers and libraries; an assumption."""
GATHERED_BYTES = 2
"""Of every weight that is kept gathered for computing, in bfloat16."""
STATE_BYTES = 16
"""Of every weight: float32 weight, gradient, and the two moments of Adam."""


@dataclass(frozen=True, kw_only=True)
class TrainingWork:
    """Tokens of a whole stage."""

    tokens: float
    """Forward and backward, over all epochs."""
    forward_tokens: float = 0.0
    """Forward only: what the reference says of the pairs, once."""
    mean_length: float
    """Tokens of a document, within which attention looks back."""
    is_lora: bool = False
    """The model's own weights get no gradient."""


def training_flops(shape: ModelShape, work: TrainingWork) -> float:
    """Operations of the stage: 6 a weight and token forward and backward, 2 forward, and causal attention.

    Frozen weights under adapters take 4 instead of 6; the adapters themselves are left out, they are below 1 %.
    Input embeddings are counted as weights (they are looked up), recomputation is not.
    Example: Llama-3.1-8B, 1e9 tokens in documents of 1,000: 6 x 8.03e9 x 1e9 + 6 x 32 x 4096 x 1000 x 1e9 = 4.9e19.
    """
    attention = shape.num_layers * shape.num_heads * shape.head_dim * work.mean_length
    all_flops = (6 * work.tokens + 2 * work.forward_tokens) * (shape.num_active_params + attention)
    return all_flops - (2 * work.tokens * shape.num_active_params if work.is_lora else 0)


def training_seconds(shape: ModelShape, work: TrainingWork, gpu: GpuType, num_gpus: int) -> float:
    """Wall-clock seconds on so many GPUs, the start included."""
    return START_S + training_flops(shape, work) / (num_gpus * gpu.bf16_flops * ASSUMED_MFU)


def state_bytes(shape: ModelShape, num_shards: int) -> float:
    """Bytes of weights, gradients and optimizer on each GPU, over which they are divided by num_shards."""
    return shape.num_params * STATE_BYTES / num_shards


def num_adapter_weights(shape: ModelShape, rank: int, targets: Sequence[str] = ()) -> int:
    """Weights of adapters: rank x (in + out) of every target in every layer; no targets: of all linear layers.

    Layers that a family joins into one (phi3) are counted one by one, which is a little more; experts get none.
    Example: Llama-3.1-8B, rank 16: 16 x 32 x 81,920 = 41,943,040.
    """
    query, key = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    widths = {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": query}
    if shape.num_experts == 1:
        widths |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), shape.inner)
    named = [width for name, width in widths.items() if name in targets] or list(widths.values())
    return rank * shape.num_layers * sum(shape.hidden + width for width in named)


def lora_state_bytes(shape: ModelShape, num_adapter_weights: int, frozen_bytes: int, num_shards: int) -> float:
    """As state_bytes, where only adapters are trained and every other weight takes frozen_bytes."""
    return (shape.num_params * frozen_bytes + num_adapter_weights * STATE_BYTES) / num_shards
