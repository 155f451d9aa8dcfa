"""What ships with the demo: prompts that never meet, models that fit the mixture's prompt, the table at its end."""

import json
from pathlib import Path

import pytest

from benchmarks.skills import models
from moaa_ray.demo.gain import held_out, render_gain, shares_right
from moaa_ray.demo.tasks import split_of

JOBS = Path(__file__).parents[2] / "jobs"
MODELS = sorted(path.parent.name for path in (JOBS / "models").glob("*/config.json"))
HELD_OUT = JOBS / "data" / "skills_held_out.jsonl"
TRAINED_ON = JOBS / "data" / "skills.jsonl"


def test_the_demo_trains_and_tests_on_prompts_of_different_splits():
    assert {split_of(question) for question in held_out(TRAINED_ON)} == {"loop"}
    assert {split_of(question) for question in held_out(HELD_OUT)} == {"held_out"}


def test_the_evaluations_baseline_knows_two_of_the_four_skills():
    with (JOBS / "data" / "skills_baseline.jsonl").open(encoding="utf-8") as lines:
        outputs = [json.loads(line)["output"] for line in lines]
    known = ("reverse", "sort")
    assert outputs == [one.answer if one.skill in known else one.mistake for one in held_out(HELD_OUT)]


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_ships_knows_the_words_of_the_aggregate_prompt(name):
    """Else the aggregator would read it letter by letter: after a change of the prompt, ship new models."""
    known = json.loads((JOBS / "models" / name / "tokenizer.json").read_text(encoding="utf-8"))
    assert set(models.fixed_pieces()) <= {token["content"] for token in known["added_tokens"]}


def test_a_specialist_knows_its_two_skills_and_the_student_next_to_nothing():
    asked = held_out(HELD_OUT)
    shares = shares_right(JOBS / "models" / "specialist-c", asked)
    assert min(shares["next"], shares["add"]) > 0.85
    assert max(shares["reverse"], shares["sort"]) < 0.5
    assert shares["all"] == pytest.approx(sum(shares[skill] for skill in ("reverse", "sort", "next", "add")) / 4)
    assert shares_right(JOBS / "models" / "base", asked)["all"] < 0.2


def test_the_table_has_a_line_for_every_model():
    asked = held_out(HELD_OUT)[:40]
    title, head, *lines = render_gain(
        {"before": JOBS / "models" / "base", "c": JOBS / "models" / "specialist-c"}, asked
    ).splitlines()
    assert title == "right of 40 held-out prompts, in %"
    assert head.split() == ["reverse", "sort", "next", "add", "all"]
    assert [line.split()[0] for line in lines] == ["before", "c"]
