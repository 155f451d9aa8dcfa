"""What `moaa plan` says of the evaluate stage: who answers, who judges, how much, and as a part of the whole."""

from pathlib import Path

import pytest

from moaa_ray.evaluation.planning import evaluation_parts
from moaa_ray.loading import load_preference, load_to_plan
from moaa_ray.planning.run import plan_for_cli

JOBS = Path(__file__).parents[2] / "jobs"
PAPER = JOBS / "paper_moaa_llama_8gpu.yaml"


def test_the_papers_evaluation_has_three_students_and_a_judge():
    """805 + 500 + 80 questions, 80 of them of two turns; the judge has 805 + 2 x 500 + 2 x 80 games a model."""
    parts, notes = evaluation_parts(load_preference(PAPER))
    assert [part.title for part in parts] == [
        "evaluate, answers of base, sft, dpo, each",
        "evaluate, judge gpt-4-turbo",
    ]
    answers, judge = parts
    assert (answers.num_rows, answers.num_times) == (1385, 3)
    assert answers.mean_turns == pytest.approx(1465 / 1385)
    assert judge.num_rows == 3 * 1385
    load = judge.asked.loads({"gpt-4-turbo": None})["verdict"]
    assert load.num_requests == pytest.approx(1965 / 1385)
    assert load.completion_tokens == pytest.approx((805 * 1 + 1160 * 420) / 1965)
    assert len(notes) == 3


def test_further_rounds_are_evaluated_too():
    parts, _ = evaluation_parts(load_preference(PAPER, ["run.rounds=3"]))
    assert parts[0].title == "evaluate, answers of base, sft, dpo, dpo-round-2, dpo-round-3, each"


def test_stored_answers_are_judged_and_take_no_engine():
    stored = "evaluate.models={a: {alpaca_eval: a.json}, b: {alpaca_eval: b.json, mt_bench: b.jsonl}}"
    (judge,), _ = evaluation_parts(load_preference(PAPER, [stored]))
    assert judge.num_rows == 2 * 805 + 80


def test_the_questions_that_are_here_are_counted_and_a_rule_writes_nothing():
    parts, notes = evaluation_parts(load_preference(JOBS / "demo.yaml"))
    assert notes == []
    assert [part.num_rows for part in parts] == [400, 1200]
    load = parts[1].asked.loads({"checker": None})["verdict"]
    assert (load.num_requests, load.prompt_tokens, load.completion_tokens) == (2.0, 21.0, 0.0)


def test_a_plan_counts_the_evaluation_in_its_sum():
    stages = "run.stages=[generate, sft, sample, judge, dpo, evaluate]"
    whole = plan_for_cli(load_to_plan(PAPER, [stages]), cluster="gpus=8,gpu=H100,cpus=96", num_rows=1000)
    assert "\n\nevaluate, answers of base, sft, dpo, each: 1,385 rows x 1.1 turns on 8 x H100" in whole
    assert "\n\nevaluate, judge gpt-4-turbo: 4,155 rows" in whole
    assert "note: evaluate.mt_bench.questions counts as the published 80 questions" in whole
    without = plan_for_cli(load_to_plan(PAPER), cluster="gpus=8,gpu=H100,cpus=96", num_rows=1000)
    assert "evaluate" not in without
    hours = [float(text.split("all stages: ")[1].split(", ")[1].split()[0]) for text in (whole, without)]
    assert hours[0] > hours[1]
