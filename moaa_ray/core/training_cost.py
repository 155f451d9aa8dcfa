"""What it takes to train a model: operations, seconds, bytes on a GPU; before anything has run."""

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


def training_flops(shape: ModelShape, work: TrainingWork) -> float:
    """Operations of the stage: 6 a weight and token forward and backward, 2 forward, and causal attention.

    Input embeddings are counted as weights (they are looked up), recomputation is not.
    Example: Llama-3.1-8B, 1e9 tokens in documents of 1,000: 6 x 8.03e9 x 1e9 + 6 x 32 x 4096 x 1000 x 1e9 = 4.9e19.
    """
    attention = shape.num_layers * shape.num_heads * shape.head_dim * work.mean_length
    return (6 * work.tokens + 2 * work.forward_tokens) * (shape.num_active_params + attention)


def training_seconds(shape: ModelShape, work: TrainingWork, gpu: GpuType, num_gpus: int) -> float:
    """Wall-clock seconds on so many GPUs, the start included."""
    return START_S + training_flops(shape, work) / (num_gpus * gpu.bf16_flops * ASSUMED_MFU)


def state_bytes(shape: ModelShape, num_shards: int) -> float:
    """Bytes of weights, gradients and optimizer on each GPU, over which they are divided by num_shards."""
    return shape.num_params * STATE_BYTES / num_shards
