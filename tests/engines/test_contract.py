"""One contract over every engine."""

import asyncio
import os
import socket
import subprocess
import sys
import urllib.request

import pytest

from moaa_ray.demo.tiny import make_tiny_model
from moaa_ray.engines.build import build_engine
from moaa_ray.settings.models import FakeModel, OpenaiModel
from tests.engines.contract import check_contract
from tests.engines.endpoint import Endpoint

_WINDOW = 512


def test_the_fake_engine_keeps_the_contract():
    config = FakeModel(engine="fake", context_window=_WINDOW)
    asyncio.run(check_contract(lambda: build_engine(config)))


def test_the_fake_engine_keeps_the_contract_while_it_waits():
    config = FakeModel(engine="fake", context_window=_WINDOW, tokens_per_s=50_000, concurrency=4, length_sigma=0.5)
    asyncio.run(check_contract(lambda: build_engine(config)))


def test_an_endpoint_keeps_the_contract():
    async def check():
        async with Endpoint(window=_WINDOW).serve() as endpoint:
            config = OpenaiModel(engine="openai", model="fake", base_url=endpoint.url, context_window=_WINDOW)
            await check_contract(lambda: build_engine(config))

    asyncio.run(check())


@pytest.mark.long
def test_the_server_of_vllm_keeps_the_contract(tmp_path):
    model = make_tiny_model(tmp_path / "tiny", seed=1, window=_WINDOW)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    command += ["--served-model-name", "tiny", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    command += ["--dtype", "float32", "--max-num-seqs", "16", "--no-enable-chunked-prefill"]
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | settings)
        try:
            config = OpenaiModel(engine="openai", model="tiny", base_url=f"http://127.0.0.1:{port}/v1")
            asyncio.run(_wait_until_healthy(server, port))
            asyncio.run(check_contract(lambda: build_engine(config)))
        finally:
            server.terminate()
            server.wait(timeout=30)


async def _wait_until_healthy(server: subprocess.Popen, port: int) -> None:
    for _ in range(240):
        assert server.poll() is None, "vLLM's server ended; see server.log"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            await asyncio.sleep(0.5)
    raise AssertionError("vLLM's server was not ready after 120 s")
