"""The fake engine: its text, its faults, its latency model."""

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from moaa_ray.engines.base import EngineDeadError, EngineStartError, RequestError
from moaa_ray.engines.fake import FakeEngine
from moaa_ray.settings.models import FakeModel
from moaa_ray.types import Completion, Message, Request
from tests.engines.contract import again, ask


async def _started(**settings) -> FakeEngine:
    engine = FakeEngine(FakeModel(engine="fake", **settings))
    await engine.start()
    return engine


def _generate(request: Request, **settings) -> Completion:
    async def run():
        return await (await _started(**settings)).generate(request)

    return asyncio.run(run())


def test_the_text_depends_on_messages_sampling_and_seed_and_on_nothing_else():
    request = ask("Why?", seed=3)
    text = _generate(request).text
    assert _generate(replace(request, id="other", row_id="other", flags=("x",)), concurrency=7, model="m").text == text
    assert _generate(replace(request, seed=4)).text != text
    assert _generate(replace(request, sampling=replace(request.sampling, temperature=0.5))).text != text
    assert _generate(ask("Why not?", seed=3)).text != text


def test_moving_text_between_messages_changes_the_answer():
    first = replace(ask("x"), messages=(Message(role="user", content="ab"), Message(role="user", content="c")))
    second = replace(ask("x"), messages=(Message(role="user", content="a"), Message(role="user", content="bc")))
    assert _generate(first).text != _generate(second).text


def test_a_larger_max_tokens_only_makes_the_text_longer():
    short, long = _generate(ask("Go on", max_tokens=5)), _generate(ask("Go on", max_tokens=100))
    assert (short.finish_reason, short.completion_tokens) == ("length", 5)
    assert (long.finish_reason, long.completion_tokens) == ("stop", 48)
    assert long.text.startswith(short.text)


def test_lengths_are_log_normal_around_the_mean():
    async def run():
        engine = await _started(completion_tokens=100, length_sigma=0.8)
        return [(await engine.generate(ask("x", seed=seed, max_tokens=5000))).completion_tokens for seed in range(2000)]

    lengths = sorted(asyncio.run(run()))
    assert 90 < sum(lengths) / len(lengths) < 110
    assert 65 < lengths[1000] < 80  # the median is 100 * exp(-0.32) = 72.6
    assert lengths[-1] > 500


def test_a_stop_string_ends_the_text_before_it():
    request = ask("x", max_tokens=100)
    whole = _generate(request).text
    word = whole.split()[3]
    cut = _generate(replace(request, sampling=replace(request.sampling, stop=(word,))))
    assert cut.text == whole[: whole.find(word)]
    assert cut.finish_reason == "stop"


def test_a_choice_is_one_of_the_choices_and_the_seed_picks_it():
    sampling = replace(ask("x").sampling, choice=("yes", "no"))
    texts = {_generate(replace(ask("x", seed=seed), sampling=sampling)).text for seed in range(20)}
    assert texts == {"yes", "no"}


def test_a_json_schema_is_obeyed():
    schema = {
        "type": "object",
        "properties": {
            "score": {"type": "integer", "minimum": 1, "maximum": 5},
            "winner": {"enum": ["A", "B"]},
            "why": {"type": "array", "items": {"type": "string"}, "minItems": 2},
        },
    }
    sampling = replace(ask("x", max_tokens=200).sampling, json_schema=json.dumps(schema))
    for seed in range(20):
        answer = json.loads(_generate(replace(ask("x", seed=seed), sampling=sampling)).text)
        assert 1 <= answer["score"] <= 5
        assert answer["winner"] in ("A", "B")
        assert len(answer["why"]) == 2


def test_a_regex_is_refused_and_the_message_says_what_works():
    with pytest.raises(RequestError, match="use choice or json_schema"):
        _generate(replace(ask("x"), sampling=replace(ask("x").sampling, regex="[1-5]")))


def test_without_a_system_role_the_system_text_counts_as_the_users():
    folded = replace(ask("x"), messages=(Message(role="user", content="Be brief.\n\nWhy?"),))
    assert _generate(ask("Why?", system="Be brief."), system_role=False).text == _generate(folded).text


def test_the_completion_ends_at_the_window_at_the_latest():
    completion = _generate(ask("one two", max_tokens=100), context_window=16)
    assert (completion.prompt_tokens, completion.completion_tokens) == (6, 10)
    assert completion.finish_reason == "length"


@pytest.mark.parametrize(("kind", "retryable"), [("error", True), ("refuse", False)])
def test_a_fault_strikes_where_its_pattern_stands_in_the_last_user_turn(kind, retryable):
    faults = {"BAD": kind}
    with pytest.raises(RequestError) as raised:
        _generate(ask("a BAD one"), faults=faults)
    assert raised.value.retryable is retryable
    assert _generate(ask("a good one", system="BAD"), faults=faults).text


def test_a_flaky_request_works_at_its_third_attempt():
    async def run():
        engine = await _started(faults={"BAD": "flaky"})
        for _ in range(2):
            with pytest.raises(RequestError, match="fake_flaky"):
                await engine.generate(ask("BAD"))
        with pytest.raises(RequestError):  # another request counts for itself
            await engine.generate(again(ask("BAD")))
        return await engine.generate(ask("BAD"))

    assert asyncio.run(run()).text == _generate(ask("BAD")).text


def test_empty_and_long_are_completions():
    assert _generate(ask("BAD"), faults={"BAD": "empty"}).text == ""
    long = _generate(ask("BAD", max_tokens=77), faults={"BAD": "long"})
    assert (long.finish_reason, long.completion_tokens) == ("length", 77)


def test_death_takes_all_open_requests_and_all_later_ones():
    async def run():
        engine = await _started(faults={"KILL": "dead", "HANG": "hang"}, tokens_per_s=1, concurrency=2)
        texts = ("HANG", "slow", "slow too", "queued")
        tasks = [asyncio.create_task(engine.generate(ask(text))) for text in texts]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in tasks)
        with pytest.raises(EngineDeadError, match="fault on demand"):
            await engine.generate(ask("KILL"))
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)
        assert all(isinstance(answer, EngineDeadError) for answer in answers)
        with pytest.raises(EngineDeadError):
            await engine.generate(ask("fine"))

    asyncio.run(run())


def test_a_hanging_request_can_be_cancelled():
    async def run():
        engine = await _started(faults={"HANG": "hang"})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.generate(ask("HANG")), 0.02)
        return await engine.generate(ask("fine"))

    assert asyncio.run(run()).text


def test_exit_ends_the_process():
    program = (
        "import asyncio; from tests.engines import test_fake as t; t._generate(t.ask('BAD'), faults={'BAD': 'exit'})"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 1


def test_an_engine_that_cannot_start_says_so():
    with pytest.raises(EngineStartError, match="start_fails"):
        asyncio.run(_started(faults={"": "start_fails"}))


def test_a_stopped_engine_answers_nothing():
    async def run():
        engine = await _started()
        await engine.stop()
        await engine.generate(ask("x"))

    with pytest.raises(EngineDeadError, match="stopped"):
        asyncio.run(run())


@pytest.mark.parametrize(("num_requests", "expected_s"), [(1, 0.2), (4, 0.2), (8, 0.4)])
def test_a_lone_request_runs_at_slot_speed_and_a_full_batch_at_engine_speed(num_requests, expected_s):
    """20 words at 400 tokens/s over 4 slots are 100 tokens/s a slot: 0.2 s; eight requests are two rounds."""

    async def run():
        engine = await _started(completion_tokens=20, tokens_per_s=400, concurrency=4)
        began = time.monotonic()
        await asyncio.gather(*(engine.generate(ask("x", number=i)) for i in range(num_requests)))
        return time.monotonic() - began

    assert expected_s - 0.01 < asyncio.run(run()) < expected_s + 0.15


def test_cancelled_requests_give_their_slots_back():
    async def run():
        engine = await _started(completion_tokens=20, tokens_per_s=400, concurrency=1)
        tasks = [asyncio.create_task(engine.generate(ask("x", number=i))) for i in range(5)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return await asyncio.wait_for(engine.generate(ask("x")), 1)

    assert asyncio.run(run()).text


def test_the_logprobs_of_the_first_token_begin_with_the_first_word_and_halve():
    request = ask("Hi")
    asked = _generate(replace(request, sampling=replace(request.sampling, logprobs=3)))
    tokens = list(dict.fromkeys(asked.text.split()))[:3]
    assert [token for token, _ in asked.first_logprobs] == tokens
    assert [logprob for _, logprob in asked.first_logprobs] == pytest.approx([-0.6931, -1.3863, -2.0794], abs=1e-4)
    assert _generate(request).first_logprobs == ()
    assert _generate(request).text == asked.text
