"""Who is evaluated where the recipe does not say: the student, and what training has left in the run."""

import shutil
from pathlib import Path

import pytest

from moaa_ray.evaluation.contestants import find_contestants
from moaa_ray.loading import load_preference
from moaa_ray.settings.models import VllmModel

MODELS = Path(__file__).parents[2] / "jobs" / "models"
RECIPE = """
name: evaluated
run_dir: {folder}/run
models: {{student: {{engine: vllm, model: RUN/models/sft, context_window: 512, concurrency: 3}}}}
student: {{model: {student}}}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path, student=MODELS / "base"), encoding="utf-8")
    return path


def test_the_student_comes_first_and_then_what_training_has_left_with_the_students_engine(recipe):
    loaded, (base,) = find_contestants(load_preference(recipe))
    trained = recipe.parent / "run" / "models"
    shutil.copytree(MODELS / "specialist-a", trained / "sft")
    shutil.copytree(MODELS / "specialist-b", trained / "dpo")
    loaded, found = find_contestants(load_preference(recipe))
    assert [one.name for one in found] == ["base", "sft", "dpo"]
    assert found[0] == base
    models = [loaded.recipe.models[one.engine] for one in found]
    assert [model.model for model in models if isinstance(model, VllmModel)] == [
        str(MODELS / "base"),
        str(trained / "sft"),
        str(trained / "dpo"),
    ]
    assert {(model.context_window, model.concurrency) for model in models if isinstance(model, VllmModel)} == {(512, 3)}
    assert len({one.digest for one in found}) == 3


def test_a_model_that_was_trained_anew_has_another_digest(recipe):
    place = recipe.parent / "run" / "models" / "sft"
    shutil.copytree(MODELS / "specialist-a", place)
    _, (_, first) = find_contestants(load_preference(recipe))
    shutil.rmtree(place)
    shutil.copytree(MODELS / "specialist-b", place)
    _, (_, second) = find_contestants(load_preference(recipe))
    assert first.digest != second.digest
