"""From the plan and the recipe to the pools of one phase on the present cluster."""

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import replace

from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.passes import Pass
from moaa_ray.core.planning import Phase, PlannedPool
from moaa_ray.engines.build import build_engine
from moaa_ray.generation.pool import Pool
from moaa_ray.generation.seats import live_nodes
from moaa_ray.generation.worker import PoolWork
from moaa_ray.model_folders import with_absolute_paths
from moaa_ray.planning.measured import setup_of
from moaa_ray.planning.planner import PlanInput, StagePlan
from moaa_ray.settings.models import Model, ReplicaRange

_BACKOFF_S, _PAUSES_S = 30.0, 1200.0


def ray_cluster(cpu_slots: float, *, is_local: bool) -> Cluster:
    """The nodes of the connected cluster. cpu_slots: what the least engines take.

    A local cluster has more logical CPU slots than CPUs, for the sake of Ray's own tasks; the planner
    is told what the machine has, or what the least engines take where that is more.
    """
    nodes = list(live_nodes().values())
    if is_local:
        most = max(float(os.cpu_count() or 1), cpu_slots)
        nodes = [replace(node, num_cpus=min(node.num_cpus, most)) for node in nodes]
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
