"""What an evaluation refuses before any engine starts, and what the message says."""

from pathlib import Path

import pytest

from moaa_ray.errors import ConfigError, DataError
from moaa_ray.evaluation.benchmarks import read_benchmarks
from moaa_ray.evaluation.checking import contamination_notes
from moaa_ray.evaluation.contestants import find_contestants
from moaa_ray.evaluation.stage import evaluate
from moaa_ray.fingerprint import rows_fingerprint
from moaa_ray.loading import load_preference, load_recipe
from moaa_ray.pipeline import load_run
from tests.evaluation.files import put_lines, write_benchmarks

RECIPE = """
name: refused
run_dir: {folder}/run
models:
  m: {{engine: fake, model: new-model}}
  judge: {{engine: fake}}
  rule: {{engine: rule, function: longest}}
judges: {{rule: {{kind: score, model: rule}}}}
evaluate:
  models: {{new: m}}
  alpaca_eval: {{questions: alpaca.json, baseline: alpaca.json, judge: judge}}
  arena_hard: {{questions: arena.jsonl, baseline: arena_answers.jsonl, judge: judge}}
  mt_bench: {{questions: mt.jsonl, references: mt_answers.jsonl, judge: judge}}
"""


@pytest.fixture
def recipe(tmp_path) -> Path:
    write_benchmarks(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.alpaca_eval.judge=jugde", r"evaluate.alpaca_eval.judge = 'jugde': no such model .* mean 'judge'"),
        ("evaluate.models.x=n", "evaluate.models.x = 'n': no such model under `models`"),
        ("evaluate.models.x=org/name", r"evaluate.models.x = 'org/name': no such model .* and no RUN/"),
        ("evaluate.models.x=RUN/models/sft", r"RUN/models/sft': no model in .*/run/models/sft; train it first"),
        ("evaluate.models.x=rule", "evaluate.models.x = 'rule': scores what others wrote and writes nothing itself"),
        ("evaluate.alpaca_eval.judge=rule", r"evaluate.alpaca_eval.judge = 'rule': .* so it has no logprobs"),
        ("evaluate.alpaca_eval.judge=rule", r"set evaluate.alpaca_eval.preference=scores, or take a model with"),
        ("evaluate.alpaca_eval.preference=scores", r"judge = 'judge': writes text, and .* = 'scores' compares numbers"),
        ("evaluate.arena_hard.judge=rule", r"evaluate.arena_hard.judge = 'rule': scores what others wrote"),
        ("evaluate.mt_bench.questions=nope.jsonl", "evaluate.mt_bench.questions = 'nope.jsonl': no such file"),
        ("evaluate.reward_bench={pairs: p.jsonl, judges: [rule]}", "reward_bench.pairs = '.*p.jsonl': no such file"),
        (
            "evaluate.reward_bench={pairs: p.jsonl, judges: [rul]}",
            "evaluate.reward_bench.judges.0 = 'rul': no such judge under `judges`; did you mean 'rule'",
        ),
        ("evaluate.arena_hard.judge_max_tokens=8192", "judge_max_tokens = 8192: not below the context window of judge"),
        ("evaluate.alpaca_eval.gamed=x.csv", "gamed = 'x.csv' without difficulties"),
        ("evaluate.alpaca_evil={}", "evaluate.alpaca_evil: unknown key; did you mean 'alpaca_eval'"),
        (
            "models.m.model=old-model",
            "evaluate.models.new: is 'old-model', the baseline of alpaca_eval, which has 50 %",
        ),
        ("evaluate.models.old-4=m", "evaluate.models.old-4: is 'old-4', the baseline of arena_hard"),
    ],
)
def test_names_files_and_judges_are_checked_before_anything_starts(recipe, override, message):
    with pytest.raises(ConfigError, match=message):
        evaluate(load_preference(recipe, [override]))
    assert not (recipe.parent / "run").exists()


def test_difficulties_that_are_no_text_are_refused_with_their_field(recipe):
    (recipe.parent / "d.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"evaluate.alpaca_eval.difficulties = 'd.csv': is not UTF-8 text"):
        evaluate(load_preference(recipe, ["evaluate.alpaca_eval.difficulties=d.csv"]))


WHOLE = """
prompts: {sources: [{path: p.jsonl}]}
mixture: {layers: [{proposers: [{model: m}]}], aggregator: {model: m}}
student: {model: org/student}
run: {stages: [generate, sft, dpo, evaluate]}
"""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.mt_bench.questions=nope.jsonl", "evaluate.mt_bench.questions = 'nope.jsonl': no such file"),
        ("evaluate.alpaca_eval.judge=rule", r"evaluate.alpaca_eval.judge = 'rule': .* so it has no logprobs"),
        ("models.m.model=old-model", "evaluate.models.new: is 'old-model', the baseline of alpaca_eval"),
        ("evaluate.reward_bench={pairs: p.jsonl, judges: [rule]}", "reward_bench.pairs = '.*p.jsonl': no such file"),
        ("evaluate.models.x=RUN/rounds/2/models/dpo", "no model in .*/run/rounds/2/models/dpo; train it first"),
        ("evaluate.models.x={arena_hard: mine.jsonl}", "evaluate.models.x.arena_hard = 'mine.jsonl': no such file"),
    ],
)
def test_a_whole_run_refuses_before_its_first_stage_what_its_evaluation_would_refuse(recipe, override, message):
    recipe.write_text(recipe.read_text() + WHOLE)
    load_run(recipe, ["evaluate.models.x=RUN/models/dpo"])  # which is still to be trained
    with pytest.raises(ConfigError, match=message):
        load_run(recipe, [override])
    assert not (recipe.parent / "run").exists()


def test_questions_that_nobody_looked_for_in_the_training_data_are_told(recipe):
    recipe.write_text(recipe.read_text() + WHOLE)
    models = "evaluate.models={new: m, mine: RUN/models/dpo}"

    def notes(*overrides: str) -> list[str]:
        loaded, contestants = find_contestants(load_preference(recipe, [models, *overrides]), is_ahead=True)
        return contamination_notes(loaded, contestants, read_benchmarks(loaded))

    (note,) = notes("filters.decontaminate=[arena*.jsonl]")
    assert note.startswith("mine: their training data was not searched for the questions of alpaca_eval, mt_bench; ")
    assert notes("filters.decontaminate=[arena.jsonl, alpaca.json, ./mt.jsonl]") == []
    models = "evaluate.models={new: m}"
    assert notes() == []


def test_a_stage_that_is_named_without_a_benchmark_is_refused(recipe):
    recipe.write_text(recipe.read_text() + WHOLE)
    none = [f"evaluate.{name}=null" for name in ("alpaca_eval", "arena_hard", "mt_bench")]
    none.append("evaluate.models.other=judge")
    with pytest.raises(ConfigError, match="evaluate: no benchmark in the recipe; add a section for one of"):
        load_run(recipe, none)


def test_an_answer_file_that_misses_questions_is_refused(recipe):
    put_lines(recipe.parent / "mine.jsonl", [{"id": "q0", "output": "x"}])
    with pytest.raises(DataError, match=r"evaluate.models.x.arena_hard = 'mine.jsonl': lacks the answers to 5 of 6"):
        evaluate(load_preference(recipe, ["evaluate.models.x={arena_hard: mine.jsonl}"]))


def test_stored_answers_that_are_the_baselines_are_refused(recipe):
    with pytest.raises(ConfigError, match=r"evaluate.models.x: is 'old-model', the baseline"):
        evaluate(load_preference(recipe, ["evaluate.models.x={alpaca_eval: alpaca.json}"]))


def test_references_are_needed_where_the_judge_is_shown_them(recipe):
    with pytest.raises(
        DataError, match=r"mt_bench.questions: question '82' has 0 reference .*set evaluate.mt_bench.ref"
    ):
        evaluate(load_preference(recipe, ["evaluate.mt_bench.references=null"]))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"only": ["arena"]}, "--only arena: there is no such benchmark; did you mean 'arena_hard'"),
        ({"only": ["alpaca_eval"], "without": True}, "no section evaluate.alpaca_eval; add it"),
        (
            {"restart": ["nobody"]},
            "--restart nobody: no model that is evaluated, and no judge; valid names: new, judge",
        ),
    ],
)
def test_names_on_the_command_line_are_checked(recipe, asked, message):
    overrides = ["evaluate.alpaca_eval=null"] if asked.pop("without", False) else []
    with pytest.raises(ConfigError, match=message):
        evaluate(load_preference(recipe, overrides), **asked)


def test_without_models_a_student_or_a_trained_model_is_needed(recipe):
    with pytest.raises(
        ConfigError, match=r"evaluate.models: empty, and there is no student .* no model in .*run/models"
    ):
        evaluate(load_preference(recipe, ["evaluate.models={}", "sample.model=m"]))


def test_models_that_are_only_evaluated_or_judge_there_make_no_rows(recipe):
    more = (
        "prompts: {sources: [{path: p.jsonl}]}\n"
        "mixture: {layers: [{proposers: [{model: a}]}], aggregator: {model: a}}\n"
    )
    text = recipe.read_text().replace("models:\n", "models:\n  a: {engine: fake}\n", 1) + more
    recipe.write_text(text)
    fields = rows_fingerprint(load_recipe(recipe).recipe, {})
    assert {name.split(".")[1] for name in fields if name.startswith("models.")} == {"a"}
