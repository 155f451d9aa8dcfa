"""What the contenders of gpu_training.py share: the model, and documents of AlpacaEval's lengths."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from moaa_ray.core.packing import pack
from moaa_ray.data.documents import Document

PACK_TOKENS = 4096
SHAPES = {
    "3b": {
        "vocab_size": 128_256,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": True,
    },
}
RATE = 1e-5


def config_of(shape: str) -> Any:
    from transformers import LlamaConfig

    rope = {"rope_type": "default", "rope_theta": 500_000.0}
    return LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, rms_norm_eps=1e-5, rope_parameters=rope)


def make_model(shape: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Any:
    """A Llama with random weights, made where it is to stay."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config_of(shape), dtype=dtype, attn_implementation="sdpa")


def lengths() -> np.ndarray:
    """[805, 4]: tokens of the prompt with its template, then of three models' completions, of AlpacaEval."""
    return np.array(json.loads((Path(__file__).parent / "alpaca_lengths.json").read_text(encoding="utf-8")))


def document(draw: np.random.Generator, prompt: np.ndarray, completion: int, vocabulary: int) -> Document:
    tokens = np.concatenate([prompt, draw.integers(0, vocabulary, completion, dtype=np.int32)])
    return Document(tokens=tokens, counts=np.arange(len(tokens)) >= len(prompt))


def make_packs(num: int, vocabulary: int) -> list[list[Document]]:
    """Packs of whole documents, as full as best-fit packing makes them."""
    draw = np.random.default_rng(1)
    drawn = lengths()[draw.permutation(805)][:, :2]
    drawn = np.tile(drawn, (1 + num * PACK_TOKENS // int(drawn.sum()), 1))
    drawn = drawn[drawn.sum(1) <= PACK_TOKENS]
    packs = pack(drawn.sum(1).tolist(), PACK_TOKENS)
    assert len(packs) >= num, (len(packs), num)
    words = lambda n: draw.integers(0, vocabulary, n, dtype=np.int32)  # noqa: E731
    chosen = [packs[i] for i in draw.permutation(len(packs))[:num]]
    return [[document(draw, words(drawn[i, 0]), drawn[i, 1], vocabulary) for i in of] for of in chosen]


def make_pairs(num: int, vocabulary: int) -> list[list[Document]]:
    """Pairs whose documents begin with the same prompt."""
    draw = np.random.default_rng(2)
    pairs = []
    for row in np.tile(lengths()[draw.permutation(805)], (1 + num // 805, 1))[:num]:
        prompt = draw.integers(0, vocabulary, row[0], dtype=np.int32)
        room = PACK_TOKENS - row[0]
        pairs.append([document(draw, prompt, min(row[i], room), vocabulary) for i in (2, 3)])
    return pairs


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}
