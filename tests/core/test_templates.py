import copy

from hypothesis import given
from hypothesis import strategies as st

from moaa_ray.core.templates import aggregate_messages, fence_for, fold_system
from moaa_ray.types import Message

USER = Message(role="user", content="What is 2 + 2?")
SYSTEM = Message(role="system", content="Answer in French.")


def test_without_proposals_the_messages_are_the_plain_ones():
    assert aggregate_messages([SYSTEM, USER], [], fence="f") == (SYSTEM, USER)


def test_without_a_system_message_one_is_put_first_and_the_user_turn_is_unchanged():
    system, user = aggregate_messages([USER], ["four", "4"], fence="abc")
    assert system["role"] == "system"
    assert user == USER


def test_the_mixture_text_follows_an_existing_system_prompt_and_ends_with_the_numbered_list():
    system, _ = aggregate_messages([SYSTEM, USER], ["four", "4"], fence="abc")
    assert system["content"].startswith("Answer in French.\n\nSeveral language models")
    assert system["content"].endswith("\n\n1.\n[abc]\nfour\n[/abc]\n\n2.\n[abc]\n4\n[/abc]")


def test_building_a_prompt_changes_nothing_it_was_given():
    messages = [copy.deepcopy(SYSTEM), copy.deepcopy(USER)]
    before = copy.deepcopy(messages)
    first = aggregate_messages(messages, ["four"], fence="abc")
    second = aggregate_messages(messages, ["four"], fence="abc")
    assert messages == before
    assert first == second
    assert first[0]["content"].count("Several language models") == 1


def test_history_stays_between_the_system_message_and_the_last_user_turn():
    history = [USER, Message(role="assistant", content="4"), Message(role="user", content="And 3 + 3?")]
    assert aggregate_messages(history, ["6"], fence="f")[1:] == tuple(history)


def test_hiding_the_sources_adds_a_sentence_and_nothing_else():
    plain = aggregate_messages([USER], ["4"], fence="f")[0]["content"]
    hidden = aggregate_messages([USER], ["4"], fence="f", hide_sources=True)[0]["content"]
    assert "Do not mention that you have seen other answers" in hidden
    assert "Do not mention" not in plain


@given(st.lists(st.text(), min_size=1, max_size=4))
def test_a_fence_occurs_in_no_text_it_guards(texts):
    fence = fence_for(0, "row", texts)
    assert not any(fence in text for text in texts)
    again = fence_for(0, "row", [*texts, fence])
    assert again != fence
    assert again not in fence


def test_a_fence_differs_by_row_by_seed_and_by_what_it_guards():
    fences = {fence_for(0, "a", ["x"]), fence_for(0, "b", ["x"]), fence_for(1, "a", ["x"]), fence_for(0, "a", ["y"])}
    assert len(fences) == 4


def test_folding_puts_the_system_text_before_the_first_user_turn_only():
    history = [SYSTEM, USER, Message(role="assistant", content="4"), USER]
    folded = fold_system(history)
    assert folded[0] == Message(role="user", content="Answer in French.\n\nWhat is 2 + 2?")
    assert folded[1:] == tuple(history[2:])
    assert history[1] == USER


def test_folding_leaves_conversations_without_a_system_message_alone():
    assert fold_system([USER]) == (USER,)


def test_a_system_message_alone_becomes_a_user_turn():
    assert fold_system([SYSTEM]) == (Message(role="user", content="Answer in French."),)
