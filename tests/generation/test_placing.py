from pathlib import Path

import pytest

from moaa_ray.core.packing_gpus import Cluster, Node
from moaa_ray.generation.placing import line_pools
from moaa_ray.lines.mixture import mixture_passes, plan_generate, plan_input
from moaa_ray.loading import load_recipe

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
    (phase,) = plan_generate(loaded.recipe, cluster, 8).phases
    pool, _ = line_pools(plan_input(loaded.recipe), phase, mixture_passes(loaded.recipe), cluster)
    assert (pool.min_replicas, pool.max_replicas) == (least, most)
    assert pool.work.make_engine.keywords["share"] == 1 / most
