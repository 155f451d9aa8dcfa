"""From the plan and the recipe to the pools of one phase on the present cluster."""

import functools
import math
import os
from collections.abc import Sequence

import ray

from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.core.passes import Pass
from moaa_ray.core.planning import Phase, PlannedPool
from moaa_ray.engines.build import build_engine
from moaa_ray.generation.line import Pool
from moaa_ray.generation.worker import PoolWork
from moaa_ray.model_folders import with_absolute_paths
from moaa_ray.planning.measured import setup_of
from moaa_ray.planning.planner import PlanInput, StagePlan
from moaa_ray.settings.models import Model, ReplicaRange

_NODE_ID = "ray.io/node-id"
"""A label that every node has for itself; nodes that differ in nothing else are alike to the planner."""
_BACKOFF_S, _PAUSES_S = 30.0, 1200.0


def ray_cluster(cpu_slots: float, *, is_local: bool) -> Cluster:
    """The nodes of the connected cluster. cpu_slots: what the least engines take.

    A local cluster has more logical CPU slots than CPUs, for the sake of Ray's own tasks; the planner
    is told what the machine has, or what the least engines take where that is more.
    """
    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        found = node["Resources"]
        kinds = [key.split(":")[1] for key in found if key.startswith("accelerator_type:")]
        cpus = found.get("CPU", 0.0)
        if is_local:
            cpus = min(cpus, max(float(os.cpu_count() or 1), cpu_slots))
        gpus, labels = int(found.get("GPU", 0)), node.get("Labels") or {}
        told = frozenset((key, value) for key, value in labels.items() if key != _NODE_ID)
        nodes.append(Node(num_gpus=gpus, num_cpus=cpus, gpu=kinds[0] if kinds else "", labels=told))
    return Cluster(nodes=tuple(nodes))


def line_pools(
    asked: PlanInput, plan: StagePlan, phase: Phase, passes: Sequence[Pass], *, on_missing: str = "fail"
) -> list[Pool]:
    """The pools of one phase of the plan, in line order."""
    return [_pool(asked, plan, planned, passes, on_missing) for planned in phase.pools]


def _pool(asked: PlanInput, plan: StagePlan, planned: PlannedPool, passes: Sequence[Pass], on_missing: str) -> Pool:
    spec = planned.spec
    model = with_absolute_paths(plan.models[spec.engine], asked.base_dir)
    on_gpu = spec.num_gpus > 0
    there = plan.cluster.labelled(spec.labels)
    most = max(model.replicas.max if isinstance(model.replicas, ReplicaRange) else 1, planned.replicas)
    work = PoolWork(
        name=spec.name,
        passes=tuple(p for p in passes if p.name in spec.passes),
        make_engine=functools.partial(build_engine, model, on_gpu=on_gpu, share=spec.share / most),
        request_timeout_s=_whole_request_s(model),
        hang_after_s=math.inf if model.engine == "openai" else asked.settings.hang_after_s,
        num_slots=model.concurrency,
        on_missing=on_missing,
    )
    return Pool(
        work=work,
        min_replicas=planned.replicas,
        max_replicas=most,
        num_cpus=model.num_cpus,
        num_gpus=spec.num_gpus,
        spans_nodes=spec.num_gpus > max(there.largest_node, 1),
        blocks_in_flight=planned.blocks_in_flight,
        node_labels=dict(model.node_labels),
        setup=setup_of(model, there if on_gpu else None),
    )


def _whole_request_s(model: Model) -> float:
    """Seconds after which a request has failed. An endpoint's engine bounds each attempt and its pauses itself."""
    if model.engine != "openai":
        return model.request_timeout_s
    return model.max_attempts * (model.request_timeout_s + _BACKOFF_S) + _PAUSES_S
