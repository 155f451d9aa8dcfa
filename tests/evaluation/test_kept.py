"""What stays of earlier results while another benchmark is evaluated: what would be judged the same way again."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.evaluation_schemas import ANSWERS, JUDGED
from moaa_ray.data.store import open_store
from moaa_ray.evaluation.answering import Said, samplings_of
from moaa_ray.evaluation.benchmarks import read_benchmarks
from moaa_ray.evaluation.contestants import find_contestants
from moaa_ray.evaluation.judging import INPUTS
from moaa_ray.evaluation.kept import Kept, kept_results
from moaa_ray.evaluation.rows import judged_table, question_rows, tasks_of
from moaa_ray.evaluation.scores import Scored, Scores
from moaa_ray.evaluation.stages import judge_made_with
from moaa_ray.evaluation.summary import Evaluation, about_of, keep_summary, place_of
from moaa_ray.loading import load_preference
from moaa_ray.run_record import check_stage, join_run
from tests.evaluation.files import NUM_QUESTIONS, put_lines, write_benchmarks

RECIPE = """
name: kept
run_dir: {folder}/run
models:
  m: {{engine: fake}}
  judge: {{engine: fake}}
evaluate:
  models: {{new: m, old: {{arena_hard: mine.jsonl}}}}
  alpaca_eval: {{questions: alpaca.json, baseline: alpaca.json, judge: judge}}
  arena_hard: {{questions: arena.jsonl, baseline: arena_answers.jsonl, judge: judge}}
"""


def write_mine(folder: Path, text: str) -> None:
    put_lines(folder / "mine.jsonl", [{"id": f"q{i}", "output": f"{text} {i}"} for i in range(NUM_QUESTIONS)])


@pytest.fixture
def recipe(tmp_path) -> Path:
    """A run directory with a table of Arena-Hard, for a model and for stored answers."""
    write_benchmarks(tmp_path)
    write_mine(tmp_path, "mine")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    loaded, _ = find_contestants(load_preference(path))
    (bench,) = read_benchmarks(loaded, ["arena_hard"])
    said = {name: {q.id: Said(texts=(f"{name} {q.id[1:]}",)) for q in bench.questions} for name in ("new", "mine")}
    tasks = {
        task.row.id: task
        for model, text in (("new", "new"), ("old", "mine"))
        for task in tasks_of(model, {"arena_hard": said[text]}, [bench])
    }
    asked = question_rows([bench], samplings_of(loaded.recipe.evaluate, {"arena_hard": bench.questions}))
    answers = [
        {"id": row_id, "benchmark": "arena_hard", "question": one.question.id, "flags": [],
         "messages": [{"role": "assistant", "content": said["new"][one.question.id].texts[0]}]}
        for row_id, one in asked.items()
    ]  # fmt: skip
    for place in ("answers/new", "judges/judge"):
        join_run(place_of(loaded.run_dir, place), loaded)
    join_run(open_store(loaded.run_dir), loaded)
    put(f"{tmp_path}/run", "answers/new", "answers", pa.Table.from_pylist(answers, schema=ANSWERS))
    work = [schemas.row_record(task.row, pass_names=INPUTS) for task in tasks.values()]
    judged, _ = judged_table(pa.Table.from_pylist(work, schema=schemas.work_schema(INPUTS)), tasks=tasks)
    put(f"{tmp_path}/run", "judges/judge", "judged", judged)
    made_with = judge_made_with(loaded, "judge")
    check_stage(place_of(loaded.run_dir, "judges/judge"), "evaluate", made_with, restart_command="x")
    about = {bench.name: about_of(loaded, bench)}
    scored = Scored(models={"new": Scores(), "old": Scores()})
    keep_summary(loaded, Evaluation(scored=scored, evaluated={}, about=about, usage=[], folder=""))
    return path


def put(run_dir: str, place: str, folder: str, table: pa.Table) -> None:
    store = place_of(run_dir, place)
    schema = JUDGED if folder == "judged" else ANSWERS
    publish.publish(store, commit.take_epoch(store, {}), folder, [table.cast(schema)], schema, 1000, facts={})


def kept(recipe: Path, *overrides: str, forgotten: tuple[str, ...] = ()) -> Kept:
    loaded, contestants = find_contestants(load_preference(recipe, overrides))
    return kept_results(loaded, read_benchmarks(loaded, ["alpaca_eval"]), contestants, forgotten=forgotten)


def names(found: Kept) -> dict[str, list[str]]:
    return {model: [bench.name for bench in benches] for model, benches in found.benches.items()}


def test_results_of_another_benchmark_stay_where_nothing_has_changed(recipe):
    found = kept(recipe)
    assert names(found) == {"new": ["arena_hard"], "old": ["arena_hard"]}
    assert found.notes == []


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("evaluate.arena_hard.judge_max_tokens=99", "other settings, sampling than then; evaluate it again"),
        ("models.judge.completion_tokens=7", "its judge is another one: models.judge.completion_tokens was"),
        (
            "evaluate.arena_hard.questions=gone.jsonl",
            "as it cannot be read: evaluate.arena_hard.questions = 'gone.jsonl'",
        ),
    ],
)
def test_results_that_would_be_judged_otherwise_now_go_and_it_is_said_why(recipe, override, why):
    found = kept(recipe, override)
    assert found.benches == {}
    (note,) = found.notes
    assert note.startswith("arena_hard: no longer in the table")
    assert why in note


def test_results_of_a_model_that_begins_anew_go_and_the_others_stay(recipe):
    assert names(kept(recipe, forgotten=("new",))) == {"old": ["arena_hard"]}
    assert kept(recipe, forgotten=("judge",)).benches == {}


def test_results_of_stored_answers_that_have_changed_go(recipe):
    write_mine(recipe.parent, "other")
    assert names(kept(recipe)) == {"new": ["arena_hard"]}


def test_results_go_where_the_questions_have_changed(recipe):
    path = recipe.parent / "arena.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace("Solve 3.", "Solve 33."), encoding="utf-8")
    assert kept(recipe).benches == {}


def test_a_benchmark_that_was_never_in_the_table_is_not_spoken_of(recipe):
    summary = recipe.parent / "run" / "evaluation" / "summary.json"
    facts = json.loads(summary.read_text(encoding="utf-8"))
    summary.write_text(json.dumps({**facts, "benchmarks": {}}), encoding="utf-8")
    assert kept(recipe) == Kept(benches={}, notes=[])


def test_judges_stand_side_by_side_and_one_override_swaps_them(recipe):
    given = recipe.read_text(encoding="utf-8")
    recipe.write_text(
        given.replace("  m: {engine: fake}", "  m: {engine: fake}\n  k: {engine: fake}"), encoding="utf-8"
    )
    (bench,) = read_benchmarks(load_preference(recipe, ["evaluate.arena_hard.judge=k"]), ["arena_hard"])
    assert bench.config.judge == "k"
