"""The endpoint over HTTP, without Ray: routes, keys, limits, both kinds of answers, the mixture."""

import asyncio
import json
from pathlib import Path

import openai
import pytest

from moaa_ray.core.passes import Room
from moaa_ray.data.sources import ingest
from moaa_ray.generation.todo import first_rows
from moaa_ray.lines.mixture import AGGREGATE
from moaa_ray.serving.keys import Keys
from moaa_ray.settings.prompts import PromptsConfig, SourceConfig
from moaa_ray.types import Completion
from tests.serving.local import Endpoint, endpoint, events, run

KEY = "a-key-of-twenty-chars"


async def generated(served: Endpoint, folder: Path, text: str) -> str:
    """The mixture's answer to a prompt as the generate stage reads and answers it: every pass asked and folded."""
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": text}), encoding="utf-8")
    prompts = PromptsConfig(sources=[SourceConfig(path="prompts.jsonl")])
    read = ingest(prompts, seed=0, base_dir=str(folder))
    (row,) = first_rows(read.batches(), read.turn_modes)
    for p in served.offer.mixture:
        engine = served.models.servers[p.engine]._engine
        requests = p.ask(row, Room(window=engine.window, count_tokens=engine.count_tokens))
        row = p.fold(row, {request.id: await engine.generate(request) for request in requests})
    answer = row.answers[AGGREGATE][0]
    assert isinstance(answer, Completion)
    return answer.text


def test_a_served_answer_is_the_generated_one_for_the_same_seed(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            expected = await generated(served, tmp_path, "Why is the sea salty?")
            reply = await served.chat("mixture", "Why is the sea salty?", seed=7)  # the recipe's own seed
            assert reply.json()["choices"][0]["message"]["content"] == expected

    run(check())


def test_usage_adds_up_over_all_models(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, models={"a": {"completion_tokens": 20}}) as served:
            usage = (await served.chat("mixture", "Hello there!")).json()["usage"]
            # A prompt of two words costs 2 + 4; a, b and c write 20, 12 and 12 words, the aggregator 12.
            by_model = usage["by_model"]
            assert {name: by_model[name]["completion_tokens"] for name in by_model} == {
                "a": 20,
                "b": 12,
                "c": 12,
                "agg": 12,
            }
            assert [by_model[name]["prompt_tokens"] for name in "abc"] == [6, 6, 6]
            assert usage["completion_tokens"] == 56
            assert usage["prompt_tokens"] == 18 + by_model["agg"]["prompt_tokens"]
            assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

    run(check())


def test_a_stream_has_openais_shape_and_the_text_of_the_whole_answer(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            whole = (await served.chat("mixture", seed=1)).json()
            reply = await served.chat("mixture", seed=1, stream=True, stream_options={"include_usage": True})
            assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
            first, *middle, end, usage, done = events(reply.text)
            assert done == "data: [DONE]"
            assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
            text = "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle)
            assert text == whole["choices"][0]["message"]["content"]
            assert middle
            assert end["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
            assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
            assert {chunk["object"] for chunk in (first, *middle, end, usage)} == {"chat.completion.chunk"}
            assert len({chunk["id"] for chunk in (first, *middle, end, usage)}) == 1
            assert all(chunk["usage"] is None for chunk in (first, *middle, end))

    run(check())


def test_a_stream_without_include_usage_counts_nothing(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            *chunks, _ = events((await served.chat("a", stream=True)).text)
            assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)

    run(check())


def test_stop_max_tokens_and_seed_are_honoured_by_a_single_model_and_by_the_mixture(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            for name in ("a", "mixture"):
                full = (await served.chat(name, seed=5)).json()["choices"][0]["message"]["content"]
                assert (await served.chat(name, seed=5)).json()["choices"][0]["message"]["content"] == full
                assert (await served.chat(name, seed=6)).json()["choices"][0]["message"]["content"] != full
                cut = (await served.chat(name, seed=5, max_tokens=3)).json()["choices"][0]
                assert cut["message"]["content"] == " ".join(full.split()[:3])
                assert cut["finish_reason"] == "length"
                stop = full.split()[4]
                stopped = (await served.chat(name, seed=5, stop=stop)).json()["choices"][0]
                assert stopped["message"]["content"] == full[: full.index(stop)].strip()
                assert stopped["finish_reason"] == "stop"

    run(check())


def test_a_proposer_that_is_down_is_named_in_the_headers_and_the_answer_comes(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, models={"b": {"faults": {"sick": "error"}}}) as served:
            well, sick = await served.chat("mixture", "well"), await served.chat("mixture", "sick")
            assert well.headers["x-moaa-proposers"] == "3/3"
            assert "x-moaa-missing" not in well.headers
            assert sick.headers["x-moaa-proposers"] == "2/3"
            assert sick.headers["x-moaa-missing"] == "l0.b (fake_error)"
            streamed = await served.chat("mixture", "sick", stream=True)
            assert streamed.headers["x-moaa-proposers"] == "2/3"
            assert (
                "b" not in sick.json()["usage"]["by_model"]
                or sick.json()["usage"]["by_model"]["b"]["total_tokens"] == 0
            )

    run(check())


def test_a_slow_proposer_is_not_waited_for_beyond_its_time(tmp_path):
    async def check() -> None:
        config = {"serve": {"proposer_timeout_s": 0.05}, "models": {"c": {"faults": {"Hello": "hang"}}}}
        async with endpoint(tmp_path, **config) as served:
            reply = await served.chat("mixture")
            assert reply.headers["x-moaa-missing"] == "l0.c (timeout)"
            await asyncio.sleep(0)
            assert served.models.num_open == 0  # cancelled, not forgotten

    run(check())


def test_too_few_proposals_are_a_503_that_says_why(tmp_path):
    async def check() -> None:
        sick = {name: {"faults": {"Hello": "error"}} for name in "ab"}
        async with endpoint(tmp_path, models=sick, mixture={"min_proposals": 2}) as served:
            reply = await served.chat("mixture", stream=True)
            assert reply.status_code == 503
            assert reply.headers["retry-after"] == "1"
            error = reply.json()["error"]
            assert error["code"] == "too_few_proposals"
            assert "1 proposals of at least 2 (l0.a: fake_error; l0.b: fake_error)" in error["message"]

    run(check())


def test_a_prompt_too_long_for_every_proposer_is_the_clients_fault(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, models={name: {"context_window": 600} for name in "abc"}) as served:
            reply = await served.chat("mixture", "word " * 800)
            assert (reply.status_code, reply.json()["error"]["code"]) == (400, "too_few_proposals")
            assert "l0.c: context_length" in reply.json()["error"]["message"]

    run(check())


def test_a_failed_aggregator_has_its_own_status_also_where_a_stream_was_asked_for(tmp_path):
    async def check() -> None:
        models = {"agg": {"faults": {"ill": "error", "long": "refuse"}, "context_window": 600}}
        async with endpoint(tmp_path, models=models) as served:
            for stream in (False, True):
                reply = await served.chat("mixture", "ill", stream=stream)
                assert (reply.status_code, reply.json()["error"]["code"]) == (503, "fake_error")
                reply = await served.chat("agg", "word " * 800, stream=stream)
                assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")
                assert "prompt of 804 tokens, window of 600" in reply.json()["error"]["message"]

    run(check())


def test_an_engine_that_dies_in_a_stream_breaks_it_off_without_done(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, models={"a": {"tokens_per_s": 6400, "concurrency": 64}}) as served:
            task = asyncio.create_task(served.chat("a", stream=True))
            await asyncio.sleep(0.05)
            await served.models.servers["a"]._engine.stop()
            *_, last = events((await task).text)
            assert isinstance(last, dict)
            assert last["error"]["code"] == "engine_died"
            with pytest.raises(Exception, match="stopped"):
                await served.models.servers["a"].check_health()
            assert (await served.chat("a")).status_code == 503

    run(check())


def test_more_requests_than_the_limit_are_told_to_come_again(tmp_path):
    async def check() -> None:
        slow = {"a": {"tokens_per_s": 6400, "completion_tokens": 20}}  # 64 slots: 0.2 s a completion
        async with endpoint(tmp_path, models=slow, serve={"max_open_requests": 4}) as served:
            replies = await asyncio.gather(*(served.chat("a", f"Question {i}") for i in range(10)))
            statuses = [reply.status_code for reply in replies]
            assert sorted(statuses) == [200] * 4 + [429] * 6
            refused = replies[statuses.index(429)]
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"
            assert served.front.num_open == 0
            assert (await served.chat("a")).status_code == 200

    run(check())


def test_an_answer_that_takes_too_long_is_a_504(tmp_path):
    async def check() -> None:
        hanging = {"a": {"faults": {"Hello": "hang"}}}
        async with endpoint(tmp_path, models=hanging, serve={"request_timeout_s": 0.05}) as served:
            reply = await served.chat("a")
            assert (reply.status_code, reply.json()["error"]["code"]) == (504, "timeout")
            assert served.models.num_open == 0

    run(check())


def test_a_cancelled_exchange_cancels_the_work_behind_it_and_gives_its_place_back(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, models={name: {"faults": {"Hello": "hang"}} for name in ("a", "agg")}) as served:
            for model, stream in (("a", True), ("a", False), ("mixture", True)):
                task = asyncio.create_task(served.chat(model, stream=stream))
                await asyncio.sleep(0.02)
                assert (served.front.num_open, served.models.num_open) == (1, 1)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await asyncio.sleep(0)
                assert (served.front.num_open, served.models.num_open) == (0, 0)

    run(check())


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/v2", 404, "/v2: no such address; there are /health, /ready, /v1/models, /v1/chat/completions"),
        ("GET", "/v1/chat/completions", 405, "GET /v1/chat/completions: not possible; use POST"),
        ("GET", "/v1/models/nope", 404, "model = 'nope': no such model here; valid names: mixture, a, b, c, agg"),
        ("POST", "/v1/completions", 404, "no such address"),
    ],
)
def test_what_is_not_there_is_refused_in_openais_shape(tmp_path, method, path, status, said):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            reply = await served.client.request(method, path)
            assert reply.status_code == status
            assert said in reply.json()["error"]["message"]
            assert set(reply.json()["error"]) == {"message", "type", "param", "code"}

    run(check())


def test_a_prompt_of_ten_megabytes_is_a_413(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            reply = await served.chat("mixture", "x" * 10_000_000)
            assert reply.status_code == 413
            assert reply.json()["error"]["message"].startswith("body: more than 4194304 bytes")

    run(check())


def test_only_those_with_a_key_get_in_and_the_key_is_in_no_reply(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, keys=Keys([KEY, "another-key-of-24-chars"])) as served:
            for shown in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
                reply = await served.client.get("/v1/models", headers=shown)
                assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
            for key in (KEY, "another-key-of-24-chars"):
                assert (await served.client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})).is_success
            assert (await served.client.get("/health")).is_success
            assert (await served.client.get("/ready")).is_success

    run(check())


def test_ready_bears_missing_proposers_but_no_missing_aggregator(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, mixture={"min_proposals": 2}) as served:
            for down, status in (({"b"}, 200), ({"b", "c"}, 503), ({"agg"}, 503), (set(), 200)):
                served.models.down = down
                assert (await served.client.get("/ready")).status_code == status
            assert (await served.client.get("/health")).status_code == 200

    run(check())


def test_the_official_client_reads_answers_streams_and_errors(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            client = openai.AsyncOpenAI(
                base_url="http://local/v1", api_key="none", http_client=served.client, max_retries=0
            )
            messages = [{"role": "user", "content": "Hello!"}]
            assert [model.id async for model in client.models.list()] == ["mixture", "a", "b", "c", "agg"]
            whole = await client.chat.completions.create(model="mixture", messages=messages, seed=3)
            stream = await client.chat.completions.create(model="mixture", messages=messages, seed=3, stream=True)
            assert "".join([c.choices[0].delta.content or "" async for c in stream]) == whole.choices[0].message.content
            for kind, fields in (
                (openai.NotFoundError, {"model": "nope"}),
                (openai.BadRequestError, {"model": "a", "temperature": 9}),
            ):
                with pytest.raises(kind):
                    await client.chat.completions.create(**{"messages": messages, **fields})

    run(check())


def test_text_that_looks_like_an_event_stays_text(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            forged = 'x\n\ndata: [DONE]\n\ndata: {"a": 1}\r\n\u2028'
            message = {"model": "agg", "messages": [{"role": "user", "content": forged}], "stream": True}
            reply = await served.client.post("/v1/chat/completions", content=json.dumps(message))
            assert events(reply.text)[-1] == "data: [DONE]"

    run(check())


PAGE, OTHER = "http://localhost:3000", "https://evil.example"
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, x-stainless-os"}


def test_a_page_of_an_allowed_origin_may_ask_after_a_preflight_without_a_key(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path, keys=Keys([KEY]), serve={"allow_origins": [PAGE]}) as served:
            ask = served.client.request
            before = await ask("OPTIONS", "/v1/chat/completions", headers={"origin": PAGE, **PREFLIGHT})
            assert (before.status_code, before.content) == (204, b"")
            assert before.headers["access-control-allow-origin"] == PAGE
            assert before.headers["access-control-allow-headers"] == "authorization, x-stainless-os"
            refused = await ask("GET", "/v1/models", headers={"origin": PAGE})
            assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, PAGE)
            key = {"authorization": f"Bearer {KEY}"}
            assert (await ask("GET", "/v1/models", headers={"origin": PAGE, **key})).is_success
            for other in (
                await ask("OPTIONS", "/v1/chat/completions", headers={"origin": OTHER, **PREFLIGHT}),
                await ask("GET", "/v1/models", headers={"origin": OTHER, **key}),
            ):
                assert "access-control-allow-origin" not in other.headers
                assert other.headers["vary"] == "origin"

    run(check())


def test_without_origins_in_the_recipe_no_page_may_ask(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            headers = {"origin": PAGE, **PREFLIGHT}
            reply = await served.client.request("OPTIONS", "/v1/chat/completions", headers=headers)
            assert reply.status_code == 405
            assert "access-control-allow-origin" not in reply.headers

    run(check())


def test_what_can_be_got_has_a_head(tmp_path):
    async def check() -> None:
        async with endpoint(tmp_path) as served:
            for path in ("/health", "/ready", "/v1/models"):
                head, whole = await served.client.head(path), await served.client.get(path)
                assert (head.status_code, head.content) == (200, b"")
                assert head.headers["content-length"] == whole.headers["content-length"]
            assert (await served.client.head("/v1/chat/completions")).status_code == 405

    run(check())
