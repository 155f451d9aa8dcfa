"""What `moaa plan` says of sft and dpo, and of recipes whose prompts it can count."""

from pathlib import Path

import pytest

from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_to_plan
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.counting import count_training
from moaa_ray.planning.run import plan_for_cli
from moaa_ray.planning.training import TrainingPlan, plan_training
from moaa_ray.settings.training import SftConfig, TrainingData

JOBS = Path(__file__).parents[2] / "jobs"
H100S = "gpus=8,gpu=H100,cpus=96"
FOR_FSDP2 = ["sft.keep_gathered=false", "sft.compile=false"]
"""Undoes what the recipe sets for this strategy."""


def plan(stage, cluster=H100S, rows=1000, **kwargs) -> TrainingPlan:
    loaded = load_to_plan(JOBS / "paper_train_llama_8gpu.yaml", kwargs.pop("overrides", []))
    assert loaded.recipe.student is not None
    return plan_training(loaded.recipe, stage, loaded.recipe.student, parse_cluster(cluster), rows, **kwargs)


def test_sft_counts_packs_and_every_turn_of_the_rows_that_are_not_held_out():
    """990 of 1,000 rows of 1.5 x (250 + 600) tokens: 1,262,250 tokens, 616.3 packs of 2,048; 6 epochs of 128 packs."""
    found = plan("sft", mean_turns=1.5)
    assert (found.work.tokens, found.work.mean_length) == (6 * 1_262_250, 1275)
    assert found.num_steps == 28
    assert plan("sft", mean_turns=1.5, overrides=["sft.validation_fraction=0"]).num_steps == 29


def test_dpo_reads_both_completions_and_the_reference_once():
    """A pair is 2 x (250 + 600) tokens; 5 epochs over 990 of 1,000 pairs in steps of 128; all are read once."""
    found = plan("dpo")
    assert (found.work.tokens, found.work.forward_tokens) == (5 * 990 * 1_700, 1_700_000)
    assert found.num_steps == 38


def test_units_that_fill_no_step_are_told():
    found = plan("dpo", rows=20)
    assert found.num_steps == 0
    assert "About 99 pairs fill no step of 128: lower dpo.batch." in found.notes


def test_gpu_hours_and_cost_are_of_all_workers():
    found = plan("sft", overrides=["plan.gpu_hour_usd=2.5"])
    assert found.seconds is not None
    assert found.gpu_hours == pytest.approx(8 * found.seconds / 3600)
    assert found.cost_usd == pytest.approx(2.5 * found.gpu_hours)


def test_a_student_that_does_not_fit_is_refused_with_the_sum_and_a_way_out():
    with pytest.raises(ConfigError) as caught:
        plan("sft", "gpus=1,gpu=H100,cpus=8", overrides=["sft.workers=1"])
    assert str(caught.value) == (
        "sft: 128 GB of weights, gradients and optimizer on each of 1 GPUs, and a H100 has 74 GB for them "
        "(80 GB - 6 GB for activations); use 2 GPUs, set strategy: deepspeed with cpu_offload: true, or train "
        "a smaller student"
    )
    offloaded = ["sft.workers=1", "sft.strategy=deepspeed", "sft.cpu_offload=true", *FOR_FSDP2]
    assert plan("sft", "gpus=1,gpu=H100,cpus=8", overrides=offloaded).state_bytes == 0


def test_a_student_that_no_node_holds_is_sharded_over_all_of_them():
    """70.55e9 weights at 16 bytes: 141.1 GB over the 8 of a node, 17.6 GB over 64; 16 GPUs have 70.6 GB each."""
    big = ["student.model=meta-llama/Llama-3.1-70B-Instruct", "sft.keep_gathered=false"]
    many = "gpus=64,gpu=H100,cpus=768"
    with pytest.raises(ConfigError) as caught:
        plan("sft", many, overrides=[*big, "sft.workers=64"])
    assert str(caught.value) == (
        "sft: 141 GB of weights, gradients and optimizer on each of 64 GPUs (sharded over the 8 of a node), and a H100 "
        "has 74 GB for them (80 GB - 6 GB for activations); set sharding: all (16 GPUs would do), set strategy: "
        "deepspeed with cpu_offload: true, or train a smaller student"
    )
    state = 16 * 70_553_706_496
    for num in (64, 16):
        assert plan("sft", many, overrides=[*big, f"sft.workers={num}", "sft.sharding=all"]).state_bytes == state / num
    deepspeed = [*big, "sft.workers=64", "sft.strategy=deepspeed", "sft.compile=false"]
    assert plan("sft", many, overrides=deepspeed).state_bytes == state / 64
    for setting in ("sft.sharding=all", "sft.sharding=node"):
        with pytest.raises(ConfigError, match="use 16 GPUs" + (" and sharding: all," if "node" in setting else ",")):
            plan("sft", many, overrides=[*big, "sft.workers=8", setting])
    with pytest.raises(ConfigError, match="set strategy: fsdp2 with workers: 16 and sharding: all,"):
        plan("sft", many, overrides=[*big, "sft.workers=64", "sft.strategy=ddp"])


def test_nodes_of_one_gpu_shard_over_all():
    assert plan("sft", "gpus=8,gpu=H100,cpus=96,nodes=8").state_bytes == 2 * 8_030_261_248


def test_adapters_fit_where_all_weights_do_not():
    """8.03e9 weights at 2 bytes, 4 in float32, and 41,943,040 of adapters at 16."""
    one = ["sft.workers=1", "sft.lora={}"]
    assert plan("sft", "gpus=1,gpu=H100,cpus=8", overrides=one).state_bytes == 2 * 8_030_261_248 + 16 * 41_943_040
    exact = plan("sft", "gpus=1,gpu=H100,cpus=8", overrides=[*one, "sft.precision=float32"])
    assert exact.state_bytes == 4 * 8_030_261_248 + 16 * 41_943_040
    assert exact.work.is_lora


def test_weights_that_are_kept_gathered_have_to_fit_too():
    with pytest.raises(ConfigError) as caught:
        plan("sft", "gpus=2,gpu=H100,cpus=8", overrides=["sft.workers=2", "sft.keep_gathered=true"])
    assert str(caught.value) == (
        "sft.keep_gathered = true: 16 GB of gathered weights beside 64 GB of weights, gradients and optimizer on each "
        "of 2 GPUs, and a H100 has 74 GB for both; leave it out, or use 3 GPUs"
    )
    sharded = plan("sft", "gpus=2,gpu=H100,cpus=8", overrides=["sft.workers=2", "sft.keep_gathered=false"])
    assert sharded.num_workers == 2


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ("gpus=4,gpu=H100,cpus=8", "sft.workers = 8: the cluster has 4 GPUs; lower it, or set workers: auto"),
        ("cpus=8", "sft.device = gpu: the cluster has no GPUs; name some, or set device: cpu"),
    ],
)
def test_a_cluster_with_too_few_gpus_is_refused(cluster, message):
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        plan("sft", cluster)


def test_training_keeps_to_the_nodes_that_have_its_labels():
    mixed = "gpus=8,gpu=H100,cpus=96,labels=pool:big + gpus=16,gpu=L40S,cpus=128"
    on_big = plan("sft", mixed, overrides=["sft.workers=auto", "sft.node_labels={pool: big}"])
    assert (on_big.num_workers, on_big.gpu) == (8, "H100")
    anywhere = plan("sft", mixed, overrides=["sft.workers=auto", "sft.batch=96", "sft.sharding=all"])
    assert (anywhere.num_workers, anywhere.gpu) == (24, "L40S")
    with pytest.raises(
        ConfigError, match=r"^sft\.node_labels = {'pool': 'huge'}: no node has all of them; .*pool: big"
    ):
        plan("sft", mixed, overrides=["sft.node_labels={pool: huge}"])
    notes = plan("sft", overrides=["sft.node_labels={pool: big}"]).notes
    assert "sft.node_labels is not checked: the labels of this cluster's nodes are not known here." in notes


def test_a_batch_that_training_would_refuse_on_this_cluster_is_told_by_the_plan():
    with pytest.raises(ConfigError, match=r"^dpo.batch = 100 is not a multiple of workers x micro_batch = 8 x 2 = 16"):
        plan("dpo", overrides=["dpo.batch=100"])


def test_a_recipe_for_training_alone_can_be_planned():
    text = plan_for_cli(load_to_plan(JOBS / "paper_train_llama_8gpu.yaml"), cluster=H100S, num_rows=66_135)
    assert "sft: 66,135 rows on 8 x H100" in text
    assert "memory: 16.1 GB a GPU of weights, gradients and optimizer" in text
    assert text.splitlines()[-1].startswith("all stages: ")


def test_prompts_that_lie_here_are_counted_and_those_of_sampling_too():
    text = plan_for_cli(load_to_plan(JOBS / "demo.yaml"), cluster="cpus=8", num_rows=0)
    for line in ("generate: 240 rows on", "sft: 240 rows on", "sample: 1,200 rows on", "dpo: 1,200 rows on"):
        assert line in text
    assert "all stages:" in text
    assert "without sft and dpo, whose time is not predicted" in text


def test_prompts_with_several_turns_count_every_turn():
    text = plan_for_cli(
        load_to_plan(JOBS / "demo.yaml", ["prompts.sources.0.path=data/prompts.jsonl"]), cluster="cpus=8", num_rows=0
    )
    assert "generate: 66 rows x 1.2 turns on" in text


def test_prompts_that_are_elsewhere_are_not_fetched_to_be_counted():
    loaded = load_to_plan(JOBS / "demo.yaml", ["prompts.sources.0.path=s3://bucket/prompts"])
    text = plan_for_cli(loaded, cluster="cpus=8", num_rows=0)
    assert "note: prompts are not counted: s3://bucket/prompts is not on this machine; say --rows" in text


@pytest.mark.parametrize("path", ["gone.jsonl", "gone-*.parquet"])
def test_prompts_that_are_not_there_are_refused_as_by_the_run_but_for_a_number_of_rows_or_another_stage(path):
    for field in ("prompts.sources.0.path", "sample.sources.0.path"):
        overrides = [f"{field}={path}"]
        with pytest.raises(ConfigError, match=r"= 'gone.* no such file.* to plan where the data is not, say --rows"):
            plan_for_cli(load_to_plan(JOBS / "demo.yaml", overrides), cluster="cpus=8", num_rows=0)
        assert "generate: 7 rows" in plan_for_cli(
            load_to_plan(JOBS / "demo.yaml", overrides), cluster="cpus=8", num_rows=7
        )
        later = load_to_plan(JOBS / "demo.yaml", [*overrides, "run.stages=[judge, dpo]"])
        assert "not counted: " in plan_for_cli(later, cluster="cpus=8", num_rows=0)


def write_rows(path: Path, num_rows: int) -> str:
    path.write_text('{"messages": []}\n' * num_rows, encoding="utf-8")
    return str(path)


def test_rows_of_an_epoch_are_counted_in_the_recipes_own_data(tmp_path):
    """Half of 40, 30 of 60 rows in two of four epochs, and all of the run's own 100: 20 + 15 + 100."""
    config = SftConfig(
        epochs=4,
        data=[
            TrainingData(path=write_rows(tmp_path / "a.jsonl", 40), weight=0.5),
            TrainingData(path=write_rows(tmp_path / "b.jsonl", 60), rows=30, epochs=2),
            TrainingData(path="RUN/baselines/random-5"),
        ],
    )
    assert count_training(config, section="sft", num_of_run=100, base_dir=tmp_path).num_rows == 135


@pytest.mark.parametrize(
    ("path", "why_not"),
    [("s3://bucket/rows", "s3://bucket/rows is not on this machine"), ("gone", "sft.data.0.path = 'gone'")],
)
def test_a_plan_says_which_data_it_could_not_count_and_takes_the_number_that_was_said(path, why_not):
    recipe = load_to_plan(JOBS / "paper_train_llama_8gpu.yaml", [f"sft.data=[{{path: {path!r}}}]"])
    told = plan_for_cli(recipe, cluster=H100S, num_rows=66_135)
    assert "note: sft.data is not counted; it is taken to have 66,135 rows: " in told
    assert why_not in told
    assert "sft: 66,135 rows on" in told
    told = plan_for_cli(recipe, cluster=H100S, num_rows=0)
    assert "note: sft.data is not counted: " in told
    assert "the figures are for 10,000 rows" in told


def test_what_dpo_trains_on_does_not_change_what_sft_does(tmp_path):
    own = write_rows(tmp_path / "pairs.jsonl", 640)
    recipe = load_to_plan(JOBS / "paper_train_llama_8gpu.yaml", [f"dpo.data=[{{path: {own!r}}}]"])
    told = plan_for_cli(recipe, cluster=H100S, num_rows=66_135)
    assert "66,135 rows" in told
    assert "640 rows" in told
