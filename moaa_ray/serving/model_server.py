"""One engine behind Ray Serve: what a pool worker is to a stage, for requests that come one by one.

It is given a pass and a row, as a pool worker is, because only the engine knows how long a prompt is and
so how proposals are shortened. A dead engine fails the health check, and Serve puts a new replica in place.
"""

import asyncio
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import cast

from moaa_ray.core.mixture import MixturePass
from moaa_ray.core.passes import CannotAskError, Room
from moaa_ray.engines.base import EngineDeadError, RequestError, WritingEngine
from moaa_ray.engines.build import build_engine
from moaa_ray.settings.models import Model
from moaa_ray.types import Answer, Completion, Failure, Request, Row

_TOGETHER_S = 0.02
"""Pieces of a completion that come within this time travel together: every message between processes costs as much as
many tokens, and no reader sees 20 ms."""
NOTHING_ASKED = Failure(reason="nothing_asked", retryable=False)
"""The row has all its answers already, or too few proposals."""


class ModelServer:
    """One model. The methods that answer raise nothing but the cancellation of the caller."""

    def __init__(self, model: Model, *, on_gpu: bool, share: float = 1.0):
        """Only stores what it is given; arguments as build_engine's."""
        self._model = model
        self._engine = cast(WritingEngine, build_engine(model, on_gpu=on_gpu, share=share))
        self._dead_because = ""

    async def reconfigure(self, _config: dict) -> None:
        """Start the engine. Serve calls this before it sends requests; it is the first method that may wait."""
        await self._engine.start()

    async def check_health(self) -> None:
        """Raise where the engine has died."""
        if self._dead_because:
            raise EngineDeadError(self._dead_because)

    async def ready(self) -> bool:
        """Whether the engine lives."""
        return not self._dead_because

    async def answer(self, p: MixturePass, row: Row) -> dict[str, Answer]:
        """The answers to what the pass asks of the row, by the pass's request ids."""
        requests = self._requests(p, row)
        if isinstance(requests, Failure):
            return p.all_failed(row, requests)
        answers = await asyncio.gather(*(self._one(request) for request in requests))
        return {request.id: answer for request, answer in zip(requests, answers, strict=True)}

    async def stream(self, p: MixturePass, row: Row) -> AsyncGenerator[list[str | Answer], None]:
        """The completion of a pass with one sample, in pieces, then whole; or a Failure where it ends before that."""
        requests = self._requests(p, row)
        if isinstance(requests, Failure):
            yield [requests]
            return
        async with aclosing(gathered(self._pieces(requests[0]), every_s=_TOGETHER_S)) as batches:
            async for batch in batches:
                yield batch

    async def _pieces(self, request: Request) -> AsyncGenerator[str | Answer, None]:
        try:
            async with asyncio.timeout(self._model.request_timeout_s):
                pieces = cast(AsyncGenerator[str | Completion, None], self._engine.stream(_own(request)))
                async with aclosing(pieces):
                    async for piece in pieces:
                        yield piece
        except (RequestError, EngineDeadError, TimeoutError) as error:
            yield self._failure(error)

    def _requests(self, p: MixturePass, row: Row) -> list[Request] | Failure:
        try:
            if self._dead_because:
                raise EngineDeadError(self._dead_because)
            room = Room(window=self._engine.window, count_tokens=self._engine.count_tokens)
            return p.ask(row, room) or NOTHING_ASKED
        except CannotAskError as error:
            return error.failure
        except (RequestError, EngineDeadError) as error:
            return self._failure(error)

    async def _one(self, request: Request) -> Answer:
        try:
            async with asyncio.timeout(self._model.request_timeout_s):
                return await self._engine.generate(_own(request))
        except (RequestError, EngineDeadError, TimeoutError) as error:
            return self._failure(error)

    def _failure(self, error: Exception) -> Failure:
        if isinstance(error, RequestError):
            return Failure(reason=error.reason, detail=error.detail, retryable=error.retryable)
        if isinstance(error, EngineDeadError):
            self._dead_because = str(error) or "it died"
            return Failure(reason="engine_died", detail=self._dead_because)
        return Failure(reason="timeout", detail=f"no answer within {self._model.request_timeout_s:g} s")

    async def stop(self) -> None:
        """Stop the engine for good."""
        await self._engine.stop()


def _own(request: Request) -> Request:
    """The request under an id of its own: two clients may ask the same at the same time."""
    return replace(request, id=uuid.uuid4().hex)


async def gathered(pieces: AsyncGenerator[str | Answer, None], *, every_s: float) -> AsyncGenerator:
    """The pieces in lists of a text and what ends it: the first at once, then what has come every so many seconds.

    Nothing waits at the end. Closing it closes the pieces.
    """
    waiting: list[str | Answer] = []
    has_some = asyncio.Event()

    async def read() -> None:
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    waiting.append(piece)
                    has_some.set()
        finally:
            has_some.set()

    reader = asyncio.create_task(read())
    try:
        while not reader.done() or waiting:
            await has_some.wait()
            has_some.clear()
            text = "".join(piece for piece in waiting if isinstance(piece, str))
            batch = [*([text] if text else []), *(piece for piece in waiting if not isinstance(piece, str))]
            waiting.clear()
            if batch:
                yield batch
            await asyncio.wait({reader}, timeout=every_s)
            if waiting:
                has_some.set()
        reader.result()
    finally:
        reader.cancel()
