"""An engine without a model: deterministic text, a latency model, and faults on demand.

It is the oracle of the tests (the right dataset is known in advance), the null engine of the
benchmarks, and what the demo runs on. It knows nothing of regexes: such a request is refused.
"""

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from math import log

from moaa_ray.core.templates import fold_system
from moaa_ray.engines import fake_text
from moaa_ray.engines.base import EngineDeadError, EngineStartError, RequestError
from moaa_ray.settings.models import FakeModel
from moaa_ray.types import Completion, Message, Request, Sampling

_TOKENS_PER_MESSAGE = 4
_FLAKY_FAILURES = 2


class FakeEngine:
    """One fake engine. See base.Engine for the contract.

    Its text depends on (messages, sampling, seed) alone. One word is one token, and a message costs
    four more. With `tokens_per_s` > 0 it has `concurrency` slots, each as fast as tokens_per_s /
    concurrency, so a full batch gives tokens_per_s; requests above that wait in order.

    A fault strikes when its pattern stands in the last user turn: error (always, may be tried again),
    flaky (the same request fails twice, then works), refuse (never works), hang (no answer until
    cancelled), dead (the engine dies with all its open requests), exit (the process ends), empty (no
    text), long (cut at max_tokens), start_fails (whatever the pattern, the engine cannot start).
    """

    def __init__(self, config: FakeModel):
        self._config = config
        self._faults = tuple(config.faults.items())
        self._slots = asyncio.Semaphore(config.concurrency)
        self._open: set[asyncio.Future[None]] = set()
        self._failures: Counter[str] = Counter()
        self._dead_because = "it was never started"
        self.window = config.context_window or 0
        self.max_attempts = config.max_attempts

    async def start(self) -> None:
        if self._config.start_s:
            await asyncio.sleep(self._config.start_s)
        if "start_fails" in self._config.faults.values():
            raise EngineStartError("fault start_fails of the fake engine; remove it from `faults`")
        self._dead_because = ""

    async def generate(self, request: Request) -> Completion:
        completion = await self._completion_of(request)
        if self._config.tokens_per_s:
            async with self._slots:
                await self._wait(completion.completion_tokens * self._token_s)
        return completion

    async def stream(self, request: Request) -> AsyncIterator[str | Completion]:
        """A word at a time, each at the moment at which a real engine of this speed would have it."""
        completion = await self._completion_of(request)
        pieces = completion.text.replace(" ", " \0").split("\0") if completion.text else []
        async with self._slots if self._config.tokens_per_s else contextlib.nullcontext():
            began = asyncio.get_running_loop().time()
            for number, piece in enumerate(pieces, 1):
                if self._config.tokens_per_s:
                    await self._wait(began + number * self._token_s - asyncio.get_running_loop().time())
                yield piece
        yield completion

    @property
    def _token_s(self) -> float:
        """Seconds that one slot takes for a token."""
        return self._config.concurrency / self._config.tokens_per_s

    async def _completion_of(self, request: Request) -> Completion:
        """What the request comes to, before any waiting. Raises as `generate` does."""
        if self._dead_because:
            raise EngineDeadError(self._dead_because)
        config, sampling = self._config, request.sampling
        messages = request.messages if config.system_role else fold_system(request.messages)
        prompt_tokens = self.count_tokens(messages)
        limit = self._limit(prompt_tokens, sampling)
        fault = await self._struck_by(request, messages) if self._faults else ""
        text, num_tokens, finish_reason = self._draw(request, messages, limit=limit, fault=fault)
        return Completion(
            text=text,
            finish_reason=finish_reason,
            prompt_tokens=prompt_tokens,
            completion_tokens=num_tokens,
            first_logprobs=_first_logprobs(text, sampling.logprobs),
        )

    def count_tokens(self, messages: Sequence[Message]) -> int:
        return sum([len(message["content"].split()) for message in messages]) + _TOKENS_PER_MESSAGE * len(messages)

    async def stop(self) -> None:
        self._die("it was stopped")

    def _limit(self, prompt_tokens: int, sampling: Sampling) -> int:
        """Tokens the completion may have at most."""
        if not self.window:
            return sampling.max_tokens
        if prompt_tokens >= self.window:
            detail = f"prompt of {prompt_tokens} tokens, window of {self.window}"
            raise RequestError("context_length", detail, retryable=False)
        return min(sampling.max_tokens, self.window - prompt_tokens)

    def _draw(self, request: Request, messages: Sequence[Message], *, limit: int, fault: str) -> tuple[str, int, str]:
        """Text, its number of tokens, and the finish reason."""
        if fault == "empty":
            return "", 0, "stop"
        sampling = request.sampling
        digest = fake_text.prompt_digest(messages, sampling, request.seed)
        if sampling.choice or sampling.json_schema or sampling.regex:
            text, num = _constrained(digest, sampling)
        else:
            num = fake_text.num_words(digest, mean=self._config.completion_tokens, sigma=self._config.length_sigma)
            num = limit + 1 if fault == "long" else num
            text = fake_text.words(digest, min(num, limit))
        finish_reason = "stop"
        if num > limit:
            text, num, finish_reason = " ".join(text.split(" ")[:limit]), limit, "length"
        if sampling.stop:
            ends = [at for at in map(text.find, sampling.stop) if at >= 0]
            if ends:
                text, finish_reason = text[: min(ends)], "stop"
                num = len(text.split())
        return text, num, finish_reason

    async def _struck_by(self, request: Request, messages: Sequence[Message]) -> str:
        """The fault on this request, "" for none; those that leave no completion raise here."""
        asked = next((message["content"] for message in reversed(messages) if message["role"] == "user"), "")
        for pattern, kind in self._faults:
            if pattern in asked:
                await self._strike(request, kind)
                return kind
        return ""

    async def _strike(self, request: Request, kind: str) -> None:
        match kind:
            case "error":
                raise RequestError("fake_error", "fault on demand", retryable=True)
            case "refuse":
                raise RequestError("fake_refusal", "fault on demand", retryable=False)
            case "flaky":
                self._failures[request.id] += 1
                if self._failures[request.id] <= _FLAKY_FAILURES:
                    raise RequestError("fake_flaky", f"attempt {self._failures[request.id]}", retryable=True)
                del self._failures[request.id]
            case "hang":
                await self._wait(None)
            case "dead":
                self._die(f"fault on demand, from request {request.id}")
                raise EngineDeadError(self._dead_because)
            case "exit":
                os._exit(1)

    async def _wait(self, seconds: float | None) -> None:
        """Wait that long, or for ever; the engine's death ends it with EngineDeadError."""
        if self._dead_because:
            raise EngineDeadError(self._dead_because)
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        timer = loop.call_later(seconds, _finish, done) if seconds is not None else None
        self._open.add(done)
        try:
            await done
        finally:
            self._open.discard(done)
            if timer is not None:
                timer.cancel()

    def _die(self, why: str) -> None:
        self._dead_because = why
        for done in self._open:
            if not done.done():
                done.set_exception(EngineDeadError(why))


def _finish(done: "asyncio.Future[None]") -> None:
    if not done.done():
        done.set_result(None)


def _first_logprobs(text: str, num: int) -> tuple[tuple[str, float], ...]:
    """The words of the text in its order, the first with probability 1/2, each next one with half of that."""
    tokens = list(dict.fromkeys(text.split()))[:num]
    return tuple((token, -(i + 1) * log(2)) for i, token in enumerate(tokens))


def _constrained(digest: bytes, sampling: Sampling) -> tuple[str, int]:
    if sampling.regex:
        raise RequestError("bad_request", "the fake engine knows no regex; use choice or json_schema", retryable=False)
    try:
        text = fake_text.constrained(digest, sampling)
    except ValueError as error:
        raise RequestError("bad_request", f"json_schema is not JSON: {error}", retryable=False) from error
    return text, max(1, len(text.split(" ")))
