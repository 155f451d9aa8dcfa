"""What `moaa serve` adds to what its engines take: latency of the mixture, requests/s beside what stands below it.

    python benchmarks/serving.py --repeats 3 --out benchmarks/results/serving_<where>.json
    python benchmarks/serving.py --only ray_llm --repeats 2 --out ...

mixture   the served mixture of fakes of known speed, one client: seconds to the first token and to the last, and how
          much that is above the slowest proposer plus the aggregator (to its first token, to its end)
serve     requests/s of one fake engine that takes no time: ours, and a bare Serve deployment that answers with a
          constant through one hop, the least that any ingress in front of a model does
ray_llm   requests/s of one real vLLM engine on the CPU: ours, and the application of `ray.serve.llm`, each with an
          engine of its own and the same arguments, both up at the same time and asked in turns

ratio is ours over the other, of requests/s. cpu_ms is CPU time of all Ray processes over requests, which a busy
machine disturbs less. The variants are interleaved.
"""

import argparse
import asyncio
import json
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import _common
import aiohttp
import psutil

PORT = 8571
URL = f"http://127.0.0.1:{PORT}"
MODEL = Path(__file__).parents[1] / "jobs" / "models" / "aggregator"
TOKEN_MS, WORDS, AGGREGATOR_WORDS = 10, {"a": 20, "b": 30, "c": 10}, 25
CPU_ENGINE = {"enforce_eager": True, "dtype": "float32", "enable_chunked_prefill": False, "max_model_len": 1024}
LLM_SLOTS = 64
CPU_ENV = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def fakes(folder: Path, *, tokens_per_s: float) -> Path:
    """Three proposers and an aggregator, each with slots for all clients."""
    words = {**WORDS, "agg": AGGREGATOR_WORDS}
    speed = {"concurrency": 256, "tokens_per_s": 256 * tokens_per_s}
    models = {name: {"completion_tokens": num, **speed} for name, num in words.items()}
    path = _common.write_recipe(folder, f"fakes-{tokens_per_s:g}", folder / "none.jsonl", models)
    recipe = {**json.loads(path.read_text()), "serve": {"port": PORT, "max_open_requests": 4096}}
    path.write_text(json.dumps(recipe))
    return path


@contextmanager
def ray_serve() -> Iterator[None]:
    from ray import serve
    from ray.serve.config import HTTPOptions

    from moaa_ray.generation.session import session
    from moaa_ray.recipe import RayConfig
    from moaa_ray.serving.run import make_quick

    make_quick()  # for all contenders
    with session(RayConfig(address="local"), cpu_slots=12):
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=PORT))
        try:
            yield
        finally:
            serve.shutdown()


def ours(recipe: Path, route: str, **overrides: object) -> None:
    """Our application, up."""
    from ray import serve

    from moaa_ray.loading import load_preference
    from moaa_ray.serving.app import app_of, engines_on_gpu
    from moaa_ray.serving.offer import offer_of

    loaded = load_preference(recipe, [f"{key}={json.dumps(value)}" for key, value in overrides.items()])
    offer = offer_of(loaded)
    app = app_of(offer, on_gpu=engines_on_gpu(offer, has_gpus=False))
    serve.run(app, name=route.strip("/"), route_prefix=route)


def bare(route: str) -> None:
    """Two deployments that do nothing: one in front, one behind it."""
    from ray import serve

    @serve.deployment(max_ongoing_requests=256, ray_actor_options={"num_cpus": 0.1})
    class Behind:
        async def answer(self, text: str) -> str:
            return text

    @serve.deployment(max_ongoing_requests=100_000)
    class InFront:
        def __init__(self, behind):
            self._behind = behind

        async def __call__(self, request) -> dict:
            body = await request.json()
            return {"text": await self._behind.answer.remote(body["messages"][0]["content"])}

    serve.run(InFront.bind(Behind.bind()), name=route.strip("/"), route_prefix=route)


def ray_llm(route: str, *, stream_ms: int | None) -> None:
    """The application of ray.serve.llm for the same model."""
    from ray import serve
    from ray.serve.llm import LLMConfig, build_openai_app

    config = LLMConfig(
        model_loading_config={"model_id": "aggregator", "model_source": str(MODEL)},
        engine_kwargs={**CPU_ENGINE, "max_num_seqs": LLM_SLOTS},
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": 1}]},
        deployment_config={"num_replicas": 1, "max_ongoing_requests": 4096},
        runtime_env={"env_vars": {**CPU_ENV, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}},
        experimental_configs={} if stream_ms is None else {"stream_batching_interval_ms": stream_ms},
        log_engine_metrics=False,
    )
    ingress = {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}
    args = {"llm_configs": [config], "ingress_deployment_config": ingress}
    serve.run(build_openai_app(args), name=route.strip("/"), route_prefix=route)


async def exchange(client: aiohttp.ClientSession, route: str, body: dict) -> tuple[float, float]:
    """Seconds to the first event with text in it, and to the end, of one streamed answer."""
    began, first = time.perf_counter(), 0.0
    async with client.post(f"{URL}{route}/v1/chat/completions", json=body) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if not first and b'"content":"' in line.replace(b'"content":""', b""):
                first = time.perf_counter() - began
    return first, time.perf_counter() - began


def asked(model: str, i: int, **fields) -> dict:
    text = f"Question {i}: what is known about the river?"
    return {"model": model, "messages": [{"role": "user", "content": text}], "seed": i, **fields}


async def mixture_latency(num: int) -> dict:
    """Medians of one client's streamed requests, in ms, beside what the engines alone take."""
    async with aiohttp.ClientSession() as client:
        times = [await exchange(client, "/ours", asked("mixture", i, stream=True)) for i in range(num + 5)][5:]
    slowest = max(WORDS.values())
    wanted = {"first_ms": (slowest + 1) * TOKEN_MS, "whole_ms": (slowest + AGGREGATOR_WORDS) * TOKEN_MS}
    found = {"first_ms": [t * 1e3 for t, _ in times], "whole_ms": [t * 1e3 for _, t in times]}
    report = {}
    for key, least in wanted.items():
        median = statistics.median(found[key])
        report |= {key: median, f"{key}_engines": least, f"{key}_added": median - least}
    return report


def cpu_s() -> float:
    """CPU time that all processes of the local Ray have taken so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


async def rate(route: str, num_clients: int, num: int, **body) -> dict:
    """Requests/s of so many clients, each asking again as soon as it has its answer."""
    left = iter(range(num))
    connector = aiohttp.TCPConnector(limit=0)

    async def ask_on(client: aiohttp.ClientSession) -> None:
        for i in left:
            async with client.post(f"{URL}{route}", json=asked(i=i, **body)) as reply:
                assert reply.status == 200, await reply.text()
                await reply.read()

    async with aiohttp.ClientSession(connector=connector) as client:
        cpu, began = cpu_s(), time.perf_counter()
        await asyncio.gather(*(ask_on(client) for _ in range(num_clients)))
        seconds = time.perf_counter() - began
    return {"requests_s": num / seconds, "cpu_ms": (cpu_s() - cpu) / num * 1e3}


def compare(routes: dict[str, str], arguments: argparse.Namespace, **body) -> dict:
    """Every variant at every number of clients, in turns, and the ratio of the first to each other one."""
    first, *others = routes
    report = {}
    for num_clients in arguments.clients:
        num = max(arguments.requests, 2 * num_clients)
        runs: dict[str, list[dict]] = {name: [] for name in routes}
        for _ in range(arguments.repeats):
            for name, route in routes.items():
                runs[name].append(asyncio.run(rate(route, num_clients, num, **body)))
        found: dict = {name: _common.spreads(each, ("requests_s", "cpu_ms")) for name, each in runs.items()}
        for other in others:
            for key in ("requests_s", "cpu_ms"):
                found[f"{key}_ratio_to_{other}"] = found[first][key]["median"] / found[other][key]["median"]
        report[f"clients_{num_clients}"] = found
    return report


def measure(what: str, arguments: argparse.Namespace, folder: Path) -> dict:
    """One of the three questions, with a Ray of its own."""
    chat = "/v1/chat/completions"
    with ray_serve():
        if what == "mixture":
            ours(fakes(folder, tokens_per_s=1000 / TOKEN_MS), "/ours")
            runs = [asyncio.run(mixture_latency(arguments.latency_requests)) for _ in range(arguments.repeats)]
            return _common.spreads(runs, runs[0])
        if what == "serve":
            ours(fakes(folder, tokens_per_s=0), "/ours")
            bare("/bare")
            return compare({"ours": f"/ours{chat}", "bare": "/bare/x"}, arguments, model="a")
        os.environ.update(CPU_ENV)
        ours(
            MODEL.parents[1] / "demo.yaml",
            "/ours",
            **{"serve.models": ["aggregator"], "models.aggregator.concurrency": LLM_SLOTS},
        )
        ray_llm("/ray_llm", stream_ms=arguments.stream_ms)
        routes = {"ours": f"/ours{chat}", "ray_llm": f"/ray_llm{chat}"}
        return {
            kind: compare(routes, arguments, model="aggregator", max_tokens=12, stream=kind == "stream")
            for kind in ("whole", "stream")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("mixture", "serve", "ray_llm"), action="append")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--requests", type=int, default=200, help="of every run; at least two of each client")
    parser.add_argument("--latency-requests", type=int, default=30)
    parser.add_argument("--stream-ms", type=int, help="ray.serve.llm's batching of streams; unset: its default, 50 ms")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    # Ray runs its workers at a low priority, so that anything else on the machine would slow them and not the client.
    os.environ.setdefault("RAY_worker_niceness", "0")
    config = {key: value for key, value in vars(arguments).items() if key != "out"}
    report = _common.about(load, **config, token_ms=TOKEN_MS, words={**WORDS, "agg": AGGREGATOR_WORDS})
    with _common.scratch(None) as folder:
        for what in arguments.only or ("mixture", "serve", "ray_llm"):
            report[what] = measure(what, arguments, folder)
    _common.save({**report, "load_after": os.getloadavg()[0]}, arguments.out)


if __name__ == "__main__":
    main()
