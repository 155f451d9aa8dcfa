"""Where the workers of a line sit, on a cluster of several nodes with GPUs.

Ray spreads actors over all nodes. That would leave no node whole for an engine that needs all its GPUs, although the
plan has counted that it fits. So workers are put where the planner's own packing puts them (core/packing_gpus.py):
engines over several nodes first, each in a placement group, then the others, largest first. A worker whose node is
lost, and one that a pool grows by, goes wherever Ray finds room.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from moaa_ray.core.packing_gpus import Cluster, Demand, Node, place
from moaa_ray.generation.pool import Pool
from moaa_ray.planning.gpu_types import with_selectors

_NODE_ID = "ray.io/node-id"
"""A label that every node has for itself; nodes that differ in nothing else are alike to the planner."""
_GROUP_LIMIT_S = 60.0

SeatOf = Callable[[], dict[str, Any]]
"""Ray arguments of a pool's next worker."""


def live_nodes() -> dict[str, Node]:
    """The nodes of the connected cluster by their ids."""
    nodes = {}
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        found, labels = node["Resources"], node.get("Labels") or {}
        kinds = [key.split(":")[1] for key in found if key.startswith("accelerator_type:")]
        nodes[node["NodeID"]] = Node(
            num_gpus=int(found.get("GPU", 0)),
            num_cpus=found.get("CPU", 0.0),
            gpu=kinds[0] if kinds else "",
            labels=frozenset((key, value) for key, value in labels.items() if key != _NODE_ID),
        )
    return nodes


@contextmanager
def seats(pools: Sequence[Pool]) -> Iterator[list[SeatOf]]:
    """For each pool the arguments of its workers, one after the other; what was reserved is given back at the end."""
    groups: list[PlacementGroup] = []

    def over_nodes(pool: Pool) -> PlacementGroup:
        """One bundle per GPU."""
        labels = [dict(pool.node_labels)] * pool.num_gpus if pool.node_labels else None
        bundles = [{"GPU": 1.0, "CPU": 1.0}] * pool.num_gpus
        groups.append(placement_group(bundles, strategy="PACK", bundle_label_selector=labels))  # pyright: ignore[reportArgumentType]: it takes None
        return groups[-1]

    try:
        reserved = [[over_nodes(pool) for _ in range(pool.min_replicas)] if pool.spans_nodes else [] for pool in pools]
        nodes = _nodes_of(pools, groups)
        yield [
            _in_groups(held, lambda pool=pool: over_nodes(pool)) if pool.spans_nodes else _on_nodes(pool, where)
            for pool, held, where in zip(pools, reserved, nodes, strict=True)
        ]
    finally:
        for group in groups:
            remove_placement_group(group)


def _in_groups(reserved: Sequence[PlacementGroup], another: Callable[[], PlacementGroup]) -> SeatOf:
    waiting = list(reserved)

    def seat() -> dict[str, Any]:
        group = waiting.pop(0) if waiting else another()
        return {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
            )
        }

    return seat


def _on_nodes(pool: Pool, nodes: Sequence[str]) -> SeatOf:
    waiting = list(nodes)

    def seat() -> dict[str, Any]:
        if waiting:
            return {"scheduling_strategy": NodeAffinitySchedulingStrategy(waiting.pop(0), soft=True)}
        return {"label_selector": dict(pool.node_labels)} if pool.node_labels else {}

    return seat


def _nodes_of(pools: Sequence[Pool], groups: Sequence[PlacementGroup]) -> list[list[str]]:
    """For each pool the ids of its workers' nodes; none where there is nothing to choose, or no way found."""
    nothing: list[list[str]] = [[] for _ in pools]
    nodes = live_nodes()
    if sum(node.num_gpus > 0 for node in nodes.values()) < 2:
        return nothing
    if groups:
        ray.wait([group.ready() for group in groups], num_returns=len(groups), timeout=_GROUP_LIMIT_S)
    taken = Counter(node for group in groups for node in _bundles(group))
    free = {
        key: replace(node, num_gpus=node.num_gpus - taken[key], num_cpus=node.num_cpus - taken[key])
        for key, node in nodes.items()
    }
    demands = [_demand(pool) for pool in pools]
    placed = place(demands, with_selectors(Cluster(nodes=tuple(free.values())), ()))
    ids = list(free)
    return nothing if placed is None else [[ids[number] for number in where] for where in placed]


def _bundles(group: PlacementGroup) -> list[str]:
    """The node of each bundle that has one."""
    found = placement_group_table(group).get("bundles_to_node_id", {})
    return [node for node in found.values() if node]


def _demand(pool: Pool) -> Demand:
    labels = frozenset(pool.node_labels.items())
    count = 0 if pool.spans_nodes else pool.min_replicas
    return Demand(num_gpus=pool.num_gpus, num_cpus=pool.num_cpus, count=count, labels=labels)
