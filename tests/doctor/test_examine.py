"""`moaa doctor` on a real cluster of two nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = """
name: looked-at
run_dir: {folder}/run
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  a: {{engine: fake}}
  big: {{engine: vllm, model: some/model, context_window: 8192, device: {device}}}
mixture: {{layers: [{{proposers: [{{model: a}}]}}], aggregator: {{model: big}}}}
"""


@pytest.fixture(scope="module")
def address():
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=10**8)
    yield cluster.address
    cluster.shutdown()


def doctor(folder: Path, address: str, *, device: str) -> tuple[int, str]:
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder, device=device), encoding="utf-8")
    (folder / "prompts.jsonl").write_text('{"prompt": "one"}\n', encoding="utf-8")
    command = [sys.executable, "-m", "moaa_ray", "doctor", str(folder / "recipe.yaml")]
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_every_node_answers_and_leaves_nothing_behind(address, tmp_path):
    code, text = doctor(tmp_path, address, device="cpu")
    assert code == 0, text
    assert "nodes          2 that work" in text
    assert f"{tmp_path}/run can be read and written from every node" in text
    assert not (tmp_path / "run" / "doctor").exists()


@pytest.mark.slow
def test_a_recipe_that_wants_gpus_ends_with_an_error_where_there_are_none(address, tmp_path):
    code, text = doctor(tmp_path, address, device="gpu")
    assert code == 4, text
    assert "a run would fail here: GPUs" in text
