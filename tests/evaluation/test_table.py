"""The table: the paper's columns, intervals and counts below the numbers, and what could not be scored."""

from moaa_ray.core.judge_stats import Estimate
from moaa_ray.evaluation.arena_hard import ArenaScore
from moaa_ray.evaluation.mt_bench import MtBenchScores
from moaa_ray.evaluation.scores import Scored, Scores
from moaa_ray.evaluation.table import markdown, text_table

JUDGE = {"name": "big", "model": "org/big", "revision": "abc"}
SAMPLING = {"temperature": 0.0, "max_tokens": 4096, "logprobs": 0}
ABOUT = {
    "arena_hard": {
        "num_questions": 500, "baseline": "gpt-4-0314", "judge": JUDGE, "prompt_version": "arena_hard/1",
        "sampling": SAMPLING, "settings": {"max_tokens": 4096, "temperature": 0.0},
    },
    "mt_bench": {
        "num_questions": 80, "baseline": None, "judge": JUDGE, "prompt_version": "mt_bench/1", "sampling": SAMPLING,
        "settings": {"max_tokens": 1024},
    },
}  # fmt: skip


def estimate(value: float, *, count: int) -> Estimate:
    return Estimate(value=value, low=value - 1, high=value + 1, count=count)


SCORED = Scored(
    models={
        "base": Scores(
            arena_hard=ArenaScore(
                win_rate=estimate(19.5, count=1200), elo=-246.0, style_controlled=None, num_valid=998, num_total=1000
            ),
            mt_bench=MtBenchScores(
                overall=estimate(8.01, count=159),
                turns=(estimate(8.1, count=80), estimate(7.92, count=79)),
                categories={},
                num_valid=159,
                num_total=160,
            ),
        ),
        "sft": Scores(),
    },
    problems=["sft, arena_hard: nothing"],
)


def test_a_model_has_its_numbers_with_intervals_and_counts_below_and_dashes_where_it_has_none():
    lines = text_table(SCORED, ABOUT).splitlines()
    assert lines[0].split() == ["model", "Arena-Hard", "MT-Bench", "1st", "turn", "2nd", "turn"]
    assert lines[1].split() == ["base", "19.5", "8.01", "8.10", "7.92"]
    assert lines[2].split("  ")[-1] == "[6.92, 8.92]"
    assert lines[3].split() == ["998/1,000", "159/160", "80/80", "79/80"]
    assert lines[4].split() == ["sft", "-", "-", "-", "-"]


def test_below_the_table_stands_who_judged_how_and_what_has_no_score():
    text = text_table(SCORED, ABOUT)
    assert "against gpt-4-0314, judge big (org/big@abc), prompt arena_hard/1, temperature 0, at most 4,096" in text
    assert "answers of at most 1,024 tokens, temperature by category" in text
    assert "no score: sft, arena_hard: nothing" in text


def test_the_files_table_is_markdown():
    lines = markdown(SCORED, ABOUT).splitlines()
    assert lines[2] == "| model | Arena-Hard | MT-Bench | 1st turn | 2nd turn |"
    assert lines[4] == "| base | 19.5 | 8.01 | 8.10 | 7.92 |"
    assert lines[6] == "|  | 998/1,000 | 159/160 | 80/80 | 79/80 |"
