"""What an OpenAI-compatible endpoint sends: a whole body, or a completion piece by piece as server-sent events.

Of a stream only `data:` lines matter.
"""

import json
from collections.abc import AsyncIterator

from moaa_ray.engines.base import RequestError
from moaa_ray.engines.endpoint_format import encodable, num_tokens
from moaa_ray.types import Completion

MAX_BODY_BYTES = 32 * 2**20


async def bounded_body(chunks: AsyncIterator[bytes]) -> bytes | None:
    """The body; None where it is longer than the limit."""
    parts, size = [], 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            return None
        parts.append(chunk)
    return b"".join(parts)


async def pieces_of(chunks: AsyncIterator[bytes], *, flags: tuple[str, ...]) -> AsyncIterator[str | Completion]:
    """The pieces of text in a stream's bytes, then the whole completion; see WritingEngine.stream.

    Raises RequestError("bad_body") for a stream that is none, or ends before the completion does.
    """
    text, half, finish_reason, usage = "", "", "", {}
    async for line in _lines(chunks):
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        piece, reason, counts = _event(data)
        finish_reason, usage = reason or finish_reason, counts or usage
        piece, half = _whole(half + piece)
        text += piece
        if piece:
            yield piece
    if half:
        text += encodable(half)
        yield encodable(half)
    if not finish_reason:
        raise RequestError("bad_body", "the stream ended before the completion did", retryable=True)
    yield Completion(
        text=text,
        finish_reason=encodable(finish_reason),
        prompt_tokens=num_tokens(usage, "prompt_tokens"),
        completion_tokens=num_tokens(usage, "completion_tokens"),
        flags=flags,
    )


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines of a body, ended by LF or CRLF; what follows the last end of line is no line."""
    rest, size = b"", 0
    async for chunk in chunks:
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise RequestError("bad_body", f"a stream of more than {MAX_BODY_BYTES} bytes", retryable=True)
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line


def _whole(text: str) -> tuple[str, str]:
    """The text that can be encoded, and the first half of a character whose other half is still to come."""
    half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
    return encodable(text.removesuffix(half)), half


def _event(data: bytes) -> tuple[str, str, dict]:
    """The text, the finish reason and the usage in one chunk, each empty where the chunk has none."""
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            said = " ".join(json.dumps(chunk["error"]).split())[:300]
            raise RequestError("stream_error", f"the endpoint broke off: {said}", retryable=True)
        usage = chunk.get("usage") or {}
        choice = next(iter(chunk.get("choices") or ()), {})
        piece = (choice.get("delta") or {}).get("content") or ""
        reason = choice.get("finish_reason") or ""
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise RequestError("bad_body", f"no chunk of a completion ({type(error).__name__})", retryable=True) from error
    if not isinstance(piece, str) or not isinstance(reason, str) or not isinstance(usage, dict):
        raise RequestError("bad_body", "a chunk whose text or finish_reason is no text", retryable=True)
    return piece, reason, usage
