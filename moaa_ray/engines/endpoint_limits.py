"""How hard an endpoint may be asked: an adaptive number of open requests, a rate, pauses, and backoff.

All of it belongs to one worker and one event loop. Workers of a pool share nothing: each finds its own
part of what the endpoint can bear, as TCP connections do.
"""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from email.utils import parsedate_to_datetime

from moaa_ray.core.seeds import seed_for

MAX_PAUSE_S = 120.0
"""The longest Retry-After that is obeyed; longer ones count as this."""

_MAX_BACKOFF_S = 30.0


class AdaptiveLimit:
    """Open requests, between 1 and `most`: halved when the endpoint is overloaded, one more per `limit` successes.

    A burst of refusals is one event: only a request sent after the last cut can cause the next one.
    """

    def __init__(self, most: int):
        self.limit = most
        self.num_open = 0
        self._most = most
        self._num_cuts = 0
        self._successes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._pause_ends = 0.0

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold one of the places for open requests; they are given in order."""
        await self._take()
        try:
            yield
        finally:
            self.num_open -= 1
            self._let_in()

    async def clear_to_send(self) -> int:
        """Wait until no pause is on; gives the number that `overloaded` wants."""
        while (pause := self._pause_ends - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        return self._num_cuts

    async def _take(self) -> None:
        if self.num_open < self.limit and not self._waiting:
            self.num_open += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in and cancelled in the same moment
                self.num_open -= 1
                self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiting and self.num_open < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.num_open += 1
                turn.set_result(None)

    def succeeded(self) -> None:
        """One request was answered."""
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self._most, self.limit + 1)
            self._let_in()

    def overloaded(self, sent_at_cut: int) -> None:
        """A request that `clear_to_send` gave this number was refused or timed out."""
        if sent_at_cut == self._num_cuts:
            self._num_cuts += 1
            self._successes = 0
            self.limit = max(1, self.limit // 2)

    def pause(self, seconds: float) -> None:
        """Send nothing for so long; of several pauses the last to end counts."""
        self._pause_ends = max(self._pause_ends, time.monotonic() + min(seconds, MAX_PAUSE_S))


class RateLimit:
    """At most `per_minute` requests a minute, evenly spaced, one second's worth of them at once; None: no limit."""

    def __init__(self, per_minute: float | None, *, now: Callable[[], float] = time.monotonic):
        self._gap_s = 60.0 / per_minute if per_minute else 0.0
        self._slack_s = max(0.0, 1.0 - self._gap_s)
        self._now = now
        self._next_at = -math.inf

    def reserve(self) -> float:
        """Seconds to wait before sending the one request this call pays for."""
        now = self._now()
        at = max(self._next_at, now - self._slack_s)
        self._next_at = at + self._gap_s
        return max(0.0, at - now)


def retry_after_s(value: str | None, *, now: float) -> float:
    """Seconds that a Retry-After header asks for (a number or an HTTP date; `now` in Unix time); 0 if it says nothing.

    Source: RFC 9110, section 10.2.3.
    """
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), MAX_PAUSE_S) if not math.isnan(seconds) else 0.0


def backoff_s(seed: int, request_id: str, attempt: int, *, first_s: float) -> float:
    """Seconds before attempt number `attempt` + 1: first_s, twice that, ... at most 30, less up to half by the seed."""
    jitter = seed_for(seed, "backoff", request_id, attempt) / 2**53
    return min(_MAX_BACKOFF_S, first_s * 2.0 ** (attempt - 1)) * (1.0 - jitter / 2)
