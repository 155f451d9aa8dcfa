"""A real HTTP server on 127.0.0.1 that speaks the OpenAI chat format and misbehaves on demand.

It answers with the text of the fake engine, so the right answer of every request is known.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from aiohttp import web

from moaa_ray.engines.base import RequestError
from moaa_ray.engines.fake import FakeEngine
from moaa_ray.settings.models import FakeModel
from moaa_ray.types import Message, Request, Sampling


@dataclass
class Endpoint:
    """What the server does, and what it saw.

    `troubles` are taken one per chat request, then it answers: "429", "429 <Retry-After>", "500", "503",
    "404", "401", "302", "garbage", "no choices", "null", "empty", "filtered", "hang", "truncated", "huge",
    "disconnect", "too long", "400 <what it says>".
    """

    troubles: list[str] = field(default_factory=list)
    reply: Callable[[tuple[Message, ...]], str] | None = None
    """What it says to these messages, instead of the fake engine's text."""
    first_logprobs: Callable[[tuple[Message, ...]], dict[str, float]] | None = None
    """Logprob by token of what could have come first in its reply, for requests that ask for it."""
    latency_s: float = 0.0
    window: int = 512
    models: tuple[str, ...] = ("fake",)
    models_status: int = 200
    key: str = ""
    is_cut: bool = False
    """Whether streams break off before they say why the completion ended."""
    most_open: int | None = None
    bodies: list[dict] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    num_open: int = 0
    peak_open: int = 0
    url: str = ""

    @contextlib.asynccontextmanager
    async def serve(self, *, port: int = 0) -> AsyncIterator["Endpoint"]:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/v1"
        self._fake = FakeEngine(FakeModel(engine="fake", context_window=self.window, completion_tokens=20))
        await self._fake.start()
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _list(self, request: web.Request) -> web.Response:
        if not self._is_allowed(request):
            return web.json_response({"error": "bad key"}, status=401)
        if self.models_status != 200:
            return web.Response(status=self.models_status)
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.models]})

    def _is_allowed(self, request: web.Request) -> bool:
        return not self.key or request.headers.get("Authorization") == f"Bearer {self.key}"

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        self.times_s.append(asyncio.get_running_loop().time())
        body = await request.json()
        self.bodies.append(body)
        if self.most_open is not None and self.num_open >= self.most_open:
            return web.Response(status=429)
        self.num_open += 1
        self.peak_open = max(self.peak_open, self.num_open)
        try:
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
            if not self._is_allowed(request):
                said = f"wrong key {request.headers.get('Authorization')}"
                return web.json_response({"error": said}, status=401)
            if self.troubles:
                return await self._trouble(request, self.troubles.pop(0))
            answer = await self._answer(body)
            return await self._in_pieces(request, answer) if body.get("stream") and answer.status == 200 else answer
        finally:
            self.num_open -= 1

    async def _answer(self, body: dict) -> web.Response:
        constraint = body.get("structured_outputs") or {}
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
        asked = Request(
            id="any",
            row_id="any",
            messages=tuple(Message(role=m["role"], content=m["content"]) for m in body["messages"]),
            sampling=Sampling(
                max_tokens=body["max_tokens"],
                temperature=body["temperature"],
                top_p=body["top_p"],
                stop=tuple(body["stop"] or ()),
                choice=tuple(constraint.get("choice", ())),
                json_schema=json.dumps(schema) if schema else "",
                logprobs=body.get("top_logprobs", 0),
            ),
            seed=body["seed"],
        )
        if self.reply is not None:
            usage = {"prompt_tokens": self._fake.count_tokens(asked.messages), "completion_tokens": 1}
            first = None
            if body.get("logprobs") and self.first_logprobs is not None:
                likely = sorted(self.first_logprobs(asked.messages).items(), key=lambda one: -one[1])
                first = [{"token": token, "logprob": p} for token, p in likely[: body["top_logprobs"]]]
            text = self.reply(asked.messages)
            return _chat_completion(text, finish_reason="stop", usage=usage, first=first)
        if self._fake.count_tokens(asked.messages) + body["max_tokens"] > self.window:
            return _error(400, f"This model's maximum context length is {self.window} tokens")
        try:
            completion = await self._fake.generate(asked)
        except RequestError as error:
            return _error(400, str(error))
        usage = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
        first = [{"token": token, "logprob": p} for token, p in completion.first_logprobs]
        return _chat_completion(completion.text, finish_reason=completion.finish_reason, usage=usage, first=first)

    async def _in_pieces(self, request: web.Request, answer: web.Response) -> web.StreamResponse:
        """The same answer as events: a word, the end, the usage; cut off before the end where `is_cut`."""
        whole = json.loads(answer.text or "")
        choice = whole["choices"][0]
        words = choice["message"]["content"].replace(" ", " \0").split("\0")
        chunks: list[dict] = [{"choices": [{"delta": {"content": word}, "finish_reason": None}]} for word in words]
        if not self.is_cut:
            chunks.append({"choices": [{"delta": {}, "finish_reason": choice["finish_reason"]}]})
            chunks.append({"choices": [], "usage": whole["usage"]})
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await stream.prepare(request)
        for chunk in chunks:
            await stream.write(b": a comment\n\ndata: " + json.dumps(chunk).encode() + b"\n\n")
        await stream.write(b"data: [DONE]\n\n")
        return stream

    async def _trouble(self, request: web.Request, kind: str) -> web.StreamResponse:
        word, _, said = kind.partition(" ")
        if word == "429":
            return web.Response(status=429, headers={"Retry-After": said} if said else {})
        if word.isdigit():
            headers = {"Location": "http://127.0.0.1:1/"} if word == "302" else {}
            text = f"{said} {request.headers.get('Authorization', '')}"
            return web.Response(status=int(word), text=text, headers=headers)
        match kind:
            case "garbage":
                return web.Response(text="<html>\x00 not json")
            case "no choices":
                return web.json_response({"choices": []})
            case "null":
                return _chat_completion(None, finish_reason="stop")
            case "empty":
                return _chat_completion("", finish_reason="stop")
            case "filtered":
                return _chat_completion("I", finish_reason="content_filter")
            case "hang":
                await asyncio.sleep(3600)
            case "disconnect":
                assert request.transport is not None
                request.transport.abort()
            case "truncated" | "huge":
                return await self._stream(request, is_huge=kind == "huge")
        return web.Response()

    async def _stream(self, request: web.Request, *, is_huge: bool) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Length": str(2**30)})
        await answer.prepare(request)
        with contextlib.suppress(ConnectionError):
            for _ in range(40 if is_huge else 1):
                await answer.write(b'{"choices": [' + b" " * 2**20)
        assert request.transport is not None
        request.transport.close()
        return answer


def _chat_completion(
    text: str | None, *, finish_reason: str, usage: dict | None = None, first: list[dict] | None = None
) -> web.Response:
    choice: dict = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    if first:
        choice["logprobs"] = {"content": [{**first[0], "top_logprobs": first}]}
    return web.json_response({"choices": [choice], "usage": usage})


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "code": status}}, status=status)
