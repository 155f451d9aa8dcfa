"""What a client asks: the body of POST /v1/chat/completions, checked field by field. Pure.

The format is OpenAI's (API reference, "Create chat completion"); top_k, min_p and repetition_penalty are
vLLM's additions to it. A field that we know and cannot honour is refused unless it has the value that
asks for nothing; a field for bookkeeping, or that asks models to think or talk more or less, is accepted and
ignored, as chat UIs send such to any model; any other one is refused.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from moaa_ray.settings.serving import ServeConfig
from moaa_ray.types import Message

_IGNORED = """
user metadata store service_tier prompt_cache_key prompt_cache_retention safety_identifier parallel_tool_calls
reasoning_effort verbosity prediction priority request_id cache_salt chat_id session_id
"""
IGNORED = frozenset(_IGNORED.split())
"""Fields of OpenAI, vLLM and chat UIs that are accepted and change nothing here."""
_ASKS_NOTHING: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "ignore_eos": (False,),
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "include_stop_str_in_output": (False,),
    "continue_final_message": (False,),
    "add_generation_prompt": (True,),
    "chat_template_kwargs": ({},),
    "min_tokens": (0,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
}
"""Fields that are not supported, and the values of them that ask for nothing."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MAX_STOPS, _MAX_STOP_CHARS = 16, 1000
_SURROGATE = re.compile("[\ud800-\udfff]")


class RefusedError(Exception):
    """A request that is answered with an error; see OpenAI's error object for the fields."""

    def __init__(self, status: int, message: str, *, kind: str = "", param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind or ("invalid_request_error" if status < 500 else "server_error")
        self.param = param
        self.code = code


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request as it was understood. sampling: the fields of types.Sampling that the client set."""

    model: str
    messages: tuple[Message, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    is_stream: bool = False
    with_usage: bool = False
    """Whether a stream ends with a chunk that counts tokens."""


def parse_chat(body: bytes, limits: ServeConfig) -> ChatRequest:
    """The request in a body. Raises RefusedError (400) that names the field, its value and what is wanted."""
    fields = _fields(body)
    for name, value in fields.items():
        if name in _ASKS_NOTHING and value is not None and not any(_same(value, no) for no in _ASKS_NOTHING[name]):
            raise _wrong(name, value, "not supported here; leave it out")
        if name not in _READERS and name not in _ASKS_NOTHING and name not in IGNORED:
            raise _wrong(name, value, "unknown field; leave it out", code="unknown_parameter")
    read = {name: reader(name, fields[name]) for name, reader in _READERS.items() if fields.get(name) is not None}
    for name in ("model", "messages"):
        if name not in read:
            raise RefusedError(400, f"{name}: missing; add it", param=name)
    messages = read["messages"]
    if len(messages) > limits.max_messages:
        raise _wrong("messages", messages, f"{len(messages)} messages, at most {limits.max_messages} are read")
    wanted = read.get("max_completion_tokens", read.get("max_tokens"))
    if wanted is not None and wanted > limits.max_tokens:
        raise _wrong("max_tokens", wanted, f"at most {limits.max_tokens} tokens are written; lower it")
    sampling = {name: read[name] for name in _SAMPLING if name in read and read[name] != ()}
    if wanted is not None:
        sampling["max_tokens"] = wanted
    if read.get("stream_options") is not None and not read.get("stream"):
        raise _wrong("stream_options", read["stream_options"], "only with stream: true")
    return ChatRequest(
        model=read["model"],
        messages=messages,
        sampling=sampling,
        seed=read.get("seed"),
        is_stream=read.get("stream", False),
        with_usage=read.get("stream_options", False),
    )


def _fields(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise RefusedError(400, "body: nested too deep; a request has four levels") from None
    except ValueError as error:  # also UnicodeDecodeError, and a number of too many digits
        raise RefusedError(400, f"body: not JSON ({error}); send one JSON object") from None
    if not isinstance(fields, dict):
        raise RefusedError(400, f"body: {_shown(fields)} is no JSON object; send one with model and messages")
    return fields


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _messages(name: str, value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong(name, value, "must be a list with at least one message")
    messages = tuple(_message(f"{name}[{i}]", each) for i, each in enumerate(value))
    if messages[-1]["role"] != "user":
        raise _wrong(f"{name}[{len(messages) - 1}].role", messages[-1]["role"], "the last message must be the user's")
    return messages


def _message(path: str, value: Any) -> Message:
    if not isinstance(value, dict):
        raise _wrong(path, value, "must be an object with role and content")
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise _wrong(f"{path}.role", role, f"must be one of {', '.join(_ROLES)}")
    content = value.get("content")
    if content is None and role == "assistant":
        content = ""  # as OpenAI's own answers have it beside a refusal
    if isinstance(content, list):
        content = "\n".join(_part(f"{path}.content[{i}]", part) for i, part in enumerate(content))
    if not isinstance(content, str):
        raise _wrong(f"{path}.content", content, "must be text, or a list of parts of type text")
    return Message(role=_ROLES[role], content=_plain(f"{path}.content", content))


def _part(path: str, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        raise _wrong(path, part, "only parts of type text are read")
    return part["text"]


def _plain(name: str, text: str) -> str:
    if _SURROGATE.search(text):
        raise _wrong(name, text, "holds half a surrogate pair; send whole characters")
    return text


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _wrong(name, value, "must be text")
    return _plain(name, value)


def _stops(name: str, value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) and value else value or []
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise _wrong(name, value, "must be text or a list of texts, none of them empty")
    if len(stops) > _MAX_STOPS or any(len(stop) > _MAX_STOP_CHARS for stop in stops):
        raise _wrong(name, value, f"at most {_MAX_STOPS} texts of at most {_MAX_STOP_CHARS} characters")
    return tuple(_plain(name, stop) for stop in stops)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _wrong(name, value, "must be true or false")
    return value


def _stream_options(name: str, value: Any) -> bool:
    if not isinstance(value, dict) or set(value) - {"include_usage", "include_obfuscation"}:
        raise _wrong(name, value, "must be an object with include_usage alone")
    return _flag(f"{name}.include_usage", value.get("include_usage", False))


def _whole(low: int, high: int) -> Callable[[str, Any], int]:
    def read(name: str, value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _wrong(name, value, f"must be a whole number from {low} to {high}")
        return value

    return read


def _number(low: float, high: float, *, above: bool = False) -> Callable[[str, Any], float]:
    def read(name: str, value: Any) -> float:
        is_number = type(value) in (int, float) and math.isfinite(value)
        if not is_number or not low <= value <= high or (above and value == low):
            raise _wrong(name, value, f"must be a number {'above' if above else 'from'} {low:g} to {high:g}")
        return float(value)

    return read


_TOKENS = _whole(1, 2**31 - 1)
_READERS: Mapping[str, Callable[[str, Any], Any]] = {
    "model": _text,
    "messages": _messages,
    "max_tokens": _TOKENS,
    "max_completion_tokens": _TOKENS,
    "temperature": _number(0, 2),
    "top_p": _number(0, 1, above=True),
    "top_k": _whole(0, 2**31 - 1),
    "min_p": _number(0, 1),
    "repetition_penalty": _number(0, 100, above=True),
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "stop": _stops,
    "seed": _whole(-(2**63), 2**63 - 1),
    "stream": _flag,
    "stream_options": _stream_options,
}
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop",
)  # fmt: skip


def _same(value: Any, neutral: Any) -> bool:
    """Whether the value is the neutral one; 0 and 0.0 are the same, true and 1 are not."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _wrong(name: str, value: Any, rule: str, *, code: str | None = None) -> RefusedError:
    name = _SURROGATE.sub("?", name[:100])
    return RefusedError(400, f"{name} = {_shown(value)}: {rule}", param=name, code=code)


def _shown(value: Any) -> str:
    """A value as a message may show it: short, and in ASCII."""
    if isinstance(value, list | tuple | dict):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)}"
    text = json.dumps(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:76]}..."
