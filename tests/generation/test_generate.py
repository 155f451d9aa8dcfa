"""The generate command with fake engines on a real local Ray, undisturbed and killed."""

import random
import re
from pathlib import Path

import pytest

from tests.generation import runs

pytestmark = pytest.mark.slow
NUM_ROWS = 300


def turns(i: int) -> int:
    return 1 + (i % 5 == 0) + (i % 25 == 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runs.write_prompts(folder / "prompts.jsonl", NUM_ROWS, turns=turns)
    return folder


@pytest.fixture(scope="module")
def undisturbed(folder) -> Path:
    code, output = runs.run(runs.write_recipe(folder, name="undisturbed"))
    assert code == 0, output
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in output
    return folder / "undisturbed"


def test_every_prompt_becomes_one_row_in_order_with_all_its_turns_and_proposals(undisturbed):
    rows = runs.rows(undisturbed)
    assert [row["id"] for row in rows] == [f"r{i:05d}" for i in range(NUM_ROWS)]
    for i, row in enumerate(rows):
        assert [m["role"] for m in row["messages"]] == ["user", "assistant"] * turns(i)
        assert [(p["turn"], p["proposer"]) for p in row["proposals"]] == [
            (t, p) for t in range(turns(i)) for p in "abc"
        ]
        assert all(p["used"] and p["completion"] for p in row["proposals"])


def test_a_finished_run_starts_no_ray_and_changes_nothing(folder, undisturbed):
    before = runs.digest(undisturbed)
    code, output = runs.run(folder / "undisturbed.yaml", "ray.address=nowhere:1", timeout_s=60)
    assert code == 0, output
    assert runs.digest(undisturbed) == before


def test_killed_again_and_again_it_ends_with_the_bytes_of_an_undisturbed_run(folder, undisturbed):
    models = "\n".join(f"{name}: {{engine: fake, tokens_per_s: 20000}}" for name in ("a", "b", "c", "agg"))
    recipe = runs.write_recipe(folder, name="killed", models=models)
    rng, hits, last = random.Random(0), 0, 0
    for _ in range(4):
        process = runs.start(recipe)
        found = runs.wait_for_blocks(folder / "killed", last + rng.randint(1, 6), process)
        if process.poll() is None:
            runs.kill_all(process)
            hits += 1
        assert found >= last
        last = found
        assert not (folder / "killed" / "sft").exists() or process.returncode == 0
    code, output = runs.run(recipe)
    assert code == 0, output
    assert hits >= 2
    assert runs.digest(folder / "killed") == runs.digest(undisturbed)


def test_rows_that_kill_an_engine_or_its_worker_are_quarantined_and_no_neighbour_is_lost(folder, undisturbed):
    models = """
    a: {engine: fake, faults: {"Question 7?": exit, "Question 123?": exit}}
    b: {engine: fake, faults: {"Question 23?": dead}}
    c: {engine: fake, faults: {"Question 66?": hang}}
    agg: {engine: fake, faults: {"Question 91?": empty}}
    """.strip()
    code, output = runs.run(runs.write_recipe(folder, name="poison", models=models))
    assert code == 0, output
    assert f"{NUM_ROWS} prompts = {NUM_ROWS - 5} ok, 4 quarantined, 1 failed" in output
    assert "raylet" not in output
    assert re.search(r"aggregate .* empty 1$", output, re.MULTILINE)
    bad = {row["id"]: row for row in runs.failures(folder / "poison")}
    assert {i: row["status"] for i, row in bad.items()} == {
        "r00007": "quarantined", "r00123": "quarantined", "r00023": "quarantined", "r00066": "quarantined",
        "r00091": "failed",
    }  # fmt: skip
    assert bad["r00091"]["reason"] == "aggregate: empty"
    assert len(bad["r00091"]["proposals"]) == 3
    good = [row for row in runs.rows(undisturbed) if row["id"] not in bad]
    assert runs.rows(folder / "poison") == good


@pytest.mark.long
def test_calls_that_fail_twice_cost_no_row_and_no_second_start(folder, undisturbed):
    models = """
    a: {engine: fake, faults: {"Question 7": flaky}}
    agg: {engine: fake, faults: {"Question 9": flaky}}
    """.strip()
    code, output = runs.run(runs.write_recipe(folder, name="flaky", models=models))
    assert code == 0, output
    assert f"{NUM_ROWS} prompts = {NUM_ROWS} ok" in output
    assert "fake_flaky" not in output
    assert runs.digest(folder / "flaky") == runs.digest(undisturbed)


@pytest.mark.long
def test_phases_give_the_same_bytes_as_one_line(folder, undisturbed):
    recipe = runs.write_recipe(folder, name="phases")
    code, output = runs.run(recipe, "generate.phases=2")
    assert code == 0, output
    assert runs.digest(folder / "phases") == runs.digest(undisturbed)


@pytest.mark.long
def test_failed_rows_are_asked_again_by_the_next_start_and_only_they(folder, undisturbed):
    models = 'agg: {engine: fake, faults: {"Question 91?": error, "Question 92?": error}}'
    recipe = runs.write_recipe(folder, name="retried", models=models)
    code, output = runs.run(recipe)
    assert code == 0, output
    assert "298 ok, 2 failed" in output
    recipe = runs.write_recipe(folder, name="retried")
    code, output = runs.run(recipe)
    assert code == 0, output
    assert "300 prompts = 300 ok" in output
    assert runs.digest(folder / "retried") == runs.digest(undisturbed)
