"""Who is evaluated where the recipe does not say: the student, and what training has left in the run."""

import shutil
from pathlib import Path

import pytest

from moaa_ray.errors import ConfigError
from moaa_ray.evaluation.contestants import find_contestants, run_students
from moaa_ray.evaluation.stages import answers_made_with
from moaa_ray.evaluation.summary import place_of
from moaa_ray.evaluation.work import is_trained_anew
from moaa_ray.loading import load_preference
from moaa_ray.recipe import RunConfig
from moaa_ray.run_record import check_stage, join_run
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


@pytest.mark.parametrize(("given", "told"), [("{}", "nothing"), ("{arena_hard: mine.jsonl}", "arena_hard")])
def test_stored_answers_to_none_of_the_benchmarks_are_refused(recipe, given, told):
    more = f"evaluate: {{models: {{mine: {given}}}, mt_bench: {{questions: mt.jsonl, judge: student}}}}\n"
    recipe.write_text(recipe.read_text(encoding="utf-8") + more, encoding="utf-8")
    with pytest.raises(ConfigError, match=f"evaluate.models.mine: answers {told}, .* answers to mt_bench, or"):
        find_contestants(load_preference(recipe))


def test_a_model_that_was_trained_anew_has_another_digest(recipe):
    place = recipe.parent / "run" / "models" / "sft"
    shutil.copytree(MODELS / "specialist-a", place)
    _, (_, first) = find_contestants(load_preference(recipe))
    shutil.rmtree(place)
    shutil.copytree(MODELS / "specialist-b", place)
    _, (_, second) = find_contestants(load_preference(recipe))
    assert first.digest != second.digest


def test_the_students_of_all_rounds_and_iterations_have_lines_of_their_own():
    assert run_students(RunConfig(rounds=2, iterations=2, improves="gemma")) == {
        "sft": "RUN/models/sft",
        "dpo": "RUN/models/dpo",
        "dpo-round-2": "RUN/rounds/2/models/dpo",
        "sft-iteration-2": "RUN/iterations/2/models/sft",
        "dpo-iteration-2": "RUN/iterations/2/models/dpo",
        "dpo-iteration-2-round-2": "RUN/iterations/2/rounds/2/models/dpo",
    }


def test_before_a_run_what_its_stages_will_train_counts_as_there(recipe):
    _, found = find_contestants(load_preference(recipe, ["run.rounds=2"]), is_ahead=True)
    assert [one.name for one in found] == ["base", "sft", "dpo", "dpo-round-2"]
    assert [one.is_own for one in found] == [False, True, True, True]
    _, found = find_contestants(load_preference(recipe, ["run.stages=[sft]"]), is_ahead=True)
    assert [one.name for one in found] == ["base", "sft"]


def test_a_model_that_the_run_has_trained_anew_is_told_from_one_that_runs_otherwise(recipe):
    place = recipe.parent / "run" / "models" / "sft"
    shutil.copytree(MODELS / "specialist-a", place)
    loaded, (base, before) = find_contestants(load_preference(recipe))
    assert not is_trained_anew(loaded, before)  # nothing has been answered yet
    store = place_of(loaded.run_dir, "answers/sft")
    join_run(store, loaded)
    check_stage(store, "evaluate", answers_made_with(loaded, before), restart_command="x")
    assert not is_trained_anew(loaded, before)
    shutil.rmtree(place)
    shutil.copytree(MODELS / "specialist-b", place)
    again, (_, after) = find_contestants(load_preference(recipe))
    assert is_trained_anew(again, after)
    assert not is_trained_anew(again, base)
    other, (_, shorter) = find_contestants(load_preference(recipe, ["models.student.context_window=256"]))
    assert not is_trained_anew(other, shorter)  # that is a slip, or needs --restart
