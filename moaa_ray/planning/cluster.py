"""A cluster in one line of text."""

from difflib import get_close_matches

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.errors import ConfigError

CPUS_PER_GPU = 8
"""CPU slots per GPU where a cluster's text names none."""
_KEYS = ("gpus", "gpu", "cpus", "nodes")


def parse_cluster(text: str) -> Cluster:
    """The cluster that "gpus=8,gpu=H100,cpus=64[,nodes=1]" describes; gpus and cpus are totals over all nodes.

    nodes defaults to as many as GPUs of that type usually need (the last may hold fewer), cpus to 8 per GPU. Without
    GPUs, "cpus=16" is enough. Raises ConfigError for unknown keys and types, with the nearest.
    """
    fields: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in _KEYS or key in fields:
            near = get_close_matches(key, _KEYS, n=1)
            hint = f"did you mean {near[0]}? " if near and key not in _KEYS else ""
            raise ConfigError(f"cluster: {part.strip()!r} is not understood; {hint}Write e.g. gpus=8,gpu=H100,cpus=64")
        fields[key] = value
    num_gpus, num_nodes = _count(fields, "gpus", 0), _count(fields, "nodes", 0)
    gpu = gpu_type(fields["gpu"]) if "gpu" in fields else None
    if num_gpus and gpu is None:
        raise ConfigError(f"cluster: gpus={num_gpus} without a type; add e.g. gpu=H100")
    if not num_gpus and "cpus" not in fields:
        raise ConfigError("cluster: neither GPUs nor CPUs; write e.g. gpus=8,gpu=H100,cpus=64 or cpus=16")
    num_cpus = _count(fields, "cpus", CPUS_PER_GPU * num_gpus)
    if num_nodes and num_gpus % num_nodes:
        raise ConfigError(f"cluster: gpus={num_gpus} is not a multiple of nodes={num_nodes}; nodes hold equal numbers")
    if gpu is None or not num_gpus:
        num_nodes = num_nodes or 1
        return Cluster(nodes=(Node(num_gpus=0, num_cpus=num_cpus / num_nodes),) * num_nodes)
    size = num_gpus // num_nodes if num_nodes else min(num_gpus, gpu.gpus_per_node)
    sizes = [size] * (num_gpus // size) + [num_gpus % size] * (num_gpus % size > 0)
    nodes = (Node(num_gpus=each, num_cpus=num_cpus * each / num_gpus, gpu=gpu.name) for each in sizes)
    return Cluster(nodes=tuple(nodes))


def _count(fields: dict[str, str], key: str, default: int) -> int:
    value = fields.get(key, str(default))
    if not value.isdecimal() or (key in fields and key != "gpus" and int(value) == 0):
        raise ConfigError(f"cluster: {key}={value} is not a whole number above 0; write e.g. {key}=8")
    return int(value)
