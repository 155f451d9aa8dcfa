"""Verdicts a second of the judge stage against the bare engine on the same requests, and what the prefix cache saves.

    python benchmarks/judging.py --rows 48 --repeats 3 --out benchmarks/results/judging_<where>.json

A judge of one model (kind: llm) compares 5 candidates of every prompt in all 20 orders. The variants, each in a process
of its own with a fresh engine, interleaved (A B C A B C ...):
* stage: the judge stage's own line: admission, engine, durable commit; the clock runs from the engine being up to the
  last committed block.
* bare: the very same requests at once on vLLM's asynchronous engine, in the order in which the stage lays them out.
* bare_shuffled: the same in a random order; what laying prompts out side by side brings.
The hit rate is vLLM's own count of prompt tokens that were in its prefix cache. A tiny model babbles, so its verdicts
do not parse; the work is the same.
"""

import argparse
import asyncio
import functools
import json
import random
import tempfile
import threading
import time
from pathlib import Path

import _common

VARIANTS = ("stage", "bare", "bare_shuffled")
NUM_CANDIDATES = 5
MAX_TOKENS = 24
CONCURRENCY = 32
WINDOW = 2048
WORDS = "the river and sea are known for what they bring to people who live there in every long year"


def vllm_model(model: str, device: str):
    from moaa_ray.recipe_models import VllmModel

    return VllmModel(engine="vllm", model=model, context_window=WINDOW, concurrency=CONCURRENCY, device=device)


def the_line():
    """A judge of one model, as the recipe makes it."""
    from moaa_ray.judge_line import judge_line
    from moaa_ray.recipe_preference import LlmJudge

    judge = LlmJudge(kind="llm", model="m", max_tokens=MAX_TOKENS)
    return judge_line(judge, run_seed=0, num_candidates=NUM_CANDIDATES)


def the_rows(num: int):
    """Prompts with five candidates of 20 to 60 words each."""
    from moaa_ray.core.candidates import CANDIDATES
    from moaa_ray.types import Completion, Message, Row

    def text(i: int, j: int) -> str:
        draw = random.Random(f"{i}/{j}")
        words = WORDS.split()
        return " ".join(draw.choice(words) for _ in range(draw.randint(20, 60)))

    rows = []
    for i in range(num):
        answers = [
            Completion(text=text(i, j), finish_reason="stop", prompt_tokens=9, completion_tokens=40)
            for j in range(NUM_CANDIDATES)
        ]
        question = Message(role="user", content=f"Question {i}: what is known about the river, and why?")
        rows.append(Row(id=str(i), source="b", messages=(question,), answers={CANDIDATES: tuple(answers)}))
    return rows


def the_requests(rows: int):
    from moaa_ray.core.passes import Room

    (decide,) = the_line().passes
    room = Room(window=0, count_tokens=lambda messages: 0)
    return [request for row in the_rows(rows) for request in decide.ask(row, room)]


def run_bare(model: str, rows: int, device: str, *, shuffled: bool = False) -> dict:
    """All requests at once: tokenisation, generation, nothing else."""
    from moaa_ray.engines.vllm import VllmEngine

    async def drive() -> dict:
        engine = VllmEngine(vllm_model(model, device), on_gpu=device == "gpu")
        await engine.start()
        requests = the_requests(rows)
        if shuffled:
            random.Random(0).shuffle(requests)
        began = time.perf_counter()
        done = await asyncio.gather(*(engine.generate(request) for request in requests))
        seconds = time.perf_counter() - began
        await engine.stop()
        return {
            "seconds": seconds,
            "verdicts": len(done),
            "prompt_tokens": sum(one.prompt_tokens for one in done),
            "cached_tokens": sum(one.cached_tokens for one in done),
        }

    return asyncio.run(drive())


def run_bare_shuffled(model: str, rows: int, device: str) -> dict:
    return run_bare(model, rows, device, shuffled=True)


def the_stage(model: str, rows: int, device: str, folder: str):
    """The line of the judge stage over rows in a fresh run directory, and its blocks."""
    import pyarrow as pa

    from moaa_ray.core.planning import block_rows
    from moaa_ray.data import commit, schemas
    from moaa_ray.data.store import open_store
    from moaa_ray.engines.build import build_engine
    from moaa_ray.generation import todo
    from moaa_ray.generation.line import Line, Pool
    from moaa_ray.generation.worker import PoolWork

    work = the_line().work("judge")
    store = open_store(folder)
    epoch = commit.take_epoch(store, commit.owner_record())
    commit.adopt(store, work.stage, epoch)
    records = [schemas.row_record(row, pass_names=work.columns) for row in the_rows(rows)]
    table = pa.Table.from_pylist(records, schema=schemas.work_schema(work.columns))
    path = commit.commit_block(store, work.stage, "0.0", epoch.number, "new-0", table)
    requests_a_row = NUM_CANDIDATES * (NUM_CANDIDATES - 1)
    size, in_flight = block_rows(0.5, max(1, round(CONCURRENCY / requests_a_row)), 1, rows)
    blocks = todo.blocks_for([todo.Step(ref=(path, i), turn=0, first_pass=0) for i in range(rows)], block_rows=size)
    pool = Pool(
        work=PoolWork(
            name="m",
            passes=work.passes,
            make_engine=functools.partial(build_engine, vllm_model(model, device), on_gpu=device == "gpu"),
            request_timeout_s=600,
            hang_after_s=600,
            on_missing="fail",
        ),
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
        work=work,
        pools=(pool,),
        num_done=1,
        num_credits=2 * in_flight,
        block_rows=size,
        num_tickets=len(blocks),
        max_failed=rows,
        start_timeout_s=60,
    )
    return line, blocks


def run_stage(model: str, rows: int, device: str) -> dict:
    """The judge stage's own line with one pool."""
    import ray

    from moaa_ray.generation.line import run_line, start_coordinator
    from moaa_ray.generation.session import session
    from moaa_ray.recipe import RayConfig

    line, blocks = the_stage(model, rows, device, tempfile.mkdtemp())
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
        (stats,) = ray.get(coordinator.snapshot.remote()).pools[0].stats
    assert sum(count for count, _ in counts) == rows
    return {
        "seconds": max(at for count, at in counts if count) - up_at[0],
        "verdicts": stats.calls,
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
    }


def measure(variant: str, arguments: argparse.Namespace) -> dict:
    """One run of a variant in a process of its own."""
    command = [__file__, "--one", variant, "--model", arguments.model, "--device", arguments.device]
    return json.loads(_common.run_apart([*command, "--rows", str(arguments.rows)]))


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    """Median and spread of verdicts/s, the ratio to bare pairing by pairing, and the hit rates."""
    rates = {name: [run["verdicts"] / run["seconds"] for run in of] for name, of in runs.items()}
    ratios = {name: [a / b for a, b in zip(of, rates["bare"], strict=True)] for name, of in rates.items()}
    hits = {name: [run["cached_tokens"] / run["prompt_tokens"] for run in of] for name, of in runs.items()}
    settings = {"rows": arguments.rows, "num_candidates": NUM_CANDIDATES, "max_tokens": MAX_TOKENS}
    return {
        **_common.about(load, device=arguments.device, concurrency=CONCURRENCY, **settings),
        "verdicts_per_s": {name: _common.spread(values) for name, values in rates.items()},
        "of_bare": {name: _common.spread(values) for name, values in ratios.items() if name != "bare"},
        "prefix_cache_hit_rate": {name: _common.spread(values) for name, values in hits.items()},
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(globals()[f"run_{arguments.one}"](arguments.model, arguments.rows, arguments.device)))
        return
    from moaa_ray.tiny import make_tiny_model

    load = _common.load_before()
    arguments.model = arguments.model or str(make_tiny_model(tempfile.mkdtemp(), seed=0, window=WINDOW))
    runs: dict[str, list[dict]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.repeats):
        for name in VARIANTS:
            runs[name].append(measure(name, arguments))
            print(name, json.dumps(runs[name][-1]), flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
