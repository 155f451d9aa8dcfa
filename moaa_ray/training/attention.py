"""Attention that never crosses a document, as an attention implementation of `transformers`.

On GPUs, in bfloat16, all documents are one call of FlashAttention's kernel for sequences of unequal length (torch's
own). Elsewhere each document is one causal call of scaled_dot_product_attention: the work is the sum of the
squares of the documents' lengths, not the square of their sum.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from moaa_ray.errors import ConfigError

NAME = "moaa_documents"
"""The value of config._attn_implementation."""

_SHARED_HEADS: dict[str, Any] = (
    {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
)
"""torch 2.11 shares key heads among query heads without being told to."""


def register() -> None:
    """Make the implementation known to `transformers`; it gets no mask, as it needs none."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)


def rotate(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Rotary positions, query, key [1, heads, T, D] and cos, sin [1, T, D], as transformers' apply_rotary_pos_emb.

    Computed token by token, as the kernel wants them: compiled, transformers' own writes them head by head and then
    copies them.
    """
    cos, sin = cos[:, :, None], sin[:, :, None]
    half = cos.shape[-1] // 2

    def turned(states: Tensor) -> Tensor:
        states = states.transpose(1, 2)
        other = torch.cat([-states[..., half:], states[..., :half]], dim=-1)
        return (states * cos + other * sin).transpose(1, 2)

    return turned(query), turned(key)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    query_offsets: Tensor,
    key_offsets: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    key_rows: Tensor | None,
    longest: int,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_,
) -> tuple[Tensor, None]:
    """Causal attention within documents (microbatch.Spans). query, key, value [1, heads, T, D] -> [1, T, H, D].

    A sliding_window of w sees a token itself and the w - 1 before it.
    """
    if s_aux is not None:
        raise ConfigError(
            "student: attention sinks (s_aux) are not supported; choose a Llama, Qwen, Gemma or Mistral model"
        )
    if key_rows is not None:
        key, value = key.index_select(2, key_rows), value.index_select(2, key_rows)
    if has_kernel(query, dropout, softcap):
        attended = varlen_attn(
            query[0].transpose(0, 1),
            key[0].transpose(0, 1),
            value[0].transpose(0, 1),
            query_starts,
            key_starts,
            longest,
            longest,
            scale=scaling,
            window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
            **_SHARED_HEADS,
        )
        assert isinstance(attended, Tensor)
        return attended[None], None
    apart = _by_document(query, key, value, query_offsets, key_offsets, scaling, dropout, sliding_window, softcap)  # pyright: ignore[reportCallIssue]: disable() loses the signature
    return apart, None


def has_kernel(query: Tensor, dropout: float, softcap: float | None) -> bool:
    """Whether one call can do it: the kernel knows half precision, no dropout and no softcap."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout and softcap is None


@torch.compiler.disable  # every other number of documents would compile the layer anew
def _by_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    scaling: float,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    """One call for each document; arguments as in attend."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    attended = []
    for q, k, v in zip(_split(query, query_offsets), _split(key, key_offsets), _split(value, key_offsets), strict=True):
        own, seen = q.shape[2], k.shape[2]
        window = sliding_window if sliding_window is not None and seen > sliding_window else None
        mask = None
        if softcap is not None or window is not None or own != seen:
            mask = _mask(own, seen, window, q.device)
        if softcap is not None:
            attended.append(_capped(q, k, v, mask, scaling, softcap, dropout))
        else:
            attended.append(
                scaled_dot_product_attention(
                    q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None, scale=scaling
                )
            )
    return torch.cat([part.transpose(1, 2) for part in attended], dim=1)


def _split(tensor: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
    return tensor.split(offsets.diff().tolist(), dim=2)


def _mask(own: int, seen: int, window: int | None, device: torch.device) -> Tensor:
    """True where a document's own (last) tokens may look: at themselves and the tokens, or window - 1, before them."""
    at = torch.arange(seen, device=device)
    back = at[seen - own :, None] - at[None, :]
    return (back >= 0) & (back < (window or seen))


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, cap: float, dropout: float) -> Tensor:
    """Attention with scores bent to at most `cap` (Gemma 2)."""
    assert mask is not None
    scores = cap * torch.tanh(q @ k.transpose(2, 3) * (scaling / cap))
    scores = scores.masked_fill(~mask, float("-inf"))
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.dropout(weights, dropout, dropout > 0) @ v
