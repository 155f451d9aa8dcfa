"""A model behind any OpenAI-compatible endpoint, asked with as many open requests as it bears.

Every request ends after a bounded number of attempts, in a completion or a RequestError. The key comes
from the worker's environment and is in no message; redirects, proxies from the environment and
compressed bodies are not used; an answer may have 32 MiB. Leaves out tools and images.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import aiohttp

from moaa_ray.engines.base import EngineDeadError, EngineStartError, RequestError
from moaa_ray.engines.endpoint_format import (
    completion_of,
    estimated_tokens,
    listed_models,
    nearest_names,
    refusal_of,
    request_body,
)
from moaa_ray.engines.endpoint_key import EndpointKey
from moaa_ray.engines.endpoint_limits import AdaptiveLimit, RateLimit, backoff_s, retry_after_s
from moaa_ray.engines.endpoint_stream import MAX_BODY_BYTES, bounded_body, pieces_of
from moaa_ray.settings.models import OpenaiModel
from moaa_ray.types import Completion, Message, Request

_CONNECT_TIMEOUT_S = 10.0
_LIST_TIMEOUT_S = 5.0
_MAX_EXCERPT_CHARS = 300
_RATE_LIMITED_ATTEMPTS = 8
"""To be told to wait is no fault of a request: so many 429s are taken before it fails, beside max_attempts."""


@dataclass(frozen=True)
class _Reply:
    status: int
    body: bytes
    retry_after: str | None


class OpenaiEngine:
    """One worker's way to one endpoint. See base.Engine for the contract."""

    def __init__(
        self, config: OpenaiModel, *, share: float = 1.0, start_window_s: float = 10.0, backoff_s: float = 0.5
    ):
        """Args: share: this worker's part of requests_per_minute; start_window_s: how long `start` tries to connect;
        backoff_s: the wait before a second attempt, doubled before each further one.
        """
        self._config = config
        self._url = config.base_url.rstrip("/")
        self._start_window_s = start_window_s
        self._backoff_s = backoff_s
        self._limit = AdaptiveLimit(config.concurrency)
        self._rate = RateLimit(config.requests_per_minute * share if config.requests_per_minute else None)
        self._session: aiohttp.ClientSession | None = None
        self._key = EndpointKey(config.api_key)
        self.window = config.context_window or 0
        self.max_attempts = 1  # generate makes them all

    async def start(self) -> None:
        """Raises EngineStartError for a bad key or model, ConnectionError where no endpoint answers."""
        headers = {"Accept-Encoding": "identity"}
        if key := self._key.read():
            headers["Authorization"] = f"Bearer {key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
        )
        try:
            await self._look_for_model()
        except BaseException:
            await self.stop()
            raise

    async def generate(self, request: Request) -> Completion:
        body, broken = request_body(request, model=self._config.model, system_role=self._config.system_role)
        flags = ("role_tokens_broken",) if broken else ()
        num_failed = num_rate_limited = 0
        while True:
            answer = await self._attempt(body, flags)
            if isinstance(answer, Completion):
                return answer
            if answer.reason == "context_length" and self._shorten(body, request.messages):
                continue
            num_rate_limited += answer.reason == "rate_limited"
            num_failed += answer.reason != "rate_limited"
            is_last = num_failed >= self._config.max_attempts or num_rate_limited >= self._rate_limited_attempts
            if is_last or not answer.retryable:
                raise answer
            attempt = num_failed + num_rate_limited
            await asyncio.sleep(backoff_s(request.seed, request.id, attempt, first_s=self._backoff_s))

    def count_tokens(self, messages: Sequence[Message]) -> int:
        """An estimate, high for prose and no bound for other text; the rule is in endpoint_format.py."""
        return estimated_tokens(messages)

    async def stop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def _rate_limited_attempts(self) -> int:
        return max(_RATE_LIMITED_ATTEMPTS, self._config.max_attempts)

    async def stream(self, request: Request) -> AsyncIterator[str | Completion]:
        """In one attempt: whoever reads along has a clock of his own, and can ask again."""
        body, broken = request_body(request, model=self._config.model, system_role=self._config.system_role)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        flags = ("role_tokens_broken",) if broken else ()
        trouble: RequestError | None = None
        async with self._turn() as sent_at_cut:
            try:
                async with self._request("POST", "/chat/completions", self._config.request_timeout_s, body) as response:
                    if response.status == 200:
                        async for piece in pieces_of(response.content.iter_any(), flags=flags):
                            yield piece
                        self._limit.succeeded()
                    else:
                        excerpt = await bounded_body(response.content.iter_any()) or b""
                        reply = _Reply(response.status, excerpt, response.headers.get("Retry-After"))
                        answer = self._read(reply, flags)
                        self._heed(reply, answer, sent_at_cut)
                        trouble = answer if isinstance(answer, RequestError) else None
            except (aiohttp.ClientError, OSError) as error:
                trouble = self._trouble_of(error, self._config.request_timeout_s)
        if trouble is not None:
            raise trouble

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[int]:
        """One place among the open requests, at the moment that the limits allow; yields what `overloaded` wants."""
        async with self._limit.slot():
            if wait := self._rate.reserve():
                await asyncio.sleep(wait)
            yield await self._limit.clear_to_send()

    async def _attempt(self, body: dict, flags: tuple[str, ...]) -> Completion | RequestError:
        """One POST under the limits, and what it tells about them."""
        async with self._turn() as sent_at_cut:
            reply = await self._exchange(
                "POST", "/chat/completions", json=body, timeout_s=self._config.request_timeout_s
            )
            answer = self._read(reply, flags)
            self._heed(reply, answer, sent_at_cut)
            return answer

    def _heed(self, reply: _Reply | RequestError, answer: Completion | RequestError, sent_at_cut: int) -> None:
        """Let the limits know how a request went."""
        if isinstance(answer, Completion):
            self._limit.succeeded()
        elif answer.reason in ("rate_limited", "timeout") or (isinstance(reply, _Reply) and reply.status == 503):
            self._limit.overloaded(sent_at_cut)
        if isinstance(reply, _Reply) and reply.status in (429, 503):
            self._limit.pause(retry_after_s(reply.retry_after, now=time.time()))

    def _read(self, reply: _Reply | RequestError, flags: tuple[str, ...]) -> Completion | RequestError:
        if isinstance(reply, RequestError):
            return reply
        if reply.status == 200:
            answer = completion_of(reply.body, flags=flags)
            return answer if isinstance(answer, Completion) else answer.saying(self._excerpt(reply.body))
        if reply.status in (401, 403):
            return RequestError("auth", f"HTTP {reply.status}: {self._key.advice()}", retryable=False)
        return refusal_of(reply.status, self._excerpt(reply.body))

    def _shorten(self, body: dict, messages: Sequence[Message]) -> bool:
        """Let the completion end at the window, once, where prompt and completion together were too long for it."""
        room = self.window - estimated_tokens(messages)
        if not 1 <= room < body["max_tokens"]:
            return False
        body["max_tokens"] = room
        return True

    async def _exchange(
        self, method: str, path: str, *, timeout_s: float, json: dict | None = None
    ) -> _Reply | RequestError:
        """One HTTP exchange. Trouble is returned, not raised: aiohttp's exceptions hold the headers, and so the key."""
        try:
            async with self._request(method, path, timeout_s, json) as response:
                body = await bounded_body(response.content.iter_any())
                if body is None:
                    response.close()
                    return RequestError("bad_body", f"a body of more than {MAX_BODY_BYTES} bytes", retryable=True)
                return _Reply(response.status, body, response.headers.get("Retry-After"))
        except (aiohttp.ClientError, OSError) as error:
            return self._trouble_of(error, timeout_s)

    def _request(self, method: str, path: str, timeout_s: float, json: dict | None):
        """An HTTP request, to be entered."""
        if self._session is None:
            raise EngineDeadError("this engine is stopped, or was never started")
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        return self._session.request(method, self._url + path, json=json, timeout=timeout, allow_redirects=False)

    def _trouble_of(self, error: Exception, timeout_s: float) -> RequestError:
        """What an exception of aiohttp means, without what it holds."""
        if isinstance(error, TimeoutError):
            return RequestError("timeout", f"no answer from {self._url} in {timeout_s:g} s", retryable=True)
        if isinstance(error, aiohttp.ClientPayloadError):
            return RequestError("bad_body", "the connection closed inside the body", retryable=True)
        detail = f"{type(error).__name__} from {self._url}: {self._key.clean(str(error))}"
        return RequestError("connect", detail, retryable=True)

    async def _look_for_model(self) -> None:
        """GET /models until the endpoint answers or the window for it is over."""
        ends = time.monotonic() + self._start_window_s
        attempt = 0
        while True:
            attempt += 1
            reply = await self._exchange("GET", "/models", timeout_s=_LIST_TIMEOUT_S)
            if isinstance(reply, _Reply) and reply.status < 500:
                return self._check_listing(reply)
            said = str(reply) if isinstance(reply, RequestError) else f"HTTP {reply.status}"
            if time.monotonic() >= ends:
                raise ConnectionError(
                    f"the endpoint {self._url} does not work after {attempt} attempts ({said}); "
                    "start it, or correct base_url"
                )
            left = max(0.0, ends - time.monotonic())
            await asyncio.sleep(min(left, backoff_s(0, self._url, attempt, first_s=self._backoff_s)))

    def _check_listing(self, reply: _Reply) -> None:
        if reply.status in (401, 403):
            raise EngineStartError(f"{self._url} answers HTTP {reply.status}: {self._key.advice()}")
        if 300 <= reply.status < 400:
            raise EngineStartError(
                f"{self._url} answers HTTP {reply.status}: redirects are not followed; "
                "set base_url to the address it leads to"
            )
        models = listed_models(reply.body) if reply.status == 200 else {}
        if models and self._config.model not in models:
            raise EngineStartError(
                f"{self._url} has no model {self._config.model!r}; nearest of its {len(models)}: "
                f"{nearest_names(self._config.model, list(models))}"
            )
        self.window = self.window or models.get(self._config.model, 0)

    def _excerpt(self, body: bytes) -> str:
        """The start of what the endpoint said, in one line and without the key."""
        text = body[: 64 * _MAX_EXCERPT_CHARS].decode("utf-8", "replace")
        return self._key.clean(" ".join(text.split()))[:_MAX_EXCERPT_CHARS]
