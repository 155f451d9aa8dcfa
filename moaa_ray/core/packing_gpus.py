"""Whether engines really fit on the nodes of a cluster: GPUs of one engine on one node, CPUs beside them.

Nodes with the same free resources are one class with a count, so that a cluster of 4,096 GPUs packs in well under a
millisecond. Engines go largest first, onto the fullest node that still takes them (or, second try, the emptiest, where
CPU slots are what is scarce); that never claims a fit that does not exist, and finds every fit of GPUs when sizes are
powers of two.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

CPU_UNIT = 10_000
"""CPU slots are counted in ten-thousandths, as Ray does, so that 0.1 + 0.2 is 0.3."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine."""

    num_gpus: int
    num_cpus: float
    gpu: str = ""  # a name of gpus.GPU_TYPES; empty: none, or not known


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines a run may use."""

    nodes: tuple[Node, ...]

    @property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.num_gpus for node in self.nodes)

    @property
    def num_cpus(self) -> float:
        """CPU slots of all nodes."""
        return sum(node.num_cpus for node in self.nodes)

    @cached_property
    def classes(self) -> Mapping[tuple[int, int], int]:
        """Nodes by (GPUs, CPU slots in units); counted once, as a plan asks thousands of times whether engines fit."""
        return Counter((node.num_gpus, _units(node.num_cpus)) for node in self.nodes)

    @cached_property
    def largest_node(self) -> int:
        """GPUs of the node with most of them."""
        return max((node.num_gpus for node in self.nodes), default=0)

    def grown(self, num_gpus: int, num_cpus: float) -> "Cluster":
        """The same cluster with more nodes that hold so many GPUs and CPU slots in all, full nodes first."""
        size = self.largest_node or num_gpus
        gpu = next((node.gpu for node in self.nodes if node.num_gpus), "")
        sizes = [size] * (num_gpus // size) + [num_gpus % size] * (num_gpus % size > 0) if size else [0]
        more = [Node(num_gpus=gpus, num_cpus=num_cpus / len(sizes), gpu=gpu) for gpus in sizes]
        return replace(self, nodes=(*self.nodes, *more))


@dataclass(frozen=True, order=True, kw_only=True)
class Demand:
    """So many engines that each take these GPUs and CPU slots."""

    num_gpus: int
    num_cpus: float
    count: int


def packs(demands: Iterable[Demand], cluster: Cluster) -> bool:
    """Whether all engines fit at once.

    An engine with no more GPUs than the largest node must sit on one node; a larger one takes whole empty nodes of the
    largest size, as many as it needs, and its CPU slots on each of them.
    """
    ordered = sorted(demands, reverse=True)
    return any(_packs(ordered, cluster, emptiest_first=emptiest_first) for emptiest_first in (False, True))


def _packs(demands: Sequence[Demand], cluster: Cluster, *, emptiest_first: bool) -> bool:
    free, size = Counter(cluster.classes), cluster.largest_node
    for demand in demands:
        gpus, cpus, count = demand.num_gpus, _units(demand.num_cpus), demand.count
        if gpus > size > 0:
            gpus, count = size, count * -(-gpus // size)
        for node in sorted((node for node, num in free.items() if num), reverse=emptiest_first):
            per_node = _per_node(node, gpus, cpus, count)
            if per_node:
                count -= _take(free, node, gpus, cpus, per_node, count)
        if count:
            return False
    return True


def _units(num_cpus: float) -> int:
    return round(num_cpus * CPU_UNIT)


def _per_node(node: tuple[int, int], gpus: int, cpus: int, count: int) -> int:
    """Engines that one node of this class takes, at most count."""
    by_gpus = node[0] // gpus if gpus else count
    by_cpus = node[1] // cpus if cpus else count
    return min(by_gpus, by_cpus, count)


def _take(
    free: Counter[tuple[int, int]], node: tuple[int, int], gpus: int, cpus: int, per_node: int, count: int
) -> int:
    """Put engines on nodes of one class: as many full ones as there are, then one partly; return how many engines."""
    full = min(free[node], count // per_node)
    rest = count - full * per_node if free[node] > full else 0
    for engines, num_nodes in ((per_node, full), (rest, 1 if rest else 0)):
        if num_nodes:
            free[node] -= num_nodes
            free[node[0] - engines * gpus, node[1] - engines * cpus] += num_nodes
    return full * per_node + rest
