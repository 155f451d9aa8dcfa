"""Floating-point operations that training needs, and the fraction of the hardware's that it got (MFU)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

PEAK_BF16 = {
    "H200": 989e12,
    "H100": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "GB200": 2500e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "A10G": 70e12,
}
"""Dense bfloat16 operations a second by a word of the GPU's name (vendor data sheets, without sparsity)."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model decides its operations."""

    num_block_weights: int
    """Weights of all decoder layers; embeddings cost nothing, the output layer is counted by targets."""
    vocabulary: int
    width: int
    num_layers: int
    attention_width: int
    """Heads x their width."""
    num_frozen_weights: int = 0
    """Of the decoder layers' weights those that get no gradient."""
    is_head_frozen: bool = False


def shape_of(model: nn.Module) -> Shape:
    """The shape of a `transformers` decoder; parameters may be on the meta device."""
    config = model.config
    head_width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads  # pyright: ignore
    blocks: nn.ModuleList = model.base_model.layers  # pyright: ignore
    head = model.get_output_embeddings().weight  # pyright: ignore
    return Shape(  # ZeRO-3 hides a parameter's own size
        num_block_weights=sum(getattr(p, "ds_numel", p.numel()) for p in blocks.parameters()),
        num_frozen_weights=sum(p.numel() for p in blocks.parameters() if not p.requires_grad),
        is_head_frozen=not head.requires_grad,  # pyright: ignore
        vocabulary=config.vocab_size,  # pyright: ignore
        width=config.hidden_size,  # pyright: ignore
        num_layers=config.num_hidden_layers,  # pyright: ignore
        attention_width=config.num_attention_heads * head_width,  # pyright: ignore
    )


def step_flops(shape: Shape, documents: Sequence[tuple[int, int]], num_targets: int) -> float:
    """Operations of forward and backward over documents of (own tokens, keys), of which num_targets tokens get logits.

    6 x weights x tokens, 6 x V x D x targets, and causal attention within documents (6 x length^2 x attention width a
    layer); 4 instead of 6 for weights that are frozen, as under adapters. Keys beyond a document's own tokens are a
    prompt that it shares, whose tokens are counted once. Recomputation and padding are not counted.
    """
    blocks = (6 * shape.num_block_weights - 2 * shape.num_frozen_weights) * sum(own for own, _ in documents)
    logits = (4 if shape.is_head_frozen else 6) * shape.vocabulary * shape.width * num_targets
    seen = sum(own * (2 * keys - own) for own, keys in documents)
    attention = 6 * shape.num_layers * shape.attention_width * seen
    return float(blocks + logits + attention)


def peak_flops(device_name: str) -> float | None:
    """bfloat16 operations a second of a GPU by its name; None for one that is not listed, and for CPUs."""
    words = re.split(r"[^A-Za-z0-9]+", device_name)  # "L40" is no L4, and "RTX A1000" no A100
    return next((peak for name, peak in PEAK_BF16.items() if name in words), None)
