"""Every recipe that ships can be read and fits its cluster; babble, whose models are made first, is not here."""

from pathlib import Path

import pytest

from moaa_ray.lines.mixture import plan_generate
from moaa_ray.loading import load_recipe, load_training
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.planner import StagePlan, plan_stage
from moaa_ray.planning.run import stages_to_plan
from moaa_ray.planning.text import render_plan

JOBS = Path(__file__).parents[1] / "jobs"
CLUSTERS = {
    "paper_moaa_llama_8gpu": "gpus=8,gpu=H100,cpus=96",
    "paper_small_scale": "gpus=8,gpu=H100,cpus=64",
    "paper_stage1_8gpu": "gpus=8,gpu=H100,cpus=96",
    "paper_stage1_64gpu": "gpus=64,gpu=H100,cpus=768",
    "pools_by_model": "gpus=8,gpu=L40S,labels=pool:small + gpus=8,gpu=H100,labels=pool:large",
    "self_moa": "gpus=1,gpu=H100,cpus=16",
    "single_gpu": "gpus=1,gpu=H100,cpus=16",
}


def plan_of(name: str, cluster: str = "") -> StagePlan:
    loaded = load_recipe(JOBS / f"{name}.yaml")
    shape = parse_cluster(cluster or CLUSTERS.get(name, "cpus=16"))
    return plan_generate(loaded.recipe, shape, 66_135, mean_turns=1.2, base_dir=loaded.base_dir)


TRAINING = sorted(path.stem for path in JOBS.glob("paper_train_*.yaml"))


@pytest.mark.parametrize(
    "name", sorted({path.stem for path in JOBS.glob("*.yaml")} - {"babble", "runtime_env", *TRAINING})
)
def test_a_recipe_that_ships_is_valid_and_plans(name):
    plan = plan_of(name)
    assert "in all:" in render_plan(plan)
    assert not any("is not known here" in note for note in plan.notes)


@pytest.mark.parametrize("name", ["paper_stage1_8gpu", "single_gpu", "self_moa", "paper_small_scale"])
def test_recipes_for_80_gb_gpus_fit_an_a100_too(name):
    assert plan_of(name, CLUSTERS[name].replace("H100", "A100-80G")).phases


def test_eight_gpus_need_phases_for_the_papers_mixture_and_64_do_not():
    """One engine of each is 4 + 2 + 1 + 2 + 4 = 13 GPUs."""
    assert len(plan_of("paper_stage1_8gpu").phases) > 1
    assert len(plan_of("paper_stage1_64gpu").phases) == 1


def test_the_two_stage_1_recipes_make_the_same_rows():
    small = load_recipe(JOBS / "paper_stage1_8gpu.yaml").recipe.model_dump()
    large = load_recipe(JOBS / "paper_stage1_64gpu.yaml").recipe.model_dump()
    assert {key for key in small if small[key] != large[key]} == {"name", "generate"}


def test_one_gpu_takes_three_models_in_three_phases():
    plan = plan_of("single_gpu")
    assert [[pool.spec.name for pool in phase.pools] for phase in plan.phases] == [
        ["l0.llama"], ["l0.mistral"], ["l0.qwen+aggregate"],
    ]  # fmt: skip


def test_the_papers_judges_share_pools_where_they_share_models():
    """Criteria are chosen by the first judge, and the last one is also the aggregator: three pools, no copies."""
    loaded = load_recipe(JOBS / "paper_moaa_llama_8gpu.yaml")
    generate, sample, judge = stages_to_plan(loaded)
    assert [generate.stage, sample.stage, judge.stage] == ["generate", "sample", "judge"]
    plan = plan_stage(judge, parse_cluster(CLUSTERS["paper_moaa_llama_8gpu"]), 6000)
    assert [pool.spec.engine for phase in plan.phases for pool in phase.pools] == [
        "gemma-2-27b", "llama-3.1-70b", "qwen2-72b",
    ]  # fmt: skip
    assert not any("is not known here" in note for note in plan_stage(sample, plan.cluster, 6000).notes)


def test_self_moa_is_one_pool():
    assert [pool.spec.passes for phase in plan_of("self_moa").phases for pool in phase.pools] == [
        ("l0.gemma", "aggregate")
    ]


@pytest.mark.parametrize(("name", "epochs", "dpo_rate"), [("llama", 6, 8e-7), ("gemma", 5, 3e-7)])
@pytest.mark.parametrize("num_gpus", [8, 16])
def test_the_papers_training_has_the_papers_numbers(name, epochs, dpo_rate, num_gpus):
    recipe = load_training(JOBS / f"paper_train_{name}_{num_gpus}gpu.yaml").recipe
    assert (recipe.sft.learning_rate, recipe.sft.epochs, recipe.sft.batch) == (8e-6, epochs, 128)
    assert recipe.sft.packing
    assert (recipe.dpo.learning_rate, recipe.dpo.epochs, recipe.dpo.batch, recipe.dpo.beta) == (dpo_rate, 5, 128, 0.01)
    for section in (recipe.sft, recipe.dpo):
        assert section.workers == num_gpus
        assert section.batch % (num_gpus * section.micro_batch) == 0
