"""Every weight, gradient and optimizer state in one worker only; weights are gathered layer by layer (FSDP2)."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from moaa_ray.training.strategies.base import Numerics, Plain, World, all_sum, prepare_blocks
from moaa_ray.training.student import Student


class Fsdp2(Plain):
    """fully_shard around every decoder layer, then around the rest: embeddings, last norm, output layer.

    Over several nodes weights are sharded within a node and replicated between nodes (HSDP), which keeps most of what
    is sent within a node; Numerics.sharding = "all" shards them over all workers, of which each then holds less.
    """

    def _wrap(self, student: Student) -> nn.Module:
        prepare_blocks(student, self.numerics)
        mesh = device_mesh(self.world, num_replicas(self.world, self.numerics))
        compute = torch.bfloat16 if self.numerics.is_bf16 else None
        policy = MixedPrecisionPolicy(param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False)
        for block in student.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=not self.numerics.keep_gathered)
        fully_shard(student, mesh=mesh, mp_policy=policy)
        self._place(student)
        return student

    def _place(self, student: Student) -> None:
        """After sharding, so that no worker has storage for more than its shards; FSDP sees what _apply changes."""
        device = self.world.device
        student._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))

    @contextmanager
    def microbatch(self, *, is_last: bool) -> Iterator[None]:
        """See Strategy."""
        model = cast(FSDPModule, self.model)
        # Gradients are sharded after every microbatch: kept whole until the last, they would fill each worker's memory.
        if num_replicas(self.world, self.numerics) > 1:
            model.set_requires_all_reduce(is_last)
        model.set_is_last_backward(is_last)
        model.set_reshard_after_backward(is_last or not self.numerics.keep_gathered)
        yield

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See Plain. Away with the gathered copies that a forward call without backward leaves in their places."""
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()
        return super().named_parameters()

    def _grads(self) -> Iterable[Tensor]:
        for p in self.model.parameters():
            if p.grad is not None:
                yield p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad

    def _over_workers(self, total: Tensor) -> Tensor:
        """Every shard once: where weights are replicated between nodes, each node has all of them."""
        return all_sum(total) / num_replicas(self.world, self.numerics)


def num_replicas(world: World, numerics: Numerics) -> int:
    """Copies of every weight among the workers: one a node, or a single one; nodes of one worker shard over all."""
    is_hybrid = numerics.sharding == "node" and world.workers_per_node > 1
    return world.size // world.workers_per_node if is_hybrid else 1


def device_mesh(world: World, num_replicas: int) -> DeviceMesh:
    """One dimension of shards; with several replicas a second one of these."""
    kind = world.device.type
    if num_replicas > 1:
        shape = (num_replicas, world.size // num_replicas)
        return init_device_mesh(kind, shape, mesh_dim_names=("replicas", "shards"))
    return init_device_mesh(kind, (world.size,), mesh_dim_names=("shards",))
