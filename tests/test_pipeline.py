"""Which stages a run is, what each is asked, and how long a run takes between them."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from moaa_ray.pipeline import Done, Step, load_run, run, steps_of
from moaa_ray.pipeline_text import handovers
from moaa_ray.recipe import Run, RunConfig, StageName
from moaa_ray.settings.evaluation import EvaluateConfig
from moaa_ray.settings.models import VllmModel

EVALUATED = EvaluateConfig.model_validate({"mt_bench": {"questions": "q.jsonl", "judge": "j"}})


def steps(evaluate: EvaluateConfig | None = None, **run) -> list[Step]:
    return list(steps_of(Run(name="r", run=RunConfig(**run), evaluate=evaluate or EvaluateConfig()), "/r"))


def test_a_run_is_its_stages_in_one_directory():
    found = steps()
    assert [step.stage for step in found] == ["generate", "sft", "sample", "judge", "dpo"]
    assert {step.run_dir for step in found} == {"/r"}
    assert [step.title for step in found] == ["generate", "sft", "sample", "judge", "dpo"]


def test_only_the_stages_that_are_named_run():
    assert [step.stage for step in steps(stages=["sample", "judge"])] == ["sample", "judge"]


def test_every_round_samples_from_and_tunes_the_model_of_the_round_before():
    found = [(step.stage, step.run_dir, step.round_number, step.student) for step in steps(rounds=3)[5:]]
    second, third = "/r/rounds/2", "/r/rounds/3"
    assert found == [
        *((stage, second, 2, "/r/models/dpo") for stage in ("sample", "judge", "dpo")),
        *((stage, third, 3, f"{second}/models/dpo") for stage in ("sample", "judge", "dpo")),
    ]
    assert {step.prompts_from for step in steps(rounds=3)[5:]} == {"/r"}
    assert steps(rounds=2)[5].title == "sample, round 2"


def test_an_iteration_is_the_whole_again_with_the_last_tuned_model_in_the_mixture():
    found = steps(rounds=2, iterations=2, improves="gemma")
    again = found[8:]
    assert [step.stage for step in again] == [step.stage for step in found[:8]]
    assert {step.improved for step in found[:8]} == {""}
    assert again[0].improved == "/r/rounds/2/models/dpo"
    assert {step.run_dir for step in again} == {"/r/iterations/2", "/r/iterations/2/rounds/2"}
    assert again[-1].student == "/r/iterations/2/models/dpo"
    assert again[-1].title == "dpo, iteration 2, round 2"


def test_a_recipe_with_a_benchmark_is_evaluated_once_at_the_end_of_all_rounds_and_iterations():
    found = steps(EVALUATED, rounds=2, iterations=2, improves="gemma")
    assert [step.stage for step in found].count("evaluate") == 1
    assert (found[-1].stage, found[-1].run_dir, found[-1].title) == ("evaluate", "/r", "evaluate")


def test_an_evaluation_can_be_left_out_and_run_alone():
    assert "evaluate" not in [step.stage for step in steps(EVALUATED, stages=["generate", "sft"])]
    assert [step.stage for step in steps(EVALUATED, stages=["evaluate"])] == ["evaluate"]


def done(stage: StageName, worked: tuple[float, float] | None) -> Done:
    return Done(step=Step(stage=stage, run_dir="/r"), text="", seconds=0.0, worked=worked)


def test_the_time_between_stages_is_from_the_last_work_of_one_to_the_first_of_the_next():
    stages = [done("generate", (100, 160)), done("sft", (180, 240)), done("sample", (305, 400))]
    assert handovers(stages) == ["of it 1m25s between stages, until the next one worked: sft 20s, sample 1m05s"]


def test_a_stage_that_was_finished_before_has_no_part_in_the_time_between_stages():
    stages = [done("generate", (100, 160)), done("sft", None), done("sample", (190, 200))]
    assert handovers(stages) == ["of it 30s between stages, until the next one worked: sample 30s"]
    assert handovers([done("generate", None), done("sft", (1, 2))]) == []


RECIPE = """
name: loop
run_dir: {folder}/run
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  a: {{engine: vllm, model: org/teacher, revision: r1, context_window: 4096}}
  b: {{engine: fake}}
  student: {{engine: vllm, model: RUN/models/sft}}
mixture: {{layers: [{{proposers: [{{model: a}}, {{model: b}}]}}], aggregator: {{model: b}}}}
student: {{model: org/student}}
judges: {{one: {{kind: llm, model: b}}}}
run: {{rounds: 2, iterations: 2, improves: a}}
"""


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What every stage is asked by a run, instead of doing it."""
    found: list[tuple] = []
    done = SimpleNamespace(worked=None, rows=SimpleNamespace(worked=None), text=lambda: "")

    def stage(name, *facts):
        def take(loaded, *args, console=None, **more):
            found.append((name, loaded.run_dir, *args, more, *(fact(loaded.recipe) for fact in facts)))
            return done

        return take

    monkeypatch.setattr("moaa_ray.generation.stage.generate", stage("generate", lambda r: r.models["a"]))
    monkeypatch.setattr("moaa_ray.preference.sample.sample", stage("sample"))
    monkeypatch.setattr("moaa_ray.preference.judge.judge", stage("judge"))
    monkeypatch.setattr("moaa_ray.training_stage.stage.train_stage", stage("train", lambda r: r.dpo.student))
    for place in ("generation.summary.render", "preference.judge_text.render_judge"):
        monkeypatch.setattr(f"moaa_ray.{place}", lambda _: "")
    return found


def test_the_tuned_student_is_sampled_from_in_the_next_round_and_takes_its_place_in_the_next_iterations_mixture(
    tmp_path, asked
):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path), encoding="utf-8")
    run(load_run(path), console=Console())
    first, second = f"{tmp_path}/run", f"{tmp_path}/run/iterations/2"
    begins = {"student": "", "prompts_from": "", "round_number": 1}
    expected = []
    for place in (first, second):
        inner = f"{place}/rounds/2"
        later = {"student": f"{place}/models/dpo", "prompts_from": place, "round_number": 2}
        expected += [("generate", place), ("train", place, "sft", "")]
        expected += [("sample", place, begins), ("judge", place), ("train", place, "dpo", "")]
        expected += [("sample", inner, later), ("judge", inner), ("train", inner, "dpo", f"{place}/models/dpo")]
    told = [tuple(part for part in one if part != {} and not isinstance(part, VllmModel)) for one in asked]
    assert told == expected
    teachers = [one[-1] for one in asked if one[0] == "generate"]
    assert [(one.model, one.revision) for one in teachers] == [
        ("org/teacher", "r1"),
        (f"{first}/rounds/2/models/dpo", ""),
    ]
