"""On which GPU types of a cluster with several an engine may stand: on all, or on some of them where that is faster.

An engine that may stand on any node is planned as on the smallest type, since it must fit wherever Ray puts it. One
that keeps to some types says so by a label that Ray itself gives every node with GPUs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from moaa_ray.core.gpus import GPU_TYPES, GpuType, gpu_type
from moaa_ray.core.packing_gpus import Cluster, Labels, Node
from moaa_ray.errors import ConfigError
from moaa_ray.settings.models import Model

TYPE_LABEL = "ray.io/accelerator-type"
"""Set by Ray on nodes with GPUs. Source: ray 2.60, _private/resource_and_label_spec.py, _get_default_labels."""


def type_or_usual(name: str) -> GpuType:
    """The type that Ray calls so; A100-80G where it is not known here."""
    try:
        return gpu_type(name)
    except ConfigError:
        return GPU_TYPES["A100-80G"]


def selectors(cluster: Cluster) -> list[str]:
    """What TYPE_LABEL may be asked to be, to leave some of the cluster's GPU types out: Ray's own words for it.

    First each type alone, then every "this or a larger type", the largest alone last. Empty with one type, and where
    labels are known and do not tell the types.
    """
    names = {node.gpu for node in cluster.nodes if node.num_gpus}
    if len(names) < 2 or not all(map(_tells_type, cluster.nodes)):
        return []
    ranked = sorted(names, key=lambda name: (_rank(name), name))
    at_least = [ranked[first:] for first in range(1, len(ranked))]
    alone = [[name] for name in ranked[:-1]]
    return [_selector(types) for types in [*alone, *at_least]]


def with_selectors(cluster: Cluster, models: Iterable[Model]) -> Cluster:
    """The cluster whose nodes have, as labels, all selectors that they meet, for the packing to compare.

    A node whose labels are not known has those that the models want besides.
    """
    if not (found := selectors(cluster)):
        return cluster
    wanted = frozenset(pair for model in models for pair in model.node_labels.items() if pair[0] != TYPE_LABEL)
    types = sorted({node.gpu for node in cluster.nodes if node.num_gpus})
    met = {name: {_selector([name]), *(each for each in found if name in _types_in(each))} for name in types}

    def labelled(node: Node) -> Node:
        own: Labels = wanted if node.labels is None else node.labels
        more = {(TYPE_LABEL, each) for each in met[node.gpu]} if node.num_gpus else set()
        return replace(node, labels=own | more)

    return replace(cluster, nodes=tuple(map(labelled, cluster.nodes)))


def are_apart(choices: Iterable[str]) -> bool:
    """Whether no GPU type is in two choices that differ: else Ray might put engines that could stand elsewhere onto the
    nodes that others need."""
    types = [name for choice in set(choices) for name in _types_in(choice)]
    return len(types) == len(set(types))


def keep_to(models: Mapping[str, Model], kept: Mapping[str, str]) -> dict[str, Model]:
    """The models, of which some keep to GPU types. kept: model section -> selector."""
    return {
        name: model.model_copy(update={"node_labels": {**model.node_labels, TYPE_LABEL: kept[name]}})
        if name in kept
        else model
        for name, model in models.items()
    }


def _tells_type(node: Node) -> bool:
    """Whether Ray can be asked for the node by its GPUs' type."""
    return not node.num_gpus or (bool(node.gpu) and (node.labels is None or (TYPE_LABEL, node.gpu) in node.labels))


def _rank(name: str) -> tuple[float, float]:
    gpu = type_or_usual(name)
    return gpu.memory_bytes, gpu.bf16_flops


def _selector(types: Iterable[str]) -> str:
    names = sorted(types)
    return names[0] if len(names) == 1 else f"in({','.join(names)})"


def _types_in(selector: str) -> set[str]:
    return set(selector.removeprefix("in(").removesuffix(")").split(","))
