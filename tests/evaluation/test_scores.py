"""From judged records to numbers: what is lacking counts as not judged, equal texts as ties."""

from dataclasses import replace

import pytest

from moaa_ray.evaluation.benchmarks import Bench
from moaa_ray.evaluation.files import Answers
from moaa_ray.evaluation.mt_bench import Question
from moaa_ray.evaluation.protocols import protocol_of
from moaa_ray.evaluation.scores import Outcome, score
from moaa_ray.settings.evaluation import Benchmark, EvaluateConfig

SECTION = {"questions": "q", "judge": "j", "baseline": "b"}
CONFIG = EvaluateConfig.model_validate(
    {"alpaca_eval": SECTION, "arena_hard": SECTION, "mt_bench": {"questions": "q", "judge": "j"}}
)
QUESTIONS = tuple(Question(id=f"q{i}", category="writing", turns=("Hi?",)) for i in range(4))


def bench(name: Benchmark) -> Bench:
    return Bench(
        name=name,
        config=CONFIG.benchmarks[name],
        questions=QUESTIONS,
        protocol=protocol_of(name, CONFIG, run_seed=0),
        baseline=None if name == "mt_bench" else Answers(model="b", texts={q.id: ("base",) for q in QUESTIONS}),
    )


def outcomes(*games: list[dict] | None, same: int = -1) -> list[Outcome]:
    """One question each; None: not judged. same: the question with equal texts."""
    return [
        Outcome(
            question=question,
            texts=("text",),
            record=None if found is None else {"is_same_text": i == same, "games": found},
        )
        for i, (question, found) in enumerate(zip(QUESTIONS, games, strict=False))
    ]


def test_alpaca_eval_counts_equal_texts_half_and_leaves_out_what_was_not_judged():
    """0.9, a tie of equal texts, and 0.1: a mean of 50 %, 3 of 4 judged."""
    judged = outcomes([{"value": 0.9}], [], [{"value": 0.1}], None, same=1)
    scored = score({"alpaca_eval": {"m": judged}}, [bench("alpaca_eval")], ["m"], seed=0)
    rates = scored.models["m"].alpaca_eval
    assert rates is not None
    assert rates.win_rate.value == pytest.approx(50.0)
    assert (rates.num_valid, rates.num_total, rates.num_ties) == (3, 4, 1)
    assert scored.models["m"].length_controlled is not None
    assert "without regard to how difficult the instructions are" in scored.notes[0]
    two = score({"alpaca_eval": {"m": judged, "n": judged}}, [bench("alpaca_eval")], ["m", "n"], seed=0)
    assert "with difficulties fitted to the other model (1), so" in two.notes[0]


def test_by_scores_the_higher_one_wins_and_equal_ones_are_a_tie():
    """A win, a loss, a tie, and one whose baseline has no score: a mean of 50 % over 3 of 4."""
    pairs = [(2.0, 1.0), (-1.0, 0.5), (0.0, 0.0), (1.0, None)]
    judged = outcomes(*([{"value": ours}, {"value": theirs}] for ours, theirs in pairs))
    config = EvaluateConfig.model_validate({"alpaca_eval": {**SECTION, "preference": "scores"}})
    by_scores = replace(bench("alpaca_eval"), protocol=protocol_of("alpaca_eval", config, run_seed=0))
    rates = score({"alpaca_eval": {"m": judged}}, [by_scores], ["m"], seed=0).models["m"].alpaca_eval
    assert rates is not None
    assert (rates.num_wins, rates.num_losses, rates.num_ties, rates.num_valid) == (1, 1, 1, 3)
    assert rates.win_rate.value == pytest.approx(50.0)


def test_arena_hard_counts_much_better_thrice_and_equal_texts_as_ties_in_both_orders():
    """The model wins 3 and 1 battles of the first prompt and half of 2 of the second: 5 of 6 battles."""
    games = [{"is_model_first": False, "grade": "B>>A"}, {"is_model_first": True, "grade": "A>B"}]
    judged = outcomes(games, [], [{"is_model_first": False, "grade": ""}], None, same=1)
    scored = score({"arena_hard": {"m": judged}}, [bench("arena_hard")], ["m"], seed=0)
    arena = scored.models["m"].arena_hard
    assert arena is not None
    assert arena.win_rate.value == pytest.approx(100 * 5 / 6)
    assert (arena.num_valid, arena.num_total) == (4, 8)


def grade(turn: int, value: float | None, error: str = "") -> dict:
    return {"turn": turn, "value": value, "error": error}


def test_mt_bench_counts_what_lacks_by_turn_and_reason_and_scores_the_rest():
    """First turns 8 and 6, one second turn of 4: 18 / 3; three questions of four have something to count or miss."""
    lacking = grade(1, None, "no_answer: context_length")
    judged = outcomes(
        [grade(0, 8.0), grade(1, 4.0)], [grade(0, 6.0), lacking], [grade(0, None, "not_in_form"), lacking], None
    )
    scored = score({"mt_bench": {"m": judged}}, [bench("mt_bench")], ["m"], seed=0)
    found = scored.models["m"].mt_bench
    assert found is not None
    assert (found.overall.value, found.num_valid, found.num_total) == (6.0, 3, 8)
    assert [turn.value for turn in found.turns] == [7.0, 4.0]
    assert found.lacking == {
        "turn 2: no_answer: context_length": 2,
        "turn 1: not_in_form": 1,
        "turn 1: not_judged": 1,
        "turn 2: not_judged": 1,
    }
    (note,) = scored.notes
    assert note.startswith("m: grades that MT-Bench lacks, by turn and reason: turn 2: no_answer: context_length 2, ")


def test_a_model_without_a_single_grade_is_a_problem_and_the_others_have_their_scores():
    graded = outcomes([grade(0, 7.0), grade(1, 5.0)])
    nothing = outcomes([grade(0, None), grade(1, None)], None)
    scored = score({"mt_bench": {"m": graded, "n": nothing}}, [bench("mt_bench")], ["m", "n"], seed=0)
    assert scored.models["m"].mt_bench is not None
    assert scored.models["m"].mt_bench.overall.value == 6.0
    assert scored.models["n"].mt_bench is None
    assert [problem.split(":")[0] for problem in scored.problems] == ["n, mt_bench"]
