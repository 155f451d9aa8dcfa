"""Documents laid end to end: what one forward pass sees. No padding, and no document sees another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moaa_ray.data.documents import Document


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Documents end to end, T tokens, of which N are predicted by the token before them."""

    tokens: Tensor  # int64 [T]
    positions: Tensor  # int64 [T], from 0 in every document
    offsets: tuple[int, ...]  # where each document starts, and T
    sources: Tensor  # int64 [N]: the place from whose hidden state a target is predicted
    targets: Tensor  # int64 [N]: token ids
    document_of: Tensor  # int64 [N]: the document each target is in

    @property
    def num_documents(self) -> int:
        """Documents in it."""
        return len(self.offsets) - 1

    @property
    def num_targets(self) -> int:
        """Tokens that count."""
        return len(self.targets)

    def to(self, device: torch.device | str) -> "Microbatch":
        """The same on another device."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("tokens", "positions", "sources", "targets", "document_of")
        }
        return Microbatch(offsets=self.offsets, **moved)


def lay_out(documents: Sequence[Document]) -> Microbatch:
    """Lay documents end to end. Raises ValueError for an empty document or none at all."""
    lengths = [len(document.tokens) for document in documents]
    if not lengths or min(lengths) == 0:
        raise ValueError("a microbatch needs documents, and every document tokens")
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.concatenate([document.tokens for document in documents]).astype(np.int64)
    counts = np.concatenate([document.counts for document in documents]).astype(bool)
    counts[offsets[:-1]] = False
    places = np.flatnonzero(counts)
    return Microbatch(
        tokens=torch.from_numpy(tokens),
        positions=torch.from_numpy(np.concatenate([np.arange(n, dtype=np.int64) for n in lengths])),
        offsets=tuple(int(offset) for offset in offsets),
        sources=torch.from_numpy(places - 1),
        targets=torch.from_numpy(tokens[places]),
        document_of=torch.from_numpy(np.searchsorted(offsets, places, side="right") - 1),
    )
