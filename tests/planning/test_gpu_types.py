"""On which GPU types of a cluster with several the plan lets engines stand, and that the run is told the same."""

import pytest

from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.errors import ConfigError
from moaa_ray.lines.mixture import plan_generate
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.gpu_types import TYPE_LABEL, selectors
from moaa_ray.planning.planner import StagePlan
from moaa_ray.recipe import Recipe

BIG = {"engine": "vllm", "model": "meta-llama/Llama-3.1-70B-Instruct", "context_window": 8192}
SMALL = {"engine": "vllm", "model": "meta-llama/Llama-3.1-8B-Instruct", "context_window": 8192}


def planned(cluster: Cluster | str, proposer: dict = BIG, aggregator: dict | None = None) -> StagePlan:
    models = {"p": proposer} | ({"a": aggregator} if aggregator else {})
    mixture = {"layers": [{"proposers": [{"model": "p"}]}], "aggregator": {"model": "a" if aggregator else "p"}}
    recipe = {"name": "r", "prompts": {"sources": [{"path": "p.jsonl"}]}, "models": models, "mixture": mixture}
    return plan_generate(
        Recipe.model_validate(recipe), parse_cluster(cluster) if isinstance(cluster, str) else cluster, 10_000
    )


def types(plan: StagePlan) -> dict[str, str]:
    return {name: model.node_labels.get(TYPE_LABEL, "") for name, model in plan.models.items()}


def as_ray_has_them(*gpus: str) -> Cluster:
    """Nodes of 8 with the labels that Ray 2.60 gives them."""
    return Cluster(
        nodes=tuple(
            Node(num_gpus=8, num_cpus=64, gpu=gpu, labels=frozenset({(TYPE_LABEL, gpu), ("zone", "a")})) for gpu in gpus
        )
    )


@pytest.mark.parametrize("cluster", ["gpus=8,gpu=H200 + gpus=8,gpu=L4", as_ray_has_them("H200", "L4")])
def test_weak_nodes_are_left_out_where_the_plan_is_faster_without_them_and_that_is_said(cluster):
    alone, both = planned("gpus=8,gpu=H200,cpus=64"), planned(cluster)
    assert both.line.makespan_s == pytest.approx(alone.line.makespan_s, rel=0.05)
    assert types(both) == {"p": "H200"}
    assert both.phases[0].pools[0].spec.labels == {(TYPE_LABEL, "H200")}
    assert "only on H200" in both.told["l0.p+aggregate"]
    (note,) = (note for note in both.notes if "(chosen)" in note)
    assert note.startswith("p: only on H200 (chosen); with every engine on any GPU, as on the smallest, the plan would")
    assert not any("Several GPU types" in note for note in both.notes)


def test_a_number_that_only_the_larger_type_holds_is_taken():
    """143.8 GB: two H200s have 255.4, two L4s 40.2."""
    plan = planned("gpus=8,gpu=H200 + gpus=8,gpu=L4", {**BIG, "tensor_parallel": 2})
    assert types(plan) == {"p": "H200"}
    assert any("as on the smallest, nothing fits" in note for note in plan.notes)


def test_what_no_type_holds_is_refused_with_the_sum_of_the_largest():
    with pytest.raises(ConfigError, match=r"1 x H200 have 127\.7 GB .* set tensor_parallel: 2"):
        planned("gpus=8,gpu=H200 + gpus=8,gpu=L4", {**BIG, "tensor_parallel": 1})


def test_a_small_model_takes_the_weak_nodes_and_a_large_one_the_strong():
    plan = planned("gpus=8,gpu=H200 + gpus=32,gpu=L4", SMALL, BIG)
    assert types(plan) == {"p": "L4", "a": "H200"}
    assert len(plan.phases) == 1


def test_about_equal_types_are_used_together():
    plan = planned("gpus=8,gpu=H200 + gpus=32,gpu=H100")
    assert types(plan) == {"p": ""}
    assert any("Several GPU types (H100, H200): what may stand on all of them" in note for note in plan.notes)


def test_of_three_types_the_smallest_can_be_left_out():
    plan = planned("gpus=8,gpu=H200 + gpus=8,gpu=H100 + gpus=1,gpu=T4")
    assert types(plan) == {"p": "in(H100,H200)"}
    assert sum(pool.replicas * pool.spec.num_gpus for pool in plan.phases[0].pools) == 16


def test_labels_of_the_recipe_hold_beside_the_types():
    cluster = as_ray_has_them("H200", "L4")
    assert types(planned(cluster, {**BIG, "node_labels": {"zone": "a"}})) == {"p": "H200"}
    kept = {**BIG, "node_labels": {TYPE_LABEL: "L4"}}
    assert types(planned(cluster, kept)) == {"p": "L4"}
    with pytest.raises(ConfigError, match="no node has all of them"):
        planned(cluster, {**BIG, "node_labels": {"zone": "b"}})
    unknown = planned("gpus=8,gpu=H200 + gpus=8,gpu=L4", {**BIG, "node_labels": {"zone": "b"}})
    assert types(unknown) == {"p": "H200"}
    assert any("models.p.node_labels is not checked" in note for note in unknown.notes)


def test_types_that_labels_do_not_tell_are_not_asked_for():
    untold = Cluster(nodes=tuple(Node(num_gpus=8, num_cpus=64, gpu=g, labels=frozenset()) for g in ("H200", "L4")))
    assert selectors(untold) == []
    assert types(planned(untold)) == {"p": ""}
    assert selectors(as_ray_has_them("H200", "H200")) == []


def test_ray_reads_what_is_asked_of_it():
    label_utils = pytest.importorskip("ray._private.label_utils")
    for selector in selectors(as_ray_has_them("H200", "H100", "A100", "L40S")):
        assert label_utils.validate_label_selector({TYPE_LABEL: selector}) is None
