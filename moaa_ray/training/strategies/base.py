"""What the loop asks of a strategy: one optimizer step as forward, backward and update, over all workers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import sqrt
from typing import Any, Literal, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moaa_ray.errors import MoaaError, StageError
from moaa_ray.training.memory import is_lack_of_memory
from moaa_ray.training.optimizer import AdamWSettings, build_adamw, scale_grads, squared_norm
from moaa_ray.training.student import Student
from moaa_ray.training.weights import give_storage, plain_name

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class World:
    """Where this process stands among the workers."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers_per_node: int = 1
    is_leaving: Callable[[], bool] = lambda: False
    """Whether a worker's node is newly said to be taken away soon; all workers ask together and hear the same."""


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What a strategy needs to know of how the model computes."""

    is_bf16: bool = False
    activation_checkpointing: bool = False
    compile: bool = False
    keep_gathered: bool = False
    """fsdp2: weights stay gathered through a step instead of being gathered twice for every microbatch."""
    sharding: Literal["node", "all"] = "node"
    """fsdp2: over the workers of one node, with replicas between nodes (HSDP), or over all workers."""
    max_grad_norm: float = 1.0
    adamw: AdamWSettings = field(default_factory=AdamWSettings)


class Strategy(Protocol):
    """One way to spread a model and its training over workers."""

    model: nn.Module
    """Called as Student is called."""
    student: Student
    optimizer: torch.optim.Optimizer
    world: World

    def microbatch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of one microbatch; gradients meet across workers in the last one."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Backward of this worker's share of a loss that is already divided by the global count."""
        ...

    def update(self, rate: float) -> float:
        """Clip, take the optimizer step at this learning rate, clear gradients; returns the global norm before it."""
        ...

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name in the model's own files, whole tensor), one at a time; all workers go through it together."""
        ...


class Plain:
    """One process: the whole model, all gradients. The base of what averages or shards them."""

    def __init__(self, student: Student, world: World, numerics: Numerics):
        self.student = student
        self.world = world
        self.numerics = numerics
        self.model: nn.Module = self._wrap(student)
        self.optimizer = build_adamw(self.model, numerics.adamw)

    def _wrap(self, student: Student) -> nn.Module:
        self._place(student)
        prepare_blocks(student, self.numerics)
        return student

    def _place(self, student: Student) -> None:
        """Weights and buffers to this worker's device; weights without storage get it, to be filled later."""
        give_storage(student, self.world.device)
        student.to(self.world.device)

    def microbatch(self, *, is_last: bool) -> AbstractContextManager[None]:
        """See Strategy."""
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See Strategy. Workers' gradients are averaged, and the loss is a share of a sum: hence the factor."""
        (loss * self.world.size).backward()

    def update(self, rate: float) -> float:
        """See Strategy."""
        grads = list(self._grads())
        norm = sqrt(float(self._over_workers(squared_norm(grads))))
        scale_grads(grads, norm, self.numerics.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """See Strategy."""
        for name, p in self.named_parameters():
            yield name, p.data.full_tensor() if isinstance(p.data, DTensor) else p.data

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by their names in the model's own files, tied ones once, as the optimizer knows them."""
        return ((plain_name(name), p) for name, p in self.model.named_parameters())

    def _grads(self) -> Iterable[Tensor]:
        return (p.grad for p in self.model.parameters() if p.grad is not None)

    def _over_workers(self, total: Tensor) -> Tensor:
        """The sum of squares over all workers, from this one's."""
        return total


def prepare_blocks(student: Student, numerics: Numerics) -> None:
    """Activation checkpointing, then compilation, of every decoder layer, in place: what wraps them comes after.

    Compiled is what a layer computes, not the layer: strategies hang what they do around its call on that.
    """
    for name, block in student.blocks.named_children():
        if numerics.activation_checkpointing:
            from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

            block = checkpoint_wrapper(block)
            student.blocks.register_module(name, block)
        if numerics.compile:
            block.forward = torch.compile(block.forward, dynamic=True)
    if numerics.compile:
        student.head.compile()


def all_sum(values: Tensor) -> Tensor:
    """The sum over all workers, in place; of one worker, as it is."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
    return values


def all_gathered(value: Any) -> list[Any]:
    """The values of all workers, by rank, in each of them."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_first(work: Callable[[], Answer]) -> Answer:
    """What `work` returns in the first worker, which alone calls it, in all of them; they all raise what it raises.

    Errors that are not of ours become a StageError, or a MemoryError: the others would wait for ever for one that went
    its own way.
    """
    if not dist.is_initialized():
        return work()
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told[0] = work()
        except MoaaError as error:
            told[1] = error
        except Exception as error:  # whatever it is, the others are waiting
            said = f"the first worker failed: {type(error).__name__}: {error}"
            told[1] = MemoryError(said) if is_lack_of_memory(error) else StageError(said)
    dist.broadcast_object_list(told)
    if told[1] is not None:
        raise told[1]
    return told[0]
