import pytest

from moaa_ray.core.judge_parsing import parse_criteria, parse_rating, parse_score, parse_verdict
from moaa_ray.types import Failure
from tests.core.rows import said

CHOSEN = ("Accuracy", "Depth", "Clarity")
FAILED = Failure(reason="timeout")


@pytest.mark.parametrize(
    "text",
    [
        "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Clarity\nExplanation: facts.",
        "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Clarity",
        "Let me think.\n\nSELECTED CRITERIA\n\n1) accuracy\n\n2) depth\n\n3) clarity\n\nSo be it.",
        "**Selected Criteria:**\n1. **Accuracy**\n2. **Depth**\n**3. Clarity**\n**Explanation:** facts.",
        "### Selected Criteria:\r\n  1. Accuracy.\r\n  2. Depth:\r\n  3. *Clarity*\r\n",
        "Selected Criteria:\n1. Safety\n2. Depth\n3. Relevance\nNo, better:\n" + "Selected Criteria:\n1. Accuracy\n"
        "2. Depth\n3. Clarity",
        "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Clarity\nExplanation: I left out\n1. Safety\n2. Relevance",
    ],
)
def test_three_criteria_under_the_heading_are_read_also_with_markdown(text):
    assert parse_criteria(said(text)) == CHOSEN


@pytest.mark.parametrize(
    "text",
    [
        "1. Accuracy\n2. Depth\n3. Clarity",
        "The criteria are Accuracy, Depth and Clarity.",
        "Selected Criteria: 1. Accuracy 2. Depth 3. Clarity",
        "Selected Criteria:\nAccuracy\nDepth\nClarity",
        "Selected Criteria:\n- Accuracy\n- Depth\n- Clarity",
        "Selected Criteria:\n1. Accuracy\n2. Depth",
        "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Clarity\n4. Safety",
        "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Accuracy",
        "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Brevity",
        "Selected Criteria:\n1. Accuracy\n2. Depth\n3. Clarity, as it matters most",
        "Selected Criteria:\n1. Accuracy\n3. Depth\n2. Clarity",
        "Selected Criteria:\n0. Accuracy\n1. Depth\n2. Clarity",
        "Selected Criteria:\n1. Accuracy\nthat is:\n2. Depth\n3. Clarity",
        "My Selected Criteria:\n1. Accuracy\n2. Depth\n3. Clarity",
        "",
    ],
)
def test_criteria_in_any_other_form_are_not_said(text):
    assert parse_criteria(said(text)) is None


def test_what_a_runaway_model_writes_is_read_at_once_and_is_no_criteria():
    """int() refuses more than 4,300 digits; patterns that try every split of a run of blanks take minutes here."""
    heading = "Selected Criteria:\n"
    for text in (
        heading + "1" * 10_000 + ". Accuracy",
        heading + "1. Accuracy" + " " * 200_000 + "x",
        "\n" * 200_000 + "x",
        "selected criteria" + " *" * 100_000 + "x",
    ):
        assert parse_criteria(said(text)) is None


def test_no_answer_is_no_criteria_no_verdict_no_rating_and_no_score():
    for parse in (parse_criteria, parse_verdict, parse_rating, parse_score):
        assert parse(FAILED) is None
        assert parse(None) is None


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("[[A]]", "first"),
        ("Reasons.\n\n[[B]]", "second"),
        ("**[[ A ]]**", "first"),
        ("At first sight [[A]], but on reflection [[B]].", "second"),
        ("Answer A even says [[B]] of itself. I decide: [[A]]", "first"),
        ("The decision is [A].", None),
        ("[[a]]", None),
        ("[[C]]", None),
        ("[[A or B]]", None),
        ("[[Tie]]", None),
        ("I cannot decide.", None),
    ],
)
def test_the_last_verdict_in_double_brackets_counts(text, winner):
    assert parse_verdict(said(text)) == winner


def test_a_verdict_of_a_completion_that_was_cut_off_counts_only_at_its_end():
    weighing = "[[A]] would be right if length counted, but"
    assert parse_verdict(said(weighing, finish_reason="length")) is None
    assert parse_verdict(said(weighing, finish_reason="stop")) == "first"
    assert parse_verdict(said("So it is [[B]]. Thanks", finish_reason="length")) == "second"


@pytest.mark.parametrize(
    ("text", "rating"), [("[[3]]", 3), ("[[1]]? No: [[ 5 ]]", 5), ("[[0]]", None), ("[[6]]", None), ("[[4.5]]", None)]
)
def test_the_last_whole_rating_from_1_to_5_counts(text, rating):
    assert parse_rating(said(text)) == rating


@pytest.mark.parametrize(("text", "score"), [("0.25", 0.25), ("-1e-3", -0.001), ("7", 7.0), ("1e308", 1e308)])
def test_a_score_is_a_number(text, score):
    assert parse_score(said(text)) == score


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1e999", "high", "0.5 points", ""])
def test_what_cannot_be_compared_is_no_score(text):
    assert parse_score(said(text)) is None
