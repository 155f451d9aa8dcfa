"""What a client is answered, in OpenAI's shapes: completions, chunks of a stream, errors, the list of models. Pure."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from moaa_ray.serving.chat import RefusedError
from moaa_ray.types import Completion, Failure

DONE = b"data: [DONE]\n\n"
CLIENTS_FAULTS = frozenset(("context_length", "template", "bad_request"))
"""Reasons of failures that asking again does not mend."""
_STATUS = {**dict.fromkeys(CLIENTS_FAULTS, 400), "rate_limited": 429, "timeout": 504}
"""Of failures that have a status of their own; all others are 503, as asking again may help."""


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every object of one answer says: its id, the model's served name, the Unix time in seconds."""

    id: str
    model: str
    created: int


def usage_of(answers: Mapping[str, Iterable[Completion]]) -> dict[str, Any]:
    """Tokens over all models; by_model, which OpenAI does not know, says them for each, by its name in the recipe."""
    by_model = {name: _tokens(completions) for name, completions in answers.items()}
    keys = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {key: sum(one[key] for one in by_model.values()) for key in keys} | {"by_model": by_model}


def _tokens(completions: Iterable[Completion]) -> dict[str, int]:
    known = list(completions)
    prompt = sum(one.prompt_tokens for one in known)
    written = sum(one.completion_tokens for one in known)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def whole(head: Head, completion: Completion, usage: dict[str, Any]) -> bytes:
    """The body of an answer that is no stream."""
    message = {"role": "assistant", "content": completion.text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(completion)}
    return _json({**_head(head, "chat.completion"), "choices": [choice], "usage": usage})


def first_chunk(head: Head, *, with_usage: bool) -> bytes:
    """The event that says who speaks."""
    return _chunk(head, {"role": "assistant", "content": ""}, None, with_usage=with_usage)


def text_chunk(head: Head, text: str, *, with_usage: bool) -> bytes:
    """The event with a further piece of text."""
    return _chunk(head, {"content": text}, None, with_usage=with_usage)


def last_chunks(head: Head, completion: Completion, usage: dict[str, Any], *, with_usage: bool) -> bytes:
    """The events that end a stream: why it ended, the tokens where they were asked for, [DONE]."""
    end = _chunk(head, {}, _finish(completion), with_usage=with_usage)
    if with_usage:
        end += event({**_head(head, "chat.completion.chunk"), "choices": [], "usage": usage})
    return end + DONE


def error_body(error: RefusedError) -> bytes:
    """The body of a refusal."""
    return _json(_error(error))


def error_event(error: RefusedError) -> bytes:
    """The event that breaks a stream off; no [DONE] follows, so nobody takes it for whole."""
    return event(_error(error))


def refusal_of(failure: Failure, model: str) -> RefusedError:
    """What a model's failure means for the client."""
    status = _STATUS.get(failure.reason, 503)
    code = "context_length_exceeded" if failure.reason == "context_length" else failure.reason
    kind = "rate_limit_error" if status == 429 else ""
    detail = f": {failure.detail}" if failure.detail and status < 500 else ""  # what is wrong inside is for our log
    return RefusedError(status, f"{model}: {failure.reason}{detail}", kind=kind, code=code)


def model_list(names: Iterable[str], *, created: int) -> bytes:
    """The body of GET /v1/models."""
    return _json({"object": "list", "data": [_model(name, created) for name in names]})


def model_card(name: str, *, created: int) -> bytes:
    """The body of GET /v1/models/NAME."""
    return _json(_model(name, created))


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event. JSON in one line of ASCII, so that no text can end the event."""
    return b"data: " + _json(data) + b"\n\n"


def _chunk(head: Head, delta: dict[str, str], finish_reason: str | None, *, with_usage: bool) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    data = {**_head(head, "chat.completion.chunk"), "choices": [choice]}
    return event({**data, "usage": None} if with_usage else data)


def _head(head: Head, kind: str) -> dict[str, Any]:
    return {"id": head.id, "object": kind, "created": head.created, "model": head.model, "system_fingerprint": None}


def _finish(completion: Completion) -> str:
    """OpenAI knows few words for it; an endpoint's own are said as stop."""
    return completion.finish_reason if completion.finish_reason in ("length", "content_filter") else "stop"


def _error(error: RefusedError) -> dict[str, Any]:
    inside = {"message": error.message, "type": error.kind, "param": error.param, "code": error.code}
    return {"error": inside}


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "moaa_ray"}


def _json(data: Any) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
