"""Runs that lack something: a proposer's engine that cannot be had, or the CPUs and GPUs of a pool."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.generation import resumes, runs, servers

pytestmark = pytest.mark.slow
NUM_ROWS = 40
GONE = "{engine: fake, faults: {any: start_fails}}"
HELD = """
import ray, sys
ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=7)
class Holder:
    def is_up(self):
        return True

holder = Holder.remote()
assert ray.get(holder.is_up.remote())
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    runs.write_prompts(tmp_path / "prompts.jsonl", NUM_ROWS)
    return tmp_path


def pools_of(run_dir: Path) -> dict[str, dict]:
    return {pool["name"]: pool for pool in resumes.summary(run_dir)["pools"]}


def test_fail_names_the_pool_and_why_and_continue_goes_on_with_the_others(folder):
    """What the first start gave up the second one asks, and marks; a third leaves it as it is."""
    url = f"http://127.0.0.1:{servers.free_port()}/v1"
    recipe = runs.write_recipe(folder, models=f"c: {{engine: openai, model: m, base_url: '{url}'}}")
    code, output = runs.run(recipe)
    assert code == 4, output
    told = [line for line in output.splitlines() if line.startswith("moaa: ")]
    assert len(told) == 1, output
    assert "pool l0.c: its engine cannot start: ConnectionError: the endpoint" in told[0]
    assert f"{url} does not work" in told[0]
    assert "run the same command again" in told[0]
    assert "Traceback" not in output
    assert not (folder / "run/sft").exists()

    code, output = runs.run(recipe, "generate.on_missing_proposer=continue")
    assert code == 0, output
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in output
    assert f"flags: engine_missing {NUM_ROWS}" in output
    summary = resumes.summary(folder / "run")
    assert summary["flags"] == {"engine_missing": NUM_ROWS}
    assert pools_of(folder / "run")["l0.c"]["failures"] == {"engine_missing": NUM_ROWS}
    for row in runs.rows(folder / "run"):
        assert row["flags"] == ["engine_missing:l0.c"]
        used = {p["proposer"]: (p["used"], bool(p["completion"]), p["error"]) for p in row["proposals"]}
        assert used == {"a": (True, True, ""), "b": (True, True, ""), "c": (False, False, "engine_missing")}

    before = runs.digest(folder / "run")
    with servers.chat_endpoint(port=int(url.split(":")[2].split("/")[0]), models=("m",)) as endpoint:
        code, output = runs.run(recipe, "ray.address=nowhere:1")
    assert code == 0, output
    assert not endpoint.bodies
    assert runs.digest(folder / "run") == before


@pytest.mark.long
def test_without_its_aggregator_no_run_goes_on(folder):
    recipe = runs.write_recipe(folder, models=f"agg: {GONE}")
    code, output = runs.run(recipe, "generate.on_missing_proposer=continue")
    assert code == 4, output
    assert "moaa: pool aggregate: its engine cannot start: fault start_fails" in output
    assert not (folder / "run/sft").exists()


@pytest.mark.long
def test_wait_goes_on_as_soon_as_the_engine_is_there(folder):
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}/v1"
    recipe = runs.write_recipe(folder, models=f"c: {{engine: openai, model: m, base_url: '{url}'}}")
    process = runs.start(recipe, "generate.on_missing_proposer=wait", "generate.warn_after_s=5")
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "retrying: ConnectionError" in line:  # the first attempt to start it is over
            break
    assert process.poll() is None, "".join(lines)
    assert runs.num_blocks(folder / "run") == 0
    with servers.chat_endpoint(port=port, models=("m",), window=8192) as endpoint:
        code, output = runs.finish(process)
    assert code == 0, output
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in output
    assert len(endpoint.bodies) == NUM_ROWS
    assert "engine_missing" not in output
    for row in runs.rows(folder / "run"):
        assert row["flags"] == []
        assert all(p["used"] for p in row["proposals"])


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ("b: {engine: fake, num_cpus: 64}", "needs 66 CPU slots for one engine of b and 2 for admission and commit"),
        (
            "b: {engine: vllm, model: some/model, context_window: 8192, device: gpu}",
            "models.b.device = 'gpu': the cluster has no GPUs; add nodes with GPUs, or set device: cpu",
        ),
    ],
)
def test_a_pool_that_no_node_can_hold_is_told_before_anything_starts(folder, models, told):
    code, output = runs.run(runs.write_recipe(folder, models=models), "ray.num_cpus=6")
    assert code == 2, output
    assert told in output
    assert runs.num_blocks(folder / "run") == 0


@pytest.fixture
def busy_cluster():
    """A cluster with 8 CPU slots of which another driver holds 7; its address, and what lets them go."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 8, "object_store_memory": 10**8, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    command = [sys.executable, "-c", HELD, cluster.address]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    yield cluster.address, lambda: holder.communicate(timeout=120)
    holder.kill()
    cluster.shutdown()


@pytest.mark.long
def test_a_pool_whose_resources_others_hold_fails_by_name_and_goes_on_when_they_are_free(folder, busy_cluster):
    address, release = busy_cluster
    recipe = runs.write_recipe(folder, models="agg: {engine: fake, num_cpus: 2}")
    code, output = runs.run(recipe, f"ray.address={address}", "ray.start_timeout_s=20")
    assert code == 4, output
    assert "moaa: pools that could not get their resources within 20 s: " in output
    assert "aggregate: 0 of 1 x (CPU 2, GPU 0)" in output
    assert "Wait for other jobs to end, give fewer replicas, or raise ray.start_timeout_s" in output
    assert runs.num_blocks(folder / "run") == 0
    release()
    code, output = runs.run(recipe, f"ray.address={address}")
    assert code == 0, output
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in output
