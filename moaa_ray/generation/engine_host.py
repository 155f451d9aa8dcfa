"""One engine inside a pool worker: started once, restarted when it dies or hangs, timed, counted.

Deaths are told by raising EngineDiedError with the generation that died, so that any number of rows
that were with it restart it once. What the rows do next is the worker's business (worker.py).
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from moaa_ray.core.passes import CannotAskError
from moaa_ray.engines.base import Engine, EngineDeadError, EngineStartError, RequestError
from moaa_ray.engines.endpoint_limits import backoff_s
from moaa_ray.generation.host_stats import HostStats, Patience, SlotClock
from moaa_ray.types import Answer, Completion, Failure, Message, Request

_START_ATTEMPTS, _MAX_DEATHS_IN_A_ROW = 2, 20
_STOP_LIMIT_S, _FIRST_BACKOFF_S = 30.0, 0.5
_TIMEOUT = "timeout"


class EngineDiedError(Exception):
    """Engine number `generation` of this worker is dead or hangs; `how` says which."""

    def __init__(self, generation: int, how: str):
        super().__init__(f"engine {generation} {how}")
        self.generation = generation
        self.how = how


class EngineMissingError(Exception):
    """The engine cannot be started; the message says why."""


class EngineHost:
    """Owns the engine of one worker. All methods run on one event loop."""

    def __init__(
        self,
        make_engine: Callable[[], Engine],
        *,
        on_death: Callable[[], Awaitable[None]],
        request_timeout_s: float,
        hang_after_s: float,
        keep_trying: bool,
        num_slots: int,
    ):
        self._make_engine = make_engine
        self._on_death = on_death
        self._request_timeout_s = request_timeout_s
        self._hang_after_s = hang_after_s
        self._keep_trying = keep_trying
        self._lock = asyncio.Lock()
        self._engine: Engine | None = None
        self._missing = ""
        self._open: set[asyncio.Task] = set()
        self._lost: dict[asyncio.Task, str] = {}
        self.patience = Patience(least_s=hang_after_s, request_timeout_s=request_timeout_s)
        self._last_progress = self._up_since = 0.0
        self._clock = SlotClock(num_slots)
        self._watcher: asyncio.Task | None = None
        self._how_it_died = ""
        self._deaths_in_a_row = 0
        self.counts = HostStats()  # the worker adds what never reaches the engine, and the passes
        self.generation = 0

    @property
    def window(self) -> int:
        """Context window of the running engine. Raises EngineDiedError between two engines."""
        return self._living_engine(self.generation).window

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt. Raises CannotAskError where the engine refuses it, EngineDiedError between engines."""
        try:
            return self._living_engine(self.generation).count_tokens(messages)
        except RequestError as error:
            failure = Failure(reason=error.reason, detail=error.detail, retryable=error.retryable)
            raise CannotAskError(failure) from error

    def _living_engine(self, generation: int) -> Engine:
        """The running engine. Raises EngineDiedError where there is none, or none of that generation any more."""
        if self._engine is None or self._how_it_died or generation < self.generation:
            raise EngineDiedError(generation, self._how_it_died or "is gone")
        return self._engine

    async def ready(self, *, after: int = 0) -> None:
        """Wait for a living engine of a generation above `after`; a death is told before the next one starts.

        Raises EngineMissingError when there will be none.
        """
        if self._is_up(after):
            return
        async with self._lock:
            if self._is_up(after):
                return
            if self._missing:
                raise EngineMissingError(self._missing)
            if self._engine is not None:
                await self._on_death()
                await self._bury_engine()
            await self._start_engine()

    def _is_up(self, after: int) -> bool:
        return self._engine is not None and not self._how_it_died and self.generation > after

    async def _start_engine(self) -> None:
        attempt = 0
        while True:
            attempt += 1
            self.counts.state = "starting"
            began = time.monotonic()
            engine = self._make_engine()
            try:
                await engine.start()
                break
            except EngineStartError as error:
                last, is_final = str(error), not self._keep_trying
            except Exception as error:  # vendor libraries raise anything here; it is told, counted and bounded
                last = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
                is_final = attempt >= _START_ATTEMPTS and not self._keep_trying
            await _quietly_stop(engine)
            if is_final:
                self.counts.state = "missing"
                self._missing = last
                raise EngineMissingError(last)
            self.counts.state = f"retrying: {last[:120]}"
            await asyncio.sleep(min(60.0, 2.0 ** min(attempt, 6)))
        self._engine = engine
        self.generation += 1
        self._how_it_died = ""
        now = time.monotonic()
        self.counts.start_s += now - began
        self.counts.num_starts += 1
        self.counts.state = "up"
        self._up_since = self._last_progress = now
        if self._watcher is None:
            self._watcher = asyncio.create_task(self._watch())

    async def _bury_engine(self) -> None:
        engine, self._engine = self._engine, None
        assert engine is not None
        self.counts.up_s += time.monotonic() - self._up_since
        self.counts.deaths += 1
        self._deaths_in_a_row += 1
        await _quietly_stop(engine)
        if self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW:
            self._missing = f"it {self._how_it_died} {self._deaths_in_a_row} times without one answer between"
            self.counts.state = "missing"
            raise EngineMissingError(self._missing)

    async def answer(self, request: Request) -> Answer:
        """Its completion, or its failure after all attempts. Raises EngineDiedError when the engine dies under it."""
        generation, attempt = self.generation, 0
        while True:
            attempt += 1
            engine = self._living_engine(generation)
            answer = await self._attempt(request, engine, generation)
            is_passing = isinstance(answer, Failure) and answer.retryable and answer.reason != _TIMEOUT
            if not is_passing or attempt >= engine.max_attempts:
                self.counts.add(answer)
                return answer
            self.counts.retries += 1
            await asyncio.sleep(backoff_s(request.seed, request.id, attempt, first_s=_FIRST_BACKOFF_S))

    async def _attempt(self, request: Request, engine: Engine, generation: int) -> Answer:
        task = asyncio.current_task()
        assert task is not None
        cancels_before = task.cancelling()
        began = time.monotonic()
        if not self._open:
            self._last_progress = began
        self._open.add(task)
        self._clock.set(len(self._open), began)
        try:
            async with asyncio.timeout(self._request_timeout_s if self._hang_after_s < math.inf else None):
                completion = await engine.generate(request)
            answer: Answer = _with_flags(completion, request)
        except RequestError as error:
            answer = Failure(reason=error.reason, detail=error.detail, retryable=error.retryable)
        except TimeoutError:
            return Failure(reason=_TIMEOUT, detail=f"no answer within {self._request_timeout_s:.0f} s")
        except EngineDeadError as error:
            if generation == self.generation and not self._how_it_died:
                self._declare_dead("died", but=task)
            raise EngineDiedError(generation, "died") from error
        except asyncio.CancelledError:
            how = self._lost.pop(task, "")
            if how and task.uncancel() <= cancels_before:
                raise EngineDiedError(generation, how) from None
            raise
        finally:
            self._open.discard(task)
            if self._lost.pop(task, ""):
                task.uncancel()  # the engine kept the cancellation to itself
            ended = time.monotonic()
            self._clock.set(len(self._open), ended)
        self._last_progress = ended  # after a timeout there is none: the engine said nothing
        if isinstance(answer, Completion):
            self._deaths_in_a_row = 0
            self.patience.add(ended - began)
        return answer

    async def _watch(self) -> None:
        """Declare the engine hung when requests are open and none has ended for too long."""
        while True:
            limit_s = self.patience.limit_s
            await asyncio.sleep(min(5.0, limit_s / 4))
            silent_s = time.monotonic() - self._last_progress
            if self._open and self._engine is not None and not self._how_it_died and silent_s > limit_s:
                self._declare_dead(f"hung: nothing answered for {silent_s:.0f} s")

    def _declare_dead(self, how: str, *, but: asyncio.Task | None = None) -> None:
        """Let go of the engine and of every request with it, but the one that brought the news."""
        self._how_it_died = how
        for task in self._open - {but}:
            self._lost[task] = how
            task.cancel()

    def stats(self) -> HostStats:
        """A copy of the counters, brought up to now."""
        now = time.monotonic()
        self._clock.set(len(self._open), now)
        stats = self.counts.copy()
        stats.open_requests = len(self._open)
        stats.busy_s, stats.slot_s = self._clock.busy_s, self._clock.slot_s
        stats.up_s += now - self._up_since if self._engine is not None else 0.0
        return stats

    async def stop(self) -> None:
        """Stop the engine for good."""
        if self._watcher is not None:
            self._watcher.cancel()
        engine, self._engine = self._engine, None
        if engine is not None:
            self.counts.up_s += time.monotonic() - self._up_since
            await _quietly_stop(engine)


def _with_flags(completion: Completion, request: Request) -> Completion:
    return replace(completion, flags=(*request.flags, *completion.flags)) if request.flags else completion


async def _quietly_stop(engine: Engine) -> None:
    """Stop an engine that may be broken in any way; what it raises tells nothing new."""
    with contextlib.suppress(Exception):
        await asyncio.wait_for(engine.stop(), _STOP_LIMIT_S)
