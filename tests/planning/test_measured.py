"""What a calibration run changes in a plan. The figures are written by the stages' own code, as a run does."""

from pathlib import Path

import pytest

from moaa_ray.core.gpus import gpu_type
from moaa_ray.core.packing_gpus import Cluster
from moaa_ray.core.throughput import gpu_row_s
from moaa_ray.data.store import open_store
from moaa_ray.errors import ConfigError
from moaa_ray.generation.host_stats import PassTokens
from moaa_ray.generation.summary import PoolSummary
from moaa_ray.generation.usage import write_usage
from moaa_ray.lines.mixture import plan_generate
from moaa_ray.loading import load_recipe
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.measured import read_measurements, setup_of
from moaa_ray.planning.planner import StagePlan
from moaa_ray.planning.pool_estimate import engine_size, shape_of_model
from moaa_ray.planning.run import plan_for_cli
from moaa_ray.planning.text import render_plan
from moaa_ray.recipe import Recipe
from moaa_ray.settings.models import Model, VllmModel
from tests.generation import runs

HOSTED = {"engine": "openai", "model": "m", "base_url": "http://x/v1", "concurrency": 8}
ONE_GPU = {"engine": "vllm", "tensor_parallel": 1, "pipeline_parallel": 1}
LLAMA = {**ONE_GPU, "model": "meta-llama/Llama-3.1-8B-Instruct", "context_window": 8192}
H100 = parse_cluster("gpus=1,gpu=H100,cpus=16")
CPUS = parse_cluster("cpus=16")


def recipe_of(model: dict, *measured: Path) -> Recipe:
    """One model proposes, a fake one aggregates."""
    slots = {"layers": [{"proposers": [{"model": "a", "max_tokens": 2048}]}], "aggregator": {"model": "agg"}}
    return Recipe.model_validate(
        {"name": "r", "prompts": {"sources": [{"path": "p.jsonl"}]}, "mixture": slots}
        | {"models": {"a": model, "agg": {"engine": "fake", "model": "agg"}}}
        | {"plan": {"measured": [str(folder) for folder in measured]}}
    )


def write_run(folder: Path, model: Model, cluster: Cluster | None, *, part: str = "e000001-000", **fields) -> Path:
    """A run in which the proposer `a` answered; 50 calls of 100 tokens in and 200 out by default, 10 s to load."""
    counts = {"calls": 50, "prompt_tokens": 5_000, "completion_tokens": 10_000}
    times = {"busy_s": 50.0, "slot_s": 100.0, "num_slots": 8, "start_s": 10.0, "num_starts": 1}
    facts = {"tokens_per_s": 0.0, "busy_fraction": 0.8, "engine_s": 60.0, "gpu_s": 0.0, "deaths": 0, "failures": {}}
    passes = {"l0.a": PassTokens(**counts)}
    pool = PoolSummary(
        name="l0.a", passes=passes, setup=setup_of(model, cluster), **(counts | times | facts | fields)
    )  # fmt: skip
    write_usage(open_store(str(folder)), "generate", part, [pool])
    return folder


def planned(model: dict, cluster: Cluster, *measured: Path) -> StagePlan:
    return plan_generate(recipe_of(model, *measured), cluster, 1000)


def proposer_s(plan: StagePlan) -> float:
    return plan.phases[0].pools[0].spec.seconds_per_row


def model_of(model: dict) -> Model:
    return recipe_of(model).models["a"]


def test_an_endpoints_slots_take_as_long_when_all_are_full(tmp_path):
    """50 calls held a slot for 2 s each, 2 of 8 at a time: with 8 full a call takes 0.25 s of the engine, not 1."""
    run = write_run(tmp_path / "run", model_of(HOSTED), None)
    plan = planned(HOSTED, CPUS, run)
    assert proposer_s(plan) == pytest.approx(0.25)
    assert any("a: the measured run filled 2.0 of 8 slots" in note for note in plan.notes)


def test_tokens_and_loading_are_the_measured_ones(tmp_path):
    """100 tokens in and 200 out a call, where 250 and 600 are assumed; 10 s to start."""
    plan = planned(HOSTED, CPUS, write_run(tmp_path / "run", model_of(HOSTED), None))
    assert plan.pool_tokens["l0.a"] == 1000 * 300
    assert plan.phases[0].pools[0].spec.load_s == 10.0
    assert "The mean tokens of a call are as measured in 1 of 2 passes." in plan.notes


def test_what_is_measured_and_what_is_assumed_is_said(tmp_path):
    run = write_run(tmp_path / "run", model_of(HOSTED), None)
    text = render_plan(planned(HOSTED, CPUS, run))
    assert f"  l0.a: speed: measured in {run} (50 calls)" in text
    assert "  aggregate: speed: the recipe's tokens_per_s" in text
    assert "endpoint's speed is assumed" not in text


def test_an_engine_of_known_size_keeps_its_efficiency_when_more_slots_are_full(tmp_path):
    """At 16 filled slots of 64 it took 1.5 times what 45 % of the roofline says; so it does with all 64."""
    model = model_of(LLAMA)
    assert isinstance(model, VllmModel)
    shape = shape_of_model(model.model, tmp_path)
    assert shape
    size = engine_size(model, shape, tmp_path, is_on_gpu=True)
    assert size
    quarter = type(size)(**{**size.__dict__, "concurrency": 16})
    call_s = 1.5 * gpu_row_s(quarter, gpu_type("H100"), prompt_tokens=100, out_tokens=200)
    run = write_run(tmp_path / "run", model, H100, busy_s=50 * call_s, slot_s=16 * 50 * call_s, num_slots=64)
    found = proposer_s(planned(LLAMA, H100, run))
    assert found == pytest.approx(1.5 * gpu_row_s(size, gpu_type("H100"), prompt_tokens=100, out_tokens=200))
    assert found < call_s / 2


def test_another_gpu_type_or_split_is_not_measured(tmp_path):
    run = write_run(tmp_path / "run", model_of(LLAMA), H100)
    assert "measured" in planned(LLAMA, H100, run).told["l0.a"]
    for model, cluster in [
        (LLAMA, "gpus=1,gpu=H200"),
        (LLAMA, "cpus=16"),
        ({**LLAMA, "dtype": "float16"}, "gpus=1,gpu=H100"),
    ]:
        assert "measured" not in planned(model, parse_cluster(cluster), run).told["l0.a"]


def test_an_engine_of_unknown_size_is_as_fast_as_it_was(tmp_path):
    """100 s of work for 10,000 tokens: 2 s for a call of 200, however many slots were full; and that is said."""
    model = {**ONE_GPU, "model": "someone/mamba"}
    plan = planned(model, CPUS, write_run(tmp_path / "run", model_of(model), None, busy_s=100.0, slot_s=200.0))
    assert proposer_s(plan) == pytest.approx(2.0)
    assert any("filled 2.0 of 64 slots" in note and "it may be faster" in note for note in plan.notes)


def test_several_starts_and_runs_are_added_up(tmp_path):
    """100 calls in 100 s of slots, and 50 in 50: 1 s a call, an eighth of it of the engine."""
    model = model_of(HOSTED)
    first = write_run(tmp_path / "one", model, None, slot_s=50.0)
    write_run(tmp_path / "one", model, None, part="e000002-000", slot_s=50.0)
    second = write_run(tmp_path / "two", model, None, slot_s=50.0)
    plan = planned(HOSTED, CPUS, first, second)
    assert proposer_s(plan) == pytest.approx(1 / 8)
    assert plan.told["l0.a"] == f"speed: measured in {first}, {second} (150 calls)"


def test_a_pool_that_answered_nothing_measures_nothing(tmp_path):
    zero = {"calls": 0, "prompt_tokens": 0, "completion_tokens": 0}
    nothing = {"passes": {}, "busy_s": 0.0, "slot_s": 0.0}
    counts = {name: PassTokens(**zero) for name in ("l0.a",)}
    pool = PoolSummary(
        name="l0.a", tokens_per_s=0, busy_fraction=0, engine_s=0, gpu_s=0, deaths=0, failures={},
        setup=setup_of(model_of(HOSTED), None), **(zero | nothing | {"passes": counts}),
    )  # fmt: skip
    write_usage(open_store(str(tmp_path)), "generate", "e000001-000", [pool])
    assert "speed: assumed" in planned(HOSTED, CPUS, tmp_path).told["l0.a"]


def test_figures_that_do_not_say_of_what_engine_are_left_alone(tmp_path):
    pool = PoolSummary(
        name="l0.a", calls=1, prompt_tokens=1, completion_tokens=1, tokens_per_s=1, busy_fraction=1, engine_s=1,
        gpu_s=0, deaths=0, failures={},
    )  # fmt: skip
    write_usage(open_store(str(tmp_path)), "generate", "e000001-000", [pool])
    assert read_measurements([str(tmp_path)]).engines == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"plan\.measured\.0 = .*no directory of a run that has asked models"):
        planned(HOSTED, CPUS, tmp_path)


@pytest.mark.slow
def test_fifty_rows_predict_the_speed_of_an_engine_of_which_the_recipe_says_nothing_true(tmp_path):
    """640 tokens/s and 60 tokens an answer are 0.094 s a row. The planned recipe says 1 token/s and 600 tokens."""
    runs.write_prompts(tmp_path / "prompts.jsonl", 50)
    true = "tokens_per_s: 640, completion_tokens: 60, start_s: 2, concurrency: 16"
    lines = [f"{name}: {{engine: fake, model: {name}, {{}}}}" for name in ("a", "b", "c", "agg")]
    path = runs.write_recipe(tmp_path, models="\n".join(line.replace("{}", true) for line in lines))
    code, output = runs.run(path)
    assert code == 0, output
    wrong = "tokens_per_s: 1, completion_tokens: 600, concurrency: 16"
    (tmp_path / "other").mkdir()
    other = runs.write_recipe(tmp_path / "other", models="\n".join(line.replace("{}", wrong) for line in lines))
    loaded = load_recipe(other, [f"plan.measured=['{tmp_path / 'run'}']"])
    plan = plan_generate(loaded.recipe, CPUS, 1000)
    for pool in plan.phases[0].pools:
        assert pool.spec.seconds_per_row == pytest.approx(60 / 640, rel=0.1), pool.spec.name
        assert pool.spec.load_s == pytest.approx(2, abs=0.5)
    text = plan_for_cli(load_recipe(other), cluster="cpus=16", num_rows=1000, measured=[str(tmp_path / "run")])
    assert "aggregate: speed: measured in" in text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[{", "JSONDecodeError"),
        ("[1]", "AttributeError"),
        ('[{"setup": {"model": "m"}}]', "KeyError: 'passes'"),
        ('[{"setup": "m", "passes": {}}]', "KeyError: 'prompt_tokens'"),
        ('[{"setup": {"model": "m"}, "passes": {"l0.a": {"calls": NaN}}}]', "nan is no number of something measured"),
        ('[{"setup": {"model": "m"}, "passes": {}, "prompt_tokens": null}]', "None is no number"),
        ('[{"setup": {"model": "m"}, "passes": {}, "prompt_tokens": -1}]', "-1 is no number"),
    ],
)
def test_a_damaged_record_of_a_run_is_refused_by_its_name(tmp_path, text, what):
    file = tmp_path / "metrics/usage/generate/e000001-000.json"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"plan.measured.0: {file} is damaged .*{what}.*take the run out"):
        read_measurements([str(tmp_path)])
