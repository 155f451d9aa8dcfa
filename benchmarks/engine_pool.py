"""One vLLM engine three ways on the same requests: bare, as a pool of ours, as a ray.data.llm processor.

    python benchmarks/engine_pool.py --rows 2048 --repeats 5 --out benchmarks/results/engine_pool_<where>.json

Every variant runs in a process of its own with a fresh engine; the variants are interleaved (A B C A B C ...). The
clock runs from the engine being up to the last completion (bare) or the last row that comes out (the other two), so
engine loads are left out and what Ray Data costs is in; the pool's rows are durable by then. Tokens are completion
tokens.
"""

import argparse
import asyncio
import functools
import json
import os
import tempfile
import threading
import time
from pathlib import Path

import _common

VARIANTS = ("bare", "pool", "ray_data_llm")
MAX_TOKENS = 64
CONCURRENCY = 64


def prompt(i: int) -> str:
    return f"Question {i}: " + "what is known about the river and the sea, and why? " * (1 + i % 4)


def vllm_model(model: str, device: str):
    from moaa_ray.recipe_models import VllmModel

    return VllmModel(engine="vllm", model=model, context_window=2048, concurrency=CONCURRENCY, device=device)


def run_bare(model: str, rows: int, device: str) -> tuple[float, int]:
    """All requests at once on vLLM's asynchronous engine: tokenisation, generation, nothing else."""
    from moaa_ray.engines.vllm import VllmEngine
    from moaa_ray.types import Message, Request, Sampling

    async def drive() -> tuple[float, int]:
        engine = VllmEngine(vllm_model(model, device), on_gpu=device == "gpu")
        await engine.start()
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.7)
        messages = [(Message(role="user", content=prompt(i)),) for i in range(rows)]
        requests = [
            Request(id=str(i), row_id=str(i), messages=m, sampling=sampling, seed=i) for i, m in enumerate(messages)
        ]
        began = time.perf_counter()
        done = await asyncio.gather(*(engine.generate(request) for request in requests))
        seconds = time.perf_counter() - began
        await engine.stop()
        return seconds, sum(completion.completion_tokens for completion in done)

    return asyncio.run(drive())


def commit_open_rows(store, pass_name: str, rows: int):
    """Rows as the stage commits them before a line begins; the epoch and the file they lie in."""
    import pyarrow as pa

    from moaa_ray.data import commit, schemas
    from moaa_ray.mixture_line import STAGE
    from moaa_ray.types import Message, Row

    epoch = commit.take_epoch(store, commit.owner_record())
    commit.adopt(store, STAGE, epoch)
    first = [Row(id=str(i), source="b", messages=(Message(role="user", content=prompt(i)),)) for i in range(rows)]
    records = [schemas.row_record(row, pass_names=[pass_name]) for row in first]
    table = pa.Table.from_pylist(records, schema=schemas.work_schema([pass_name]))
    return epoch, commit.commit_block(store, STAGE, "0.0", epoch.number, "new-0", table)


def one_pool_line(model: str, rows: int, device: str, folder: str):
    """A line of one pool over rows in a fresh run directory, and its blocks."""
    from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
    from moaa_ray.core.passes import StageWork
    from moaa_ray.core.planning import block_rows
    from moaa_ray.core.turns import close_turn
    from moaa_ray.data.store import open_store
    from moaa_ray.engines.build import build_engine
    from moaa_ray.generation import todo
    from moaa_ray.generation.line import Line, Pool
    from moaa_ray.generation.worker import PoolWork
    from moaa_ray.mixture_line import STAGE
    from moaa_ray.types import Sampling

    ask = MixturePass(
        name="aggregate",
        engine="m",
        speaker=Speaker(proposer="m", model="m", revision="", layer=0),
        sampling=Sampling(max_tokens=MAX_TOKENS, temperature=0.7),
        rules=MixtureRules(run_seed=0),
        is_final=True,
    )
    store = open_store(folder)
    epoch, path = commit_open_rows(store, ask.name, rows)
    size, in_flight = block_rows(0.01, CONCURRENCY, 1, rows)
    blocks = todo.blocks_for([todo.Step(ref=(path, i), turn=0, first_pass=0) for i in range(rows)], block_rows=size)
    work = PoolWork(
        name="m",
        passes=(ask,),
        make_engine=functools.partial(build_engine, vllm_model(model, device), on_gpu=device == "gpu"),
        request_timeout_s=600,
        hang_after_s=600,
        on_missing="fail",
    )
    pool = Pool(
        work=work,
        min_replicas=1,
        max_replicas=1,
        num_cpus=1,
        num_gpus=1 if device == "gpu" else 0,
        spans_nodes=False,
        blocks_in_flight=in_flight,
    )
    line = Line(
        run_uri=store.uri,
        epoch=epoch.number,
        work=StageWork(
            stage=STAGE, passes=(ask,), close=functools.partial(close_turn, passes=(ask,)), reopen=lambda row: row
        ),
        pools=(pool,),
        num_done=1,
        num_credits=2 * in_flight,
        block_rows=size,
        num_tickets=len(blocks),
        max_failed=0,
        start_timeout_s=60,
    )
    return line, blocks


def run_pool(model: str, rows: int, device: str) -> tuple[float, int]:
    """The generate stage's own line with one pool: admission, engine, durable commit."""
    import ray

    from moaa_ray.generation.line import run_line, start_coordinator
    from moaa_ray.generation.session import session
    from moaa_ray.recipe import RayConfig

    line, blocks = one_pool_line(model, rows, device, tempfile.mkdtemp())
    up_at: list[float] = []

    def wait_until_up() -> None:
        while not up_at:
            stats = ray.get(coordinator.snapshot.remote()).pools[0].stats
            if stats and stats[0].state == "up":
                up_at.append(time.perf_counter() - stats[0].up_s)
            time.sleep(0.05)

    with session(RayConfig(address="local"), cpu_slots=3):
        coordinator = start_coordinator(line, blocks)
        watcher = threading.Thread(target=wait_until_up)
        watcher.start()
        counts = [(count, time.perf_counter()) for count in run_line(line, coordinator)]
        watcher.join()
        time.sleep(1.5)  # the workers' last report
        tokens = sum(stats.completion_tokens for stats in ray.get(coordinator.snapshot.remote()).pools[0].stats)
    assert sum(count for count, _ in counts) == rows
    return max(at for count, at in counts if count) - up_at[0], tokens


def run_ray_data_llm(model: str, rows: int, device: str) -> tuple[float, int]:
    """Ray's own batch processor with its recommended settings for the same engine."""
    import logging

    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    ray.init(address="local", num_cpus=10, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    args = {"max_model_len": 2048, "max_num_seqs": CONCURRENCY, "enable_prefix_caching": True}
    if device == "cpu":
        cpu = {"enforce_eager": True, "dtype": "float32", "enable_chunked_prefill": False}
        args |= {**cpu, "distributed_executor_backend": "mp"}
    config = vLLMEngineProcessorConfig(
        model_source=model,
        engine_kwargs=args,
        batch_size=32,
        concurrency=(1, 1),
        **({"placement_group_config": {"bundle_per_worker": {"CPU": 1}}} if device == "cpu" else {}),
    )

    def ask(row: dict) -> dict:
        sampling = {"max_tokens": MAX_TOKENS, "temperature": 0.7, "seed": int(row["id"])}
        return {"messages": [{"role": "user", "content": prompt(int(row["id"]))}], "sampling_params": sampling}

    def keep(row: dict) -> dict:
        return {"tokens": row["num_generated_tokens"], "ended": time.time(), "took": row["time_taken_llm"]}

    data = ray.data.range(rows).repartition(target_num_rows_per_block=64)
    done = build_processor(config, preprocess=ask, postprocess=keep)(data).take_all()
    assert len(done) == rows
    began = min(row["ended"] - row["took"] for row in done)
    return max(row["ended"] for row in done) - began, sum(row["tokens"] for row in done)


def measure(variant: str, arguments: argparse.Namespace) -> dict:
    """One run of a variant in a process of its own."""
    command = [__file__, "--one", variant, "--model", arguments.model, "--device", arguments.device]
    return json.loads(_common.run_apart([*command, "--rows", str(arguments.rows)]))


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    """Median and spread of tokens/s, and the ratio to bare, pairing by pairing."""
    rates = {name: [run["tokens"] / run["seconds"] for run in of] for name, of in runs.items()}
    ratios = {name: [a / b for a, b in zip(of, rates["bare"], strict=True)] for name, of in rates.items()}
    settings = {"rows": arguments.rows, "max_tokens": MAX_TOKENS, "concurrency": CONCURRENCY}
    return {
        **_common.about(load, device=arguments.device, **settings),
        "tokens_per_s": {name: _common.spread(values) for name, values in rates.items()},
        "of_bare": {name: _common.spread(values) for name, values in ratios.items() if name != "bare"},
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", default="")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        seconds, tokens = globals()[f"run_{arguments.one}"](arguments.model, arguments.rows, arguments.device)
        print(json.dumps({"seconds": seconds, "tokens": tokens}))
        return
    from moaa_ray.tiny import make_tiny_model

    load = _common.load_before()
    arguments.model = arguments.model or str(make_tiny_model(tempfile.mkdtemp(), seed=0, window=2048))
    runs: dict[str, list[dict]] = {name: [] for name in arguments.variants}
    for _ in range(arguments.repeats):
        for name in arguments.variants:
            runs[name].append(measure(name, arguments))
            print(name, json.dumps(runs[name][-1]), flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
