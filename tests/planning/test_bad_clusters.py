"""What a recipe wants and a cluster has not: told before anything starts, with the names, the sum and the way out."""

import pytest

from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.errors import ConfigError
from moaa_ray.lines.mixture import plan_generate
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.planner import StagePlan
from moaa_ray.recipe import Recipe

SMALL = {"engine": "vllm", "model": "meta-llama/Llama-3.1-8B-Instruct", "context_window": 8192}
BIG = {**SMALL, "model": "meta-llama/Llama-3.1-70B-Instruct"}


def planned(model: dict, cluster: Cluster) -> StagePlan:
    slot = {"model": "m", "max_tokens": 512}
    mixture = {"layers": [{"proposers": [slot]}], "aggregator": slot}
    return plan_generate(
        Recipe.model_validate(
            {"name": "r", "prompts": {"sources": [{"path": "p.jsonl"}]}, "models": {"m": model}, "mixture": mixture}
        ),
        cluster,
        1000,
    )


def node(pool: str, *, gpus: int = 0, gpu: str = "", zone: str = "z1") -> Node:
    labels = frozenset({("pool", pool), ("zone", zone)})
    return Node(num_gpus=gpus, num_cpus=16, gpu=gpu, labels=labels)


MIXED = Cluster(nodes=(node("small", gpus=8, gpu="A100-40G"), node("big", gpus=4, gpu="H200"), node("cpu")))


def refused(model: dict, cluster: Cluster) -> str:
    with pytest.raises(ConfigError) as error:
        planned(model, cluster)
    return str(error.value)


def test_a_model_for_gpus_on_a_cluster_without_any():
    text = refused({**SMALL, "device": "gpu"}, parse_cluster("cpus=16"))
    assert text == (
        "models.m.device = 'gpu': the cluster has no GPUs; add nodes with GPUs, or set device: cpu, which is for small "
        "models"
    )


def test_one_gpu_too_few():
    text = refused({**SMALL, "tensor_parallel": 4}, parse_cluster("gpus=3,gpu=H100"))
    assert text == (
        "needs 4 GPUs for one engine of m (tensor_parallel 4); the cluster has 3; add nodes, or lower what an engine "
        "takes or replicas"
    )


def test_a_model_too_big_for_any_node_and_for_all_of_them():
    """143.8 GB; an L4 has 24 x 0.92 - 2 = 20.1 GB, so 8 of them, and there are 4."""
    text = refused(BIG, parse_cluster("gpus=4,gpu=L4"))
    assert "models.m: 141.1 GB of weights + 2.7 GB of KV cache" in text
    assert "the 4 x L4 of the largest nodes have 80.3 GB; it needs 8 of them" in text
    assert "use a larger cluster or GPUs with more memory, or quantise" in text


def test_a_label_that_no_node_has():
    text = refused({**SMALL, "node_labels": {"pool": "huge"}}, MIXED)
    assert text == (
        "models.m.node_labels = {'pool': 'huge'}: no node has all of them; labels of the 3 nodes are pool: big, cpu, "
        "small; zone: z1. Correct them, or start nodes with these labels"
    )


def test_labelled_nodes_without_gpus_and_with_too_few():
    text = refused({**SMALL, "device": "gpu", "node_labels": {"pool": "cpu"}}, MIXED)
    assert "the nodes with its node_labels have no GPUs" in text
    text = refused({**SMALL, "tensor_parallel": 8, "node_labels": {"pool": "big"}}, MIXED)
    assert "needs 8 GPUs for m on nodes with the labels pool: big; those have 4" in text


def test_a_model_is_planned_for_the_nodes_that_it_wants():
    """The 70B takes 8 GPUs of 34.8 GB (143.8 GB in all), or 2 of 127.7 GB; all engines stand on the labelled node."""
    plan = planned({**BIG, "node_labels": {"pool": "big"}}, MIXED)
    pool = plan.phases[0].pools[0]
    assert pool.spec.num_gpus == 2
    assert pool.replicas == 2
    assert planned({**BIG, "node_labels": {"pool": "small"}}, MIXED).phases[0].pools[0].spec.num_gpus == 8


def test_labels_of_a_cluster_in_one_line_are_not_known_and_that_is_said():
    plan = planned({**SMALL, "node_labels": {"pool": "big"}}, parse_cluster("gpus=1,gpu=H100"))
    assert any("models.m.node_labels is not checked" in note for note in plan.notes)
