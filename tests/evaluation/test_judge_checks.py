"""RewardBench for judges as a part of an evaluation: its table, what stays of it, and a whole one on real Ray."""

import json
from dataclasses import asdict

import pytest

from moaa_ray.data.store import open_store
from moaa_ray.evaluation.planning import evaluation_parts
from moaa_ray.evaluation.stage import evaluate
from moaa_ray.evaluation.summary import render_evaluation
from moaa_ray.evaluation.table import judge_rows
from moaa_ray.loading import load_preference
from moaa_ray.preference.check_scores import Outcome, scores_of
from moaa_ray.reporting.report import render_report
from tests.evaluation.files import put_lines

RECIPE = """
name: checked
run_dir: {folder}/run
models:
  rule: {{engine: rule, function: longest}}
  short: {{engine: rule, function: shortest}}
judges:
  long: {{kind: score, model: rule}}
  short: {{kind: score, model: short}}
evaluate: {{reward_bench: {{pairs: pairs.jsonl, judges: [long, short]}}}}
ray: {{address: local}}
"""


def write_recipe(folder):
    """Three pairs in two of RewardBench's sections; in two of them the longer text is the better one."""
    rows = [("hep-cpp", "long", "a"), ("hep-cpp", "longer", "b"), ("xstest-should-respond", "no", "as long as it gets")]
    pairs = [
        {"prompt": f"Q{i}?", "chosen": chosen, "rejected": rejected, "subset": subset, "id": i}
        for i, (subset, chosen, rejected) in enumerate(rows)
    ]
    put_lines(folder / "pairs.jsonl", pairs)
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder), encoding="utf-8")
    return path


def test_a_judge_has_a_line_for_both_orders_and_one_for_one_by_section():
    outcomes = [
        Outcome(id="1", subset="hep-cpp", chosen=0, both_orders=1.0, one_order=1.0),
        Outcome(id="2", subset="donotanswer", chosen=0, both_orders=0.5, one_order=0.0),
    ]
    cost = {"calls": 1200, "usd": 0.5}
    check = {"judge": "jury", "scores": asdict(scores_of(outcomes, seed=0)), "cost": cost, "files": ["p"]}
    titles, both, one = judge_rows([check])
    assert titles == ("judge", "orders", "total", "", "Safety", "Reasoning", "no verdict", "calls", "USD")
    assert both == ("jury", "both", "75.0", "[75.0, 75.0]", "50.0", "100.0", "0/2", "1,200", "0.50")
    assert one == ("", "one", "50.0", "[50.0, 50.0]", "0.0", "100.0", "0/2", "", "")


def test_the_plan_counts_the_pairs_of_every_judge(tmp_path):
    loaded = load_preference(write_recipe(tmp_path))
    assert loaded.recipe.stages[-1] == "evaluate"
    parts, notes = evaluation_parts(loaded)
    assert [(part.title, part.num_rows) for part in parts] == [
        ("evaluate, check of judge long", 3),
        ("evaluate, check of judge short", 3),
    ]
    assert notes == []
    elsewhere = load_preference(tmp_path / "recipe.yaml", ["evaluate.reward_bench.pairs=nope.jsonl"])
    parts, notes = evaluation_parts(elsewhere)
    assert parts[0].num_rows == 2985
    assert "counts as the published 2,985" in notes[0]


@pytest.mark.slow
def test_an_evaluation_of_judges_alone_gives_their_table_asks_nothing_twice_and_notices_other_pairs(tmp_path):
    recipe = write_recipe(tmp_path)
    first = evaluate(load_preference(recipe))
    told = render_evaluation(first)
    assert "long     both   50.0" in told
    assert "short    both   50.0" in told
    assert {pool.name: pool.calls for pool in first.usage} == {"checks/long score": 6, "checks/short score": 6}
    store = open_store(str(tmp_path / "run"))
    facts = json.loads(store.read("evaluation/summary.json"))
    assert [check["scores"]["sections"]["Reasoning"]["both_orders"]["value"] for check in facts["reward_bench"]] == [
        1,
        0,
    ]
    assert "Judges on labelled pairs" in store.read("evaluation/summary.md").decode()
    assert "Judges: accuracy in % on labelled pairs" in render_report(store.uri, num_rows=1, now=0.0)
    again = evaluate(load_preference(recipe), only=["reward_bench"])
    assert first.worked
    assert (again.worked, list(again.checks)) == (None, list(first.checks))
    anew = evaluate(load_preference(recipe), restart=["long"])
    assert [check["cost"]["calls"] for check in anew.checks] == [12, 6]
