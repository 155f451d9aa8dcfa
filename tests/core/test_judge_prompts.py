from moaa_ray.core.judge_prompts import (
    CRITERIA,
    FALLBACK_CRITERIA,
    assess_messages,
    criteria_messages,
    decide_messages,
    question_text,
    rate_messages,
)
from moaa_ray.types import Message

FENCE = "0123456789ab"
THREE = ("Accuracy", "Depth", "Clarity")
TWO = ("Paris.", "Lyon.")


def users(messages) -> str:
    system, user = messages
    assert (system["role"], user["role"]) == ("system", "user")
    return user["content"]


def test_a_single_question_is_judged_as_it_is_and_a_conversation_with_its_roles():
    ask, reply = Message(role="user", content="Capital?"), Message(role="assistant", content="Of what?")
    assert question_text([ask]) == "Capital?"
    assert question_text([ask, reply, Message(role="user", content="France.")]) == (
        "User: Capital?\n\nAssistant: Of what?\n\nUser: France."
    )
    short = Message(role="system", content="Be short.")
    assert question_text([short, ask]) == "System: Be short.\n\nUser: Capital?"


def test_the_criteria_prompt_names_all_eight_and_its_own_form():
    system = criteria_messages("Capital?", TWO, fence=FENCE)[0]["content"]
    assert len(CRITERIA) == 8
    assert all(f"- {name}: {what}\n" in system for name, what in CRITERIA.items())
    assert "Selected Criteria:\n1. <criterion>\n2. <criterion>\n3. <criterion>\nExplanation:" in system
    assert set(FALLBACK_CRITERIA) <= set(CRITERIA)


def test_everything_that_is_judged_stands_in_a_block_of_its_own():
    assert users(decide_messages("Capital?", TWO, THREE, ["A is right."], fence=FENCE)) == (
        f"Request:\n[{FENCE}Q]\nCapital?\n[/{FENCE}Q]\n\n"
        f"Answer A:\n[{FENCE}A]\nParis.\n[/{FENCE}A]\n\n"
        f"Answer B:\n[{FENCE}B]\nLyon.\n[/{FENCE}B]\n\n"
        f"Criteria:\n- Accuracy: {CRITERIA['Accuracy']}\n- Depth: {CRITERIA['Depth']}\n"
        f"- Clarity: {CRITERIA['Clarity']}\n\n"
        f"Assessment 1:\n[{FENCE}1]\nA is right.\n[/{FENCE}1]\n\n"
        "Final decision:"
    )
    assert users(rate_messages("Capital?", "Paris.", "honesty", fence=FENCE)) == (
        f"Request:\n[{FENCE}Q]\nCapital?\n[/{FENCE}Q]\n\nAnswer:\n[{FENCE}A]\nParis.\n[/{FENCE}A]\n\nRating:"
    )


def test_every_prompt_says_that_what_stands_in_blocks_is_no_instruction():
    prompts = [
        criteria_messages("q", TWO, fence=FENCE),
        assess_messages("q", TWO, THREE, fence=FENCE),
        decide_messages("q", TWO, [], [], fence=FENCE),
        decide_messages("q", TWO, THREE, ["text"], fence=FENCE),
        rate_messages("q", "a", "honesty", fence=FENCE),
    ]
    for system, _ in prompts:
        assert f"between a line [{FENCE}...] and a line [/{FENCE}...]" in system["content"]


def test_judges_without_criteria_are_told_of_none():
    for criteria in ((), THREE):
        told = [
            assess_messages("q", TWO, criteria, fence=FENCE),
            decide_messages("q", TWO, criteria, [], fence=FENCE),
            decide_messages("q", TWO, criteria, ["text"], fence=FENCE),
        ]
        assert [("criteria" in system["content"].lower()) for system, _ in told] == [bool(criteria)] * 3
        assert [("criteria" in user["content"].lower()) for _, user in told] == [bool(criteria)] * 3


def test_a_repeated_request_for_criteria_differs_by_a_reminder_at_its_end():
    first, second = (users(criteria_messages("q", TWO, fence=FENCE, is_repeated=again)) for again in (False, True))
    assert second.startswith(first)
    assert "not in the form" in second[len(first) :]


def test_judgments_with_the_same_answer_a_begin_alike_as_far_as_it_goes():
    """So that an engine reads the rules, the request and answer A once for all opponents of A."""
    prompts = [
        users(decide_messages("Capital?", ("Paris.", other), criteria, [f"{other}?"], fence=FENCE))
        for other, criteria in (("Lyon.", THREE), ("Nice.", FALLBACK_CRITERIA))
    ]
    for prompt in prompts:
        assert prompt.startswith(
            f"Request:\n[{FENCE}Q]\nCapital?\n[/{FENCE}Q]\n\nAnswer A:\n[{FENCE}A]\nParis.\n[/{FENCE}A]\n\nAnswer B:\n"
        )


def test_braces_in_what_is_judged_are_only_text():
    messages = decide_messages("{by}", ("{fence}", "{0}"), [], ["{criteria}"], fence=FENCE)
    for text in ("{by}", "{fence}", "{0}", "{criteria}"):
        assert f"\n{text}\n" in users(messages)
    assert "{" not in messages[0]["content"]
