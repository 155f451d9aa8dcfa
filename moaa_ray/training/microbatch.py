"""Documents laid end to end: what one forward pass sees. No padding, and no document sees another.

A pair's two completions may share their prompt: it is laid once, before the chosen completion, and the rejected one
sees its keys and values as if it stood there too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moaa_ray.data.documents import Document


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Whose keys each document's queries see: query i from a document's end sees all its keys but the last i."""

    query_offsets: Tensor  # int64 [documents + 1], on the CPU: where each document's own tokens start, and T
    key_offsets: Tensor  # the same among the keys: a shared prompt's come before a document's own
    query_starts: Tensor  # int32 [documents + 1]: query_offsets where the microbatch is
    key_starts: Tensor  # int32 [documents + 1]
    key_rows: Tensor | None  # int64 [K]: the token that each key is of; None: every token once, in order
    longest: int  # keys of the document that has most

    def to(self, device: torch.device | str) -> "Spans":
        """The same on another device."""
        stays = ("query_offsets", "key_offsets")
        moved = {name: value if name in stays else _moved(value, device) for name, value in self.arguments().items()}
        return Spans(**moved)

    def arguments(self) -> dict[str, Any]:
        """Its fields by name, as attention.attend takes them."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(own tokens, keys) of every document."""
        return list(zip(self.query_offsets.diff().tolist(), self.key_offsets.diff().tolist(), strict=True))


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Documents end to end, T tokens, of which N are predicted by the token before them."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], from 0 in every document
    spans: Spans
    sources: Tensor  # int64 [N]: the place from whose hidden state a target is predicted
    targets: Tensor  # int64 [N]: token ids
    document_of: Tensor  # int64 [N]: the document each target is in
    counts: Tensor  # int64 [documents]: targets of each

    @property
    def num_documents(self) -> int:
        """Documents in it."""
        return len(self.spans.query_offsets) - 1

    @property
    def num_targets(self) -> int:
        """Tokens that count."""
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Microbatch":
        """The same on another device."""
        return Microbatch(**{field.name: _moved(getattr(self, field.name), device) for field in fields(self)})


def _moved(value: Any, device: torch.device | str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    return value.to(device) if isinstance(value, Spans) else value


def lay_out(documents: Sequence[Document], *, share_prompts: bool = False) -> Microbatch:
    """Lay documents end to end. Raises ValueError for an empty document or none at all.

    share_prompts: they are pairs, and what both begin with, before the first token that counts, is laid once.
    """
    lengths = [len(document.tokens) for document in documents]
    if not lengths or min(lengths) == 0:
        raise ValueError("a microbatch needs documents, and every document tokens")
    shared = [0] * len(documents)
    if share_prompts:
        shared[1::2] = [_common_prompt(*pair) for pair in zip(documents[::2], documents[1::2], strict=True)]
    starts = np.concatenate([[0], np.cumsum(np.subtract(lengths, shared))])
    rows = [start - cut + np.arange(n) for start, cut, n in zip(starts, shared, lengths, strict=False)]
    for i in np.flatnonzero(shared):
        rows[i][: shared[i]] = rows[i - 1][: shared[i]]
    places = [np.flatnonzero(document.counts[1:]) + 1 for document in documents]
    counts = torch.tensor([len(at) for at in places])
    own = [slice(cut, None) for cut in shared]
    return Microbatch(
        tokens=_int64([document.tokens[part] for document, part in zip(documents, own, strict=True)]),
        positions=_int64([np.arange(cut, n) for cut, n in zip(shared, lengths, strict=True)]),
        spans=_spans(starts, lengths, rows if any(shared) else None),
        sources=_int64([of[at - 1] for of, at in zip(rows, places, strict=True)]),
        targets=_int64([document.tokens[at] for document, at in zip(documents, places, strict=True)]),
        document_of=torch.arange(len(documents)).repeat_interleave(counts),
        counts=counts,
    )


def _common_prompt(chosen: Document, rejected: Document) -> int:
    """Tokens that both begin with, up to the first that counts in either."""
    end = min(len(chosen.tokens), len(rejected.tokens))
    is_other = (chosen.tokens[:end] != rejected.tokens[:end]) | chosen.counts[:end] | rejected.counts[:end]
    return int(np.argmax(is_other)) if is_other.any() else 0


def _spans(starts: np.ndarray, lengths: Sequence[int], rows: Sequence[np.ndarray] | None) -> Spans:
    key_starts = np.concatenate([[0], np.cumsum(lengths)])
    return Spans(
        query_offsets=torch.from_numpy(starts),
        key_offsets=torch.from_numpy(key_starts),
        query_starts=torch.from_numpy(starts.astype(np.int32)),
        key_starts=torch.from_numpy(key_starts.astype(np.int32)),
        key_rows=None if rows is None else _int64(rows),
        longest=max(lengths),
    )


def _int64(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
