"""`moaa doctor` on a real cluster of two nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster import nodes
from tests.generation import runs

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
def address(tmp_path_factory):
    from ray.cluster_utils import Cluster

    spilled = tmp_path_factory.mktemp("spilled")
    node = {"num_cpus": 1, "object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    cluster.add_node(num_cpus=1, object_store_memory=10**8, object_spilling_directory=str(spilled))
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
    assert "object store   0.1 to 0.1 GB in /dev/shm, at most" in text
    assert "ports          the head's answer every node, all nodes' answer here; no dashboard" in text
    assert f"{tmp_path}/run can be read and written from every node" in text
    assert not (tmp_path / "run" / "doctor").exists()


@pytest.mark.slow
def test_a_recipe_that_wants_gpus_ends_with_an_error_where_there_are_none(address, tmp_path):
    code, text = doctor(tmp_path, address, device="gpu")
    assert code == 4, text
    assert "a run would fail here: GPUs" in text


@pytest.mark.long
def test_a_run_is_refused_where_a_node_has_another_disk_under_the_name_of_the_run_directory(tmp_path):
    """The second node has its own empty disk there; only the superuser can mount one."""
    if subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("this user may not unshare mounts")
    disk = tmp_path / "disk"
    disk.mkdir()
    runs.write_prompts(tmp_path / "prompts.jsonl", 8)
    recipe = runs.write_recipe(tmp_path)
    with nodes.cluster(head_cpus=4) as cluster:
        start = f"ray start --address={cluster.address} --num-cpus=1 --object-store-memory={10**8} --block"
        environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "RAY_AUTH_MODE": "disabled"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs none {disk} && exec {start}"]
        blind = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            nodes.wait_for(cluster, num_nodes=2)
            code, output = runs.run(recipe, f"ray.address={cluster.address}", f"run_dir={disk}/run")
        finally:
            runs.kill_all(blind)
    assert code == 2, output
    assert f"run_dir = {disk}/run: it can write there, but does not see what the driver has written" in output
    assert "use a bucket or a disk that all nodes share" in output
    assert runs.num_blocks(disk / "run") == 0
