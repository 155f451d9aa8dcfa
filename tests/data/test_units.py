"""Rows into packs and pairs: each row in exactly one place, nothing cut that must not be, the split by prompt."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moaa_ray.data.documents import Document, DocumentError, DocumentTokenizer
from moaa_ray.data.units import UnitSettings, fit, is_validation, pair_units, prompt_id, sft_units
from tests.data.test_documents import QWEN, counted, talk
from tests.engines.test_chat_templates import make_tokenizer

TOKENIZER = make_tokenizer("qwen3", template=QWEN)
MAKER = DocumentTokenizer(TOKENIZER)
ROW_TOKENS = 23
"""Of talk("a", "b"): 9 + 11 + 3 tokens, as test_documents.py counts them, of which 2 count."""


def the(*, max_tokens=100, window=None, **more) -> UnitSettings:
    defaults = {"over_long": "drop", "validation_fraction": 0.0}
    return UnitSettings(max_tokens=max_tokens, document_tokens=window or max_tokens, **defaults | more)


def document(tokens, counts) -> Document:
    return Document(tokens=np.array(tokens, np.int32), counts=np.array(counts, bool))


def row(row_id, *texts, flags=None):
    return {"id": row_id, "messages": talk(*texts), "flags": flags}


def pair(row_id, chosen, rejected, **more):
    answers = {"chosen": talk("x", chosen)[1:], "rejected": talk("x", rejected)[1:]}
    return {"id": row_id, "prompt": talk("a"), **answers, **more}


def refused(rows, settings=None, *, make=sft_units) -> list[tuple[str, str]]:
    sets = make(rows, MAKER, settings or the())
    assert sets.dropped == Counter(refusal.rule for refusal in sets.refusals)
    return [(refusal.id, refusal.rule) for refusal in sets.refusals]


def test_a_document_that_fits_stays_as_it_is():
    given_one = document([1, 2, 3], [0, 1, 0])
    assert fit(given_one, the(max_tokens=3)) is given_one
    assert fit(given_one, the(max_tokens=3, over_long="truncate")) is given_one


def test_a_document_that_is_too_long_is_refused_with_its_length():
    with pytest.raises(DocumentError, match="3 tokens, max_tokens is 2") as caught:
        fit(document([1, 2, 3], [0, 1, 0]), the(max_tokens=2))
    assert caught.value.rule == "over_long"
    with pytest.raises(DocumentError, match=r"3 tokens, the student's window \(positions in its config.json\) is 2"):
        fit(document([1, 2, 3], [0, 1, 0]), the(window=2))


def test_a_document_cut_at_the_end_ends_in_a_token_that_counts():
    cut = fit(document([1, 2, 3, 4, 5, 6, 7], [0, 1, 1, 0, 0, 1, 1]), the(max_tokens=5, over_long="truncate"))
    assert (cut.tokens.tolist(), cut.counts.tolist()) == ([1, 2, 3], [False, True, True])


def test_a_document_with_no_completion_within_the_length_is_refused():
    for counts in ([0, 0, 0, 1], [1, 0, 0, 1]):  # a first token is never predicted
        with pytest.raises(DocumentError) as caught:
            fit(document([1, 2, 3, 4], counts), the(max_tokens=3, over_long="truncate"))
        assert caught.value.rule == "over_long_prompt"


def test_short_rows_share_a_pack_and_keep_their_order():
    rows = [row(name, "a", "b") for name in "pqrst"]
    sets = sft_units(rows, MAKER, the(max_tokens=2 * ROW_TOKENS))
    assert [unit.ids for unit in sets.train] == [("p", "q"), ("r", "s"), ("t",)]
    assert [unit.num_tokens for unit in sets.train] == [46, 46, 23]
    assert [unit.num_targets for unit in sets.train] == [4, 4, 2]
    assert (sets.validation, sets.dropped, sets.refusals) == ([], {}, [])


def test_without_packing_every_row_is_a_unit():
    rows = [row(name, "a", "b") for name in "pqr"]
    sets = sft_units(rows, MAKER, the(packing=False))
    assert [unit.ids for unit in sets.train] == [("p",), ("q",), ("r",)]


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 60), max_size=20),
    packing=st.booleans(),
    fraction=st.sampled_from([0.0, 0.3]),
    over_long=st.sampled_from(["drop", "truncate"]),
)
def test_every_row_is_in_one_unit_or_refused_and_packing_keeps_every_token(lengths, packing, fraction, over_long):
    rows = [row(f"r{i}", "a" * (length % 7), "b" * length) for i, length in enumerate(lengths)]
    how = the(max_tokens=50, packing=packing, validation_fraction=fraction, over_long=over_long)
    sets = sft_units(rows, MAKER, how)
    ids = [row_id for unit in (*sets.train, *sets.validation) for row_id in unit.ids]
    assert sorted([*ids, *(refusal.id for refusal in sets.refusals)]) == sorted(r["id"] for r in rows)
    found = {i: d for unit in (*sets.train, *sets.validation) for i, d in zip(unit.ids, unit.documents, strict=True)}
    for one in rows:
        if one["id"] in found:
            whole = MAKER.conversation(one["messages"]).tokens.tolist()
            tokens = found[one["id"]].tokens.tolist()
            assert tokens == (whole if len(whole) <= 50 else whole[: len(tokens)])
    assert all(unit.num_tokens <= 50 for unit in (*sets.train, *sets.validation))
    assert all(is_validation(i, fraction) for unit in sets.validation for i in unit.ids)
    assert not any(is_validation(i, fraction) for unit in sets.train for i in unit.ids)


def test_validation_takes_its_part_of_the_ids_the_same_in_sft_and_dpo():
    names = [f"r{i}" for i in range(400)]
    how = the(validation_fraction=0.25)
    of_sft = sft_units([row(name, "a", "b") for name in names], MAKER, how)
    of_dpo = pair_units([pair(name, "b", "c") for name in names], MAKER, how)
    held_out = {row_id for unit in of_sft.validation for row_id in unit.ids}
    assert held_out == {unit.ids[0] for unit in of_dpo.validation}
    assert 80 < len(held_out) < 120
    assert not any(is_validation(name, 0.0) for name in names)
    assert held_out >= {name for name in names if is_validation(name, 0.1)}


def test_a_row_without_an_id_gets_one_from_its_prompt_in_sft_and_dpo_alike():
    answers = {"chosen": talk("x", "b")[1:], "rejected": talk("x", "c")[1:]}
    sft = sft_units([{"messages": talk("a", "b")}], MAKER, the()).train[0].ids
    dpo = pair_units([{"id": None, "prompt": talk("a"), **answers}], MAKER, the()).train[0].ids
    assert sft == dpo == (prompt_id(talk("a")),)
    assert len(sft[0]) == 20
    assert prompt_id(talk("a")) != prompt_id(talk("b"))


def test_a_prompt_is_never_cut_also_where_all_tokens_are_learnt():
    """By ROW_TOKENS: 20 tokens ask for the first answer, which ends with the 22nd."""
    limit = the(max_tokens=30, over_long="truncate", all_tokens=True)
    assert refused([row("r", "a" * 90, "b")], limit) == [("r", "over_long_prompt")]
    rows = [row("r", "a", "b" * 90), row("s", "a", "b", "c" * 90, "d")]
    long_answer, long_turn = (unit.documents[0] for unit in sft_units(rows, MAKER, limit).train)
    assert (len(long_answer.tokens), long_answer.num_targets) == (30, 29)
    assert (len(long_turn.tokens), long_turn.num_targets) == (22, 21)


def test_a_completion_flagged_as_truncated_is_not_taught_to_end():
    def texts(*turns, flags):
        unit = sft_units([row("r", *turns, flags=flags)], MAKER, the()).train[0]
        return counted(TOKENIZER, unit.documents[0])

    assert texts("a", "b", flags=["role_tokens_plain"]) == ["b<|im_end|>"]
    assert texts("a", "b", flags=["truncated"]) == ["b"]
    assert texts("a", "b", "c", "d", flags=["truncated"]) == ["b<|im_end|>", "d"]
    assert texts("a", "b", "c", "d", flags=["truncated:0"]) == ["b", "d<|im_end|>"]
    assert texts("a", "b", "c", "d", flags=["truncated:0", "truncated:1"]) == ["b", "d"]


def said(*texts, cut=()):
    """A conversation whose messages of these places say that they stopped at a length."""
    return [
        {**message, "finish_reason": "length" if i in cut else "stop"} if i % 2 else message
        for i, message in enumerate(talk(*texts))
    ]


def test_a_finish_reason_beside_the_messages_or_in_one_says_that_a_completion_was_cut():
    def texts(messages, **more):
        unit = sft_units([{"id": "r", "messages": messages, **more}], MAKER, the()).train[0]
        return counted(TOKENIZER, unit.documents[0])

    whole = talk("a", "b", "c", "d")
    for reason in ("length", "content_filter"):
        assert texts(whole, finish_reason=reason) == ["b<|im_end|>", "d"]
    for reason in ("stop", None, ""):
        assert texts(whole, finish_reason=reason) == ["b<|im_end|>", "d<|im_end|>"]
    assert texts(said("a", "b", "c", "d", cut={1})) == ["b", "d<|im_end|>"]
    assert texts(said("a", "b", "c", "d", cut={3}), flags=["truncated:0"]) == ["b", "d"]
    assert texts([{**whole[0], "finish_reason": "length"}, *whole[1:]]) == ["b<|im_end|>", "d<|im_end|>"]


def test_a_finish_reason_of_either_completion_of_a_pair_is_its_own():
    def texts(one):
        return [counted(TOKENIZER, d) for d in pair_units([one], MAKER, the()).train[0].documents]

    cut, whole = (
        pair("r", "good", "bad", chosen_finish_reason="length"),
        pair("r", "good", "bad", finish_reason="length"),
    )
    assert texts(cut) == [["good"], ["bad<|im_end|>"]]
    assert texts(pair("r", "good", "bad", rejected_finish_reason="length")) == [["good<|im_end|>"], ["bad"]]
    assert texts(whole) == [["good<|im_end|>"], ["bad<|im_end|>"]]
    # The prompt's own turn was cut, which is nothing to the completions; of chosen the last turn was.
    prompt = said("a", "b", "c", cut={1})
    chosen, rejected = said("a", "b", "c", "good", cut={1, 3}), said("a", "b", "c", "bad", cut={1})
    assert texts({"id": "r", "prompt": prompt, "chosen": chosen, "rejected": rejected}) == [["good"], ["bad<|im_end|>"]]


def test_a_flag_numbers_user_turns_also_where_not_every_one_has_an_answer():
    messages = [*talk("a"), *talk("a", "b", "c", "d")]
    sets = sft_units([{"id": "r", "messages": messages, "flags": ["truncated:1"]}], MAKER, the())
    assert counted(TOKENIZER, sets.train[0].documents[0]) == ["b", "d<|im_end|>"]


def test_a_flag_that_names_a_turn_without_an_answer_is_refused():
    for named in ("truncated:1", "truncated:2"):
        assert refused([row("r", "a", "b", "c", flags=[named])]) == [("r", "wrong_type")]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"id": 7.5}, "column 'id' holds a float"),
        ({"messages": "Hi"}, "column 'messages' holds a str"),
        ({"messages": None}, "column 'messages' holds a NoneType"),
        ({"messages": [{"role": "user"}]}, "column 'messages': message 1 lacks"),
        ({"messages": [*talk("a"), "b"]}, "column 'messages': message 2 lacks"),
        ({"messages": talk("a", "\ud800")}, "column 'messages': message 2 holds half a character"),
        ({"messages": [*talk("a"), {"role": "\ud800", "content": "b"}]}, "column 'messages': message 2 holds half a"),
        ({"id": "\ud800"}, "column 'id' holds half a character"),
        ({"flags": "truncated"}, "column 'flags' holds 'truncated'"),
        ({"flags": [1]}, r"column 'flags' holds \[1\]"),
    ],
)
def test_a_column_of_another_type_is_refused_by_its_name(broken, said):
    import re

    sets = sft_units([row("good", "a", "b"), row("r", "a", "b") | broken], MAKER, the())
    assert [refusal.rule for refusal in sets.refusals] == ["wrong_type"]
    assert re.match(said, sets.refusals[0].detail)
    assert [unit.ids for unit in sets.train] == [("good",)]


def test_a_refused_row_keeps_its_id_where_that_can_be_written():
    broken = {"messages": "Hi"}
    rows = [row("r", "a", "b") | broken, row(0, "a", "b") | broken, row("\ud800", "a", "b"), row(7.5, "a", "b")]
    assert [row_id for row_id, _ in refused(rows)] == ["r", "0", "", ""]


@pytest.mark.parametrize("thoughts", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_beside_the_content_are_not_dropped_unseen(thoughts):
    said = {"role": "assistant", "content": "4", thoughts: "2 and 2 ..."}
    assert refused([{"id": "r", "messages": [*talk("2+2"), said]}]) == [("r", "reasoning")]
    assert refused([{"id": "r", "messages": [*talk("2+2"), said | {thoughts: None}]}]) == []


@pytest.mark.parametrize("calls", [{"tool_calls": [{"name": "f"}]}, {"function_call": {"name": "f"}}])
def test_a_turn_that_calls_tools_is_not_trained_on_as_one_that_only_talks(calls):
    messages = [*talk("a", "I look it up."), {"role": "tool", "content": "7"}, *talk("x", "It is 7.")[1:]]
    plain = sft_units([{"id": "r", "messages": messages, "tool_calls": None}], MAKER, the())
    assert counted(TOKENIZER, plain.train[0].documents[0]) == ["I look it up.<|im_end|>", "It is 7.<|im_end|>"]
    messages[1] = {**messages[1], **calls}
    assert refused([{"id": "r", "messages": messages}]) == [("r", "tool_calls")]


def test_tools_that_a_row_offers_are_not_dropped_unseen():
    said = row("r", "a", "b")
    both = {"id": "p", "prompt": "a", "chosen": "x", "rejected": "y"}
    for tools in ([{"type": "function"}], '[{"type": "function"}]'):
        assert refused([said | {"tools": tools}]) == [("r", "tools")]
        assert refused([both | {"tools": tools}], make=pair_units) == [("p", "tools")]
    for none in (None, [], "[]", ""):
        assert refused([said | {"tools": none}]) == []


def test_a_turn_that_is_not_to_be_learnt_is_refused():
    """OpenAI's format: weight 0 or 1 on an assistant message; datasets without it may have null there."""
    said = {"role": "assistant", "content": "4"}
    for weight, expected in ((0, [("r", "weight")]), (0.5, [("r", "weight")]), (1, []), (None, [])):
        assert refused([{"id": "r", "messages": [*talk("2+2"), said | {"weight": weight}]}]) == expected


def test_rows_that_no_document_can_be_made_of_are_refused_by_rule():
    rows = [row("p", "a"), row("q", "a", " "), row("r", "a", "b" * 90)]
    assert refused(rows) == [("p", "no_assistant"), ("q", "empty_completion"), ("r", "over_long")]


def test_a_pair_is_two_documents_chosen_first_that_count_the_completion_alone():
    prompt = talk("a", "b", "c")
    one = {"id": "r", "prompt": prompt, "chosen": talk("x", "good")[1:], "rejected": talk("x", "bad")[1:]}
    unit = pair_units([one], MAKER, the()).train[0]
    assert unit.ids == ("r",)
    assert [counted(TOKENIZER, d) for d in unit.documents] == [["good<|im_end|>"], ["bad<|im_end|>"]]


def test_a_prompt_repeated_at_the_start_of_a_completion_is_there_once():
    short = pair_units([pair("r", "good", "bad")], MAKER, the()).train[0]
    repeated = {"id": "r", "prompt": talk("a"), "chosen": talk("a", "good"), "rejected": talk("a", "bad")}
    whole = pair_units([repeated], MAKER, the()).train[0]
    for left, right in zip(short.documents, whole.documents, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        assert left.counts.tolist() == right.counts.tolist()


def test_texts_are_messages_of_the_user_and_the_assistant_and_a_number_is_an_id():
    expected = pair_units([pair("7", "good", "bad")], MAKER, the()).train[0]
    for one in (
        {"id": 7, "prompt": "a", "chosen": "good", "rejected": "bad"},
        {"id": "7", "prompt": "a", "chosen": talk("a", "good"), "rejected": talk("a", "bad")},
    ):
        unit = pair_units([one], MAKER, the()).train[0]
        assert unit.ids == ("7",)
        for left, right in zip(unit.documents, expected.documents, strict=True):
            assert left.tokens.tolist() == right.tokens.tolist()


def test_texts_that_both_repeat_the_prompt_are_refused_and_a_word_of_it_in_one_is_not():
    def one(chosen, rejected):
        return [{"id": "r", "prompt": "Human: a", "chosen": chosen, "rejected": rejected}]

    assert refused(one("Human: a Yes", "Human: a No"), make=pair_units) == [("r", "repeated_prompt")]
    assert refused(one("Human: a Yes", "No"), make=pair_units) == []
    assert refused([{"id": "r", "prompt": "", "chosen": "b", "rejected": "c"}], make=pair_units) == [
        ("r", "empty_prompt")
    ]


def test_a_completion_to_another_prompt_is_refused():
    one = {"id": "r", "prompt": "a ", "chosen": talk("a", "good"), "rejected": talk("a ", "bad")}
    sets = pair_units([one, pair("s", "good", "bad")], MAKER, the())
    assert [(each.id, each.rule, each.number) for each in sets.refusals] == [("r", "other_prompt", 0)]
    assert "column 'chosen' begins with a user message" in sets.refusals[0].detail


def test_the_truncated_one_of_a_pair_is_not_taught_to_end():
    for flag, expected in (
        ("chosen_truncated", [["good"], ["bad<|im_end|>"]]),
        ("rejected_truncated", [["good<|im_end|>"], ["bad"]]),
    ):
        unit = pair_units([pair("r", "good", "bad", flags=[flag])], MAKER, the()).train[0]
        assert [counted(TOKENIZER, d) for d in unit.documents] == expected
    longer = pair("r", "", "bad", flags=["chosen_truncated"]) | {"chosen": talk("x", "b", "c", "d")[1:]}
    unit = pair_units([longer], MAKER, the()).train[0]
    assert counted(TOKENIZER, unit.documents[0]) == ["b<|im_end|>", "d"]


def test_a_pair_of_equal_completions_is_refused_also_when_only_the_length_makes_them_equal():
    assert refused([pair("r", "same", "same")], make=pair_units) == [("r", "same_completions")]
    late = [pair("r", "b" * 40 + "x", "b" * 40 + "y")]
    assert refused(late, the(max_tokens=40, over_long="truncate"), make=pair_units) == [("r", "same_completions")]
    assert refused(late, the(max_tokens=200), make=pair_units) == []


def test_a_pair_with_one_document_too_long_is_refused_or_cut_by_the_same_rule():
    rows = [pair("r", "b" * 90, "c")]
    assert refused(rows, make=pair_units) == [("r", "over_long")]
    unit = pair_units(rows, MAKER, the(over_long="truncate")).train[0]
    assert [len(d.tokens) for d in unit.documents] == [100, ROW_TOKENS]


@pytest.mark.parametrize("column", ["prompt", "chosen", "rejected"])
def test_a_pair_without_one_of_its_columns_is_refused_by_name(column):
    rows = [{k: v for k, v in pair("r", "b", "c").items() if k != column}]
    sets = pair_units(rows, MAKER, the())
    assert sets.refusals[0].rule == "wrong_type"
    assert f"column {column!r}" in sets.refusals[0].detail


def test_rows_are_left_as_they_were():
    rows = [row("r", "a", "b", flags=["truncated"]), row("s", "a", "b" * 90)]
    before = repr(rows)
    sft_units(rows, MAKER, the(over_long="truncate"))
    assert repr(rows) == before
