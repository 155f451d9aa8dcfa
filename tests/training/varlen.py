"""What the GPU's attention kernel computes, on the CPU, so that the code that calls it can be run without one."""

from collections.abc import Iterator

import torch
import torch.nn.attention.varlen as varlen
from torch import Tensor


def _parts(q: Tensor, k: Tensor, v: Tensor, q_starts: Tensor, k_starts: Tensor) -> Iterator[tuple[slice, slice]]:
    for i in range(len(q_starts) - 1):
        yield slice(*q_starts[i : i + 2].tolist()), slice(*k_starts[i : i + 2].tolist())


def _heads(tensor: Tensor, part: slice, groups: int = 1) -> Tensor:
    """[T, heads, D] -> a part of it as [heads x groups, t, D]."""
    return tensor[part].transpose(0, 1).repeat_interleave(groups, 0)


def _weights(q: Tensor, k: Tensor, scale: float, window: list[int]) -> tuple[Tensor, Tensor]:
    """Attention weights [H, n, m], aligned at the end as FlashAttention does, and log-sums [H, n]."""
    own, seen = q.shape[1], k.shape[1]
    back = torch.arange(seen)[seen - own :, None] - torch.arange(seen)[None, :]
    left, right = window
    assert right == 0
    is_seen = (back >= 0) & (back <= (left if left >= 0 else seen))
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~is_seen, float("-inf"))
    return scores.softmax(-1), scores.logsumexp(-1)


def _forward(q, k, v, q_starts, k_starts, max_q, max_k, is_causal, scale, window_size, enable_gqa=False, *_):
    assert max_k >= k_starts.diff().max()
    assert max_q >= q_starts.diff().max()
    groups = q.shape[1] // k.shape[1]
    out, sums = torch.empty_like(q), torch.empty(q.shape[1], len(q))
    for own, seen in _parts(q, k, v, q_starts, k_starts):
        weights, sums[:, own] = _weights(_heads(q, own), _heads(k, seen, groups), scale, window_size)
        out[own] = (weights @ _heads(v, seen, groups)).transpose(0, 1)
    return out, sums, torch.zeros(2, dtype=torch.uint64)


def _backward(grad, q, k, v, out, sums, q_starts, k_starts, max_q, max_k, is_causal, rng_state, scale, window_size):
    groups = q.shape[1] // k.shape[1]
    grads = [torch.empty_like(tensor) for tensor in (q, k, v)]
    for own, seen in _parts(q, k, v, q_starts, k_starts):
        queries, keys, values = _heads(q, own), _heads(k, seen, groups), _heads(v, seen, groups)
        weights, _ = _weights(queries, keys, scale, window_size)
        of_out = _heads(grad, own)
        of_weights = of_out @ values.transpose(1, 2)
        of_scores = scale * weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True))
        grads[0][own] = (of_scores @ keys).transpose(0, 1)
        grads[1][seen] = (of_scores.transpose(1, 2) @ queries).unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
        grads[2][seen] = (weights.transpose(1, 2) @ of_out).unflatten(0, (-1, groups)).sum(1).transpose(0, 1)
    return tuple(grads)


def give_cpu_a_kernel() -> None:
    """Register both directions with torch's own operator, for the rest of the process."""
    varlen._varlen_attn.register_kernel("cpu")(_forward)
    varlen._varlen_attn_backward.register_kernel("cpu")(_backward)
