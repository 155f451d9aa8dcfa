"""Role tokens in row text: found in every family, left visible, and nothing else touched."""

import time
import unicodedata

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


@settings(max_examples=500)
@given(_mixed)
def test_no_token_is_left_whatever_stands_around_it(text):
    broken, was_broken = break_role_tokens(text)
    assert not [token for token in TOKENS if token in broken]
    assert break_role_tokens(broken) == (broken, False)
    assert was_broken == (broken != text)


@settings(max_examples=500)
@given(_mixed)
def test_only_spaces_are_added(text):
    broken, _ = break_role_tokens(text)
    rest = iter(broken)
    assert all(any(letter == other for other in rest) for letter in text)
    assert broken.replace(" ", "") == text.replace(" ", "")


def wide(text: str) -> str:
    """The same text in full-width letters, which NFKC makes ordinary ones."""
    return "".join(chr(ord(char) + 0xFEE0) if "!" <= char <= "~" else char for char in text)


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("a＜｜im_start｜＞b", "a＜ ｜im_start｜＞b"),
        ("<｜ｉｍ_end|>", "< ｜ｉｍ_end|>"),
        ("＜／ｓ＞", "＜ ／ｓ＞"),
        ("﹤ﬆart_of_turn﹥", "﹤ ﬆart_of_turn﹥"),
        ("［ＩＮＳＴ］ and ﬁne", "［ ＩＮＳＴ］ and ﬁne"),
        ("<｜User｜> e\u0301", "< ｜User｜> e\u0301"),
    ],
)
def test_look_alikes_that_nfkc_makes_tokens_are_broken_too(text, broken):
    assert break_role_tokens(text) == (broken, True)


def test_text_that_nfkc_changes_but_that_holds_no_token_is_left_as_it_is():
    for text in ("ﬁne ①", "e\u0301 ＜b＞ ｜ x", "１ ＜ ２", "\u0338<|"):
        assert break_role_tokens(text) == (text, False)


def test_no_letter_folds_to_a_delimiter_and_more():
    """The space goes behind the whole letter, so the delimiter has to be all that it folds to."""
    folded = (unicodedata.normalize("NFKC", chr(code)) for code in range(0x110000))
    assert not [letters for letters in folded if len(letters) > 1 and set(letters) & set("<[]")]


@settings(max_examples=500)
@given(st.lists(st.one_of(st.sampled_from(TOKENS).map(wide), _mixed, st.text(max_size=2)), max_size=8).map("".join))
def test_no_token_is_left_before_and_after_nfkc(text):
    broken, was_broken = break_role_tokens(text)
    for form in (broken, unicodedata.normalize("NFKC", broken)):
        assert break_role_tokens(form) == (form, False)
    assert was_broken == (broken != text)
    assert broken.replace(" ", "") == text.replace(" ", "")


@given(st.text())
def test_any_unicode_text_is_taken(text):
    assert break_role_tokens(text)[0].replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "piece", ["<|", "<|a", "[", "<", "<extra_id_", "<|a|", "]~", "<｜", "<|im_end|>", "＜｜im_end｜＞"]
)
def test_half_a_hostile_megabyte_takes_no_more_than_seconds(piece):
    text = piece * (500_000 // len(piece))
    began = time.process_time()
    break_role_tokens(text)
    assert time.process_time() - began < 1.5
