"""How much of the work is done again after kills: counted at an endpoint, which sees every call of every driver."""

import json
import random
import time

import pytest

from tests.generation import kills, runs, servers

pytestmark = pytest.mark.slow
NUM_ROWS, BLOCK_ROWS, NUM_PASSES, NUM_KILLS = 480, 16, 4, 3


@pytest.mark.long
def test_a_killed_driver_repeats_no_more_than_the_blocks_that_were_in_the_line(tmp_path):
    runs.write_prompts(tmp_path / "prompts.jsonl", NUM_ROWS)
    run_dir, rng = tmp_path / "run", random.Random(7)
    with servers.chat_endpoint(latency_s=0.3, window=8192) as endpoint:
        settings = f"engine: openai, model: fake, base_url: '{endpoint.url}', concurrency: 8, replicas: 1"
        models = "\n".join(f"{name}: {{{settings}}}" for name in kills.NAMES)
        recipe = runs.write_recipe(tmp_path, models=models)
        for _ in range(NUM_KILLS):
            process = kills.start(recipe)
            kills.wait_for_flight(run_dir, process, rng.randint(1, 2))
            time.sleep(rng.random())
            runs.kill_all(process)
            kills.assert_nothing_left(process)
        code, output = kills.finish(kills.start(recipe))
    assert code == 0, output
    assert [row["id"] for row in runs.rows(run_dir)] == [f"r{i:05d}" for i in range(NUM_ROWS)]
    most_in_line = json.loads((run_dir / "summary.json").read_text())["generate"]["max_blocks_in_line"]
    redone = len(endpoint.bodies) - NUM_ROWS * NUM_PASSES
    print(f"calls done again: {redone} after {NUM_KILLS} kills; blocks in the line: {most_in_line}")
    assert 0 < redone <= NUM_KILLS * most_in_line * BLOCK_ROWS * NUM_PASSES
