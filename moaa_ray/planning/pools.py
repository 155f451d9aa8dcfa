"""From the passes of a stage to the pools that answer them, before the planner divides the cluster among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from moaa_ray.core.allocation import LENGTH_SIGMA, PoolSpec
from moaa_ray.core.gpus import GPU_TYPES, GpuType, gpu_type
from moaa_ray.core.packing_gpus import Cluster, Labels
from moaa_ray.core.passes import Pass
from moaa_ray.errors import ConfigError
from moaa_ray.model_folders import with_absolute_paths
from moaa_ray.planning.gpu_types import TYPE_LABEL
from moaa_ray.planning.measured import Measurements, setup_of
from moaa_ray.planning.pool_estimate import EngineEstimate, PassLoad, estimate_engine, with_measured
from moaa_ray.planning.splitting import Choose, split_model, split_words
from moaa_ray.settings.models import FakeModel, Model, ReplicaRange, VllmModel


@dataclass(frozen=True, kw_only=True)
class StagePools:
    """The pools of a stage in line order, and what is known of them."""

    models: Mapping[str, Model]
    """The models that the stage asks, with the numbers that were chosen for them."""
    specs: tuple[PoolSpec, ...]
    row_tokens: Mapping[str, float]
    """Prompt and completion tokens of one row, by pool name."""
    told: Mapping[str, str]
    """How an engine is split and where its speed is from, by pool name."""
    notes: tuple[str, ...]


def stage_pools(
    passes: Sequence[Pass],
    models: Mapping[str, Model],
    loads: Mapping[str, PassLoad],
    *,
    cluster: Cluster,
    base_dir: Path,
    choose: Choose,
    known: Measurements,
) -> StagePools:
    """Runs of passes on the same engine, in line order.

    Args: models, the recipe's; loads, what each pass asks of a row, by pass name; choose, how a model is split whose
    degree is auto; known, what earlier runs have measured. Raises ConfigError, with the sum, when a model fits into no
    engine, and when no node is such as its model wants.
    """
    chosen: dict[str, Model] = {}
    estimates: dict[str, EngineEstimate] = {}
    notes: list[str] = []
    for name in dict.fromkeys(p.engine for p in passes):
        own = [loads[p.name] for p in passes if p.engine == name]
        there = nodes_for(name, models[name], cluster)
        gpu = weakest_gpu(there, notes)
        try:
            chosen[name] = split_model(
                name, models[name], gpu=gpu, cluster=there, loads=own, base_dir=base_dir, choose=choose
            )
            estimate = estimate_engine(name, chosen[name], gpu=gpu, num_gpus=there.num_gpus, base_dir=base_dir)
        except ConfigError as error:
            if len(types := {node.gpu or "not told" for node in there.nodes if node.num_gpus}) < 2:
                raise
            raise ConfigError(
                f"{error}. The smallest of several GPU types ({', '.join(sorted(types))}) counts; give the nodes with "
                f"others a label, and name it under models.{name}.node_labels"
            ) from error
        notes.extend(_between_nodes(name, estimate, there))
        setup = setup_of(with_absolute_paths(chosen[name], base_dir), there if estimate.is_on_gpu else None)
        estimates[name] = with_measured(name, estimate, known.of(setup))
    specs, row_tokens, told = [], {}, {}
    for engine, group in groupby(passes, key=lambda p: p.engine):
        here = [(p.name, loads[p.name]) for p in group]
        estimate = estimates[engine]
        spec = _spec(engine, here, estimate, words=split_words(models[engine], chosen[engine]))
        specs.append(spec)
        notes.extend(estimate.notes)
        if estimate.is_on_gpu and estimate.size is None and "(chosen)" in spec.shape:
            notes.append(
                f"{engine}: tensor_parallel is 1, as its size is not known; set it where that is too few GPUs."
            )
        row_tokens[spec.name] = sum(
            load.num_requests * (load.prompt_tokens + load.completion_tokens) for _, load in here
        )
        kept = chosen[engine].node_labels.get(TYPE_LABEL, "")
        words = [spec.shape, f"only on {kept}" if kept else "", f"speed: {estimate.basis}"]
        told[spec.name] = "; ".join(filter(None, words))
    return StagePools(models=chosen, specs=tuple(specs), row_tokens=row_tokens, told=told, notes=tuple(notes))


def _spec(engine: str, passes: Sequence[tuple[str, PassLoad]], estimate: EngineEstimate, *, words: str) -> PoolSpec:
    model = estimate.model
    least, most = _replica_range(model)
    loads = [load for _, load in passes]
    num_gpus = model.num_gpus if estimate.is_on_gpu else 0
    at_once = max(load.num_requests for load in loads)
    return PoolSpec(
        name="+".join(name for name, _ in passes),
        engine=engine,
        passes=tuple(name for name, _ in passes),
        num_gpus=num_gpus,
        num_cpus=model.num_cpus,
        seconds_per_row=sum(
            load.num_requests * estimate.completion_s(load.prompt_tokens, load.completion_tokens) for load in loads
        ),
        floor_s_per_row=sum(load.num_requests * estimate.floor_s for load in loads),
        min_replicas=least,
        max_replicas=most,
        load_s=estimate.load_s,
        concurrency=max(1, round(model.concurrency / at_once)),
        most_running=max(1, round(_num_running(loads, estimate) / at_once)),
        fan_out=max(1.0, at_once),
        length_sigma=model.length_sigma if isinstance(model, FakeModel) else LENGTH_SIGMA,
        labels=labels_of(model),
        shape=words if num_gpus else "",
    )


def _num_running(loads: Sequence[PassLoad], estimate: EngineEstimate) -> float:
    """Requests that a full engine works on at a time, in the mean over its time with a row's passes."""
    parts = [
        (
            load.num_requests * estimate.completion_s(load.prompt_tokens, load.completion_tokens),
            estimate.num_running(load.prompt_tokens, load.completion_tokens),
        )
        for load in loads
    ]
    total_s = sum(seconds for seconds, _ in parts)
    return sum(seconds * num for seconds, num in parts) / total_s if total_s else estimate.model.concurrency


def _between_nodes(name: str, estimate: EngineEstimate, there: Cluster) -> list[str]:
    """A sentence where every layer of an engine is split over several nodes."""
    model, size = estimate.model, there.largest_node
    if not isinstance(model, VllmModel) or not estimate.is_on_gpu or model.split[0] <= size:
        return []
    return [
        f"{name}: tensor_parallel {model.split[0]} is more than a node's {size} GPU{'s' * (size != 1)}, so every "
        f"layer waits for the network, which the planned speed leaves out; pipeline_parallel over the nodes, "
        f"with tensor_parallel of at most {size}, does not."
    ]


def labels_of(model: Model) -> Labels:
    """The labels that its engines want of a node."""
    return frozenset(model.node_labels.items())


def unchecked_labels(models: Mapping[str, Model], cluster: Cluster) -> list[str]:
    """Sentences on the models whose labels the cluster's nodes may have or not."""
    if all(node.labels is not None for node in cluster.nodes):
        return []
    return [
        f"models.{name}.node_labels is not checked: the labels of this cluster's nodes are not known here."
        for name, model in models.items()
        if labels_of(model)
    ]


def labelled_nodes(field: str, wanted: Labels, cluster: Cluster) -> Cluster:
    """The nodes with all these labels. Raises ConfigError that names the field where there is none."""
    there = cluster.labelled(wanted)
    if not there.nodes:
        known: dict[str, set[str]] = {}
        for key, value in (pair for node in cluster.nodes for pair in node.labels or ()):
            known.setdefault(key, set()).add(value)
        told = "; ".join(f"{key}: {', '.join(sorted(known[key]))}" for key in sorted(known)) or "none"
        raise ConfigError(
            f"{field} = {dict(sorted(wanted))}: no node has all of them; labels of the {len(cluster.nodes)} nodes are "
            f"{told}. Correct them, or start nodes with these labels"
        )
    return there


def nodes_for(name: str, model: Model, cluster: Cluster) -> Cluster:
    """The nodes on which engines of the model section `name` may stand.

    Raises ConfigError where none has its labels, or none has the GPUs that its `device` asks for.
    """
    wanted = labels_of(model)
    there = labelled_nodes(f"models.{name}.node_labels", wanted, cluster)
    if getattr(model, "device", "cpu") == "gpu" and not there.num_gpus:  # engines without weights have no device
        where = "the nodes with its node_labels have" if wanted else "the cluster has"
        raise ConfigError(
            f"models.{name}.device = 'gpu': {where} no GPUs; add nodes with GPUs, or set device: cpu, which is for "
            "small models"
        )
    return there


def weakest_gpu(cluster: Cluster, notes: list[str]) -> GpuType | None:
    """The GPU with the least memory, on which every engine must fit; None without GPUs."""
    names = {node.gpu for node in cluster.nodes if node.num_gpus}
    if not names:
        return None
    known = []
    for name in sorted(names):
        try:
            known.append(gpu_type(name))
        except ConfigError:
            notes.append(
                f"GPU type {name or '(not told)'} is not known here: its speed and memory count as A100-80G's."
            )
            known.append(GPU_TYPES["A100-80G"])
    if len(names) > 1:
        notes.append(
            f"Several GPU types ({', '.join(sorted(names))}): what may stand on all of them is planned as on the "
            "smallest; node_labels of models, sft and dpo can keep them to some."
        )
    return min(known, key=lambda gpu: (gpu.memory_bytes, gpu.bf16_flops))


def _replica_range(model: Model) -> tuple[int, int | None]:
    if isinstance(model.replicas, ReplicaRange):
        return model.replicas.min, model.replicas.max
    return (1, None) if model.replicas == "auto" else (model.replicas, model.replicas)


def least_replicas(model: Model) -> int:
    """The fewest engines that the recipe allows."""
    return _replica_range(model)[0]
