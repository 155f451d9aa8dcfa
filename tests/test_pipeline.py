from moaa_ray.pipeline import Done, Step, steps_of
from moaa_ray.pipeline_text import handovers
from moaa_ray.recipe import Run, RunConfig, StageName
from moaa_ray.settings.evaluation import EvaluateConfig

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
