"""The plumbing of HTTP: a bounded body in, a reply out, on the bare ASGI interface."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

from moaa_ray.serving.chat import RefusedError
from moaa_ray.serving.replies import error_body, error_event

_DRAINED_BYTES = 64 * 2**20


class ClientGoneError(Exception):
    """The client has closed the connection."""


async def read_body(receive: Any, limit: int) -> bytes:
    """The body of a request. Raises RefusedError (413) for a longer one, ClientGoneError where it breaks off."""
    parts, size = [], 0
    async for part in _parts(receive):
        size += len(part)
        if size <= limit:
            parts.append(part)
    if size > limit:
        raise RefusedError(413, f"body: more than {limit} bytes, which is the most that is read", code="body_too_long")
    return b"".join(parts)


async def drop_body(receive: Any) -> None:
    """Take a body that nobody wants. Raises ClientGoneError where it breaks off."""
    async for _ in _parts(receive):
        pass


async def _parts(receive: Any) -> AsyncIterator[bytes]:
    """The parts of a body, the first 64 MiB: most clients only listen when they have said all."""
    size, more = 0, True
    while more and size <= _DRAINED_BYTES:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        more = message.get("more_body", False)
        part = message.get("body", b"")
        size += len(part)
        yield part


class Reply:
    """The one reply to a request."""

    def __init__(self, send: Any, *, headers: Mapping[str, str] | None = None, is_head: bool = False):
        """headers: those of every reply to this request. is_head: the body is counted and not sent."""
        self._send = send
        self._headers = headers or {}
        self._is_head = is_head
        self.has_begun = False

    async def json(self, body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        """A whole JSON body."""
        length = {"content-length": str(len(body))}
        await self._begin(status, {"content-type": "application/json", **length, **(headers or {})})
        await self._send({"type": "http.response.body", "body": b"" if self._is_head else body})

    async def nothing(self, headers: Mapping[str, str]) -> None:
        """Headers without a body."""
        await self._begin(204, headers)
        await self._send({"type": "http.response.body", "body": b""})

    async def begin_events(self, headers: Mapping[str, str]) -> None:
        """The head of a stream of events."""
        fixed = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
        await self._begin(200, {**fixed, **headers})

    async def events(self, data: bytes, *, is_last: bool = False) -> None:
        """Further events of the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def refuse(self, error: RefusedError, headers: Mapping[str, str] | None = None) -> None:
        """An error: as the reply, or as the event that breaks off a stream that has begun."""
        if self.has_begun:
            await self.events(error_event(error), is_last=True)
        else:
            await self.json(error_body(error), status=error.status, headers=headers)

    async def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.has_begun = True
        both = {**headers, **self._headers}
        pairs = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in both.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": pairs})
