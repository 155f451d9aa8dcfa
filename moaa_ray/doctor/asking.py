"""Asks every node of a cluster for its facts, by a task that runs nowhere else; and what no stage begins on."""

import time
import uuid
from dataclasses import replace
from typing import Any

import ray
from ray._private.worker import get_dashboard_url  # there is no public way to it
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from moaa_ray.data.store import open_store
from moaa_ray.doctor.facts import PROBES, NodeFacts, collect
from moaa_ray.doctor.findings import unfit
from moaa_ray.errors import ConfigError

_ANSWER_WITHIN_S = 120.0
_HEAD = "node:__internal_head__"
_OWN_PORTS = (("node manager", "NodeManagerPort"), ("object manager", "ObjectManagerPort"))


def check_nodes(run_dir: str) -> None:
    """Raise ConfigError when a node of the connected cluster cannot work on a run with this process.

    It has another Python, Ray, vLLM or moaa_ray, or does not see the run directory. A node that does not answer is no
    reason: it may be about to go.
    """
    if sum(node["Alive"] for node in ray.nodes()) > 1 and (told := unfit(*ask_all(run_dir), run_dir=run_dir)):
        raise ConfigError(f"{told}; `moaa doctor` shows the whole cluster")


def ask_all(run_dir: str) -> tuple[NodeFacts, list[NodeFacts]]:
    """The facts of this process and of every living node. run_dir: where they show each other files; empty: nowhere."""
    probe = f"driver-{uuid.uuid4().hex[:8]}"
    nodes = [node for node in ray.nodes() if node["Alive"]]
    driver = collect(probe, run_dir=run_dir, ports=_ports_from_here(nodes))
    try:
        return driver, _ask(nodes, run_dir, probe)
    finally:
        if run_dir and not driver.storage_error:
            open_store(run_dir).delete_folder(PROBES)


def _ports_from_here(nodes: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """What the driver connects to: every node's ports, and the dashboard, which is also the job server."""
    found = {}
    for node in nodes:
        for what, port in (*_OWN_PORTS, ("metrics", "MetricsExportPort")):
            found |= _port(f"{what} of {node['NodeName']}", node["NodeManagerAddress"], node[port])
    host, _, port = (get_dashboard_url() or "").rpartition(":")
    return found | (_port("dashboard and job server", host, int(port)) if port.isdecimal() else {})


def _ports_of_head(nodes: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    """What every node connects to."""
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    found = _port("GCS of the head", host, int(port))
    for head in (node for node in nodes if _HEAD in node["Resources"]):
        for what, name in _OWN_PORTS:
            found |= _port(f"{what} of the head", head["NodeManagerAddress"], head[name])
    return found


def _port(what: str, host: str, port: int) -> dict[str, tuple[str, int]]:
    return {f"{what} ({host}:{port})": (host.strip("[]"), port)} if port else {}


def _ask(nodes: list[dict[str, Any]], run_dir: str, probe: str) -> list[NodeFacts]:
    if not nodes:
        raise ConfigError("the Ray cluster has no node that lives; start one with `ray start`")
    asked, began, ports = {}, time.time(), _ports_of_head(nodes)
    for node in nodes:
        name, place = node["NodeName"], NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        task: Any = ray.remote(collect).options(num_cpus=0, scheduling_strategy=place, max_retries=0)
        found = node["Resources"]
        asked[f"{name} ({node['NodeID'][:8]})"] = task.remote(
            f"{name}-{node['NodeID'][:8]}",
            num_gpus=int(found.get("GPU", 0)),
            store_bytes=int(found.get("object_store_memory", 0)),
            run_dir=run_dir,
            probe=probe,
            ports=ports,
        )
    return [_answer(name, ref, began) for name, ref in asked.items()]


def _answer(name: str, ref: ray.ObjectRef, began: float) -> NodeFacts:
    try:
        facts = ray.get(ref, timeout=_ANSWER_WITHIN_S)
    except GetTimeoutError:
        return NodeFacts(name=name, lost=f"no answer within {_ANSWER_WITHIN_S:g} s")
    except RayError as error:
        cause = getattr(error, "cause", None) or error
        return NodeFacts(name=name, lost=f"{type(cause).__name__}: {' '.join(str(cause).split())[:200]}")
    # Taken while the task ran, so between `began` and now by this clock.
    now = time.time()
    ahead = max(0.0, facts.clock_s - now) - max(0.0, began - facts.clock_s)
    return replace(facts, name=name, clock_s=ahead)
