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
from typing import NamedTuple

Labels = frozenset[tuple[str, str]]
"""(key, value) pairs of a node, or those that an engine wants of one."""

CPU_UNIT = 10_000
"""CPU slots are counted in ten-thousandths, as Ray does, so that 0.1 + 0.2 is 0.3."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """One machine."""

    num_gpus: int
    num_cpus: float
    gpu: str = ""  # a name of gpus.GPU_TYPES; empty: none, or not known
    labels: Labels | None = None  # None: not known; then it is taken to have whatever an engine wants


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines a run may use."""

    nodes: tuple[Node, ...]

    @cached_property
    def num_gpus(self) -> int:
        """GPUs of all nodes."""
        return sum(node.num_gpus for node in self.nodes)

    @cached_property
    def num_cpus(self) -> float:
        """CPU slots of all nodes."""
        return sum(node.num_cpus for node in self.nodes)

    @cached_property
    def classes(self) -> Mapping["_Class", int]:
        """Nodes by class; counted once, as a plan asks thousands of times whether engines fit."""
        return Counter((node.num_gpus, _units(node.num_cpus), node.labels) for node in self.nodes)

    @cached_property
    def largest_node(self) -> int:
        """GPUs of the node with most of them."""
        return max((node.num_gpus for node in self.nodes), default=0)

    def labelled(self, labels: Labels) -> "Cluster":
        """The nodes that have all these labels, or whose labels are not known."""
        return replace(self, nodes=tuple(node for node in self.nodes if _has(node.labels, labels))) if labels else self

    def grown(self, num_gpus: int, num_cpus: float) -> "Cluster":
        """The same cluster with more nodes that hold so many GPUs and CPU slots in all, full nodes first."""
        size = self.largest_node or num_gpus
        gpu = next((node.gpu for node in self.nodes if node.num_gpus), "")
        sizes = [size] * (num_gpus // size) + [num_gpus % size] * (num_gpus % size > 0) if size else [0]
        more = [Node(num_gpus=gpus, num_cpus=num_cpus / len(sizes), gpu=gpu) for gpus in sizes]
        return replace(self, nodes=(*self.nodes, *more))


_Class = tuple[int, int, Labels | None]
"""Nodes that are alike: free GPUs, free CPU slots in units, labels."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """So many engines that each take these GPUs and CPU slots."""

    num_gpus: int
    num_cpus: float
    count: int
    labels: Labels = frozenset()  # that its nodes must have


def packs(demands: Iterable[Demand], cluster: Cluster) -> bool:
    """Whether all engines fit at once.

    An engine with no more GPUs than the largest node must sit on one node; a larger one takes whole empty nodes of the
    largest size, as many as it needs, and its CPU slots on each of them.
    """
    return _layout(list(demands), cluster) is not None


def place(demands: Sequence[Demand], cluster: Cluster) -> list[list[int]] | None:
    """For each demand the numbers of the nodes on which its engines sit, one entry an engine; None: they do not fit.

    An engine that takes several nodes has one entry for each of them.
    """
    layout = _layout(demands, cluster)
    if layout is None:
        return None
    nodes: dict[_Class, list[int]] = {}
    for number, node in enumerate(cluster.nodes):
        nodes.setdefault((node.num_gpus, _units(node.num_cpus), node.labels), []).append(number)
    placed: list[list[int]] = [[] for _ in demands]
    for step in layout:
        taken = [nodes[step.before].pop() for _ in range(step.num_nodes)]
        nodes.setdefault(step.after, []).extend(taken)
        placed[step.demand] += [node for node in taken for _ in range(step.engines)]
    return placed


class _Step(NamedTuple):
    """So many nodes of one class each take so many engines of a demand, and are of another class then."""

    demand: int
    engines: int
    num_nodes: int
    before: "_Class"
    after: "_Class"


def _layout(demands: Sequence[Demand], cluster: Cluster) -> list[_Step] | None:
    """The steps that put every engine somewhere; None: they do not all fit at once."""

    def rank(i: int) -> tuple:
        return bool(demands[i].labels), demands[i].num_gpus, demands[i].num_cpus, demands[i].count

    if sum(d.num_gpus * d.count for d in demands) > cluster.num_gpus:
        return None
    order = sorted(range(len(demands)), key=rank, reverse=True)
    tries = (_try(demands, order, cluster, emptiest_first=emptiest_first) for emptiest_first in (False, True))
    return next((steps for steps in tries if steps is not None), None)


def _try(
    demands: Sequence[Demand], order: Sequence[int], cluster: Cluster, *, emptiest_first: bool
) -> list[_Step] | None:
    free, steps = dict(cluster.classes), []
    for i in order:
        demand = demands[i]
        size = cluster.largest_node
        gpus, cpus, count, labels = demand.num_gpus, _units(demand.num_cpus), demand.count, demand.labels
        if labels:
            size = max((node[0] for node in cluster.classes if _has(node[2], labels)), default=0)
        if gpus > size > 0:
            gpus, count = size, count * -(-gpus // size)
        nodes = [node for node, num in free.items() if num and (not labels or _has(node[2], labels))]
        for node in sorted(nodes, key=_free_of, reverse=emptiest_first):
            per_node = _per_node(node, gpus, cpus, count)
            if per_node:
                new = _take(free, node, gpus, cpus, per_node, count, demand=i)
                count -= sum(step.engines * step.num_nodes for step in new)
                steps += new
        if count:
            return None
    return steps


def _units(num_cpus: float) -> int:
    return round(num_cpus * CPU_UNIT)


def _has(labels: Labels | None, wanted: Labels) -> bool:
    return labels is None or wanted <= labels


def _free_of(node: _Class) -> tuple[int, int]:
    return node[:2]


def _per_node(node: _Class, gpus: int, cpus: int, count: int) -> int:
    """Engines that one node of this class takes, at most count."""
    by_gpus = node[0] // gpus if gpus else count
    by_cpus = node[1] // cpus if cpus else count
    return min(by_gpus, by_cpus, count)


def _take(
    free: dict[_Class, int], node: _Class, gpus: int, cpus: int, per_node: int, count: int, *, demand: int
) -> list[_Step]:
    """Put engines on nodes of one class: as many full ones as there are, then one partly."""
    full = min(free[node], count // per_node)
    rest = count - full * per_node if free[node] > full else 0
    steps = []
    for engines, num_nodes in ((per_node, full), (rest, 1 if rest else 0)):
        if num_nodes:
            free[node] -= num_nodes
            rest_of = (node[0] - engines * gpus, node[1] - engines * cpus, node[2])
            free[rest_of] = free.get(rest_of, 0) + num_nodes
            steps.append(_Step(demand, engines, num_nodes, node, rest_of))
    return steps
