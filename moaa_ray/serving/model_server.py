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
from moaa_ray.types import Answer, Failure, Request, Row

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

    async def stream(self, p: MixturePass, row: Row) -> AsyncGenerator[str | Answer, None]:
        """The completion of a pass with one sample, in pieces, then whole; or a Failure where it ends before that."""
        requests = self._requests(p, row)
        if isinstance(requests, Failure):
            yield requests
            return
        try:
            async with asyncio.timeout(self._model.request_timeout_s):
                async with aclosing(self._engine.stream(_own(requests[0]))) as pieces:  # pyright: ignore[reportArgumentType]: a generator
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
