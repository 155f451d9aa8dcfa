"""The endpoint without Ray: real engines of fake models in this process behind the real front."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import httpx
import yaml

from moaa_ray.core.mixture import MixturePass
from moaa_ray.loading import load_preference
from moaa_ray.serving.front import Front
from moaa_ray.serving.keys import Keys
from moaa_ray.serving.mixture import Pieces
from moaa_ray.serving.model_server import ModelServer
from moaa_ray.serving.offer import Offer, offer_of
from moaa_ray.types import Answer, Row

PROPOSERS = ("a", "b", "c")


def recipe(*, serve: dict | None = None, models: dict | None = None, **sections) -> dict:
    """Three proposers and an aggregator, all fake; models: further fields of each, by name."""
    names = (*PROPOSERS, "agg")
    layer = {"proposers": [{"model": name, "max_tokens": 64} for name in PROPOSERS]}
    return {
        "name": "served",
        "seed": 7,
        "models": {name: {"engine": "fake", "completion_tokens": 12, **(models or {}).get(name, {})} for name in names},
        "mixture": {"layers": [layer], "aggregator": {"model": "agg", "max_tokens": 64}, **sections.pop("mixture", {})},
        "serve": serve or {},
        **sections,
    }


def offer(folder: Path, data: dict) -> Offer:
    """What the recipe offers."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return offer_of(load_preference(path, [f"run_dir={json.dumps(str(folder / 'run'))}"]))


class LocalModels:
    """Every engine in this process; what a replica would do, without the way there."""

    def __init__(self, what: Offer):
        self.servers = {name: ModelServer(model, on_gpu=False) for name, model in what.engines.items()}
        self.down: set[str] = set()
        self.num_open = 0

    async def start(self) -> None:
        for server in self.servers.values():
            await server.reconfigure({})

    async def answer(self, p: MixturePass, row: Row) -> dict[str, Answer]:
        self.num_open += 1
        try:
            return await self.servers[p.engine].answer(p, row)
        finally:
            self.num_open -= 1

    async def stream(self, p: MixturePass, row: Row) -> Pieces:
        self.num_open += 1
        try:
            async with aclosing(self.servers[p.engine].stream(p, row)) as batches:
                async for batch in batches:
                    for piece in batch:
                        yield piece
        finally:
            self.num_open -= 1

    async def missing(self) -> list[str]:
        return sorted(self.down)


class Endpoint:
    """A front with its models, and an HTTP client that reaches it without a socket."""

    def __init__(self, what: Offer, keys: Keys):
        self.offer = what
        self.models = LocalModels(what)
        self.front = Front(what, self.models, keys)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.front), base_url="http://local")

    async def chat(self, model: str, text: str = "Hello!", **fields) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return await self.client.post("/v1/chat/completions", json=body)


@asynccontextmanager
async def endpoint(folder: Path, *, keys: Keys | None = None, **data) -> AsyncIterator[Endpoint]:
    """The endpoint of a recipe."""
    served = Endpoint(offer(folder, recipe(**data)), keys or Keys(()))
    await served.models.start()
    async with served.client:
        yield served


def events(text: str) -> list[dict | str]:
    """The data of every event of a stream, checked to be framed as SSE wants it."""
    *parts, rest = text.split("\n\n")
    assert rest == ""
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part if part == "data: [DONE]" else json.loads(part[6:]) for part in parts]


def run(coroutine):
    """The coroutine's result, within 20 s."""
    return asyncio.run(asyncio.wait_for(coroutine, 20))
