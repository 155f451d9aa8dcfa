"""Why a worker process died, as far as Ray knows: was it something its rows can have caused?"""

import ray
from ray.util.state import get_worker
from ray.util.state.exception import RayStateApiException

_BLAMELESS_EXITS = ("NODE_OUT_OF_MEMORY", "INTENDED_SYSTEM_EXIT", "INTENDED_USER_EXIT")


def is_blameless_death(node_id: str, worker_id: str) -> bool:
    """True for a lost node, preemption or the memory monitor; False where Ray knows nothing of the kind."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if node_id not in alive:
        return True
    try:
        worker = get_worker(worker_id, timeout=5)
    except (RayStateApiException, ConnectionError):
        return False
    return getattr(worker, "exit_type", None) in _BLAMELESS_EXITS
