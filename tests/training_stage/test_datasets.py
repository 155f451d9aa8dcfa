"""A stage's datasets: how long a document may be."""

import json

import pytest
import yaml

from moaa_ray.data.store import open_store
from moaa_ray.loading import load_training
from moaa_ray.training_stage.datasets import find_datasets
from moaa_ray.training_stage.students import student_of
from tests.settings.test_checks import model_folder


@pytest.mark.parametrize(
    ("config", "document_tokens"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, 1000),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 512),
        (
            {
                "max_position_embeddings": 4096,
                "original_max_position_embeddings": 512,
                "rope_parameters": {"rope_type": "longrope"},
            },
            512,
        ),
        ({"max_position_embeddings": 4096}, 1000),
        ({"n_positions": 77}, 1000),
    ],
)
def test_a_document_is_no_longer_than_the_student_reads_at_once_and_a_pack_may_be(tmp_path, config, document_tokens):
    model_folder(tmp_path / "student", config=config)
    row = {"id": "a", "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row) + "\n")
    settings = {"max_tokens": 1000, "data": [{"path": "data.jsonl"}]}
    recipe = {"name": "r", "run_dir": "run", "student": {"model": "./student"}, "sft": settings}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    loaded = load_training(tmp_path / "r.yaml")
    student = student_of(loaded, "sft")
    (dataset,) = find_datasets(
        open_store(loaded.run_dir), "sft", loaded.recipe.sft, student, seed=0, base_dir=loaded.base_dir
    )
    found = dataset.tasks[0].settings
    assert (found.document_tokens, found.max_tokens) == (document_tokens, 1000)
