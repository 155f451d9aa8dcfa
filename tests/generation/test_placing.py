from pathlib import Path

import pytest

from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.generation.placing import line_pools
from moaa_ray.lines.mixture import mixture_passes, plan_generate, plan_input
from moaa_ray.loading import load_recipe
from moaa_ray.planning.gpu_types import TYPE_LABEL

RECIPE = """
name: run
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  hosted: {{engine: openai, model: m, base_url: "http://127.0.0.1:1/v1", replicas: {replicas}}}
  agg: {{engine: fake}}
mixture: {{layers: [{{proposers: [{{model: hosted}}]}}], aggregator: {{model: agg}}}}
"""


@pytest.mark.parametrize(("replicas", "least", "most"), [("3", 3, 3), ("{min: 1, max: 5}", 1, 5)])
def test_the_rate_of_an_endpoint_is_shared_by_as_many_workers_as_the_pool_may_have(
    tmp_path: Path, replicas, least, most
):
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(replicas=replicas), encoding="utf-8")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    cluster = Cluster(nodes=(Node(num_gpus=0, num_cpus=8),))
    plan = plan_generate(loaded.recipe, cluster, 8)
    pool, _ = line_pools(plan_input(loaded.recipe), plan, plan.phases[0], mixture_passes(loaded.recipe))
    assert (pool.min_replicas, pool.max_replicas) == (least, most)
    assert pool.work.make_engine.keywords["share"] == 1 / most


def test_the_rate_of_an_endpoint_is_divided_among_the_pools_that_ask_it(tmp_path: Path):
    """Three proposals and one synthesis a row: 3/4 and 1/4 of the rate, over two workers each; b has no rate."""
    text = RECIPE.format(replicas="2, requests_per_minute: 60").replace("{model: agg}", "{model: hosted}")
    text = text.replace("  agg: {engine: fake}\n", "  b: {engine: fake}\n")
    text = text.replace("[{model: hosted}]", "[{model: hosted, num_samples: 3}, {model: b}]")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml", ["generate.phases=1"]).recipe
    plan = plan_generate(recipe, Cluster(nodes=(Node(num_gpus=0, num_cpus=8),)), 8)
    pools = line_pools(plan_input(recipe), plan, plan.phases[0], mixture_passes(recipe))
    assert [pool.work.make_engine.keywords["share"] for pool in pools] == [3 / 8, 1, 1 / 8]


def test_the_workers_get_the_split_that_the_plan_has_chosen(tmp_path: Path):
    """Nothing about GPUs stands in this recipe: a 70B in 16 bits takes four H100s."""
    model = "{engine: vllm, model: meta-llama/Llama-3.1-70B-Instruct, context_window: 8192}"
    text = RECIPE.format(replicas=1).replace("{engine: fake}", model)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    plan = plan_generate(recipe, Cluster(nodes=(Node(num_gpus=8, num_cpus=64, gpu="H100"),)), 100)
    _, pool = line_pools(plan_input(recipe), plan, plan.phases[-1], mixture_passes(recipe))
    assert pool.num_gpus == 4
    assert pool.work.make_engine.args[0].tensor_parallel == 4


def test_the_workers_stand_on_nodes_with_the_labels_that_the_model_wants(tmp_path: Path):
    text = RECIPE.format(replicas=1).replace("{engine: fake}", "{engine: fake, node_labels: {pool: big}}")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    nodes = (Node(num_gpus=0, num_cpus=8, labels=frozenset({("pool", "big")})),)
    plan = plan_generate(recipe, Cluster(nodes=nodes), 100)
    hosted, pool = line_pools(plan_input(recipe), plan, plan.phases[0], mixture_passes(recipe))
    assert (hosted.node_labels, pool.node_labels) == ({}, {"pool": "big"})


MIXED = tuple(
    Node(num_gpus=8, num_cpus=64, gpu=gpu, labels=frozenset({("ray.io/accelerator-type", gpu)}))
    for gpu in ("H200", "L4")
)


def test_the_workers_are_kept_to_the_gpu_types_that_the_plan_has_chosen(tmp_path: Path):
    model = "{engine: vllm, model: meta-llama/Llama-3.1-70B-Instruct, context_window: 8192}"
    text = RECIPE.format(replicas=1).replace("{engine: fake}", model)
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(tmp_path / "recipe.yaml").recipe
    plan = plan_generate(recipe, Cluster(nodes=MIXED), 10_000)
    hosted, pool = line_pools(plan_input(recipe), plan, plan.phases[-1], mixture_passes(recipe))
    assert (hosted.node_labels, pool.node_labels) == ({}, {TYPE_LABEL: "H200"})
    assert pool.setup["gpu"] == "H200"
    assert not pool.spans_nodes


@pytest.mark.long
def test_ray_keeps_to_the_gpu_types_that_a_plan_asks_for():
    import ray
    from ray.cluster_utils import Cluster as RayCluster

    cluster = RayCluster()
    small = {"num_cpus": 1, "object_store_memory": 10**8}
    nodes = {gpu: cluster.add_node(**small, labels={TYPE_LABEL: gpu}).node_id for gpu in ("L4", "H100", "H200")}
    try:
        with ray.init(cluster.address):
            where = ray.remote(num_cpus=0)(lambda: ray.get_runtime_context().get_node_id())
            asked = {s: where.options(label_selector={TYPE_LABEL: s}) for s in ("H200", "in(H100,H200)")}  # pyright: ignore
            found = {s: set(ray.get([task.remote() for _ in range(8)], timeout=60)) for s, task in asked.items()}
    finally:
        cluster.shutdown()
    assert found["H200"] == {nodes["H200"]}
    assert found["in(H100,H200)"] <= {nodes["H100"], nodes["H200"]}
