"""Processes that hang instead of dying: Ray does not see them, and a run goes on all the same."""

import json
import signal
from pathlib import Path

import pytest

from tests.generation import kills, runs

NUM_ROWS = 160
IDS = [f"r{i:05d}" for i in range(NUM_ROWS)]


@pytest.fixture(autouse=True)
def end_all():
    yield
    kills.end_all()


def stopped_run(folder: Path, name: str, *overrides: str) -> tuple[dict, str]:
    """Summary and output of a run in which the first process of this name was stopped while rows were with it."""
    runs.write_prompts(folder / "prompts.jsonl", NUM_ROWS, turns=lambda i: 1 + (i % 8 == 0))
    process = kills.start(runs.write_recipe(folder, models=kills.slow_models(1000)), *overrides)
    kills.wait_for_flight(folder / "run", process, 3)
    victims = kills.named(kills.processes(process.pid), name)
    kills.send(signal.SIGSTOP, victims[:1])
    code, output = kills.finish(process)
    assert code == 0, output
    assert [row["id"] for row in runs.rows(folder / "run")] == IDS
    assert runs.failures(folder / "run") == []
    kills.assert_nothing_left(process)
    summary = json.loads((folder / "run" / "summary.json").read_text())["generate"]
    assert summary["statuses"]["ok"] == summary["num_prompts"] == NUM_ROWS
    return summary, output


@pytest.mark.slow
def test_a_line_in_which_nothing_moves_is_started_again_and_loses_no_row(tmp_path):
    summary, output = stopped_run(tmp_path, "Coordinator", "generate.restart_after_s=10")
    assert summary["line_restarts"] == 1, output
    assert "the coordinator does not answer; the line is started again from what is committed" in output
    assert "the line stood still and was started again: 1 times" in output


@pytest.mark.long
def test_a_pool_worker_that_hangs_is_found_and_replaced_while_the_line_goes_on(tmp_path):
    summary, output = stopped_run(tmp_path, "PassWorker", "generate.hang_after_s=10")
    assert summary["line_restarts"] == 0, output
    assert sum(pool["deaths"] for pool in summary["pools"]) == 1
    assert summary["rows_redone"] > 0
    assert "was not heard of for 30 s, and is replaced" in output
