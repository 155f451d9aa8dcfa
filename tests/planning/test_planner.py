import json
from pathlib import Path

import pytest

from moaa_ray.core.simulated_line import Conditions
from moaa_ray.core.simulation import simulate
from moaa_ray.errors import ConfigError
from moaa_ray.lines.mixture import plan_generate
from moaa_ray.loading import load_recipe
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.run import plan_for_cli
from moaa_ray.planning.text import duration, render_plan
from moaa_ray.recipe import Recipe

FAKE = {"engine": "fake", "tokens_per_s": 100, "completion_tokens": 100}


def recipe(models: dict, proposers: list, aggregator: str, **more) -> Recipe:
    slots = [{"model": slot} if isinstance(slot, str) else slot for slot in proposers]
    mixture = {"layers": [{"proposers": slots}], "aggregator": {"model": aggregator}, **more.pop("mixture", {})}
    return Recipe.model_validate(
        {"name": "r", "prompts": {"sources": [{"path": "p.jsonl"}]}, "models": models, "mixture": mixture, **more}
    )


def pool_names(plan) -> list[list[str]]:
    return [[pool.spec.name for pool in phase.pools] for phase in plan.phases]


# ------------------------------------------------------------------------------------------------ pools


def test_passes_stand_in_line_order_with_the_layer_in_their_name():
    plan = plan_generate(recipe({"a": FAKE, "b": FAKE, "c": FAKE}, ["a", "b"], "c"), parse_cluster("cpus=8"), 100)
    assert pool_names(plan) == [["l0.a", "l0.b", "aggregate"]]


def test_the_direct_answer_shares_the_aggregators_pool():
    """100 tokens at 100 tokens/s are 1 s; the pool answers twice per row."""
    plan = plan_generate(
        recipe({"a": FAKE, "c": FAKE}, ["a"], "c", mixture={"baselines": True}), parse_cluster("cpus=8"), 100
    )
    assert pool_names(plan) == [["l0.a", "direct+aggregate"]]
    assert [pool.spec.seconds_per_row for pool in plan.phases[0].pools] == [1.0, 2.0]


def test_neighbouring_passes_on_one_model_share_a_pool_and_others_are_said_to_be_copies():
    models = {"a": FAKE, "b": FAKE}
    shared = plan_generate(recipe(models, ["a", "b"], "b"), parse_cluster("cpus=8"), 100)
    assert pool_names(shared) == [["l0.a", "l0.b+aggregate"]]
    assert shared.notes == ()
    twice = plan_generate(recipe(models, ["b", "a"], "b"), parse_cluster("cpus=8"), 100)
    assert pool_names(twice) == [["l0.b", "l0.a", "aggregate"]]
    assert "b stands in 2 pools: l0.b (phase 1), aggregate (phase 1); each has its own copy" in twice.notes[0]


def test_the_aggregators_prompt_holds_every_sample():
    """250 + 3 x 100 + 200 = 750 tokens in, 100 out; the proposer 3 x (250 + 100): 1,900 tokens a row."""
    plan = plan_generate(
        recipe({"a": FAKE, "c": FAKE}, [{"model": "a", "num_samples": 3}], "c"), parse_cluster("cpus=8"), 1000
    )
    assert plan.pool_tokens == {"l0.a": 1050 * 1000, "aggregate": 850 * 1000}
    assert plan.phases[0].pools[0].spec.seconds_per_row == 3.0


def test_a_fixed_number_and_a_range_of_replicas_are_kept():
    models = {"a": {**FAKE, "replicas": 3}, "c": {**FAKE, "replicas": {"min": 1, "max": 2}}}
    plan = plan_generate(recipe(models, ["a"], "c"), parse_cluster("cpus=32"), 10_000)
    assert [pool.replicas for pool in plan.phases[0].pools] == [3, 2]


def test_an_endpoints_rate_limit_bounds_the_pool_and_its_speed_is_said_to_be_assumed():
    """60 requests a minute are 1 s a row however many workers there are; tokens cost 2 USD a million."""
    model = {
        "engine": "openai", "model": "m", "base_url": "http://x/v1", "requests_per_minute": 60,
        "price_per_million_tokens": 2.0,
    }  # fmt: skip
    plan = plan_generate(recipe({"a": model, "c": FAKE}, ["a"], "c"), parse_cluster("cpus=8"), 1000)
    assert plan.phases[0].work_s == 1000
    assert plan.cost_usd == pytest.approx(2.0 * 1000 * (250 + 600) / 1e6)
    assert any("the endpoint's speed is assumed" in note for note in plan.notes)


def test_an_unknown_number_of_rows_is_said():
    plan = plan_generate(recipe({"a": FAKE}, ["a"], "a"), parse_cluster("cpus=8"), None)
    assert plan.num_rows == 10_000
    assert "not known" in plan.notes[0]


def test_gpu_hours_are_those_of_the_whole_cluster_at_the_recipes_price():
    plan = plan_generate(
        recipe({"a": FAKE}, ["a"], "a", plan={"gpu_hour_usd": 3.0}), parse_cluster("gpus=8,gpu=H100"), 1000
    )
    assert plan.gpu_hours == pytest.approx(8 * plan.line.makespan_s / 3600)
    assert plan.cost_usd == pytest.approx(3 * plan.gpu_hours)


# ------------------------------------------------------------------------------------------------ models

LLAMA = {"engine": "vllm", "model": "meta-llama/Llama-3.1-8B-Instruct", "context_window": 8192}


def test_a_local_folder_is_measured_by_its_config(tmp_path):
    """A tiny Llama: 30 s to start and next to nothing to load."""
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256,
        "intermediate_size": 128, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    model = {"engine": "vllm", "model": "./tiny"}
    plan = plan_generate(recipe({"a": model}, ["a"], "a"), parse_cluster("cpus=8"), 100, base_dir=tmp_path)
    assert plan.phases[0].pools[0].spec.load_s == pytest.approx(30, abs=0.01)
    assert plan.phases[0].pools[0].spec.num_gpus == 0
    assert any("CPU slot are assumed" in note for note in plan.notes)


def test_a_model_of_unknown_size_is_planned_with_an_assumption_that_is_said():
    model = {"engine": "vllm", "model": "someone/mamba"}
    plan = plan_generate(recipe({"a": model}, ["a"], "a"), parse_cluster("gpus=1,gpu=H100"), 100)
    assert any("the size of someone/mamba is not known here" in note for note in plan.notes)


def test_a_model_that_does_not_fit_its_gpu_is_refused():
    with pytest.raises(ConfigError, match=r"models.a: 16\.1 GB of weights .* 1 x T4 have 12\.7 GB"):
        plan_generate(recipe({"a": {**LLAMA, "tensor_parallel": 1}}, ["a"], "a"), parse_cluster("gpus=4,gpu=T4"), 100)


def test_an_engine_of_eight_gpus_on_four_is_refused_with_the_sum():
    with pytest.raises(ConfigError) as refused:
        plan_generate(recipe({"a": {**LLAMA, "tensor_parallel": 8}}, ["a"], "a"), parse_cluster("gpus=4,gpu=H100"), 100)
    assert str(refused.value) == (
        "needs 8 GPUs for one engine of a (tensor_parallel 8); the cluster has 4; "
        "add nodes, or lower what an engine takes or replicas"
    )


def test_a_gpu_type_that_is_not_known_is_said():
    cluster = parse_cluster("gpus=1,gpu=H100")
    unnamed = type(cluster)(nodes=(type(cluster.nodes[0])(num_gpus=1, num_cpus=8, gpu=""),))
    plan = plan_generate(recipe({"a": LLAMA}, ["a"], "a"), unnamed, 100)
    assert "GPU type (not told) is not known here" in plan.notes[0]


# ------------------------------------------------------------------------------------------------ text


def test_a_cluster_is_read_from_one_line():
    cluster = parse_cluster("gpus=12,gpu=h100,cpus=96")
    assert [(node.num_gpus, node.num_cpus, node.gpu) for node in cluster.nodes] == [(8, 64, "H100"), (4, 32, "H100")]
    assert [node.num_gpus for node in parse_cluster("gpus=8,gpu=L4,nodes=4").nodes] == [2, 2, 2, 2]
    assert [(node.num_gpus, node.num_cpus) for node in parse_cluster("cpus=16,nodes=2").nodes] == [(0, 8), (0, 8)]


def test_a_cluster_of_unequal_nodes_is_joined_by_plus():
    cluster = parse_cluster("gpus=1,gpu=H200,cpus=16,labels=pool:big;zone:a + gpus=2,gpu=L40S,cpus=32,nodes=2 + cpus=4")
    assert [(node.num_gpus, node.num_cpus, node.gpu) for node in cluster.nodes] == [
        (1, 16, "H200"), (1, 16, "L40S"), (1, 16, "L40S"), (0, 4, ""),
    ]  # fmt: skip
    assert [node.labels for node in cluster.nodes] == [{("pool", "big"), ("zone", "a")}, set(), set(), set()]
    assert {node.labels for node in parse_cluster("gpus=1,gpu=H200 + gpus=1,gpu=L4").nodes} == {None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu=8", "is not a GPU type known here"),
        ("gpus=8", "gpus=8 without a type"),
        ("gpus=8,gpu=H100,cpu=64,", "'' is not understood|'cpu=64' is not understood; did you mean cpus"),
        ("gpus=eight,gpu=H100", "gpus=eight is not a whole number"),
        ("gpus=9,gpu=H100,nodes=2", "gpus=9 is not a multiple of nodes=2"),
        ("nodes=2", "neither GPUs nor CPUs"),
        ("cpus=0", "cpus=0 is not a whole number above 0"),
        (
            "gpus=8,gpu=H100,gpu=L4",
            "gpu is named twice, as H100 and L4; for nodes that differ join two",
        ),
        ("gpus=8,gpu=H100 + gpus=x,gpu=L4", "gpus=x is not a whole number"),
        ("gpus=8,gpu=H100 +", "'' is not understood"),
        ("gpus=100000000,gpu=H100", "gpus=100000000 is more than the 65,536 that are planned for"),
        ("cpus=8,nodes=100000000", "nodes=100000000 is more than the 65,536"),
        ("cpus=" + "9" * 5000, "cpus=99999999999999999999 is more than the 16,777,216"),
        ("cpus=00", "cpus=00 is not a whole number above 0"),
        ("gpu=H100,cpus=64", "gpu=H100 without a number of GPUs; add e.g. gpus=8, or gpus=0 for none"),
        ("cpus=8,labels=big", "labels=big: 'big' has no value; write e.g. labels=pool:big"),
        ("cpus=8,labels=a:1;a:2", "labels=a:1;a:2: a is named twice"),
    ],
)
def test_a_cluster_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_cluster(text)


def test_fake_answers_that_max_tokens_ends_are_planned_as_long_as_they_come_out():
    """100 tokens in the mean with a spread of 0.8, ended at 100: 68.9, at 100 tokens/s 0.689 s."""
    fake = {**FAKE, "length_sigma": 0.8}
    plan = plan_generate(recipe({"a": fake}, [{"model": "a", "max_tokens": 100}], "a"), parse_cluster("cpus=8"), 100)
    assert plan.phases[0].pools[0].spec.seconds_per_row == pytest.approx(0.689 + 1, abs=0.001)


def test_a_concurrency_above_what_the_kv_cache_holds_fills_and_drains_no_longer():
    """2 x (80 GB x 0.92 - 2 GB) less 75.2 GB of weights in FP8 leave 68.0 GB. A token takes 2 x 80 x 8 x 128 x 2 bytes,
    and an aggregator's prompt of 250 + 600 + 200 tokens with half of its answer is 1,350: 154 requests at a time."""

    def aggregator(concurrency: int, num_rows: int):
        model = {"engine": "vllm", "model": "Qwen/Qwen2-72B-Instruct", "quantization": "fp8", "tensor_parallel": 2}
        models = {"big": {**model, "concurrency": concurrency}, "a": {**FAKE, "completion_tokens": 600}}
        plan = plan_generate(recipe(models, ["a"], "big"), parse_cluster("gpus=2,gpu=H100"), num_rows)
        run = simulate(plan.line, num_rows=num_rows, conditions=Conditions())
        return plan.phases[0].pools[1].spec, plan.phases[0].ramp_s, run.makespan_s

    specs, ramps, simulated = zip(*(aggregator(most, 5_000) for most in (154, 256, 100_000)), strict=True)
    assert [spec.running(1) for spec in specs] == [154, 154, 154]
    assert ramps == pytest.approx([ramps[0]] * 3, rel=0.1)
    assert simulated == pytest.approx([simulated[0]] * 3, rel=0.1)
    assert aggregator(100, 5_000)[0].running(1) == 100


def test_the_text_names_pools_bottleneck_limit_and_total():
    """Two pools of 1 s a row, 1,000 rows, 4 slots: one engine each on the 2 that are left; 1,000 s + 6 s to start,
    and 1 s until the second has its first answer. Tokens a row: 250 + 100, and 250 + 100 + 200 + 100."""
    models = {name: {**FAKE, "num_cpus": 1, "concurrency": 1} for name in "ac"}
    text = render_plan(plan_generate(recipe(models, ["a"], "c"), parse_cluster("cpus=4"), 1000))
    assert text.splitlines()[0] == "1,000 rows on 4 CPU slots, 1 node"
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "1 l0.a * a 1 - 1 100% 0 s 17 min 0.3" in rows
    assert "1 aggregate c 1 - 1 100% 0 s 17 min 0.7" in rows
    assert "phase 1: 17 min (6 s to load, 1 s to fill and drain)" in text
    assert "in all: 17 min, 1.01 x the work bound, 1.0 M tokens, no price in the recipe" in text
    assert "limit: l0.a is slowest; 1 more CPU slot (room for one more engine of it) would save" in text


def test_durations_are_for_people():
    assert [duration(s) for s in (45, 720, 12_240)] == ["45 s", "12 min", "3.4 h"]


def test_the_command_plans_a_recipe_file_on_a_cluster_in_one_line():
    loaded = load_recipe(Path(__file__).parents[2] / "jobs" / "self_moa.yaml")
    text = plan_for_cli(loaded, cluster="gpus=1,gpu=H200,cpus=8", num_rows=100)
    assert text.startswith("100 rows on 1 x H200, 8 CPU slots, 1 node")
