"""What every engine must do, as one check over any of them."""

import asyncio
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import exp

import pytest

from moaa_ray.engines.base import Engine, RequestError
from moaa_ray.types import Completion, Message, Request, Sampling


def ask(
    text: str, *, number: int = 0, seed: int = 1, max_tokens: int = 32, temperature: float = 1.0, system: str = ""
) -> Request:
    """A request with one user turn, and a system turn if given."""
    messages = [Message(role="user", content=text)]
    if system:
        messages.insert(0, Message(role="system", content=system))
    return Request(
        id=f"{text[:20]}-{number}-{seed}-{max_tokens}",
        row_id=text[:20],
        messages=tuple(messages),
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature),
        seed=seed,
    )


async def check_contract(make_engine: Callable[[], Engine], *, num_requests: int = 24) -> None:
    """Raises AssertionError where the engine breaks the contract of moaa_ray/engines/base.py."""
    engine = make_engine()
    await engine.start()
    try:
        await _each_request_gets_its_own_answer(engine, num_requests)
        await _the_seed_decides(engine)
        await _completions_end_at_max_tokens(engine)
        await _long_prompts_are_refused(engine)
        await _the_first_tokens_logprobs_come_when_asked_for(engine)
        await _cancelling_one_leaves_the_others(engine)
        _counts_grow(engine)
    finally:
        await engine.stop()
    await engine.stop()


async def _each_request_gets_its_own_answer(engine: Engine, num_requests: int) -> None:
    requests = [ask(f"Question {i}?", number=i, seed=i, system="Be brief.") for i in range(num_requests)]
    before = copy.deepcopy(requests)
    together = await asyncio.gather(*(engine.generate(request) for request in requests))
    assert requests == before, "generate changed what it was given"
    alone = [await engine.generate(again(request)) for request in requests[:4]]
    assert [c.text for c in together[:4]] == [c.text for c in alone], "answers belong to other requests"
    for completion in together:
        assert isinstance(completion, Completion)
        assert completion.finish_reason in ("stop", "length")
        assert completion.prompt_tokens > 0
        assert 0 <= completion.completion_tokens <= 32
    assert len({c.text for c in together}) > num_requests // 2


def again(request: Request) -> Request:
    """The same request under another id, as a second attempt has it."""
    return Request(
        id=request.id + "/again",
        row_id=request.row_id,
        messages=request.messages,
        sampling=request.sampling,
        seed=request.seed,
    )


async def _the_seed_decides(engine: Engine) -> None:
    first, same, other = await asyncio.gather(
        *(engine.generate(ask("Say anything.", number=n, seed=seed)) for n, seed in enumerate((7, 7, 8)))
    )
    assert first.text == same.text
    assert first.text != other.text


async def _completions_end_at_max_tokens(engine: Engine) -> None:
    completion = await engine.generate(ask("Go on for long.", max_tokens=2))
    assert completion.finish_reason == "length"
    assert completion.completion_tokens == 2


async def _the_first_tokens_logprobs_come_when_asked_for(engine: Engine) -> None:
    request = ask("Which word comes first?", temperature=0.0)
    asked = await engine.generate(replace(request, sampling=replace(request.sampling, logprobs=3)))
    logprobs = [logprob for _, logprob in asked.first_logprobs]
    assert len(logprobs) == 3
    assert logprobs == sorted(logprobs, reverse=True)
    assert sum(map(exp, logprobs)) < 1.0001
    assert asked.text.startswith(asked.first_logprobs[0][0].strip())
    assert (await engine.generate(again(request))).first_logprobs == ()


async def _long_prompts_are_refused(engine: Engine) -> None:
    assert engine.window > 0
    with pytest.raises(RequestError, match="context_length") as raised:
        await engine.generate(ask("word " * (engine.window + 10)))
    assert raised.value.reason == "context_length"
    assert raised.value.retryable is False


async def _cancelling_one_leaves_the_others(engine: Engine) -> None:
    tasks = [asyncio.create_task(engine.generate(ask("Wait.", number=i, seed=i))) for i in range(6)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(a, Completion) for a in answers[1::2])
    assert isinstance(await engine.generate(ask("Still there?")), Completion)


def _counts_grow(engine: Engine) -> None:
    short: Sequence[Message] = ask("one two three").messages
    longer = ask("one two three four five six seven eight nine ten").messages
    assert 0 < engine.count_tokens(short) < engine.count_tokens(longer)
    assert engine.count_tokens(short) < engine.count_tokens((*short, *short))
