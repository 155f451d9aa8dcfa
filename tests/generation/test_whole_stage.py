"""Whole runs of less usual shapes: a hosted proposer, baselines, Self-MoA, a pool that grows."""

import asyncio
from pathlib import Path

import pytest

from moaa_ray.core.seeds import seed_for
from moaa_ray.data.local_store import LocalStore
from moaa_ray.engines.fake import FakeEngine
from moaa_ray.generation.timeline import read_timelines
from moaa_ray.reporting.report import render_report
from moaa_ray.settings.models import FakeModel
from moaa_ray.types import Message, Request, Sampling
from tests.generation import resumes, runs, servers

pytestmark = pytest.mark.slow


def text_of(row: dict, name: str, **config) -> str:
    """What a fake engine says to the first question of a row when pass `name` asks it."""

    async def ask() -> str:
        engine = FakeEngine(FakeModel(engine="fake", **config))
        await engine.start()
        question = Message(role="user", content=row["messages"][0]["content"])
        sampling, seed = Sampling(max_tokens=256), seed_for(0, name, row["id"], 0, 0)
        asked = Request(id="any", row_id=row["id"], messages=(question,), sampling=sampling, seed=seed)
        return (await engine.generate(asked)).text

    return asyncio.run(ask())


def test_a_hosted_proposer_and_baselines_stand_beside_the_others(tmp_path: Path):
    runs.write_prompts(tmp_path / "prompts.jsonl", 60, turns=lambda i: 1 + (i % 3 == 0))
    with servers.chat_endpoint(models=("hosted",), latency_s=0.01, window=2048) as endpoint:
        hosted = f"c: {{engine: openai, model: hosted, base_url: '{endpoint.url}', price_per_million_tokens: 2.5}}"
        recipe = runs.write_recipe(tmp_path, models=hosted, mixture="  baselines: true\n")
        slots = (f"mixture.layers.0.proposers.{i}.max_tokens=256" for i in range(3))
        code, output = runs.run(recipe, *slots, "mixture.aggregator.max_tokens=256")
    assert code == 0, output
    assert "60 prompts = 60 ok" in output
    assert len(endpoint.bodies) == 80
    assert endpoint.peak_open > 1
    for i, row in enumerate(runs.rows(tmp_path / "run")):
        first = {p["proposer"]: p for p in row["proposals"] if p["turn"] == 0}
        assert list(first) == ["a", "b", "c", "agg"]
        assert first["a"]["completion"] == text_of(row, "l0.a")
        assert first["c"]["completion"] == text_of(row, "l0.c", completion_tokens=20, context_window=2048)
        assert first["c"]["model"] == "hosted"
        assert first["agg"]["completion"] == text_of(row, "direct")
        assert [(p["layer"], p["used"]) for p in first.values()] == [(0, True)] * 3 + [(0, False)]
        assert row["messages"][1]["content"] != first["agg"]["completion"]
        assert len(row["proposals"]) == 4 * (1 + (i % 3 == 0))
    summary = resumes.summary(tmp_path / "run")
    pools = {pool["name"]: pool for pool in summary["pools"]}
    assert {name: pool["calls"] for name, pool in pools.items()} == {
        "l0.a": 80, "l0.b": 80, "l0.c": 80, "direct+aggregate": 160,
    }  # fmt: skip
    tokens = pools["l0.c"]["prompt_tokens"] + pools["l0.c"]["completion_tokens"]
    assert summary["cost_usd"] == pytest.approx(tokens * 2.5 / 1e6)
    assert "cost_usd" not in pools["l0.a"]
    ((*_, last),) = read_timelines(LocalStore(str(tmp_path / "run")), "generate")
    assert {name: counters["calls"] for name, counters in last["pools"].items()} == {
        name: pool["calls"] for name, pool in pools.items()
    }
    page = render_report(str(tmp_path / "run"), num_rows=10, now=1.8e9)
    assert "generate is done." in page
    assert page.count("<svg") >= 4


SELF_MOA = """
name: run
run_dir: {folder}/run
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  one: {{engine: fake, replicas: {{min: 1, max: 3}}, concurrency: 8, tokens_per_s: 2000}}
mixture:
  layers: [{{proposers: [{{model: one, num_samples: 6, temperature: 0.7}}]}}]
  aggregator: {{model: one, temperature: 0.0}}
  min_proposals: 3
generate: {{block_rows: 4}}
ray: {{address: local}}
"""


@pytest.mark.long
def test_one_model_n_times_is_one_pool_which_grows_and_gives_the_rows_of_one_that_does_not(tmp_path: Path):
    runs.write_prompts(tmp_path / "prompts.jsonl", 200)
    recipe = tmp_path / "self.yaml"
    recipe.write_text(SELF_MOA.format(folder=tmp_path), encoding="utf-8")
    process = runs.start(recipe)
    resumes.wait_until(lambda: len(resumes.pool_workers(process.pid)) == 3, process)
    code, output = runs.finish(process)
    assert code == 0, output
    assert "200 prompts = 200 ok" in output
    (pool,) = resumes.summary(tmp_path / "run")["pools"]
    assert (pool["name"], pool["calls"]) == ("l0.one+aggregate", 200 * 7)
    for row in runs.rows(tmp_path / "run"):
        samples = [p["completion"] for p in row["proposals"] if p["used"]]
        assert len(set(samples)) == len(row["proposals"]) == 6
    code, output = runs.run(recipe, f"run_dir={tmp_path}/same", "models.one.replicas=1", "models.one.tokens_per_s=0")
    assert code == 0, output
    assert runs.digest(tmp_path / "same") == runs.digest(tmp_path / "run")
