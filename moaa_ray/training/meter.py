"""What is told of every step beside its loss: time, tokens a second, MFU, memory."""

import resource
import time
from typing import Any

import torch

from moaa_ray.core.batches import BatchPlan
from moaa_ray.training.feed import StepData
from moaa_ray.training.flops import peak_flops, shape_of, step_flops
from moaa_ray.training.step import StepResult
from moaa_ray.training.strategies.base import World
from moaa_ray.training.student import Student


class Meter:
    """Makes the metrics line of every step; its clock runs from restart() to line()."""

    def __init__(self, student: Student, world: World, plan: BatchPlan):
        self._shape = shape_of(student.model)
        self._world = world
        self._plan = plan
        name = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
        self._peak = peak_flops(name)
        self._began = time.monotonic()

    def restart(self) -> None:
        """The next step begins."""
        self._began = time.monotonic()

    def line(self, step: int, data: StepData, result: StepResult, *, rate: float) -> dict[str, Any]:
        """What a line of metrics holds: counts are global, MFU and peak memory this worker's."""
        seconds = time.monotonic() - self._began
        line = {
            "step": step,
            "num_steps": self._plan.num_steps,
            "epoch": self._plan.epoch_of(step),
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "learning_rate": rate,
            **result.metrics,
            "tokens": data.num_tokens,
            "targets": data.num_targets,
            "time": time.time(),
            "seconds": seconds,
            "tokens_per_s": data.num_tokens / seconds,
            "memory_bytes": self._memory(),
        }
        if self._peak is not None:
            line["mfu"] = self._flops(data) / seconds / self._peak
        return line

    def _flops(self, data: StepData) -> float:
        """Operations of this worker's part of the step."""
        documents = [shape for batch in data.microbatches for shape in batch.spans.shapes]
        return step_flops(self._shape, documents, sum(batch.num_targets for batch in data.microbatches))

    def _memory(self) -> int:
        if self._world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._world.device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
