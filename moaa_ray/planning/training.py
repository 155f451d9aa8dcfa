"""What the stages sft and dpo would take on a cluster: tokens, steps, hours, memory, cost."""

from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

from moaa_ray.core.batches import check_divides
from moaa_ray.core.gpus import GpuType
from moaa_ray.core.model_size import ModelShape
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.training_cost import (
    ASSUMED_MFU,
    GATHERED_BYTES,
    RESERVE_BYTES,
    START_S,
    TrainingWork,
    lora_state_bytes,
    num_adapter_weights,
    state_bytes,
    training_seconds,
)
from moaa_ray.errors import ConfigError
from moaa_ray.planning.planner import ASSUMED_ROWS
from moaa_ray.planning.pool_estimate import shape_of_model
from moaa_ray.planning.pools import labelled_nodes, weakest_gpu
from moaa_ray.recipe import Run
from moaa_ray.settings.training import DpoConfig, SftConfig, StudentConfig

Stage = Literal["sft", "dpo"]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What `moaa plan` says of a training stage."""

    stage: Stage
    num_rows: int
    work: TrainingWork
    num_epochs: int
    num_steps: int
    num_workers: int
    gpu: str  # "" on CPUs
    seconds: float | None  # None where it is not predicted
    state_bytes: float | None  # on each GPU; None where the student's size is not known, and on CPUs
    cost_usd: float | None
    notes: tuple[str, ...]

    @property
    def gpu_hours(self) -> float:
        """Of all workers; 0 on CPUs."""
        return self.num_workers * (self.seconds or 0.0) / 3600 if self.gpu else 0.0


def plan_training(
    recipe: Run,
    stage: Stage,
    student: StudentConfig,
    cluster: Cluster,
    num_rows: int | None,
    *,
    mean_turns: float = 1.0,
    base_dir: str | Path = ".",
) -> TrainingPlan:
    """The plan of a training stage; num_rows None: not known. Raises ConfigError, with the sum, where it cannot fit."""
    config = recipe.sft if stage == "sft" else recipe.dpo
    notes: list[str] = []
    if num_rows is None:
        notes.append(f"The number of rows is not known: the figures are for {ASSUMED_ROWS:,} rows.")
    rows = ASSUMED_ROWS if num_rows is None else num_rows
    labels = frozenset(config.node_labels.items())
    cluster = labelled_nodes(f"{stage}.node_labels", labels, cluster)
    if labels and any(node.labels is None for node in cluster.nodes):
        notes.append(f"{stage}.node_labels is not checked: the labels of this cluster's nodes are not known here.")
    gpu = weakest_gpu(cluster, notes) if config.device != "cpu" else None
    if gpu is None and config.device == "gpu":
        where = "no node with its node_labels has" if labels else "the cluster has no"
        raise ConfigError(f"{stage}.device = gpu: {where} GPUs; name some, or set device: cpu")
    workers = _num_workers(config, stage, cluster, gpu)
    check_divides(config.batch, workers, config.micro_batch, field=f"{stage}.batch")
    work, units = _work(recipe, config, rows, mean_turns)
    shape = shape_of_model(student.model, Path(base_dir))
    seconds = None
    if shape is None:
        notes.append(f"{student.model}: its size is not known here, so neither time nor memory is predicted.")
    elif gpu is None:
        notes.append("On CPUs the time of training is not predicted.")
    else:
        seconds = training_seconds(shape, work, gpu, workers)
        notes.append(f"Training: {ASSUMED_MFU:.0%} of the peak in bfloat16 and {START_S:.0f} s to start are assumed.")
    held = _check_memory(config, stage, shape, gpu, cluster.largest_node, workers)
    price = recipe.plan.gpu_hour_usd
    num_steps = int(units * config.epochs) // config.batch  # as in training, what fills no step is left out
    if not num_steps:
        kind = "packs" if stage == "sft" else "pairs"
        notes.append(f"About {units * config.epochs:,.0f} {kind} fill no step of {config.batch}: lower {stage}.batch.")
    return TrainingPlan(
        stage=stage,
        num_rows=rows,
        work=work,
        num_epochs=config.epochs,
        num_steps=num_steps,
        num_workers=workers,
        gpu=gpu.name if gpu else "",
        seconds=seconds,
        state_bytes=held,
        cost_usd=price * workers * seconds / 3600 if price is not None and seconds is not None else None,
        notes=tuple(notes),
    )


def _num_workers(config: SftConfig | DpoConfig, stage: Stage, cluster: Cluster, gpu: GpuType | None) -> int:
    if config.strategy == "single":
        return 1
    there = cluster.num_gpus if gpu else 1
    num = there if config.workers == "auto" else config.workers
    if gpu and num > there:
        raise ConfigError(f"{stage}.workers = {num}: the cluster has {there} GPUs; lower it, or set workers: auto")
    return num


def _work(recipe: Run, config: SftConfig | DpoConfig, rows: int, mean_turns: float) -> tuple[TrainingWork, float]:
    """Tokens of the stage, and the units (packs or pairs) of one epoch. The reference reads held-out pairs too."""
    prompt, completion = recipe.plan.prompt_tokens, recipe.plan.completion_tokens
    trained = rows * (1 - config.validation_fraction)
    if isinstance(config, SftConfig):
        length = min(mean_turns * (prompt + completion), config.max_tokens)
        tokens = trained * length
        units = tokens / config.max_tokens if config.packing else trained
        work = TrainingWork(tokens=tokens * config.epochs, mean_length=length, is_lora=config.lora is not None)
        return work, max(1.0, units)
    length = min(prompt + min(completion, recipe.sample.max_tokens), config.max_tokens)
    work = TrainingWork(
        tokens=2.0 * trained * length * config.epochs,
        forward_tokens=2.0 * rows * length,
        mean_length=length,
        is_lora=config.lora is not None,
    )
    return work, trained


def _state_bytes(config: SftConfig | DpoConfig, shape: ModelShape, num_shards: int) -> float:
    """Bytes of the model's state on each GPU, over which it is divided by num_shards."""
    if config.lora is None:
        return state_bytes(shape, num_shards)
    num_adapters = num_adapter_weights(shape, config.lora.rank, config.lora.targets)
    return lora_state_bytes(shape, num_adapters, 2 if config.precision == "bf16" else 4, num_shards)


def _num_shards(config: SftConfig | DpoConfig, node_gpus: int, workers: int) -> int:
    """By how many the state on each GPU is divided, on nodes of so many GPUs; nodes of one GPU shard over all."""
    if config.strategy not in ("fsdp2", "deepspeed"):
        return 1
    is_hybrid = config.strategy == "fsdp2" and config.sharding == "node" and node_gpus > 1
    return min(workers, node_gpus) if is_hybrid else workers


def _check_memory(
    config: SftConfig | DpoConfig,
    stage: Stage,
    shape: ModelShape | None,
    gpu: GpuType | None,
    node_gpus: int,
    workers: int,
) -> float | None:
    """Bytes of the model's state on each GPU. Raises ConfigError where a GPU cannot hold them."""
    if shape is None or gpu is None:
        return None
    if config.cpu_offload:
        return 0.0
    shards = _num_shards(config, node_gpus, workers)
    held, room = _state_bytes(config, shape, shards), gpu.memory_bytes - RESERVE_BYTES
    gathered = shape.num_params * GATHERED_BYTES if config.keep_gathered else 0.0
    node = node_gpus if node_gpus < workers else max(node_gpus, gpu.gpus_per_node)  # more GPUs may be in larger ones
    within = f" (sharded over the {shards} of a node)" if 1 < shards < workers else ""
    if held <= room < held + gathered:
        needed = ceil(_state_bytes(config, shape, 1) / (room - gathered)) if gathered < room else None
        more = f", or {_way_out(config, node, workers, needed)}" if needed else ""
        raise ConfigError(
            f"{stage}.keep_gathered = true: {gathered / 1e9:.0f} GB of gathered weights beside {held / 1e9:.0f} GB of "
            f"weights, gradients and optimizer on each of {workers} GPUs{within}, and a {gpu.name} has "
            f"{room / 1e9:.0f} GB for both; leave it out{more}"
        )
    if held <= room:
        return held
    way_out = _way_out(config, node, workers, ceil(_state_bytes(config, shape, 1) / room))
    offload = "" if config.lora is not None else "set strategy: deepspeed with cpu_offload: true, "
    raise ConfigError(
        f"{stage}: {held / 1e9:.0f} GB of weights, gradients and optimizer on each of {workers} GPUs{within}, and a "
        f"{gpu.name} has {room / 1e9:.0f} GB for them ({gpu.memory_bytes / 1e9:g} GB - {RESERVE_BYTES / 1e9:g} GB for "
        f"activations); {way_out}, {offload}or train a smaller student"
    )


def _way_out(config: SftConfig | DpoConfig, node_gpus: int, workers: int, needed: int) -> str:
    """How the state comes to be divided by `needed`, where so far it is by less."""
    is_sharded = config.strategy in ("fsdp2", "deepspeed")
    if is_sharded and needed <= workers:
        return f"set sharding: all ({needed} GPUs would do)"
    is_wide = config.strategy != "deepspeed" and config.sharding == "node" and 1 < node_gpus < needed
    way_out = f"use {needed} GPUs" if is_sharded else f"set strategy: fsdp2 with workers: {needed}"
    return way_out + " and sharding: all" * is_wide
