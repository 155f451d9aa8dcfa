"""Real kills under a running generate stage: what dies is replaced or told, and no row is lost, doubled or changed.

Every kill strikes at a seeded moment at which blocks are in the line; the counts of deaths and of rows
asked again in the summary show that it hit.
"""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from moaa_ray.demo.tiny import make_tiny_model
from tests.cluster import nodes
from tests.generation import kills, runs

pytestmark = pytest.mark.slow
NUM_ROWS = 240
IDS = [f"r{i:05d}" for i in range(NUM_ROWS)]


def turns(i: int) -> int:
    return 1 + (i % 5 == 0) + (i % 25 == 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    runs.write_prompts(folder / "prompts.jsonl", NUM_ROWS, turns=turns)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder) -> Path:
    process = kills.start(runs.write_recipe(folder, name="undisturbed"))
    code, output = kills.finish(process)
    assert code == 0, output
    kills.assert_nothing_left(process)
    return folder / "undisturbed"


@pytest.fixture(autouse=True)
def end_all():
    yield
    kills.end_all()


def summary_of(run_dir: Path) -> dict:
    """summary.json of a run that ended well: every row is ok and accounted for."""
    summary = json.loads((run_dir / "summary.json").read_text())["generate"]
    assert summary["num_prompts"] == summary["statuses"]["ok"] == sum(summary["statuses"].values())
    return summary


def test_pool_workers_that_are_killed_are_replaced_and_no_row_is_blamed(folder, undisturbed):
    run_dir, rng = folder / "workers", random.Random(1)
    process = kills.start(runs.write_recipe(folder, name="workers", models=kills.slow_models(800)))
    kills.wait_for_flight(run_dir, process, 1)
    first = kills.pool_workers(process.pid)
    assert len(first) == 4
    for victim in rng.sample(first, 4):
        kills.kill([victim])
        kills.wait_for_flight(run_dir, process, rng.randint(1, 3))
        time.sleep(rng.random())
    kills.kill([rng.choice(kills.pool_workers(process.pid))])
    code, output = kills.finish(process)
    assert code == 0, output
    summary = summary_of(run_dir)
    assert all(pool["deaths"] >= 1 for pool in summary["pools"]), output
    assert sum(pool["deaths"] for pool in summary["pools"]) == 5
    assert summary["rows_redone"] > 0
    kills.assert_same_data(run_dir, undisturbed, IDS)
    kills.assert_nothing_left(process)


def test_a_lost_node_moves_its_pools_to_another_one(folder, undisturbed):
    run_dir, rng = folder / "node", random.Random(3)
    with nodes.cluster(head_cpus=1) as cluster:  # room for one pool worker
        node = nodes.Node(cluster, 8)
        recipe = runs.write_recipe(folder, name="node", models=kills.slow_models(800, more=", num_cpus: 1"))
        process = kills.start(recipe, f"ray.address={cluster.address}")
        kills.wait_for_flight(run_dir, process, 1)
        nodes.Node(cluster, 8)
        kills.wait_for_flight(run_dir, process, rng.randint(1, 3))
        time.sleep(rng.random())
        num_lost = len(node.pool_workers())
        assert num_lost >= 3
        node.lose()
        code, output = kills.finish(process)
    assert code == 0, output
    summary = summary_of(run_dir)
    assert sum(pool["deaths"] for pool in summary["pools"]) == num_lost, output
    assert summary["rows_redone"] > 0
    kills.assert_same_data(run_dir, undisturbed, IDS)
    kills.assert_nothing_left(process)


@pytest.mark.long
def test_of_three_drivers_only_the_last_writes_also_when_the_first_wakes_up_later(folder, undisturbed):
    run_dir = folder / "drivers"
    recipe = runs.write_recipe(folder, name="drivers", models=kills.slow_models(300))
    sleeper = kills.start(recipe)
    kills.wait_for_flight(run_dir, sleeper, 2)
    kills.send(signal.SIGSTOP, kills.processes(sleeper.pid))
    second = kills.start(recipe)
    kills.wait_for_flight(run_dir, second, 2)
    third = kills.start(recipe, *(f"models.{name}.tokens_per_s=4000" for name in kills.NAMES))
    code, output = kills.finish(second)
    assert code == 5, output
    assert f"pid {third.pid}" in output
    assert "took epoch 3" in output
    assert "Traceback" not in output
    code, output = kills.finish(third)
    assert code == 0, output
    summary_of(run_dir)
    kills.assert_same_data(run_dir, undisturbed, IDS)
    written = kills.written(run_dir)
    kills.send(signal.SIGCONT, kills.processes(sleeper.pid))
    code, output = kills.finish(sleeper)
    assert code == 5, output
    assert "took epoch 3" in output
    assert kills.written(run_dir) == written
    for process in (sleeper, second, third):
        kills.assert_nothing_left(process)


def stop_and_check(process: subprocess.Popen, number: int, *, group: bool = False) -> None:
    """Send a signal, as a terminal does to the whole group, and see the run end in order."""
    began = time.monotonic()
    (os.killpg if group else os.kill)(process.pid, number)
    code, output = kills.finish(process)
    assert code == 128 + number, output
    last = output.strip().splitlines()[-1]
    assert last == f"moaa: stopped by {signal.Signals(number).name}; what is finished is kept, the same command goes on"
    assert "Traceback" not in output
    assert time.monotonic() - began < 60
    kills.assert_nothing_left(process)


@pytest.mark.long
def test_signals_end_a_run_in_order_and_it_goes_on(folder, undisturbed):
    run_dir, rng = folder / "signals", random.Random(5)
    recipe = runs.write_recipe(folder, name="signals", models=kills.slow_models(400))
    for number in (signal.SIGINT, signal.SIGTERM):
        process = kills.start(recipe)
        kills.wait_for_flight(run_dir, process, rng.randint(1, 3))
        time.sleep(rng.random())
        stop_and_check(process, number, group=number == signal.SIGINT)
    for epoch in (3, 4):  # while Ray starts
        process = kills.start(recipe)
        kills.wait_until((run_dir / f"work/epochs/{epoch}.json").exists)
        time.sleep(3 * rng.random())
        stop_and_check(process, rng.choice((signal.SIGINT, signal.SIGTERM)))
    assert not (run_dir / "sft").exists()
    code, output = kills.finish(kills.start(recipe, *(f"models.{name}.tokens_per_s=4000" for name in kills.NAMES)))
    assert code == 0, output
    # Each start has told what it asked, up to its signal.
    assert all(pool["calls"] >= len(IDS) for pool in summary_of(run_dir)["usage"])
    kills.assert_same_data(run_dir, undisturbed, IDS)


@pytest.fixture
def small_disk(folder):
    """The run directory "full" as a disk of its own that is too small; gives the means to make it larger."""
    disk = folder / "full"
    disk.mkdir()
    with kills.small_disk(disk, "400k") as enlarge:
        yield enlarge


@pytest.mark.long
def test_a_disk_that_fills_up_is_told_in_one_line_and_with_more_room_it_goes_on(folder, undisturbed, small_disk):
    run_dir = folder / "full"
    recipe = runs.write_recipe(folder, name="full", models=kills.slow_models(4000))
    process = kills.start(recipe)
    code, output = kills.finish(process)
    assert code == 4, output
    told = [line for line in output.splitlines() if line.startswith("moaa: ")]
    assert len(told) == 1, output
    assert f"no space left for {run_dir}" in told[0]
    assert "Traceback" not in output
    assert runs.num_blocks(run_dir) > 0
    kills.assert_nothing_left(process)
    small_disk()
    code, output = kills.finish(kills.start(recipe))
    assert code == 0, output
    summary_of(run_dir)
    kills.assert_same_data(run_dir, undisturbed, IDS)


VLLM_RECIPE = """
name: vllm
run_dir: {folder}/vllm
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  a: {{engine: vllm, model: {model}, context_window: 1024, concurrency: 2, replicas: 1, device: cpu}}
  agg: {{engine: fake}}
mixture:
  layers: [{{proposers: [{{model: a, max_tokens: 200}}]}}]
  aggregator: {{model: agg}}
generate: {{block_rows: 8}}
ray: {{address: local}}
"""


@pytest.mark.long
def test_a_vllm_core_that_is_killed_is_restarted_and_one_whose_worker_is_killed_dies_too(folder):
    run_dir, rng = folder / "vllm", random.Random(2)
    recipe = folder / "vllm.yaml"
    model = make_tiny_model(folder / "tiny", seed=0)
    recipe.write_text(VLLM_RECIPE.format(folder=folder, model=model), encoding="utf-8")
    process = kills.start(recipe)
    kills.wait_for_flight(run_dir, process, rng.randint(1, 2))
    cores = kills.named(kills.processes(process.pid), "VLLM::EngineCore")
    assert len(cores) == 1
    kills.kill(cores)
    kills.wait_for_flight(run_dir, process, rng.randint(1, 2))
    orphans = kills.named(kills.processes(process.pid), "VLLM::")
    assert orphans
    assert not set(orphans) & set(cores)
    busy = {pid for pid in kills.pool_workers(process.pid) if set(runs.descendants(pid)) & set(orphans)}
    assert len(busy) == 1
    kills.kill(busy)
    kills.wait_until(lambda: not set(orphans) & set(kills.processes(process.pid)), timeout_s=60, what="orphans gone")
    code, output = kills.finish(process)
    assert code == 0, output
    summary = summary_of(run_dir)
    assert summary["num_prompts"] == NUM_ROWS
    assert next(pool["deaths"] for pool in summary["pools"] if pool["name"] == "l0.a") == 2
    assert summary["rows_redone"] > 0
    assert [row["id"] for row in runs.rows(run_dir)] == IDS
    kills.assert_nothing_left(process)
