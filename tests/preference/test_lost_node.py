"""A node is lost while its workers judge."""

from pathlib import Path

import pytest

from moaa_ray.data.store import open_store
from moaa_ray.loading import load_preference
from moaa_ray.run_record import join_run
from tests.cluster import nodes
from tests.generation import kills
from tests.preference.test_judge_stage import publish_candidates, rows_of

NUM_ROWS = 80
RECIPE = """
name: judged
run_dir: {folder}/run
models:
  rule: {{engine: rule, function: "tests.preference.rules:slow_length", num_cpus: 1, replicas: 2}}
judges:
  rule: {{kind: score, model: rule}}
judge: {{block_rows: 4}}
ray: {{address: local}}
"""


@pytest.mark.long
def test_a_node_that_is_lost_while_judging_costs_no_row_and_changes_no_verdict(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    join_run(open_store(str(tmp_path / "run")), load_preference(recipe))
    publish_candidates(tmp_path, NUM_ROWS)
    try:
        with nodes.cluster(head_cpus=0) as cluster:
            node = nodes.Node(cluster, 6)
            process = kills.start(recipe, f"ray.address={cluster.address}", stage="judge")
            blocks = "judges/rule/work/judge/*/e*/b*.parquet"
            kills.wait_until(lambda: process.poll() is not None or list((tmp_path / "run").glob(blocks)))
            other = nodes.Node(cluster, 6)
            assert process.poll() is None, process.communicate()[0]
            assert len(node.pool_workers()) == 2
            node.lose()
            kills.wait_until(lambda: process.poll() is not None or len(other.pool_workers()) == 2)
            code, output = kills.finish(process)
        assert code == 0, output
    finally:
        kills.end_all()
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in output
    pairs = rows_of(tmp_path, "pairs")
    assert [row["id"] for row in pairs] == [f"r{i:03d}" for i in range(NUM_ROWS)]
    for i, row in enumerate(pairs):
        assert (row["chosen_index"], row["rejected_index"]) == ((4 - i) % 5, (5 - i) % 5)
