"""Attention that never crosses a document, as an attention implementation of `transformers`.

On CPUs each document is one causal call of scaled_dot_product_attention: the work is the sum of the
squares of the documents' lengths, not the square of their sum.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from moaa_ray.errors import ConfigError

NAME = "moaa_documents"
"""The value of config._attn_implementation."""


def register() -> None:
    """Make the implementation known to `transformers`; it gets no mask, as it needs none."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


@torch.compiler.disable  # every other number of documents would compile the layer anew
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    offsets: Sequence[int],
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_,
) -> tuple[Tensor, None]:
    """Causal attention within documents. query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D]."""
    if s_aux is not None:
        raise ConfigError(
            "student: attention sinks (s_aux) are not supported; choose a Llama, Qwen, Gemma or Mistral model"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    lengths = [stop - start for start, stop in pairwise(offsets)]
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
    attended = []
    for q, k, v in parts:
        is_windowed = sliding_window is not None and q.shape[2] > sliding_window
        if softcap is not None:
            attended.append(_capped(q, k, v, scaling, softcap, sliding_window if is_windowed else None, dropout))
        elif is_windowed:
            mask = _window_mask(q.shape[2], sliding_window, q.device)
            attended.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling))
        else:
            attended.append(scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling))
    return torch.cat([part.transpose(1, 2) for part in attended], dim=1), None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor:
    """True where a token may look: at itself and the window - 1 tokens before it."""
    at = torch.arange(length, device=device)
    back = at[:, None] - at[None, :]
    return (back >= 0) & (back < (window or length))


def _capped(q: Tensor, k: Tensor, v: Tensor, scaling: float, cap: float, window: int | None, dropout: float) -> Tensor:
    """Attention with scores bent to at most `cap` (Gemma 2)."""
    scores = cap * torch.tanh(q @ k.transpose(2, 3) * (scaling / cap))
    scores = scores.masked_fill(~_window_mask(q.shape[2], window, q.device), float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.dropout(weights, dropout, dropout > 0) @ v
