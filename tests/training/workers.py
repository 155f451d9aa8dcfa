"""Training steps in worker processes of their own, joined by gloo: what a strategy does, without Ray."""

import multiprocessing
import socket

import torch
import torch.distributed as dist

from moaa_ray.core.batches import deal
from moaa_ray.training.microbatch import lay_out
from moaa_ray.training.step import PreferenceSettings, StepResult, preference_step, sft_step
from moaa_ray.training.strategies.base import Numerics, World
from moaa_ray.training.strategies.ddp import Ddp
from moaa_ray.training.strategies.deepspeed import DeepSpeed
from moaa_ray.training.strategies.fsdp2 import Fsdp2
from moaa_ray.training.strategies.single import Single
from moaa_ray.training.student import Student
from tests.training.students import make_documents, make_model

STRATEGIES = {"single": Single, "ddp": Ddp, "fsdp2": Fsdp2, "deepspeed": DeepSpeed}
LENGTHS = [100, 2, 31, 17, 64, 5, 40, 23, 9, 77, 12, 50, 33, 8, 21, 60]


def train_steps(
    strategy: str, *, num_workers: int, per_worker: int, family: str = "llama", num_steps: int = 4
) -> list[StepResult]:
    """The results of some SFT steps, then of DPO steps from the start, each on a batch of eight units, on rank 0.

    A second word after "fsdp2" is "gathered", or how weights are sharded where the workers are of two nodes.
    """
    arguments = (strategy, num_workers, per_worker, family, num_steps)
    if strategy == "single":
        return _run(0, *arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    with context.Pool(num_workers) as pool:
        return pool.starmap(_join_and_run, [(rank, port, *arguments) for rank in range(num_workers)])[0]


def _join_and_run(rank: int, port: int, *arguments) -> list[StepResult]:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=arguments[1])
    try:
        return _run(rank, *arguments)
    finally:
        dist.destroy_process_group()


def _run(rank: int, *arguments) -> list[StepResult]:
    torch.set_num_threads(1)
    return [result for objective in ("sft", "dpo") for result in _train(rank, objective, *arguments)]


def _train(
    rank: int, objective: str, name: str, num_workers: int, per_worker: int, family: str, num_steps: int
) -> list[StepResult]:
    kind, _, how = name.partition(" ")
    num_nodes = 2 if how in ("node", "all") else 1
    world = World(rank=rank, size=num_workers, workers_per_node=num_workers // num_nodes)
    numerics = Numerics(keep_gathered=how == "gathered", sharding="all" if how == "all" else "node")
    strategy = STRATEGIES[kind](Student(make_model(family)), world, numerics)
    documents = make_documents(LENGTHS)
    results = []
    for step in range(num_steps):
        if objective == "sft":
            units = [documents[(step * 8 + i) % 16] for i in range(8)]
            dealt = deal(range(8), [len(unit.tokens) for unit in units], num_workers, per_worker)
            micro = [lay_out([units[i] for i in hand]) for hand in dealt[rank]]
            num_targets = sum(unit.num_targets for unit in units)
            results.append(sft_step(strategy, micro, num_targets=num_targets, rate=1e-3))
            continue
        units = [(documents[i], documents[(i + step + 1) % 16]) for i in range(8)]
        dealt = deal(range(8), [len(a.tokens) + len(b.tokens) for a, b in units], num_workers, per_worker)
        micro = [lay_out([document for i in hand for document in units[i]]) for hand in dealt[rank]]
        references = [torch.tensor([-5.0 * d.num_targets for i in hand for d in units[i]]) for hand in dealt[rank]]
        settings = PreferenceSettings(sft_weight=0.1)
        chosen = sum(a.num_targets for a, _ in units)
        results.append(
            preference_step(strategy, micro, references, settings, num_pairs=8, num_chosen_targets=chosen, rate=1e-3)
        )
    return results
