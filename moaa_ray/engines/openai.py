"""A model behind any OpenAI-compatible endpoint, asked with as many open requests as it bears.

Every request ends after a bounded number of attempts, in a completion or a RequestError. The key comes
from the worker's environment and is in no message; redirects, proxies from the environment and
compressed bodies are not used; an answer may have 32 MiB. Leaves out streaming, tools and images.
"""

import asyncio
import os
import time
from collections.abc import Sequence
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
from moaa_ray.engines.endpoint_limits import AdaptiveLimit, RateLimit, backoff_s, retry_after_s
from moaa_ray.settings.models import OpenaiModel
from moaa_ray.types import Completion, Message, Request

_CONNECT_TIMEOUT_S = 10.0
_LIST_TIMEOUT_S = 5.0
_MAX_BODY_BYTES = 32 * 2**20
_MAX_EXCERPT_CHARS = 300
_RATE_LIMITED_ATTEMPTS = 8
"""To be told to wait is no fault of a request: so many 429s are taken before it fails, beside max_attempts."""


@dataclass(frozen=True, kw_only=True)
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
        self._key = ""
        self.window = config.context_window or 0

    async def start(self) -> None:
        """Raises EngineStartError for a bad key or model, ConnectionError where no endpoint answers."""
        self._key = self._read_key()
        headers = {"Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
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

    async def _attempt(self, body: dict, flags: tuple[str, ...]) -> Completion | RequestError:
        """One POST under the limits, and what it tells about them."""
        async with self._limit.slot():
            if wait := self._rate.reserve():
                await asyncio.sleep(wait)
            sent_at_cut = await self._limit.clear_to_send()
            reply = await self._exchange(
                "POST", "/chat/completions", json=body, timeout_s=self._config.request_timeout_s
            )
            answer = self._read(reply, flags)
            if isinstance(answer, Completion):
                self._limit.succeeded()
            elif answer.reason in ("rate_limited", "timeout") or (isinstance(reply, _Reply) and reply.status == 503):
                self._limit.overloaded(sent_at_cut)
            if isinstance(reply, _Reply) and reply.status in (429, 503):
                self._limit.pause(retry_after_s(reply.retry_after, now=time.time()))
            return answer

    def _read(self, reply: _Reply | RequestError, flags: tuple[str, ...]) -> Completion | RequestError:
        if isinstance(reply, RequestError):
            return reply
        if reply.status == 200:
            return completion_of(reply.body, flags=flags)
        if reply.status in (401, 403):
            return RequestError("auth", f"HTTP {reply.status}: {self._auth_advice()}", retryable=False)
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
        if self._session is None:
            raise EngineDeadError("this engine is stopped, or was never started")
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_TIMEOUT_S)
        try:
            async with self._session.request(
                method, self._url + path, json=json, timeout=timeout, allow_redirects=False
            ) as response:
                body = await _bounded_body(response)
                if body is None:
                    return RequestError("bad_body", f"a body of more than {_MAX_BODY_BYTES} bytes", retryable=True)
                return _Reply(status=response.status, body=body, retry_after=response.headers.get("Retry-After"))
        except TimeoutError:
            return RequestError("timeout", f"no answer from {self._url} in {timeout_s:g} s", retryable=True)
        except aiohttp.ClientPayloadError:
            return RequestError("bad_body", "the connection closed inside the body", retryable=True)
        except (aiohttp.ClientError, OSError) as error:
            detail = f"{type(error).__name__} from {self._url}: {self._clean(str(error))}"
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
            raise EngineStartError(f"{self._url} answers HTTP {reply.status}: {self._auth_advice()}")
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

    def _read_key(self) -> str:
        if self._config.api_key is None:
            return ""
        name = self._key_name()
        key = os.environ.get(name, "").strip()
        if not key:
            raise EngineStartError(
                f"api_key is ${{{name}}}, and {name} is not set in this worker's environment; "
                "set it on every node, as a mounted secret rather than in runtime_env"
            )
        if not (key.isascii() and key.isprintable()):
            raise EngineStartError(f"the value of {name} cannot be sent in a header; it has other than printable ASCII")
        return key

    def _key_name(self) -> str:
        return (self._config.api_key or "")[2:-1]

    def _auth_advice(self) -> str:
        if self._config.api_key is None:
            return "it wants a key; set api_key: ${NAME} and the variable NAME in the workers' environment"
        return f"it refuses the key in {self._key_name()}; check the variable in the workers' environment"

    def _excerpt(self, body: bytes) -> str:
        """The start of what the endpoint said, in one line and without the key."""
        text = body[: 64 * _MAX_EXCERPT_CHARS].decode("utf-8", "replace")
        return self._clean(" ".join(text.split()))[:_MAX_EXCERPT_CHARS]

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


async def _bounded_body(response: aiohttp.ClientResponse) -> bytes | None:
    """The body; None where it is longer than the limit."""
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > _MAX_BODY_BYTES:
            response.close()
            return None
        chunks.append(chunk)
    return b"".join(chunks)
