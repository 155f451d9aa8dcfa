"""The whole model in every worker; gradients are averaged after the last microbatch."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from moaa_ray.training.strategies.base import Plain, prepare_blocks
from moaa_ray.training.student import Student


class Ddp(Plain):
    """DistributedDataParallel: float32 weights, and bfloat16 arithmetic by autocast where asked for."""

    def _wrap(self, student: Student) -> nn.Module:
        self._place(student)
        prepare_blocks(student, self.numerics)
        device_ids = [self.world.device] if self.world.device.type == "cuda" else None
        return DistributedDataParallel(student, device_ids=device_ids, gradient_as_bucket_view=True)

    @contextmanager
    def microbatch(self, *, is_last: bool) -> Iterator[None]:
        """See Strategy."""
        model = self.model
        assert isinstance(model, DistributedDataParallel)
        autocast = torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.numerics.is_bf16)
        with nullcontext() if is_last else model.no_sync(), autocast:
            yield
