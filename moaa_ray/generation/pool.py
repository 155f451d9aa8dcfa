"""A pool of the line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from moaa_ray.generation.worker import PoolWork


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The work of a pool, how many workers it has, and what each of them takes of the cluster."""

    work: PoolWork
    min_replicas: int
    max_replicas: int
    num_cpus: float
    num_gpus: int
    spans_nodes: bool
    blocks_in_flight: int
    node_labels: Mapping[str, str]
    """That the nodes of its workers must have."""
    setup: Mapping[str, Any]
    """What decides the speed of its engines; kept with the figures of the run."""
