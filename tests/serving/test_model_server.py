"""The pieces of a completion on their way from the engine to the ingress."""

import asyncio

import pytest

from moaa_ray.serving.model_server import gathered
from moaa_ray.types import Completion
from tests.serving.local import run

LAST = Completion(text="abcd", finish_reason="stop", prompt_tokens=1, completion_tokens=4)


def test_the_first_piece_goes_at_once_and_later_ones_together_with_the_end():
    async def pieces():
        yield "a"
        await asyncio.sleep(0.01)
        yield "b"
        yield "c"
        await asyncio.sleep(0.2)  # longer than the pieces are held
        yield "d"
        yield LAST

    async def read():
        return [batch async for batch in gathered(pieces(), every_s=0.1)]

    assert run(read()) == [["a"], ["bc"], ["d", LAST]]


def test_the_end_waits_for_nothing():
    async def pieces():
        yield "a"
        await asyncio.sleep(0.01)
        yield LAST

    async def timed() -> float:
        began = asyncio.get_running_loop().time()
        assert [batch async for batch in gathered(pieces(), every_s=60)] == [["a"], [LAST]]
        return asyncio.get_running_loop().time() - began

    assert run(timed()) < 1


def test_an_error_of_the_engine_comes_after_what_was_written():
    async def pieces():
        yield "a"
        raise ValueError("broken")

    batches = gathered(pieces(), every_s=0.01)

    async def read():
        assert await anext(batches) == ["a"]
        with pytest.raises(ValueError, match="broken"):
            await anext(batches)

    run(read())


def test_closing_it_closes_the_engines_stream():
    is_closed = asyncio.Event()

    async def pieces():
        try:
            yield "a"
            await asyncio.sleep(60)
        finally:
            is_closed.set()

    async def close():
        batches = gathered(pieces(), every_s=0.01)
        await anext(batches)
        await batches.aclose()
        await asyncio.wait_for(is_closed.wait(), 1)

    run(close())
    assert is_closed.is_set()
