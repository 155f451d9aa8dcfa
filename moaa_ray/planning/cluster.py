"""A cluster in one line of text."""

from difflib import get_close_matches

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.packing_gpus import Cluster, Labels, Node
from moaa_ray.errors import ConfigError

CPUS_PER_GPU = 8
"""CPU slots per GPU where a cluster's text names none."""
MAX_COUNT = 65_536
"""GPUs, or nodes, that one part of a cluster's text may name: some times the largest clusters there are."""
MAX_CPUS = 256 * MAX_COUNT
_KEYS = ("gpus", "gpu", "cpus", "nodes", "labels")


def parse_cluster(text: str) -> Cluster:
    """The cluster that "gpus=8,gpu=H100,cpus=64[,nodes=1][,labels=pool:big;zone:a]" describes, or several such by +.

    gpus and cpus are totals over all nodes of a part. nodes defaults to as many as GPUs of that type usually need (the
    last may hold fewer), cpus to 8 per GPU. Without GPUs, "cpus=16" is enough. Where no part names labels, those of the
    nodes are not known. Raises ConfigError for unknown keys and types, with the nearest.
    """
    parts = [_fields(part) for part in text.split("+")]
    is_labelled = any("labels" in fields for fields in parts)
    return Cluster(nodes=tuple(node for fields in parts for node in _nodes(fields, is_labelled=is_labelled)))


def _fields(part: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for field in part.split(","):
        key, equals, value = (word.strip() for word in field.partition("="))
        if not equals or key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]}? " if near and key not in _KEYS else ""
            raise ConfigError(f"cluster: {field.strip()!r} is not understood; {hint}Write e.g. gpus=8,gpu=H100,cpus=64")
        if key in fields:
            raise ConfigError(
                f"cluster: {key} is named twice, as {fields[key]} and {value}; for nodes that differ join two "
                "descriptions by +, e.g. gpus=8,gpu=H100 + gpus=8,gpu=L40S"
            )
        fields[key] = value
    return fields


def _nodes(fields: dict[str, str], *, is_labelled: bool) -> tuple[Node, ...]:
    num_gpus, num_nodes = _count(fields, "gpus", 0), _count(fields, "nodes", 0)
    gpu = gpu_type(fields["gpu"]) if "gpu" in fields else None
    if num_gpus and gpu is None:
        raise ConfigError(f"cluster: gpus={num_gpus} without a type; add e.g. gpu=H100")
    if gpu and "gpus" not in fields:
        raise ConfigError(f"cluster: gpu={gpu.name} without a number of GPUs; add e.g. gpus=8, or gpus=0 for none")
    if not num_gpus and "cpus" not in fields:
        raise ConfigError("cluster: neither GPUs nor CPUs; write e.g. gpus=8,gpu=H100,cpus=64 or cpus=16")
    num_cpus = _count(fields, "cpus", CPUS_PER_GPU * num_gpus)
    if num_nodes and num_gpus % num_nodes:
        raise ConfigError(
            f"cluster: gpus={num_gpus} is not a multiple of nodes={num_nodes}, and nodes of one description are equal; "
            "join two by +"
        )
    labels = _labels(fields.get("labels", "")) if is_labelled else None
    if gpu is None or not num_gpus:
        num_nodes = num_nodes or 1
        return (Node(num_gpus=0, num_cpus=num_cpus / num_nodes, labels=labels),) * num_nodes
    size = num_gpus // num_nodes if num_nodes else min(num_gpus, gpu.gpus_per_node)
    sizes = [size] * (num_gpus // size) + [num_gpus % size] * (num_gpus % size > 0)
    return tuple(
        Node(num_gpus=each, num_cpus=num_cpus * each / num_gpus, gpu=gpu.name, labels=labels) for each in sizes
    )


def _labels(text: str) -> Labels:
    labels: dict[str, str] = {}
    for pair in text.split(";") if text else []:
        key, _, value = (word.strip() for word in pair.partition(":"))
        if not key or not value:
            raise ConfigError(f"cluster: labels={text}: {pair!r} has no value; write e.g. labels=pool:big;zone:a")
        if key in labels:
            raise ConfigError(f"cluster: labels={text}: {key} is named twice, and a node has one value of it; take one")
        labels[key] = value
    return frozenset(labels.items())


def _count(fields: dict[str, str], key: str, default: int) -> int:
    value = fields.get(key, str(default))
    most = MAX_CPUS if key == "cpus" else MAX_COUNT
    if value.isdecimal() and (len(value) > len(str(most)) or int(value) > most):
        raise ConfigError(f"cluster: {key}={value[:20]} is more than the {most:,} that are planned for; lower it")
    if not value.isdecimal() or (key in fields and key != "gpus" and int(value) == 0):
        raise ConfigError(f"cluster: {key}={value} is not a whole number above 0; write e.g. {key}=8")
    return int(value)
