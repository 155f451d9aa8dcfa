"""`moaa serve` as a user runs it: real Ray Serve, fake engines, the official client, many users, a death, ^C."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
import yaml

from tests.serving.local import endpoint, recipe

pytestmark = pytest.mark.slow

MODELS = {
    "b": {"faults": {"fall over": "exit"}},
    "agg": {"tokens_per_s": 6400},  # 0.12 s an answer
}
SLOW = {"engine": "fake", "concurrency": 1, "tokens_per_s": 10, "completion_tokens": 600}  # a minute an answer
NUM_USERS = 1000


class Server:
    def __init__(self, folder: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.data = recipe(models=MODELS, ray={"address": "local"})
        self.data["models"]["slow"] = SLOW
        names = ["mixture", "a", "b", "c", "agg", "slow"]
        self.data["serve"] = {"port": self.port, "max_open_requests": 2 * NUM_USERS, "models": names}
        self.data["serve"]["max_body_bytes"] = 8_000_000
        (folder / "recipe.yaml").write_text(yaml.safe_dump(self.data), encoding="utf-8")
        self.log = folder / "out.txt"
        with self.log.open("w") as out:
            command = [sys.executable, "-m", "moaa_ray", "serve", str(folder / "recipe.yaml")]
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        self.url = f"http://127.0.0.1:{self.port}"

    def wait(self) -> None:
        ends = time.monotonic() + 180
        while "serving at" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends, self.log.read_text()
            time.sleep(0.5)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("serve"))
    try:
        started.wait()
        yield started
    finally:
        if started.process.poll() is None:
            started.process.send_signal(signal.SIGTERM)
            started.process.wait(60)


async def ask(client: httpx.AsyncClient, model: str, text: str, **fields) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}], "seed": 7, **fields}
    return await client.post("/v1/chat/completions", json=body)


def text_of(reply: httpx.Response) -> str:
    assert reply.status_code == 200, reply.text
    return reply.json()["choices"][0]["message"]["content"]


def many(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits)


def test_the_official_client_works_and_gets_the_generated_answers(server, tmp_path):
    client = server.client()
    names = [model.id for model in client.models.list()]
    assert names == ["mixture", "a", "b", "c", "agg", "slow"]
    messages = [{"role": "user", "content": "Why is the sea salty?"}]
    raw = client.chat.completions.with_raw_response.create(model="mixture", messages=messages, seed=7)
    whole = raw.parse()
    assert raw.headers["x-moaa-proposers"] == "3/3"

    async def expected() -> str:
        async with endpoint(tmp_path, models=MODELS) as local:
            return text_of(await ask(local.client, "mixture", messages[0]["content"]))

    assert whole.choices[0].message.content == asyncio.run(expected())
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(model="mixture", messages=messages, seed=7, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert last.usage.total_tokens == whole.usage.total_tokens
    with pytest.raises(openai.NotFoundError, match="valid names: mixture, a, b, c, agg, slow"):
        client.chat.completions.create(model="nope", messages=messages)
    long = [{"role": "user", "content": "x" * 5_000_000}]  # gRPC's own limit is 4 MiB
    assert client.chat.completions.create(model="mixture", messages=long).choices[0].message.content
    with pytest.raises(openai.APIStatusError, match="more than 8000000 bytes") as caught:
        client.chat.completions.create(model="a", messages=[{"role": "user", "content": "x" * 10_000_000}])
    assert caught.value.status_code == 413
    assert httpx.get(f"{server.url}/ready", timeout=30).status_code == 200


def test_a_client_that_goes_away_frees_the_engine(server):
    client, messages = server.client(), [{"role": "user", "content": "Hello!"}]
    with client.chat.completions.create(model="slow", messages=messages, stream=True) as stream:
        next(iter(stream))
    began = time.monotonic()  # the engine has one slot, and its answer would take a minute
    client.chat.completions.create(model="slow", messages=messages, max_tokens=2)
    assert time.monotonic() - began < 20


def test_a_thousand_users_at_once_each_get_their_own_answer(server, tmp_path):
    models = ("mixture", "a", "c", "agg", "a", "c", "agg", "a")
    asked = [(models[i % 8], f"Question number {i}?", i % 16 < 8) for i in range(NUM_USERS)]

    async def one(client: httpx.AsyncClient, model: str, text: str, is_stream: bool) -> str:
        reply = await ask(client, model, text, stream=is_stream)
        if not is_stream:
            return text_of(reply)
        assert reply.status_code == 200, reply.text
        *events, done, _ = reply.text.split("\n\n")
        assert done == "data: [DONE]"
        return "".join(json.loads(event[6:])["choices"][0]["delta"].get("content", "") for event in events)

    async def run() -> tuple[list[str], list[str]]:
        async with many(server) as client:
            served = await asyncio.gather(*(one(client, *each) for each in asked))
        async with endpoint(tmp_path, models=MODELS, serve={"max_open_requests": NUM_USERS}) as local:
            expected = [text_of(await ask(local.client, model, text)) for model, text, _ in asked[:400]]
        return served, expected

    served, expected = asyncio.run(run())
    assert served[:400] == expected
    assert len(set(served)) == NUM_USERS


def test_a_proposer_that_dies_under_load_is_missed_and_comes_back(server):
    async def run() -> None:
        async with many(server) as client:
            calm = [ask(client, "mixture", f"Question {i}?") for i in range(100)]
            killers = [ask(client, "mixture", "Please fall over.")]
            replies = await asyncio.gather(*calm[:50], *killers, *calm[50:])
            assert [reply.status_code for reply in replies] == [200] * 101
            counts = [reply.headers["x-moaa-proposers"] for reply in replies]
            assert set(counts) <= {"3/3", "2/3"}
            assert replies[50].headers["x-moaa-missing"] == "l0.b (unavailable)"
            ends = time.monotonic() + 120
            while (await ask(client, "mixture", "Are you back?")).headers["x-moaa-proposers"] != "3/3":
                assert time.monotonic() < ends
                await asyncio.sleep(0.5)

    asyncio.run(run())


def test_ctrl_c_ends_it_cleanly(server):
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(90) == 0
    assert "stopped; everything is released" in server.log.read_text()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", server.port))


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        data = recipe(serve={"port": port}, ray={"address": "local"})
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
        command = [sys.executable, "-m", "moaa_ray", "serve", str(tmp_path / "recipe.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 2
    assert f"serve.port = {port}: cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.long
def test_a_model_that_cannot_start_ends_it_with_its_name_and_the_reason(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    models = {"b": {"faults": {"any": "start_fails"}}}
    data = recipe(serve={"port": port}, models=models, ray={"address": "local"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    command = [sys.executable, "-m", "moaa_ray", "serve", str(tmp_path / "recipe.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=dict(os.environ))
    assert done.returncode == 4, done.stderr
    told = [line for line in done.stderr.splitlines() if "did not come up" in line]
    assert len(told) == 1, done.stderr
    assert "-b: moaa_ray.engines.base.EngineStartError: fault start_fails" in told[0]
    assert "Traceback" not in done.stderr
