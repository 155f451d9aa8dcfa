"""Servers for whole runs, each in a thread of the test's own process: a chat endpoint, an object store."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.engines.endpoint import Endpoint


@contextlib.contextmanager
def chat_endpoint(*, port: int = 0, **fields) -> Iterator[Endpoint]:
    """The tests' OpenAI-compatible endpoint."""
    loop, endpoint = asyncio.new_event_loop(), Endpoint(**fields)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    serving = endpoint.serve(port=port)
    asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result(60)
    try:
        yield endpoint
    finally:
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def free_port() -> int:
    """A port on which nobody answers."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def s3_bucket(name: str) -> Iterator[None]:
    """Moto's S3 with an empty bucket, where this process and its children look for S3."""
    from moto.moto_api._internal import moto_api_backend
    from moto.server import ThreadedMotoServer

    moto_api_backend.reset()  # all of moto's servers in one process share their buckets
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as env:
        env.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        env.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for secret in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            env.setenv(secret, "testing")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(name)
        yield
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()
