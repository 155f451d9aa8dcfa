import csv
import gzip
import json
from dataclasses import replace
from math import atanh, exp, log, sqrt, tanh
from pathlib import Path
from random import Random

import pytest

from moaa_ray.errors import DataError
from moaa_ray.evaluation.alpaca_eval import Annotation, annotation, published_preference, win_rates
from moaa_ray.evaluation.length_control import (
    GamedAnnotation,
    is_extreme,
    length_controlled,
    length_controlled_jointly,
    parse_difficulties,
    parse_gamed,
)

DATA = Path(__file__).parents[3] / "shared" / "data"
LEADERBOARD = DATA / "alpaca_eval_leaderboard.csv"
PUBLISHED = ["FuseChat-Llama-3.1-8B-Instruct", "FuseChat-Qwen-2.5-7B-Instruct"]


def judged(*given: tuple[float | None, int, int]) -> list[Annotation]:
    """(preference, the model's length, the baseline's)."""
    return [
        Annotation(id=f"p{i:03}", preference=preference, length=length, baseline_length=baseline)
        for i, (preference, length, baseline) in enumerate(given)
    ]


def without_difficulty(given: list[Annotation]) -> dict[str, float]:
    return dict.fromkeys((a.id for a in given), 0.0)


def noisy(num: int, seed: int = 0) -> list[Annotation]:
    rng = Random(seed)
    return judged(*((rng.random(), rng.randint(1, 900), rng.randint(1, 900)) for _ in range(num)))


def test_two_lengths_by_hand():
    """Shorter by 100: 0.8, longer by 100: 0.5. The logits are log 4 and 0, so between them log 2, or 2/3; raw is 65."""
    given = judged(*[(0.8, 100, 200), (0.5, 200, 100)] * 15)
    found = length_controlled(given, difficulties=without_difficulty(given), seed=1)
    assert win_rates(given, seed=1).win_rate.value == pytest.approx(65)
    assert (found.win_rate.value, found.win_rate.count) == (pytest.approx(200 / 3, abs=0.01), 30)
    assert found.model_effect == pytest.approx(log(2), abs=1e-3)
    assert found.length_effect > 0
    assert found.difficulty_effect == 0


def test_without_a_difference_in_length_nothing_is_controlled():
    given = judged(*[(0.8, 50, 90), (0.7, 50, 90)] * 10)
    assert length_controlled(given, difficulties=without_difficulty(given), seed=1).win_rate.value == pytest.approx(
        75, abs=0.01
    )


def test_difficulties_that_explain_the_preferences_are_followed():
    """Easy ones (difficulty 1) 0.8, hard ones (-1) 0.2, equal lengths: the effect is log 4, the mean 50."""
    given = judged(*[(0.8, 5, 5), (0.2, 5, 5)] * 15)
    difficulties = {a.id: 1.0 if a.preference == 0.8 else -1.0 for a in given}
    found = length_controlled(given, difficulties=difficulties, seed=1)
    assert found.win_rate.value == pytest.approx(50, abs=0.01)
    assert found.difficulty_effect == pytest.approx(log(4), abs=1e-3)


def test_gamed_rows_hold_the_length_effect_alone():
    """Own rows are all 0.8 at one length; only gamed rows, at tanh 0.5 and logit log 3, know of length: 2 log 3."""
    given = judged(*[(0.8, 50, 90)] * 20)
    gamed = [GamedAnnotation(preference=0.75, length_difference=atanh(0.5), difficulty=0.0)] * 20
    found = length_controlled(given, difficulties=without_difficulty(given), gamed=gamed, seed=1)
    assert found.win_rate.value == pytest.approx(80, abs=0.1)
    assert found.length_effect == pytest.approx(2 * log(3), abs=0.01)


def test_a_gamed_row_counts_a_tenth():
    """20 own rows at -+1 standard deviation say 0.8 and 0.2, 200 gamed rows there 0.5: together 0.65 and 0.35."""
    given = judged(*[(0.8, 100, 200), (0.2, 200, 100)] * 10)
    at = sqrt(19 / 20)  # 100 over the standard deviation, which divides by 19
    gamed = [GamedAnnotation(preference=0.5, length_difference=d, difficulty=0.0) for d in (at, -at)] * 100
    found = length_controlled(given, difficulties=without_difficulty(given), gamed=gamed, seed=1)
    assert found.length_effect == pytest.approx(log(0.65 / 0.35) / tanh(at), abs=1e-3)
    assert found.win_rate.value == pytest.approx(50, abs=0.01)


def test_identical_models_score_50_exactly():
    given = judged(*[(0.5, n, n) for n in range(40)])
    for found in (
        length_controlled(given, difficulties=without_difficulty(given), seed=1),
        length_controlled_jointly({"same": given}, seed=1)["same"],
    ):
        assert (found.win_rate.value, found.win_rate.low, found.win_rate.high) == (50, 50, 50)
        assert (found.length_effect, found.model_effect, found.standard_error) == (0, 0, 0)


def test_a_model_that_always_wins_is_near_100_and_nothing_is_infinite():
    given = judged(*[(1.0, n, 50) for n in range(30)])
    found = length_controlled_jointly({"best": given}, seed=1)["best"]
    assert 99 < found.win_rate.value <= 100


def test_one_annotation_is_enough_and_has_no_standard_error():
    found = length_controlled_jointly({"m": judged((0.8, 10, 20))}, seed=1)["m"]
    assert found.win_rate.value == pytest.approx(80, abs=1)
    assert found.standard_error is None


def test_an_annotation_without_a_preference_is_predicted_but_not_fitted():
    given = judged(*[(0.8, 5, 5), (0.2, 5, 5)] * 10)
    difficulties = {a.id: 1.0 if a.preference == 0.8 else -1.0 for a in given}
    lacking = [replace(a, preference=None) if a.id >= "p010" and a.preference == 0.2 else a for a in given]
    found = length_controlled(lacking, difficulties=difficulties, seed=1)
    assert found.win_rate.count == 15
    assert win_rates(lacking, seed=1).win_rate.value == pytest.approx(60)
    assert found.win_rate.value == pytest.approx(50, abs=0.1)


def test_the_order_of_annotations_and_models_changes_nothing():
    rng, one, other = Random(2), noisy(40), noisy(40, seed=1)
    found = length_controlled_jointly({"one": one, "other": other}, seed=3)
    shuffled = {"other": rng.sample(other, k=40), "one": rng.sample(one, k=40)}
    assert length_controlled_jointly(shuffled, seed=3) == found
    assert list(found) == ["one", "other"]


def test_models_judged_on_other_instructions_are_fitted_together():
    one, other = noisy(30), noisy(40, seed=1)
    assert length_controlled_jointly({"one": one[5:], "other": other}, seed=1)["one"].win_rate.count == 25


@pytest.mark.parametrize("models", [["one"], ["one", "other"]])
@pytest.mark.parametrize("is_verdict", [False, True])
def test_a_judge_that_likes_length_alone_makes_long_models_win_but_not_when_length_is_controlled(models, is_verdict):
    """The judge's logit is twice tanh of the model's excess in standard deviations, whoever is better.

    With verdicts the standard error is about 4: the slope has to be fitted too.
    """
    rng, given = Random(5), {}
    for model in models:
        excess = [rng.gauss(150, 100) for _ in range(300)]
        odds = [1 / (1 + exp(-2 * tanh(d / 100))) for d in excess]
        preferences = [float(rng.random() < p) for p in odds] if is_verdict else odds
        given[model] = judged(*((p, 1000 + round(d), 1000) for p, d in zip(preferences, excess, strict=True)))
    for model, found in length_controlled_jointly(given, seed=1).items():
        assert win_rates(given[model], seed=1).win_rate.value > 72
        assert found.win_rate.value == pytest.approx(50, abs=12 if is_verdict else 1)


def test_difficulties_are_those_of_the_other_models():
    """Half of the instructions are hard for the others, whatever the model itself did there."""
    other = judged(*[(0.9, 5, 5), (0.1, 5, 5)] * 10)
    same, opposite = judged(*[(0.8, 5, 5), (0.2, 5, 5)] * 10), judged(*[(0.2, 5, 5), (0.8, 5, 5)] * 10)
    assert length_controlled_jointly({"m": same, "other": other}, seed=1)["m"].difficulty_effect > 0.5
    assert length_controlled_jointly({"m": opposite, "other": other}, seed=1)["m"].difficulty_effect < -0.5
    assert length_controlled_jointly({"m": same}, seed=1)["m"].difficulty_effect == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "model 'm': none of 0 annotations"),
        (judged((None, 1, 1)), "model 'm': none of 1 annotations has a preference"),
        (judged((0.5, 1, 1)) * 2, "model 'm': annotation 'p000' is there more than once"),
    ],
)
def test_a_model_without_preferences_is_refused_by_name(given, message):
    with pytest.raises(DataError, match=message):
        length_controlled_jointly({"good": noisy(5), "m": given}, seed=1)


def test_a_missing_difficulty_is_named():
    with pytest.raises(DataError, match=r"1 of 2 annotations have no instruction difficulty, 'p001' first: give"):
        length_controlled(noisy(2), difficulties={"p000": 0.0}, seed=1)


@pytest.mark.parametrize(
    ("win_rate", "controlled", "is_failed"),
    [(20, 9.9, True), (20, 10.1, False), (20, 40.1, True), (20, 39.9, False), (80, 90.1, True), (80, 59.9, True)],
)
def test_a_large_change_is_extreme(win_rate, controlled, is_failed):
    """Of 20: below min(15, 10), above max(40, 30). Of 80: below min(60, 70), above max(85, 90)."""
    assert is_extreme(win_rate, controlled) == is_failed


def test_published_difficulties_are_read_by_the_order_of_the_instructions():
    text = "index,instruction_difficulty\n1,0.5\n0,-2.25\n"
    assert parse_difficulties(text, ["first", "second"]) == {"first": -2.25, "second": 0.5}


def test_gamed_rows_are_read_by_their_columns():
    text = "model,preference,index,std_delta_len,not_gamed_baseline,instruction_difficulty\nx,0.25,3,-1.5,False,0.5\n"
    assert parse_gamed(text) == (GamedAnnotation(preference=0.25, length_difference=-1.5, difficulty=0.5),)


def test_gamed_rows_that_count_preferences_from_1_to_2_are_refused():
    with pytest.raises(DataError, match=r"df_gamed.csv, row 3: preference = 1.75 is not from 0 .* to 1"):
        parse_gamed("preference,std_delta_len,instruction_difficulty\n0.25,-1.5,0.5\n1.75,-1.5,0.5\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "instruction_difficulty.csv has no column 'index'"),
        ("index,difficulty\n0,1\n", "has no column 'instruction_difficulty': index, instruction_difficulty are wanted"),
        ("index,instruction_difficulty\n0,much\n", "instruction_difficulty.csv, row 2: .*'much'.* has no number"),
        ("index,instruction_difficulty\n0,nan\n", "row 2"),
        ("index,instruction_difficulty\n0\n", "row 2"),
        ("index,instruction_difficulty\n0,1\n", "has no row for 1 of 2 instructions, 'second' first"),
    ],
)
def test_a_file_of_difficulties_that_is_not_the_published_one_is_refused(text, message):
    with pytest.raises(DataError, match=message):
        parse_difficulties(text, ["first", "second"])


@pytest.mark.skipif(not LEADERBOARD.exists(), reason=f"needs {LEADERBOARD}")
def test_published_annotations_give_the_published_numbers():
    """Raw to the last digits; length-controlled within a point without the published difficulties."""
    with LEADERBOARD.open(encoding="utf-8") as file:
        rows = {row[""]: {name: value for name, value in row.items() if name} for row in csv.DictReader(file)}
    given = {}
    for model in PUBLISHED:
        with gzip.open(DATA / f"alpaca_eval_annotations_{model}.json.gz", "rt", encoding="utf-8") as file:
            given[model] = [
                annotation(a["instruction"], a["output_2"], a["output_1"], published_preference(a["preference"]))
                for a in json.load(file)
            ]
    controlled = length_controlled_jointly(given, seed=1)
    for model in PUBLISHED:
        row, raw = rows[model], win_rates(given[model], seed=1)
        assert raw.win_rate.value == pytest.approx(float(row["win_rate"]), abs=1e-10)
        assert raw.standard_error == pytest.approx(float(row["standard_error"]), abs=1e-10)
        assert raw.discrete_win_rate == pytest.approx(float(row["discrete_win_rate"]), abs=1e-10)
        counts = (raw.num_wins, raw.num_losses, raw.num_ties, raw.num_total)
        assert counts == tuple(int(row[name]) for name in ("n_wins", "n_wins_base", "n_draws", "n_total"))
        assert controlled[model].win_rate.value == pytest.approx(float(row["length_controlled_winrate"]), abs=1)
        assert not is_extreme(float(row["win_rate"]), float(row["length_controlled_winrate"]))
