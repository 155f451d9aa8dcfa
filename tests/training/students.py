"""Small random students of four families, and documents for them."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from moaa_ray.training.microbatch import Document

VOCABULARY = 193
FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 8},
    "gemma2": {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 2.0},
}


def make_model(family: str, *, seed: int = 0) -> torch.nn.Module:
    """An eager model of `transformers`, float32, with weights large enough for attention to matter."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **FAMILIES[family],
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def make_documents(lengths, *, seed: int = 0, vocabulary: int = VOCABULARY) -> list[Document]:
    """Random tokens; about the first third of each document does not count."""
    draw = np.random.default_rng(seed)
    return [
        Document(tokens=draw.integers(0, vocabulary, n).astype(np.int32), counts=np.arange(n) >= n // 3)
        for n in lengths
    ]


def plain_logprobs(model: torch.nn.Module, document: Document) -> torch.Tensor:
    """Log-probabilities of a document's targets by the model alone, through full logits."""
    tokens = torch.from_numpy(document.tokens.astype(np.int64))
    logprobs = torch.log_softmax(model(tokens[None]).logits[0].float(), dim=-1)
    at = torch.from_numpy(np.flatnonzero(document.counts[1:]) + 1)
    return logprobs[at - 1, tokens[at]]
