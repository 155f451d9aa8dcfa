"""Why a worker process died, as far as Ray knows: was it something its rows can have caused?"""

import ray
from ray.util import state as ray_state

_BLAMELESS_EXITS = ("NODE_OUT_OF_MEMORY", "INTENDED_SYSTEM_EXIT", "INTENDED_USER_EXIT")


def is_blameless_death(node_id: str, worker_id: str) -> bool:
    """True for a lost node, preemption or the memory monitor; False where Ray knows nothing of the kind."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    if node_id not in alive:
        return True
    try:
        worker = ray_state.get_worker(worker_id, timeout=5)
    except (ray_state.exception.RayStateApiException, ConnectionError):
        return False
    return worker is not None and worker.exit_type in _BLAMELESS_EXITS
