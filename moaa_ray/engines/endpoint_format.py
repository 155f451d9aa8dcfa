"""The wire format of OpenAI-compatible chat endpoints: request bodies, answers, refusals, model lists.

Fields that OpenAI itself does not know (top_k, min_p, repetition_penalty, structured_outputs) are
vLLM's extensions (vLLM 0.32, entrypoints/openai/chat_completion/protocol.py); they are sent only where
the recipe asks for what they do. Nothing here talks to the network.
"""

import difflib
import json
import re
from collections.abc import Sequence

from moaa_ray.core.role_tokens import break_role_tokens
from moaa_ray.core.templates import fold_system
from moaa_ray.engines.base import RequestError
from moaa_ray.types import Completion, Message, Request, Sampling

_TOO_LONG = re.compile(
    r"context[ _-]?(length|window|size)|max_model_len|too many (input |prompt )?tokens"
    r"|(prompt|input|messages?|request) (is|are) too long|reduce the length|longer than the maximum",
    re.IGNORECASE,
)

_BROKEN_OFF = ("error", "abort")
"""What endpoints call the end of a completion that failed half-way (OpenRouter, vLLM)."""
_SURROGATE = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """The text with halves of characters beyond 16 bits joined, as JSON may hold them; one without the other is U+FFFD.

    Nothing that is encoded as UTF-8 could hold it: no column, no request, no reply.
    """
    if not _SURROGATE.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def request_body(request: Request, *, model: str, system_role: bool) -> tuple[dict, bool]:
    """The JSON body of one request, and whether role tokens in its messages were broken up.

    Raises RequestError("bad_request") for a json_schema that is not JSON.
    """
    messages = request.messages if system_role else fold_system(request.messages)
    contents = [break_role_tokens(message["content"]) for message in messages]
    sampling = request.sampling
    body: dict = {
        "model": model,
        "messages": [
            {"role": message["role"], "content": text} for message, (text, _) in zip(messages, contents, strict=True)
        ],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": request.seed,
        "stop": list(sampling.stop) or None,
        "stream": False,
    }
    body |= _extensions(sampling)
    return body, any(broken for _, broken in contents)


def _extensions(sampling: Sampling) -> dict:
    fields: dict = {}
    if sampling.top_k:
        fields["top_k"] = sampling.top_k
    if sampling.min_p:
        fields["min_p"] = sampling.min_p
    if sampling.repetition_penalty != 1.0:
        fields["repetition_penalty"] = sampling.repetition_penalty
    if sampling.presence_penalty:
        fields["presence_penalty"] = sampling.presence_penalty
    if sampling.frequency_penalty:
        fields["frequency_penalty"] = sampling.frequency_penalty
    if sampling.json_schema:
        try:
            schema = json.loads(sampling.json_schema)
        except ValueError as error:
            raise RequestError("bad_request", f"json_schema is not JSON: {error}", retryable=False) from error
        named = {"name": "answer", "schema": schema, "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": named}
    elif sampling.regex:
        fields["structured_outputs"] = {"regex": sampling.regex}
    elif sampling.choice:
        fields["structured_outputs"] = {"choice": list(sampling.choice)}
    if sampling.logprobs:
        fields |= {"logprobs": True, "top_logprobs": sampling.logprobs}
    return fields


def completion_of(body: bytes, *, flags: tuple[str, ...]) -> Completion | RequestError:
    """The completion in the body of a 200; a RequestError("bad_body") where there is none."""
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
        usage = answer["usage"] if isinstance(answer.get("usage"), dict) else {}
        prompt_tokens, completion_tokens = num_tokens(usage, "prompt_tokens"), num_tokens(usage, "completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        return RequestError("bad_body", f"not a chat completion ({type(error).__name__})", retryable=True)
    if not isinstance(text, str):
        detail = f"the content is {type(text).__name__}, not text, finish_reason {finish_reason!r:.40}"
        return RequestError("bad_body", detail, retryable=True)
    if finish_reason in _BROKEN_OFF:
        return RequestError("broken_off", f"the endpoint broke off, finish_reason {finish_reason}", retryable=True)
    return Completion(
        text=encodable(text),
        finish_reason=encodable(finish_reason) if isinstance(finish_reason, str) and finish_reason else "unknown",
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        flags=flags,
        first_logprobs=_first_logprobs(choice),
    )


def num_tokens(usage: dict, name: str) -> int:
    """A number of tokens in an endpoint's usage; 0 where it says none, or one that cannot be."""
    found = usage.get(name)
    return found if type(found) is int and 0 <= found < 2**31 else 0


def _first_logprobs(choice: dict) -> tuple[tuple[str, float], ...]:
    """What stands in choices[0].logprobs.content[0].top_logprobs; empty where an endpoint leaves it out."""
    try:
        found = [(one["token"], float(one["logprob"])) for one in choice["logprobs"]["content"][0]["top_logprobs"]]
    except (KeyError, IndexError, TypeError, ValueError):
        return ()
    return tuple((encodable(token), logprob) for token, logprob in found if isinstance(token, str))


def refusal_of(status: int, excerpt: str) -> RequestError:
    """What a status other than 200 means for the request; the excerpt is what the endpoint said, without secrets."""
    detail = f"HTTP {status}: {excerpt}"
    if status == 429:
        return RequestError("rate_limited", detail, retryable=True)
    if status == 408:
        return RequestError("timeout", detail, retryable=True)
    if status >= 500:
        return RequestError("http_5xx", detail, retryable=True)
    if status in (400, 413, 422) and _TOO_LONG.search(excerpt):
        return RequestError("context_length", detail, retryable=False)
    if status >= 400:
        return RequestError("http_4xx", detail, retryable=False)
    if status >= 300:
        detail = f"HTTP {status}: redirects are not followed; set base_url to the address it leads to"
        return RequestError("http_3xx", detail, retryable=False)
    return RequestError("bad_body", f"HTTP {status} without a chat completion", retryable=True)


def listed_models(body: bytes) -> dict[str, int]:
    """Model name -> window in tokens (0: not said) of a GET /models; empty where the list is missing or partial."""
    try:
        listing = json.loads(body)
        if listing.get("has_more"):
            return {}
        return {entry["id"]: _window_of(entry) for entry in listing["data"] if isinstance(entry["id"], str)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _window_of(entry: dict) -> int:
    window = entry.get("max_model_len")  # vLLM and its kin
    return window if isinstance(window, int) and window > 0 else 0


def nearest_names(model: str, names: Sequence[str]) -> str:
    """Up to five names, the most similar first, for a message."""
    near = difflib.get_close_matches(model, names, n=5, cutoff=0.3) or sorted(names)[:5]
    return ", ".join(near)


def estimated_tokens(messages: Sequence[Message]) -> int:
    """One token per 2.5 bytes of UTF-8, eight per message and eight for the prompt: an estimate without a tokenizer.

    Prose has 3 to 5 bytes a token in byte-level BPE vocabularies of 100,000 and more, so the estimate is
    high there by a third to a half. It is no bound: dense code, digits, rare scripts and random
    characters come near one token a byte, 2.5 times the estimate, and the endpoint then answers context_length.
    """
    num_bytes = sum(len(m["content"].encode("utf-8", "surrogatepass")) for m in messages)
    return -(-num_bytes * 2 // 5) + 8 * len(messages) + 8
