"""Real vLLM engines on the CPU, real prompts, real kills: every row accounted for at the end."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from moaa_ray.demo.tiny import make_tiny_model
from tests.generation import runs

DATA = Path(__file__).parents[3] / "shared" / "data"
ALPACA, MT_BENCH = DATA / "alpaca_eval_prompts.parquet", DATA / "mt_bench.jsonl"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not ALPACA.exists() or not MT_BENCH.exists(), reason=f"needs {ALPACA} and {MT_BENCH}"),
]

RECIPE = """
name: real
run_dir: {folder}/real
prompts:
  sources:
    - {{path: {alpaca}, name: alpaca, columns: {{id: id, prompt: prompt}}}}
    - {{path: {mt_bench}, name: mt_bench, columns: {{id: id, turns: turns}}}}
models:
{models}
mixture:
  layers: [{{proposers: [{{model: a, max_tokens: 48}}, {{model: b, max_tokens: 48}}, {{model: c, max_tokens: 48}}]}}]
  aggregator: {{model: agg, max_tokens: 64}}
generate: {{block_rows: 16}}
ray: {{address: local}}
"""


def write_recipe(folder: Path) -> Path:
    lines = []
    for seed, (name, template) in enumerate([("a", "chatml"), ("b", "llama3"), ("c", "gemma"), ("agg", "chatml")]):
        model = make_tiny_model(folder / "models" / name, seed=seed, template=template)
        settings = "context_window: 4096, concurrency: 32, replicas: 1, device: cpu"
        lines.append(f"  {name}: {{engine: vllm, model: {model}, {settings}}}")
    path = folder / "real.yaml"
    path.write_text(
        RECIPE.format(folder=folder, alpaca=ALPACA, mt_bench=MT_BENCH, models="\n".join(lines)), encoding="utf-8"
    )
    return path


def test_885_real_prompts_killed_twice_end_with_885_rows_accounted_for(tmp_path):
    recipe = write_recipe(tmp_path)
    run_dir = tmp_path / "real"
    seen = 0
    for kill in range(2):
        process = runs.start(recipe)
        found = runs.wait_for_blocks(run_dir, seen + 12, process, timeout_s=400)
        assert process.poll() is None, f"kill {kill} came too late: {runs.finish(process)}"
        assert found >= seen + 12
        runs.kill_all(process)
        seen = runs.num_blocks(run_dir)
    code, output = runs.run(recipe, timeout_s=900)
    assert code == 0, output
    assert "885 prompts = " in output
    rows, bad = runs.rows(run_dir), runs.failures(run_dir)
    ids = [row["id"] for row in [*rows, *bad]]
    assert len(ids) == len(set(ids)) == 885
    two_turns = {str(json.loads(line)["id"]) for line in MT_BENCH.read_text(encoding="utf-8").splitlines()}
    wanted = {*pq.read_table(ALPACA, columns=["id"]).column("id").cast("string").to_pylist(), *two_turns}
    assert set(ids) == wanted
    for row in rows:
        turns = 2 if row["id"] in two_turns else 1
        assert [m["role"] for m in row["messages"] if m["role"] != "system"] == ["user", "assistant"] * turns
        assert {(p["turn"], p["proposer"]) for p in row["proposals"]} == {(t, p) for t in range(turns) for p in "abc"}
