"""A pool with a range of replicas on a cluster that grows: a node that joins is used, and given back."""

from pathlib import Path

import pytest

from tests.cluster import nodes
from tests.generation import kills, runs

NUM_ROWS = 200
RECIPE = """
name: run
run_dir: {folder}/run
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  many: {{engine: fake, replicas: {{min: 1, max: 3}}, num_cpus: 2.5, concurrency: 4, tokens_per_s: 600}}
  agg: {{engine: fake, replicas: 1, num_cpus: 0.5, concurrency: 4, tokens_per_s: 250}}
mixture:
  layers: [{{proposers: [{{model: many, num_samples: 3, temperature: 0.7}}]}}]
  aggregator: {{model: agg, temperature: 0.0}}
generate: {{block_rows: 4}}
ray: {{address: local}}
"""


@pytest.mark.long
def test_a_node_that_joins_is_used_by_a_pool_that_may_grow_and_left_when_its_work_is_done(tmp_path: Path):
    """The head has room for one worker of each pool, the node for two more of the one that may grow."""
    runs.write_prompts(tmp_path / "prompts.jsonl", NUM_ROWS)
    recipe = tmp_path / "run.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    try:
        with nodes.cluster(head_cpus=5) as cluster:
            process = kills.start(recipe, f"ray.address={cluster.address}")
            kills.wait_for_flight(tmp_path / "run", process, 1)
            node = nodes.Node(cluster, 5)
            kills.wait_until(lambda: process.poll() is not None or len(node.pool_workers()) == 2)
            assert process.poll() is None, process.communicate()[0]
            kills.wait_until(lambda: process.poll() is not None or not node.pool_workers())
            assert process.poll() is None, "the node is left while the aggregator still works"
            code, output = kills.finish(process)
        assert code == 0, output
    finally:
        kills.end_all()
    assert [row["id"] for row in runs.rows(tmp_path / "run")] == [f"r{i:05d}" for i in range(NUM_ROWS)]
    assert "deaths" not in output
