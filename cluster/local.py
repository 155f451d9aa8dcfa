"""A Ray cluster of several nodes on one machine, for development: every node has its own processes and object store.

    python cluster/local.py --nodes 3 --cpus 4

It prints what other shells need, and the process whose kill is the loss of a node; ^C ends this cluster and no other.
"""

import argparse
import os
import secrets
import signal
import socket
import sys
import tempfile
from pathlib import Path

_STORE_BYTES = 200 * 2**20
"""Of each node's object store: they share one /dev/shm."""


def main() -> None:
    """Start the nodes, and wait until told to end."""
    parser = argparse.ArgumentParser(description="A Ray cluster of several nodes on this machine.")
    parser.add_argument("--nodes", type=int, default=3, help="nodes, the head included")
    parser.add_argument("--cpus", type=int, default=4, help="CPU slots of each node but the head, which takes no work")
    chosen = parser.parse_args()
    if chosen.nodes < 2 or chosen.cpus < 1:
        parser.error("--nodes is at least 2 and --cpus at least 1: the head takes no work")
    with tempfile.TemporaryDirectory(prefix="moaa-") as folder:
        token = Path(folder) / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="utf-8")
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token))
        os.environ.setdefault("RAY_DASHBOARD_STARTUP_TIMEOUT_S", "300")  # of a busy machine
        # A job says `python`: this one, also where its environment is not activated.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        _run(chosen.nodes, chosen.cpus, f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token}")


def _run(num_nodes: int, num_cpus: int, access: str) -> None:
    from ray.cluster_utils import Cluster  # it reads the environment when it is imported

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster()
    try:
        options = {"include_dashboard": True, "dashboard_port": _free_port()}  # 8265 may be another cluster's
        cluster.add_node(num_cpus=0, object_store_memory=_STORE_BYTES, **options)
        for number in range(1, num_nodes):
            # Its own: of one for two, a node makes the other's copy of a working directory anew, under its driver.
            folder = f"{cluster.head_node.get_temp_dir_path()}/node-{number}"
            node = cluster.add_node(num_cpus=num_cpus, object_store_memory=_STORE_BYTES, temp_dir=folder)
            (raylet,) = node.all_processes["raylet"]
            print(f"node {number}: {num_cpus} CPU slots; lost by: kill -9 {raylet.process.pid}", flush=True)
        print(f"dashboard: http://{cluster.webui_url}\nexport RAY_ADDRESS={cluster.address} {access}", flush=True)
        print("ready; ^C ends it", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("ending", flush=True)
    finally:
        cluster.shutdown()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    main()
