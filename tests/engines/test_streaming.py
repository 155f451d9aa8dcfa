"""Completions piece by piece: the same text, counts and errors as in one piece."""

import asyncio
import json

import pytest

from moaa_ray.engines.base import EngineDeadError, RequestError, WritingEngine
from moaa_ray.engines.endpoint_stream import pieces_of
from moaa_ray.engines.fake import FakeEngine
from moaa_ray.engines.openai import OpenaiEngine
from moaa_ray.settings.models import FakeModel, OpenaiModel
from moaa_ray.types import Completion, Request
from tests.engines.contract import ask
from tests.engines.endpoint import Endpoint


async def streamed(engine: WritingEngine, request: Request) -> tuple[list[str], Completion]:
    *pieces, last = [piece async for piece in engine.stream(request)]
    assert isinstance(last, Completion)
    return [str(piece) for piece in pieces], last


async def check_same(engine: WritingEngine) -> None:
    for request in (ask("Hello?"), ask("Hello?", max_tokens=3), ask("Hello again?", seed=9)):
        pieces, last = await streamed(engine, request)
        assert last == await engine.generate(request)
        assert "".join(pieces) == last.text
        assert len(pieces) == last.completion_tokens
        assert all(pieces)


def with_fake(check, **config) -> None:
    async def run():
        engine = FakeEngine(FakeModel(engine="fake", **config))
        await engine.start()
        await check(engine)

    asyncio.run(asyncio.wait_for(run(), 10))


def with_endpoint(check, endpoint: Endpoint) -> None:
    async def run():
        async with endpoint.serve():
            engine = OpenaiEngine(OpenaiModel(engine="openai", model="fake", base_url=endpoint.url))
            await engine.start()
            try:
                await check(engine)
            finally:
                await engine.stop()

    asyncio.run(asyncio.wait_for(run(), 10))


def test_a_fake_streams_what_it_generates():
    with_fake(check_same)
    with_fake(check_same, tokens_per_s=100_000)


def test_an_endpoint_streams_what_it_generates():
    with_endpoint(check_same, Endpoint())


def test_pieces_come_when_they_are_written():
    async def check(engine: FakeEngine) -> None:
        began = asyncio.get_running_loop().time()
        times = [asyncio.get_running_loop().time() - began async for _ in engine.stream(ask("Hello?"))]
        assert times[0] < 0.1  # a word takes 10 ms, all twenty 200 ms
        assert times[-1] >= 0.2

    with_fake(check, tokens_per_s=100, concurrency=1, completion_tokens=20)


def test_a_closed_stream_gives_its_slot_back():
    async def check(engine: FakeEngine) -> None:
        stream = engine.stream(ask("Hello?"))
        await anext(stream)
        await stream.aclose()  # pyright: ignore[reportAttributeAccessIssue]: a generator
        pieces, _ = await streamed(engine, ask("And now?", max_tokens=2))
        assert len(pieces) == 2

    with_fake(check, tokens_per_s=1000, concurrency=1)


def test_a_death_between_two_pieces_is_told():
    async def check(engine: FakeEngine) -> None:
        stream = engine.stream(ask("Hello?"))
        await anext(stream)
        await engine.stop()
        with pytest.raises(EngineDeadError):
            await anext(stream)

    with_fake(check, tokens_per_s=1000, concurrency=1)


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (Endpoint(troubles=["429 1"]), "rate_limited"),
        (Endpoint(troubles=["500"]), "http_5xx"),
        (Endpoint(troubles=["401"]), "auth"),
        (Endpoint(troubles=["garbage"]), "bad_body"),
        (Endpoint(troubles=["disconnect"]), "connect"),
        (Endpoint(is_cut=True), "bad_body"),
    ],
    ids=["429", "500", "401", "garbage", "disconnect", "cut"],
)
def test_trouble_with_an_endpoint_has_the_reason_that_it_has_in_one_piece(endpoint, reason):
    async def check(engine: OpenaiEngine) -> None:
        with pytest.raises(RequestError) as caught:
            await streamed(engine, ask("Hello?"))
        assert caught.value.reason == reason

    with_endpoint(check, endpoint)


def test_a_stream_reads_the_same_wherever_its_bytes_are_cut():
    chunk = {"choices": [{"delta": {"content": "wört\n"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 2}}
    data = b"\r\nevent: x\r\n: no\r\ndata:" + json.dumps(chunk, ensure_ascii=False).encode() + b"\r\n\r\ndata: [DONE]\n"

    async def read(size: int) -> list:
        async def chunks():
            for at in range(0, len(data), size):
                yield data[at : at + size]

        return [piece async for piece in pieces_of(chunks(), flags=())]

    whole = asyncio.run(read(len(data)))
    assert whole[0] == "wört\n"
    assert (whole[1].text, whole[1].prompt_tokens, whole[1].finish_reason) == ("wört\n", 2, "stop")
    assert all(asyncio.run(read(size)) == whole for size in (1, 2, 3, 7, 50))


@pytest.mark.parametrize("data", [b"data: {\n", b"data: 3\n", b'data: {"choices":3}\n', b"data: [DONE]\n", b"", b"x"])
def test_what_is_no_stream_is_a_failure(data):
    async def read() -> None:
        async def chunks():
            yield data

        async for _ in pieces_of(chunks(), flags=()):
            pass

    with pytest.raises(RequestError, match="bad_body"):
        asyncio.run(read())


def test_an_error_inside_a_stream_is_told():
    async def read() -> None:
        async def chunks():
            yield b'data: {"error": {"message": "overloaded"}}\n'

        async for _ in pieces_of(chunks(), flags=()):
            pass

    with pytest.raises(RequestError, match=r"stream_error: the endpoint broke off: .*overloaded"):
        asyncio.run(read())


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (["a\ud83d", "\ude00b"], ["a", "\U0001f600b"]),
        (["a\ud83d", "", "b"], ["a", "\ufffdb"]),
        (["\udc00", "a", "\ud83d"], ["\ufffd", "a", "\ufffd"]),
    ],
)
def test_a_character_that_is_cut_between_two_pieces_comes_whole(sent, told):
    async def lines():
        for i, piece in enumerate(sent):
            choice = {"delta": {"content": piece}, "finish_reason": "stop" if i == len(sent) - 1 else None}
            yield b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    async def run():
        return [piece async for piece in pieces_of(lines(), flags=())]

    *pieces, last = asyncio.run(run())
    assert pieces == told
    assert isinstance(last, Completion)
    assert last.text == "".join(told)
