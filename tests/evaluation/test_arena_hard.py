from collections.abc import Iterable
from dataclasses import replace
from math import exp, log10, sqrt
from random import Random

import pytest

from moaa_ray.errors import DataError
from moaa_ray.evaluation.arena_hard import Game, Grade, arena_scores, judge_messages, parse_grade
from moaa_ray.evaluation.style import Style
from moaa_ray.types import Completion, Failure

SWAPPED: dict[Grade, Grade] = {"A>>B": "B>>A", "A>B": "B>A", "A=B": "A=B", "B>A": "A>B", "B>>A": "A>>B"}
PLAIN = Style(num_chars=100, num_headers=0, num_list_items=0, num_bold=0)


def said(text: str, finish_reason: str = "stop") -> Completion:
    return Completion(text=text, finish_reason=finish_reason, prompt_tokens=1, completion_tokens=1)


def game(prompt: int, grade: Grade | None, *, model_first: bool = False, model: str = "m") -> Game:
    return Game(prompt_id=f"p{prompt:03}", model=model, is_model_first=model_first, grade=grade)


def random_games(num_prompts: int, seed: int, model: str = "m") -> list[Game]:
    rng = Random(seed)
    grades: list[Grade | None] = [*SWAPPED, None]
    return [game(p, rng.choice(grades), model_first=f, model=model) for p in range(num_prompts) for f in (False, True)]


def mirrored(games: Iterable[Game]) -> list[Game]:
    """The same verdicts, had the baseline been the model."""
    return [replace(g, grade=g.grade and SWAPPED[g.grade]) for g in games]


def test_the_judge_is_asked_for_five_grades_of_two_fenced_answers():
    system, user = judge_messages("Why?", ("Because.", "So that."), fence="7f")
    for grade in SWAPPED:
        assert f"[[{grade}]]" in system["content"]
    assert "own answer" in system["content"]
    assert "[7fB]\nSo that.\n[/7fB]" in user["content"]
    repeated = judge_messages("Why?", ("Because.", "So that."), fence="7f", is_repeated=True)
    assert repeated[0] == system
    assert repeated[1]["content"].startswith(user["content"])
    assert repeated[1]["content"] != user["content"]


@pytest.mark.parametrize("grade", SWAPPED)
def test_every_grade_that_is_asked_for_is_read(grade):
    assert parse_grade(said(f"Reasons.\n\n[[{grade}]]")) == grade
    assert parse_grade(said(f"[[ {grade} ]] and so [[{grade}]].")) == grade


@pytest.mark.parametrize("text", ["A>B", "[[A]]", "[[A>B]] or rather [[A=B]]", "[[A>>>B]]", ""])
def test_no_grade_and_two_different_ones_are_none(text):
    assert parse_grade(said(text)) is None


def test_what_was_cut_off_after_a_grade_or_never_came_is_none():
    assert parse_grade(said("[[A>B]] would be right if the answer were longer, but", "length")) is None
    assert parse_grade(said("so, [[A>B]]", "length")) == "A>B"
    assert parse_grade(Failure(reason="timeout")) is None
    assert parse_grade(None) is None


def test_a_score_by_hand():
    """Baseline first: A>>B is 0 of 3, B>A is 1 of 1, B>>A is 3 of 3. Model first: A>B is 1 of 1, a tie half of 1.

    5.5 of 9 battles; 1 game of 6 has no grade. 400 log10(5.5 / 3.5) = 78.5 Elo points.
    """
    games = [
        game(0, "A>>B"),
        game(0, "A>B", model_first=True),
        game(1, "B>A"),
        game(1, "A=B", model_first=True),
        game(2, "B>>A"),
        game(2, None, model_first=True),
    ]
    found = arena_scores(games, seed=1)["m"]
    assert (found.win_rate.value, found.win_rate.count) == (pytest.approx(100 * 5.5 / 9), 9)
    assert found.elo == pytest.approx(400 * log10(5.5 / 3.5))
    assert (found.num_valid, found.num_total, found.style_controlled) == (5, 6, None)


def test_identical_models_score_50_and_no_elo_apart():
    games = [game(p, "A=B", model_first=f) for p in range(9) for f in (False, True)]
    found = arena_scores(games, seed=1, styles={("m", f"p{p:03}"): (PLAIN, PLAIN) for p in range(9)})["m"]
    assert (found.win_rate.value, found.win_rate.low, found.win_rate.high, found.elo) == (50, 50, 50, 0)
    assert found.style_controlled is not None
    assert found.style_controlled.value == pytest.approx(50)


def test_a_model_that_wins_all_has_100_and_no_elo():
    found = arena_scores([game(0, "B>>A"), game(0, "A>B", model_first=True)], seed=1)["m"]
    assert (found.win_rate.value, found.elo) == (100, None)


def test_a_judge_that_always_says_a_gives_50():
    games = [game(p, "A>>B", model_first=f) for p in range(9) for f in (False, True)]
    assert arena_scores(games, seed=1)["m"].win_rate.value == 50


def test_swapped_sides_mirror_the_score_and_its_interval():
    games = random_games(50, seed=2)
    found, other = arena_scores(games, seed=1)["m"], arena_scores(mirrored(games), seed=1)["m"]
    assert other.win_rate.value == pytest.approx(100 - (found.win_rate.value or 0))
    assert other.win_rate.low == pytest.approx(100 - (found.win_rate.high or 0), abs=0.5)
    assert other.elo == pytest.approx(-(found.elo or 0))


def test_the_order_of_games_and_the_other_models_change_no_model_s_score():
    one, other = random_games(20, seed=1, model="one"), random_games(20, seed=2, model="other")
    both = Random(0).sample([*one, *other], k=80)
    together = arena_scores(both, seed=1)
    assert {name: together[name] for name in ("one", "other")} == {
        **arena_scores(one, seed=1),
        **arena_scores(other, seed=1),
    }
    assert list(together) == list(dict.fromkeys(g.model for g in both))


def test_a_judge_of_known_bias_and_accuracy_scores_what_the_closed_form_says():
    """It says A with probability 0.2, else names the better with 0.9; the model is better on 6 prompts in 10.

    0.2 / 2 + 0.8 (0.6 x 0.9 + 0.4 x 0.1) = 0.564.
    """
    rng, num = Random(3), 1000
    games = []
    for prompt in range(num):
        for model_first in (False, True):
            says_model = (prompt % 10 < 6) == (rng.random() < 0.9)
            grade: Grade = "A>B" if rng.random() < 0.2 or says_model == model_first else "B>A"
            games.append(game(prompt, grade, model_first=model_first))
    found = arena_scores(games, seed=1)["m"].win_rate
    assert found.value == pytest.approx(56.4, abs=4 * 100 * sqrt(0.564 * 0.436 / (2 * num)))
    assert found.low is not None
    assert found.high is not None
    assert found.low < 56.4 < found.high


def test_both_games_on_a_prompt_are_drawn_together():
    """All prompts 1 or 0 in both games: 40 independent prompts, so about 50 -+ 15.5; 80 games would give -+ 11."""
    grades: list[tuple[Grade, Grade]] = [("A>B", "B>A"), ("B>A", "A>B")] * 20
    games = [game(p, g, model_first=f) for p, (lost, won) in enumerate(grades) for f, g in ((False, lost), (True, won))]
    found = arena_scores(games, seed=1)["m"].win_rate
    assert (found.high or 0) - (found.low or 0) == pytest.approx(2 * 1.96 * 100 * sqrt(0.25 / 40), abs=3)


def test_equal_styles_leave_the_score_as_it_is():
    games = random_games(60, seed=5)
    found = arena_scores(games, seed=1, styles={("m", g.prompt_id): (PLAIN, PLAIN) for g in games})["m"]
    assert found.style_controlled is not None
    assert found.style_controlled.value == pytest.approx(found.win_rate.value, abs=0.1)
    assert found.style_controlled.count == found.win_rate.count


def test_a_judge_that_likes_length_alone_makes_long_models_win_but_not_when_style_is_controlled():
    """Its logit is 4 (a - b) / (a + b + 1), whoever is better; both models are mostly longer than the baseline."""
    rng = Random(7)
    games, styles = [], {}
    for model in ("one", "other"):
        for prompt in range(400):
            length = rng.choice([60, 150, 220, 400])
            styles[model, f"p{prompt:03}"] = (replace(PLAIN, num_chars=length), PLAIN)
            logit = 4 * (length - 100) / (length + 101)
            for model_first in (False, True):
                is_won = rng.random() < 1 / (1 + exp(-logit))
                games.append(
                    game(prompt, "A>B" if is_won == model_first else "B>A", model_first=model_first, model=model)
                )
    for found in arena_scores(games, seed=1, styles=styles).values():
        assert (found.win_rate.value or 0) > 60
        assert found.style_controlled is not None
        assert found.style_controlled.value == pytest.approx(50, abs=6)  # about four standard errors


@pytest.mark.parametrize(
    ("games", "message"),
    [
        ([], "there are no games to score"),
        ([game(0, None), game(1, "A>B", model="n")], "none of the 1 games of model 'm' has a grade"),
        ([game(0, "A>B"), game(0, "A=B")], "model 'm', prompt 'p000': two games with the model shown second"),
    ],
)
def test_what_gives_no_score_is_refused_by_name(games, message):
    with pytest.raises(DataError, match=message):
        arena_scores(games, seed=1)


def test_a_game_without_styles_is_named():
    with pytest.raises(DataError, match="model 'm', prompt 'p001': 1 games have no styles"):
        arena_scores([game(0, "A>B"), game(1, "A>B")], seed=1, styles={("m", "p000"): (PLAIN, PLAIN)})
