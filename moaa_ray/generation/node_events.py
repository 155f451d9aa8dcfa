"""How worker processes end: why one died, as far as Ray knows, and an end for one that hangs."""

import os
import signal
from pathlib import Path

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import get_worker
from ray.util.state.exception import RayStateApiException

from moaa_ray.generation.host_stats import Pulse

_BLAMELESS_EXITS = ("NODE_OUT_OF_MEMORY", "INTENDED_SYSTEM_EXIT", "INTENDED_USER_EXIT")
_KILL_LIMIT_S = 15.0


def is_blameless_death(node_id: str, worker_id: str) -> bool:
    """True for a lost node, preemption or the memory monitor; False where Ray knows nothing of the kind."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if node_id not in alive:
        return True
    # Without an address Ray would ask the cluster that was started last on this machine, which may be another one.
    address = ray.get_runtime_context().gcs_address
    try:
        worker = get_worker(worker_id, address=address, timeout=5)
    except (RayStateApiException, ConnectionError, RayError, ValueError):  # it has no dashboard, or one that is busy
        return False
    return getattr(worker, "exit_type", None) in _BLAMELESS_EXITS


def end_hung_worker(pulse: Pulse) -> bool:
    """Kill the process of a pool worker on its node; Ray then starts another in its place. False: it was not there.

    Ray watches nodes, not whether their processes still do something. It cannot ask this one to end either.
    """
    there = NodeAffinitySchedulingStrategy(pulse.node_id, soft=False)
    kill = ray.remote(_kill_pool_worker).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    try:
        return bool(ray.get(kill.remote(pulse.pid), timeout=_KILL_LIMIT_S))
    except (GetTimeoutError, RayError):  # its node is lost or drained, and Ray sees to that
        return False


def _kill_pool_worker(pid: int) -> bool:
    command = Path(f"/proc/{pid}/cmdline")
    try:
        if b"PassWorker" not in command.read_bytes():
            return False
        os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return True
