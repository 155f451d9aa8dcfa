"""What every engine does: start, answer requests concurrently, say how long a prompt is, stop.

An engine lives inside one pool worker. It is built from plain values, loads its heavy library in
`start`, and reports trouble in exactly three ways:
* `RequestError`: this request has no completion; the engine is fine;
* `EngineDeadError`: the engine can answer nothing more and must be started anew;
* any exception from `start`: this engine cannot be had.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from moaa_ray.types import Completion, Message, Request


class RequestError(Exception):
    """One request failed: reason is a short stable code, detail is for people."""

    def __init__(self, reason: str, detail: str = "", *, retryable: bool):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.retryable = retryable

    def saying(self, more: str) -> "RequestError":
        """The same failure with more detail."""
        return RequestError(self.reason, f"{self.detail}: {more}", retryable=self.retryable)


class EngineDeadError(Exception):
    """The engine has died; every open request on it is lost."""


class EngineStartError(Exception):
    """The engine cannot start, and trying again will not help; the message says why and the way out."""


class Engine(Protocol):
    """Answers requests. `generate` is called concurrently; all other methods are not."""

    window: int
    """Context window in tokens (prompt and completion together); 0 when unknown."""
    max_attempts: int
    """How often to ask in all for what may be asked again, with the same seed; 1: the engine itself asks again."""

    async def start(self) -> None:
        """Load whatever is needed. Raises EngineStartError when it can never work, anything else when it may."""
        ...

    async def generate(self, request: Request) -> Completion:
        """The completion of one request. Raises RequestError or EngineDeadError."""
        ...

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered prompt, generation prefix included; an upper estimate where it cannot be exact."""
        ...

    async def stop(self) -> None:
        """Free everything, child processes included. Never raises; may be called twice."""
        ...


class WritingEngine(Engine, Protocol):
    """An engine whose completions can also be had piece by piece, as they are written; a judge's score cannot."""

    def stream(self, request: Request) -> AsyncIterator[str | Completion]:
        """The completion's text in pieces that are never empty, then the whole completion; closing it stops the work.

        The pieces joined are the completion's text. Raises as `generate` does, also between two pieces.
        """
        ...
