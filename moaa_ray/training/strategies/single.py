"""One process and one device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moaa_ray.training.strategies.base import Plain


class Single(Plain):
    """The whole model in this process: float32 weights, and bfloat16 arithmetic by autocast where asked for."""

    @contextmanager
    def microbatch(self, *, is_last: bool) -> Iterator[None]:
        """See Strategy."""
        with torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.numerics.is_bf16):
            yield
