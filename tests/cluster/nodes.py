"""Ray clusters of several nodes on this machine, for tests that lose and add some."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from tests.generation import kills, runs

_STORE_BYTES = 10**8


@contextmanager
def cluster(*, head_cpus: float, with_dashboard: bool = False) -> Iterator[Cluster]:
    """A head that misses a lost node within seconds.

    Blocks lie in the nodes' object stores, so that a lost node takes some. Ray Train needs the dashboard.
    """
    system = {"health_check_period_ms": 1000, "health_check_failure_threshold": 5, "max_direct_call_object_size": 1000}
    with tempfile.TemporaryDirectory(prefix="moaa-", ignore_cleanup_errors=True) as temp_dir, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        head = {"num_cpus": head_cpus, "object_store_memory": _STORE_BYTES, "temp_dir": temp_dir}
        head |= {"include_dashboard": with_dashboard, "dashboard_port": port, "_system_config": system}
        started = Cluster(initialize_head=True, head_node_args=head)
        try:
            yield started
        finally:
            started.shutdown()


def wait_for(cluster: Cluster, *, num_nodes: int) -> None:
    """Until so many nodes live in the cluster."""
    client = GcsClient(address=cluster.address)
    kills.wait_until(lambda: sum(node.state == 0 for node in client.get_all_node_info().values()) == num_nodes)


class Node:
    """A node of a cluster, and its processes."""

    def __init__(self, cluster: Cluster, num_cpus: float, *, num_gpus: int = 0, labels: dict[str, str] | None = None):
        self.node = cluster.add_node(
            num_cpus=num_cpus, num_gpus=num_gpus, labels=labels, object_store_memory=_STORE_BYTES
        )
        self.raylet = self.node.all_processes["raylet"][0].process.pid
        self._session = os.getsid(self.raylet)
        self._address = cluster.address

    def processes(self, name: str) -> set[int]:
        """Processes of this name that run on this node."""
        return set(kills.named(kills.processes(self._session), name)) & set(runs.descendants(self.raylet))

    def pool_workers(self) -> set[int]:
        """Pool workers on this node that take blocks."""
        return set(kills.pool_workers(self._session)) & set(runs.descendants(self.raylet))

    def give_notice(self, *, seconds: int) -> None:
        """Say that the node will be taken away, as an autoscaler does of a spot node; nothing else happens to it."""
        client = GcsClient(address=self._address)
        reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        accepted, why = client.drain_node(self.node.node_id, reason, "test", int(1000 * (time.time() + seconds)))
        assert accepted, why

    def lose(self) -> None:
        """Kill the node with all that runs on it."""
        kills.kill([self.raylet, *runs.descendants(self.raylet)])
