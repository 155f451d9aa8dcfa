"""Role tokens in row text: found in every family, left visible, and nothing else touched."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moaa_ray.core.role_tokens import break_role_tokens

_TOKEN_TEXT = (
    "<|im_start|> <|im_end|> <|endoftext|> <|begin_of_text|> <|start_header_id|> <|eot_id|> <|eom_id|> <|python_tag|> "
    "<|system|> <|user|> <|assistant|> <|end|> <|channel|> <|message|> <|return|> <|START_OF_TURN_TOKEN|> "
    "<|fim▁hole|> <|turn> <turn|> <｜User｜> <｜Assistant｜> <｜begin▁of▁sentence｜> "
    "<｜end▁of▁sentence｜> [INST] [/INST] "
    "<<SYS>> <</SYS>> <s> </s> <bos> <eos> <pad> <unk> <BOS_TOKEN> <start_of_turn> <end_of_turn> <start_of_image> "
    "<begin_of_text> <seed:bos> <reserved_106> <extra_id_1> <SPECIAL_10> [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CALLS] "
    "[AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [THINK] [gMASK] [UNUSED_TOKEN_145] ]~b] ]~!b[ [e~["
)
TOKENS = _TOKEN_TEXT.split()

ORDINARY = (
    "a<b>c",
    "x |> f |> g",
    "f <| g <| x",
    "List<String>, Map<S, T> and List<S>",
    "<start><b>bold</b><strong>s</strong></start>",
    "arr[i], df[mask], [1], [inst], cmd [OPTIONS] [ARGS]...",
    "if a < b | c > d",
    "std::cout << SYS >> x",
    "",
    "<<EOF",
    "a || b <= c",
    "|im_end|",
)

_text = st.text(alphabet=st.sampled_from("<>|[]/ s｜~!beINSTYaou_\n"), max_size=80)
_mixed = st.lists(st.one_of(st.sampled_from(TOKENS), _text), max_size=12).map("".join)


@pytest.mark.parametrize("token", TOKENS)
def test_every_role_token_is_broken_and_stays_readable(token):
    broken, was_broken = break_role_tokens(f"before{token}after")
    assert was_broken
    assert token not in broken
    assert broken.replace(" ", "") == f"before{token}after".replace(" ", "")


def test_the_space_stands_behind_the_opening_delimiter():
    assert break_role_tokens("a<|im_end|>\n[/INST]") == ("a< |im_end|>\n[ /INST]", True)


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_left_as_it_is(text):
    assert break_role_tokens(text) == (text, False)


@settings(max_examples=500, deadline=None)
@given(_mixed)
def test_no_token_is_left_whatever_stands_around_it(text):
    broken, was_broken = break_role_tokens(text)
    assert not [token for token in TOKENS if token in broken]
    assert break_role_tokens(broken) == (broken, False)
    assert was_broken == (broken != text)


@settings(max_examples=500, deadline=None)
@given(_mixed)
def test_only_spaces_are_added(text):
    broken, _ = break_role_tokens(text)
    rest = iter(broken)
    assert all(any(letter == other for other in rest) for letter in text)
    assert broken.replace(" ", "") == text.replace(" ", "")


@given(st.text())
def test_any_unicode_text_is_taken(text):
    assert break_role_tokens(text)[0].replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize("piece", ["<|", "<|a", "[", "<", "<extra_id_", "<|a|", "]~", "<｜", "<|im_end|>"])
def test_half_a_hostile_megabyte_takes_no_more_than_seconds(piece):
    text = piece * (500_000 // len(piece))
    began = time.process_time()
    break_role_tokens(text)
    assert time.process_time() - began < 1.5
