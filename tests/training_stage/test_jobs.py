"""What the recipe says reaches the workers."""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from moaa_ray.core.batches import BatchPlan, Source
from moaa_ray.loading import load_training
from moaa_ray.training_stage.datasets import StudentFiles
from moaa_ray.training_stage.jobs import make_job

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
