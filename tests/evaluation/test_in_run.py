"""The evaluate stage of `moaa run` on real Ray, with fake models and a judge behind an endpoint."""

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from moaa_ray.evaluation.stage import evaluate
from moaa_ray.loading import load_preference
from moaa_ray.pipeline import Done, load_run, run
from moaa_ray.pipeline_text import render_run
from moaa_ray.reporting.report import render_report
from tests.evaluation.files import NUM_QUESTIONS, write_benchmarks
from tests.generation import runs, servers

RECIPE = """
name: whole
run_dir: {folder}/run
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  m: {{engine: fake, faults: {{Again 2: refuse, Again 4: error}}}}
  rule: {{engine: rule, function: longest}}
  judge: {{engine: openai, model: judge, base_url: "{url}", concurrency: 2, context_window: 8192}}
mixture: {{layers: [{{proposers: [{{model: m}}]}}], aggregator: {{model: m}}}}
run: {{stages: [generate, evaluate]}}
evaluate:
  models: {{new: m}}
  alpaca_eval: {{questions: alpaca.json, baseline: alpaca.json, judge: rule, preference: scores}}
  mt_bench: {{questions: mt.jsonl, references: mt_answers.jsonl, judge: judge}}
  max_failed_fraction: 0.2
ray: {{address: local}}
"""


def whole_run(recipe: Path) -> list[Done]:
    return run(load_run(recipe), console=Console(file=io.StringIO()))


def summary_of(run_dir: Path) -> dict:
    facts = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["evaluate"]
    stored = json.loads((run_dir / "evaluation" / "summary.json").read_text(encoding="utf-8"))
    assert facts == stored
    return facts


@pytest.mark.slow
@pytest.mark.long
def test_a_whole_run_ends_in_the_table_asks_nothing_twice_and_one_benchmark_alone_keeps_the_other(tmp_path):
    """Six questions of two turns: one second turn is refused for good, one fails for now; both first turns count."""
    write_benchmarks(tmp_path)
    runs.write_prompts(tmp_path / "prompts.jsonl", 4)
    recipe, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    with servers.chat_endpoint(reply=lambda messages: "[[7]]", models=("judge",), window=8192) as endpoint:
        recipe.write_text(RECIPE.format(folder=tmp_path, url=endpoint.url), encoding="utf-8")
        done = whole_run(recipe)
        assert [one.step.title for one in done] == ["generate", "evaluate"]
        assert all(one.worked for one in done)
        told = render_run(done, str(run_dir))
        assert "AE2 WR" in told
        assert "evaluate  answers/new" in told
        assert "evaluate  judges/rule" in told
        facts = summary_of(run_dir)
        graded = facts["models"]["new"]["mt_bench"]
        assert (graded["num_valid"], graded["num_total"]) == (2 * NUM_QUESTIONS - 2, 2 * NUM_QUESTIONS)
        assert [turn["count"] for turn in graded["turns"]] == [NUM_QUESTIONS, NUM_QUESTIONS - 2]
        assert graded["lacking"] == {"turn 2: no_answer: fake_refusal": 1, "turn 2: no_answer: fake_error": 1}
        assert {pool["name"]: pool["calls"] for pool in facts["usage"]} == {
            "answers/new": 3 * NUM_QUESTIONS,
            "judges/judge": 2 * NUM_QUESTIONS - 2,
            "judges/rule": 2 * NUM_QUESTIONS,
        }
        asked = len(endpoint.bodies)
        whole_run(recipe)
        assert len(endpoint.bodies) == asked
        assert summary_of(run_dir)["models"] == facts["models"]
        alone = evaluate(load_preference(recipe), only=["alpaca_eval"])
        assert len(endpoint.bodies) == asked
    assert list(alone.about) == ["alpaca_eval", "mt_bench"]
    assert summary_of(run_dir)["models"] == facts["models"]
    shards = (run_dir / "evaluation" / "judges" / "judge" / "judged").glob("*.parquet")
    assert sum(pq.read_metadata(shard).num_rows for shard in shards) == NUM_QUESTIONS
    calls = {pool["name"]: pool["calls"] for pool in summary_of(run_dir)["usage"]}
    assert calls["answers/new"] == 3 * NUM_QUESTIONS + 2  # the failed one again, at each start
    html = render_report(str(run_dir), num_rows=2, now=0.0)
    for said in ("evaluate (answers of new)", "evaluate (judge rule)", "What was evaluated", "turn 2: no_answer"):
        assert said in html
    changed = load_preference(recipe, ["evaluate.mt_bench.judge_max_tokens=64"])
    alone = evaluate(changed, only=["alpaca_eval"])
    assert list(alone.about) == ["alpaca_eval"]
    assert any("mt_bench: no longer in the table: other settings" in note for note in alone.scored.notes)
