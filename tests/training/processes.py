"""Several workers joined by gloo, without Ray, and the few parts of a training that checkpoints and exports meet."""

import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from moaa_ray.training.microbatch import lay_out
from moaa_ray.training.step import StepResult, sft_step
from moaa_ray.training.strategies.base import Numerics, World
from moaa_ray.training.strategies.ddp import Ddp
from moaa_ray.training.strategies.fsdp2 import Fsdp2
from moaa_ray.training.strategies.single import Single
from moaa_ray.training.weights import build_student, load_weights
from tests.training.students import make_documents, make_model

STRATEGIES = {"single": Single, "ddp": Ddp, "fsdp2": Fsdp2}
DOCUMENTS = make_documents([100, 31, 17, 64, 40, 23, 77, 12])


def on_workers(num: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What work(*arguments) returns in each of `num` new processes, by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Pool(num) as pool:
        return pool.starmap(_joined, [(rank, num, port, work, arguments) for rank in range(num)], chunksize=1)


def _joined(rank: int, num: int, port: int, work: Callable[..., Any], arguments: tuple) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=num)
    try:
        return work(*arguments)
    finally:
        dist.destroy_process_group()


def world(num_nodes: int = 1) -> World:
    """This process's place among the workers that are joined."""
    if not dist.is_initialized():
        return World()
    size = dist.get_world_size()
    return World(rank=dist.get_rank(), size=size, workers_per_node=size // num_nodes)


def save_model(folder: Path, family: str = "llama", *, shard: str = "50GB") -> Path:
    """A Hugging Face folder of a small random model."""
    make_model(family).save_pretrained(folder, max_shard_size=shard)
    return folder


def make_strategy(name: str, folder: str | Path, *, num_nodes: int = 1, **numerics: Any) -> Any:
    """A strategy of this name, filled from a folder; numerics are the fields of Numerics."""
    strategy = STRATEGIES[name](build_student(folder), world(num_nodes), Numerics(**numerics))
    load_weights(strategy.model, folder)
    return strategy


def take_steps(strategy: Any, first: int, last: int) -> list[StepResult]:
    """SFT steps first..last-1; step i trains on two documents, dealt to one or two workers; of more each has one."""
    place = world()
    results = []
    for step in range(first, last):
        units = [DOCUMENTS[(2 * step + i) % len(DOCUMENTS)] for i in range(max(2, place.size))]
        mine = units if place.size == 1 else [units[place.rank]]
        num_targets = sum(unit.num_targets for unit in units)
        batches = [lay_out([unit]) for unit in mine]
        results.append(sft_step(strategy, batches, num_targets=num_targets, rate=1e-3))
    return results


def state_of(strategy: Any) -> dict[str, torch.Tensor]:
    """Every weight and every optimizer state of a strategy, whole, by name."""
    state = {name: tensor.clone() for name, tensor in strategy.full_parameters()}
    for name, p in strategy.named_parameters():
        for key, value in strategy.optimizer.state[p].items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            state[f"{name}.{key}"] = whole.clone()
    return state


def assert_equal_states(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], *, within: float = 0.0) -> None:
    """Bit-equal, or within a difference relative to the largest element of each tensor."""
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        if within == 0.0:
            assert torch.equal(got[name], tensor), name
        else:
            assert (got[name] - tensor).abs().max() <= within * tensor.abs().max() + 1e-12, name
