"""What sampling, judging and the whole run refuse before anything starts, and what the message says."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import open_store
from moaa_ray.demo.tiny import make_tiny_model
from moaa_ray.errors import ConfigError, DataError
from moaa_ray.loading import load_preference, load_recipe, load_training
from moaa_ray.pipeline import load_run
from moaa_ray.planning.run import plan_for_cli
from moaa_ray.preference.check import check_judge
from moaa_ray.preference.judge import judge
from moaa_ray.preference.sample import sample
from moaa_ray.run_record import check_stage, join_run
from moaa_ray.training_stage.stage import train_stage
from tests.preference.test_judge_stage import publish_candidates

RECIPE = """
name: refused
run_dir: {folder}/run
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  a: {{engine: fake}}
  student: {{engine: vllm, model: {student}}}
mixture: {{layers: [{{proposers: [{{model: a}}]}}], aggregator: {{model: a}}}}
student: {{model: tiny}}
judges:
  one: {{kind: llm, model: a}}
"""


def write(folder: Path, *, student: str = "RUN/models/sft", more: str = "") -> Path:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder, student=student) + more, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    pytest.importorskip("torch")
    return make_tiny_model(tmp_path_factory.mktemp("models") / "tiny", seed=0)


def test_sampling_needs_the_model_that_sft_leaves(tmp_path):
    with pytest.raises(ConfigError, match="no model there to sample from; run `moaa train sft` first"):
        sample(load_preference(write(tmp_path)))


def test_a_student_without_a_chat_template_is_refused(tmp_path, tiny):
    folder = tmp_path / "run" / "models" / "sft"
    folder.mkdir(parents=True)
    for file in tiny.iterdir():
        if file.name == "tokenizer_config.json":
            config = json.loads(file.read_text())
            config.pop("chat_template", None)
            (folder / file.name).write_text(json.dumps(config))
        elif file.name != "chat_template.jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="has no chat template; take the instruction-tuned version, or set"):
        sample(load_preference(write(tmp_path)))


def test_judging_needs_candidates_and_a_judge(tmp_path):
    with pytest.raises(ConfigError, match="no candidates there; run `moaa sample` first"):
        judge(load_preference(write(tmp_path)))
    two = write(tmp_path, more="  other: {kind: llm, model: a}\n")
    with pytest.raises(ConfigError, match=r"judge.use = '': the recipe's judges are one, other"):
        judge(load_preference(two))


@pytest.mark.parametrize(("name", "command"), [("one", ""), ("other", "--judge other ")])
def test_a_judge_that_changed_is_begun_anew_by_a_command_that_names_it(tmp_path, name, command):
    loaded = load_preference(write(tmp_path, more="  other: {kind: llm, model: a}\njudge: {use: one}\n"))
    own = open_store(f"{loaded.run_dir}/judges/{name}")
    join_run(open_store(loaded.run_dir), loaded)
    join_run(own, loaded)
    publish_candidates(tmp_path, 2)
    check_stage(own, "judge", {"seed": "1"}, restart_command="")
    with pytest.raises(ConfigError, match=f"begin the stage anew with `moaa judge {command}--restart`"):
        judge(loaded, name=name)


def test_so_is_a_check_of_a_judge_that_changed(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}\n')
    loaded = load_preference(write(tmp_path))
    own = open_store(f"{loaded.run_dir}/checks/one/pairs")
    join_run(own, loaded)
    check_stage(own, "judge", {"seed": "1"}, restart_command="")
    with pytest.raises(ConfigError, match="begin the stage anew with `moaa check-judge --judge one --restart`"):
        check_judge(loaded, [str(tmp_path / "pairs.jsonl")])


def test_dpo_refuses_pairs_that_another_student_has_written(tmp_path, tiny):
    pytest.importorskip("torch")
    path = write(tmp_path, more=f"dpo: {{student: {tiny}}}\n")
    path.write_text(path.read_text().replace("student: {model: tiny}", f"student: {{model: {tiny}}}"))
    store = open_store(str(tmp_path / "run"))
    row = {
        "id": "r1",
        "prompt": [{"role": "user", "content": "Hi?"}],
        "chosen": [{"role": "assistant", "content": "Yes."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    table = pa.Table.from_pylist([row], schema=schemas.PAIRS)
    epoch = commit.take_epoch(store, {})
    publish.publish(store, epoch, "pairs", [table], schemas.PAIRS, 10, facts={"student": "files:0123456789abcdef"})
    with pytest.raises(ConfigError, match=r"sampled from another model than .*tiny, so dpo would not be on-policy"):
        train_stage(load_training(path), "dpo")
    path.write_text(path.read_text().replace(f"dpo: {{student: {tiny}}}", "dpo: {}"))
    own = f"dpo={{student: {tiny}, data: [{{path: RUN/pairs}}], epochs: 1, batch: 2, micro_batch: 1}}"
    with pytest.raises(ConfigError, match="1 pairs in 1 epoch do not fill one batch of 2; lower batch, or train on"):
        train_stage(load_training(path, [own]), "dpo")
    assert not store.exists("run.json")


def test_dpo_tells_where_the_reasons_are_when_the_judge_has_kept_no_pair(tmp_path, tiny):
    path = write(tmp_path, more=f"dpo: {{student: {tiny}}}\n")
    path.write_text(path.read_text().replace("student: {model: tiny}", f"student: {{model: {tiny}}}"))
    store = open_store(str(tmp_path / "run"))
    publish.publish(store, commit.take_epoch(store, {}), "pairs", [], schemas.PAIRS, 10, facts={})
    with pytest.raises(DataError, match=r"run/pairs: judge has left no row to train on; failures/judge.parquet says"):
        train_stage(load_training(path), "dpo")


@pytest.mark.parametrize(
    "spelt", ["./prompts.jsonl", "p*.jsonl", "{folder}/prompts.jsonl", "file://{folder}/link.jsonl", "{folder}"]
)
def test_a_recipe_does_not_train_on_its_evaluation_prompts(tmp_path, spelt):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi?"}\n', encoding="utf-8")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "prompts.jsonl")
    spelt = spelt.replace("{folder}", str(tmp_path))
    said = r"prompts\.sources\.0\.path = 'prompts\.jsonl' is also an evaluation file \(filters\.decontaminate\.0\)"
    with pytest.raises(ConfigError, match=said):
        load_recipe(write(tmp_path, more=f"filters: {{decontaminate: ['{spelt}']}}\n"))
    benchmark = f"{{questions: '{spelt}', baseline: answers.json, judge: a}}"
    with pytest.raises(ConfigError, match=r"is also an evaluation file \(evaluate\.alpaca_eval\.questions\)"):
        load_recipe(write(tmp_path, more=f"evaluate: {{alpaca_eval: {benchmark}}}\n"))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ("sample: {sources: [{path: q.jsonl}]}", "sample.sources.0.path"),
        ("sft: {data: [{path: RUN/sft}, {path: q.jsonl}]}", "sft.data.1.path"),
        ("dpo: {data: [{path: q.jsonl}]}", "dpo.data.0.path"),
    ],
)
def test_nor_does_any_other_of_its_datasets(tmp_path, more, field):
    questions = "evaluate: {mt_bench: {questions: q.jsonl, judge: a}}\n"
    with pytest.raises(ConfigError, match=rf"{field} = 'q.jsonl' is also an evaluation file"):
        load_run(write(tmp_path, more=f"{more}\n{questions}"))
    load_recipe(write(tmp_path, more=questions))  # without them it is fine


def test_an_evaluation_file_that_is_not_there_stops_the_run_before_it_begins(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi?"}\n', encoding="utf-8")
    path = write(tmp_path, more="filters: {decontaminate: [mt_bench.jsonl]}\n")
    with pytest.raises(ConfigError, match=r"mt_bench\.jsonl"):
        load_run(path)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("{stages: [sft, generate]}", "each at most once and in the order generate, sft, sample, judge, dpo"),
        ("{stages: [generate, sft], rounds: 2}", "a further round needs all of sample, judge, dpo"),
        ("{iterations: 2}", "iterations = 2 with improves = ''"),
        ("{iterations: 2, improves: a}", "can only take the place of a model with weights of its own"),
    ],
)
def test_a_whole_run_is_checked_before_its_first_stage(tmp_path, run, message):
    with pytest.raises(ConfigError, match=message):
        load_run(write(tmp_path, more=f"run: {run}\n"))


@pytest.mark.parametrize("run", ["{rounds: 2}", "{iterations: 2, improves: student}"])
def test_what_is_tuned_in_one_round_can_be_sampled_from_in_the_next(tmp_path, run):
    path = write(tmp_path, more=f"run: {run}\n")
    load_run(path)
    with pytest.raises(ConfigError, match=r"models\.a\.engine = 'fake': .*take engine vllm, or set both to 1"):
        load_run(path, ["sample.model=a"])


def test_models_that_only_judge_or_are_sampled_from_need_no_slot_of_the_mixture(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text().replace("{kind: llm, model: a}", "{kind: llm, model: b}"))
    path.write_text(path.read_text().replace("  a: {engine: fake}", "  a: {engine: fake}\n  b: {engine: fake}"))
    assert set(load_run(path).preference.recipe.models) == {"a", "b", "student"}
    path.write_text(path.read_text().replace("{kind: llm, model: b}", "{kind: llm, model: a}"))
    assert "note: models.b: nothing uses it" in plan_for_cli(load_recipe(path), cluster="cpus=8", num_rows=10)


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ("  two: {kind: llm, model: b}\n", "judges.two.model = 'b': no such model under `models`"),
        ("  two: {kind: jury, members: [{model: a}, {model: a}]}\n", r"judges\.two\.members: two are called 'a'"),
        (
            "  two: {kind: mixture, proposers: [{model: a}], aggregator: {model: a}, criteria_by: c}\n",
            "criteria_by = 'c' is none of a, a",
        ),
        ("  two: {kind: dice}\n", "judges.two"),
        ("  two: {kind: score, model: a}\n", "judges.two.model = 'a': writes text and gives no number"),
    ],
)
def test_judges_are_checked_with_the_recipe(tmp_path, judges, message):
    with pytest.raises(ConfigError, match=message):
        load_preference(write(tmp_path, more=judges))


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ("  two: {kind: llm, model: r}\n", "judges.two.model"),
        ("  two: {kind: aspects, model: r}\n", "judges.two.model"),
        ("  two: {kind: jury, members: [{model: a}, {model: r}]}\n", "judges.two.members.1.model"),
        ("  two: {kind: mixture, proposers: [{model: a}], aggregator: {model: r}}\n", "judges.two.aggregator.model"),
        ("sample: {model: r}\n", "sample.model"),
    ],
)
def test_a_model_that_gives_numbers_is_not_asked_for_text(tmp_path, more, field):
    path = write(tmp_path, more=more)
    path.write_text(
        path.read_text().replace("  a: {engine: fake}", "  a: {engine: fake}\n  r: {engine: rule, function: longest}")
    )
    with pytest.raises(ConfigError, match=f"{field} = 'r': scores what others wrote and writes nothing itself"):
        load_preference(path)


def test_parquet_of_the_judge_stage_can_be_read_as_plain_tables(tmp_path):
    """The schemas nest lists of structs; what is written must read back equal."""
    record = {"id": "r1", "scores": [0.5, None], "judgments": [{"first": 0, "second": 1, "judge": "j", "verdict": ""}]}
    table = pa.Table.from_pylist([record], schema=schemas.JUDGMENTS)
    pq.write_table(table, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").equals(table)
