"""Which node each engine sits on."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from moaa_ray.core.packing_gpus import Cluster, Demand, Node, packs, place

BIG = frozenset({("pool", "big")})
DEMANDS = st.builds(
    Demand,
    num_gpus=st.sampled_from([0, 1, 2, 4, 8, 16]),
    num_cpus=st.sampled_from([0.5, 1.0, 3.0]),
    count=st.integers(0, 6),
    labels=st.sampled_from([frozenset(), BIG]),
)
NODES = st.builds(
    Node,
    num_gpus=st.sampled_from([0, 1, 4, 8]),
    num_cpus=st.sampled_from([2.0, 8.0, 32.0]),
    labels=st.sampled_from([frozenset(), BIG]),
)


@given(st.lists(DEMANDS, max_size=4), st.lists(NODES, min_size=1, max_size=6))
def test_engines_sit_on_nodes_that_have_room_for_them(demands, nodes):
    cluster = Cluster(nodes=tuple(nodes))
    placed = place(demands, cluster)
    assert (placed is not None) == packs(demands, cluster)
    if placed is None:
        return
    gpus, cpus = Counter(), Counter()
    for demand, where in zip(demands, placed, strict=True):
        own = [node for node in nodes if demand.labels <= (node.labels or frozenset())] if demand.labels else nodes
        size = max((node.num_gpus for node in own), default=0)
        parts = -(-demand.num_gpus // size) if demand.num_gpus > size > 0 else 1
        assert len(where) == demand.count * parts
        for number in where:
            gpus[number] += demand.num_gpus if parts == 1 else size
            cpus[number] += demand.num_cpus
            assert demand.labels <= (nodes[number].labels or frozenset())
    assert all(gpus[i] <= node.num_gpus and cpus[i] <= node.num_cpus for i, node in enumerate(nodes))


def test_small_engines_leave_a_node_whole_for_a_large_one():
    """Spread over both nodes, the two small ones would leave no node with four GPUs free."""
    nodes = (Node(num_gpus=4, num_cpus=8),) * 2
    demands = [Demand(num_gpus=1, num_cpus=1, count=2), Demand(num_gpus=4, num_cpus=1, count=1)]
    small, large = place(demands, Cluster(nodes=nodes)) or ([], [])
    assert len(small) == 2
    assert {*small}.isdisjoint(large)
    assert place([*demands, Demand(num_gpus=4, num_cpus=1, count=1)], Cluster(nodes=nodes)) is None
