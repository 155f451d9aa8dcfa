"""What a client may ask, and what it is told where it may not."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moaa_ray.serving.chat import RefusedError, parse_chat
from moaa_ray.settings.serving import ServeConfig

LIMITS = ServeConfig()
USER = [{"role": "user", "content": "Hello!"}]


def parse(limits: ServeConfig = LIMITS, **fields):
    return parse_chat(json.dumps({"model": "m", "messages": USER, **fields}).encode(), limits)


def refusal(body: bytes | None = None, limits: ServeConfig = LIMITS, **fields) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        parse(limits, **fields) if body is None else parse_chat(body, limits)
    assert caught.value.status == 400
    return caught.value


def test_every_field_that_draws_the_completion_is_read():
    penalties = {"repetition_penalty": 1.5, "presence_penalty": -2, "frequency_penalty": 0.5}
    chat = parse(temperature=0, top_p=0.5, max_tokens=9, stop="END", seed=3, top_k=4, min_p=0.1, **penalties)
    drawn = {"temperature": 0.0, "top_p": 0.5, "max_tokens": 9, "stop": ("END",), "top_k": 4, "min_p": 0.1}
    assert chat.sampling == {**drawn, **penalties}
    assert (chat.model, chat.seed, chat.is_stream, chat.with_usage) == ("m", 3, False, False)


def test_what_the_client_does_not_set_or_sets_to_null_is_left_to_the_recipe():
    assert parse(temperature=None, stop=None, max_tokens=None, seed=None).sampling == {}


@pytest.mark.parametrize("stop", ["", []])
def test_an_empty_stop_is_none(stop):
    assert parse(stop=stop) == parse()


def test_an_assistants_message_without_content_is_an_empty_one():
    turns = [*USER, {"role": "assistant", "content": None, "refusal": None}, *USER]
    assert parse(messages=turns).messages[1] == {"role": "assistant", "content": ""}


def test_the_newer_name_of_max_tokens_wins():
    assert parse(max_tokens=5, max_completion_tokens=6).sampling == {"max_tokens": 6}


def test_parts_of_text_become_one_text_and_developer_is_the_system():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    chat = parse(messages=[{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert chat.messages == ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb"})


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "me"},
        {"metadata": {"a": "b"}},
        {"n": 1},
        {"chat_template_kwargs": {}},
        {"min_tokens": 0},
        {"skip_special_tokens": True},
        {"reasoning_effort": "low"},
        {"ignore_eos": False},
        {"logprobs": False},
        {"tools": []},
        {"tool_choice": "none"},
        {"response_format": {"type": "text"}},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(fields):
    assert parse(**fields) == parse()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 2}, "n = 2: not supported here; leave it out"),
        ({"n": True}, "n = true: not supported here; leave it out"),
        ({"logprobs": True}, "logprobs = true: not supported here"),
        ({"tools": [{}]}, "tools = a list of 1: not supported here"),
        ({"temprature": 1}, "temprature = 1: unknown field; leave it out"),
        ({"temperature": 2.1}, "temperature = 2.1: must be a number from 0 to 2"),
        ({"temperature": True}, "temperature = true: must be a number"),
        ({"temperature": "1"}, 'temperature = "1": must be a number'),
        ({"presence_penalty": 2.5}, "presence_penalty = 2.5: must be a number from -2 to 2"),
        ({"ignore_eos": True}, "ignore_eos = true: not supported here; leave it out"),
        ({"min_tokens": 1}, "min_tokens = 1: not supported here; leave it out"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs = a mapping of 1: not supported"),
        ({"top_p": 0}, "top_p = 0: must be a number above 0 to 1"),
        ({"max_tokens": 0}, "max_tokens = 0: must be a whole number from 1"),
        ({"max_tokens": 8193}, "max_tokens = 8193: at most 8192 tokens are written; lower it"),
        ({"max_tokens": 1.0}, "max_tokens = 1.0: must be a whole number"),
        ({"stop": [""]}, "stop = a list of 1: must be text or a list of texts, none of them empty"),
        ({"stop": ["x"] * 17}, "at most 16 texts"),
        ({"seed": 1.5}, "seed = 1.5: must be a whole number"),
        ({"stream": 1}, "stream = 1: must be true or false"),
        ({"stream_options": {"include_usage": True}}, "only with stream: true"),
        ({"stream": True, "stream_options": {"x": 1}}, "must be an object with include_usage alone"),
        ({"model": 3}, "model = 3: must be text"),
        ({"model": None}, "model: missing; add it"),
        ({"messages": []}, "messages = a list of 0: must be a list with at least one message"),
        ({"messages": ["hi"]}, 'messages[0] = "hi": must be an object with role and content'),
        (
            {"messages": [{"role": "tool", "content": ""}]},
            'messages[0].role = "tool": must be one of system, developer',
        ),
        ({"messages": [{"role": "user"}]}, "messages[0].content = null: must be text"),
        ({"messages": [*USER, {"role": "assistant", "content": "x"}]}, "the last message must be the user's"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only parts of type text are read"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "holds half a surrogate pair"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_refused_by_name(fields, said):
    error = refusal(**fields)
    assert said in error.message
    assert error.param


def test_more_messages_than_the_limit_are_refused():
    said = "2 messages, at most 1 are read"
    assert said in refusal(limits=ServeConfig(max_messages=1), messages=USER * 2).message


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": NaN}', b"[" * 100_000, b"9" * 5000, b'{"a":1}x'],
)
def test_what_is_no_json_object_is_refused(body):
    assert refusal(body).message.startswith("body: ")


def test_a_message_never_shows_a_whole_prompt():
    error = refusal(messages=[{"role": "x" * 10_000, "content": ""}])
    assert len(error.message) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        "model",
        "messages",
        "temperature",
        "stop",
        "stream",
        "stream_options",
        "seed",
        "n",
        "max_tokens",
        "tools",
        "top_k",
    ]
)


@settings(max_examples=100)
@given(st.dictionaries(FIELDS | st.text(max_size=6), JSON, max_size=6))
def test_any_json_object_is_understood_or_refused(fields):
    said = outcome(json.dumps(fields).encode())
    assert len(said) < 500
    said.encode()  # no half characters


def outcome(body: bytes) -> str:
    """What the client is told; "understood" where nothing is wrong. Any other error than a refusal is a failure."""
    try:
        parse_chat(body, LIMITS)
    except RefusedError as error:
        return error.message
    return "understood"


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_any_bytes_are_understood_or_refused(body):
    assert outcome(body) != "understood"
