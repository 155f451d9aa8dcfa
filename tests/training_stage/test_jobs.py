"""What the recipe says reaches the workers."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from collections import Counter

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.errors import ConfigError
from moaa_ray.loading import load_training
from moaa_ray.planning.cluster import parse_cluster
from moaa_ray.planning.training import plan_training
from moaa_ray.settings.training import TrainingData
from moaa_ray.training_stage.datasets import Prepared, StudentFiles
from moaa_ray.training_stage.jobs import make_job, plan_of_stage, workers_of

RECIPE = Path(__file__).parents[2] / "jobs" / "paper_train_llama_16gpu.yaml"


@pytest.mark.parametrize(("overrides", "sharding"), [([], "node"), (["sft.sharding=all"], "all")])
def test_sharding_reaches_the_strategy(overrides, sharding):
    loaded = load_training(RECIPE, overrides)
    plan = BatchPlan(sources=(Source(num_units=256),), batch=128, epochs=1, seed=0)
    files = StudentFiles(place="student", digest="d")
    job = make_job(
        loaded, "sft", loaded.recipe.sft, files, [], plan, fingerprint={}, epoch=1, num_held_out=0, checkpoint_every=1
    )
    assert job.numerics.sharding == sharding


def test_the_workers_are_those_that_the_labelled_nodes_have_room_for():
    cluster = parse_cluster("gpus=8,gpu=H100,cpus=96,labels=pool:big + gpus=16,gpu=L40S,cpus=128")
    config = load_training(RECIPE, ["sft.workers=auto", "sft.node_labels={pool: big}"]).recipe.sft
    workers = workers_of("sft", config, cluster)
    assert (workers.num, workers.use_gpu, workers.node_labels) == (8, True, {"pool": "big"})
    more = load_training(RECIPE, ["sft.workers=16", "sft.node_labels={pool: big}"]).recipe.sft
    with pytest.raises(ConfigError, match=r"^sft\.workers = 16 on GPUs: the nodes with its node_labels have 8;"):
        workers_of("sft", more, cluster)
    nowhere = load_training(RECIPE, ["sft.node_labels={pool: huge}"]).recipe.sft
    with pytest.raises(ConfigError, match=r"^sft\.node_labels = {'pool': 'huge'}: no node has all of them"):
        workers_of("sft", nowhere, cluster)


def test_what_is_expected_of_the_rows_that_are_there_is_what_moaa_plan_says_of_so_many():
    loaded = load_training(RECIPE)
    cluster = parse_cluster("gpus=16,gpu=H100,cpus=64")
    found = Prepared(num_rows=5010, num_units=9, num_validation_units=0, num_tokens=9, dropped=Counter(empty=10))
    prepared = [(TrainingData(path="a", weight=0.5), found), (TrainingData(path="b", epochs=3), found)]
    student = loaded.recipe.student
    assert plan_of_stage(loaded, "sft", cluster, prepared) == plan_training(
        loaded.recipe, "sft", student, cluster, 2500 + 2500, base_dir=loaded.base_dir
    ), "of the one half of its rows in each of 6 epochs, of the other all in three of them"
    assert plan_of_stage(loaded, "sft", parse_cluster("gpus=1,gpu=L40S,cpus=8"), prepared) is None, "it cannot fit"
