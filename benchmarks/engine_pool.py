"""One vLLM engine three ways on the same requests: bare, as a pool of ours, as a ray.data.llm processor.

    python benchmarks/engine_pool.py --out benchmarks/results/engine_pool_<where>.json

Every variant runs in processes of its own with a fresh engine; they take turns of two seconds (`_turns.py`). The clock
runs from the engine being up to the last completion (bare) or the last row that comes out (the other two), so engine
loads are left out and what Ray Data costs is in; the pool's rows are durable by then. Tokens are completion tokens.
ray.data.llm has its first rows as a warm-up that is not measured: nothing else tells that its engine is up.
"""

import argparse
import asyncio
import functools
import json
import os
import tempfile
import time
from pathlib import Path

import _common
import _turns

VARIANTS = ("bare", "pool", "ray_data_llm")
MAX_TOKENS = 64
CONCURRENCY = 64
WARM_UP = 64
"""Rows."""


def prompt(i: int) -> str:
    return f"Question {i}: " + "what is known about the river and the sea, and why? " * (1 + i % 4)


def vllm_model(model: str, device: str):
    from moaa_ray.settings.models import VllmModel

    return VllmModel(engine="vllm", model=model, context_window=2048, concurrency=CONCURRENCY, device=device)


def run_bare(model: str, rows: int, device: str) -> dict:
    """All requests at once on vLLM's asynchronous engine: tokenisation, generation, nothing else."""
    from moaa_ray.engines.vllm import VllmEngine
    from moaa_ray.types import Message, Request, Sampling

    async def drive() -> dict:
        engine = VllmEngine(vllm_model(model, device), on_gpu=device == "gpu")
        await engine.start()
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0.7)
        messages = [(Message(role="user", content=prompt(i)),) for i in range(rows)]
        requests = [
            Request(id=str(i), row_id=str(i), messages=m, sampling=sampling, seed=i) for i, m in enumerate(messages)
        ]
        _turns.pass_gate()
        done = await asyncio.gather(*(engine.generate(request) for request in requests))
        ended = time.monotonic()
        await engine.stop()
        return {"ended": ended, "tokens": sum(completion.completion_tokens for completion in done)}

    return asyncio.run(drive())


def run_pool(model: str, rows: int, device: str) -> dict:
    """The generate stage's own line with one pool: admission, engine, durable commit."""
    import _line

    from moaa_ray.core.mixture import MixturePass, MixtureRules, Speaker
    from moaa_ray.core.passes import StageWork
    from moaa_ray.core.turns import close_turn
    from moaa_ray.lines.mixture import STAGE
    from moaa_ray.types import Message, Row, Sampling

    ask = MixturePass(
        name="aggregate",
        engine="m",
        speaker=Speaker(proposer="m", model="m", revision="", layer=0),
        sampling=Sampling(max_tokens=MAX_TOKENS, temperature=0.7),
        rules=MixtureRules(run_seed=0),
        is_final=True,
    )
    close = functools.partial(close_turn, passes=(ask,))
    work = StageWork(stage=STAGE, passes=(ask,), close=close, reopen=lambda row: row)
    first = [Row(id=str(i), source="b", messages=(Message(role="user", content=prompt(i)),)) for i in range(rows)]
    engine = vllm_model(model, device)
    line, blocks = _line.one_pool(first, work, engine, row_seconds=0.01, rows_at_once=CONCURRENCY)
    ended, stats = _line.run_timed(line, blocks, rows)
    return {"ended": ended, "tokens": stats.completion_tokens}


def run_ray_data_llm(model: str, rows: int, device: str) -> dict:
    """Ray's own batch processor with its recommended settings for the same engine."""
    import logging

    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    like_ours = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
    }
    for name, value in like_ours.items():
        os.environ.setdefault(name, value)
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
        if row["id"] >= WARM_UP:
            _turns.wait_for_go()
        sampling = {"max_tokens": MAX_TOKENS, "temperature": 0.7, "seed": int(row["id"])}
        return {"messages": [{"role": "user", "content": prompt(int(row["id"]))}], "sampling_params": sampling}

    def keep(row: dict) -> dict:
        _turns.say_ready()
        return {"id": row["id"], "tokens": row["num_generated_tokens"], "ended": time.monotonic()}

    data = ray.data.range(WARM_UP + rows).repartition(target_num_rows_per_block=WARM_UP)
    done = build_processor(config, preprocess=ask, postprocess=keep)(data).take_all()
    measured = [row for row in done if row["id"] >= WARM_UP]
    assert len(measured) == rows
    return {"ended": max(row["ended"] for row in measured), "tokens": sum(row["tokens"] for row in measured)}


def measure(arguments: argparse.Namespace) -> dict[str, dict]:
    """One run of every variant, by turns."""
    settings = ["--model", arguments.model, "--device", arguments.device, "--rows", str(arguments.rows)]
    turned = _turns.take_turns({name: [__file__, "--one", name, *settings] for name in arguments.variants})
    return {name: one.found | {"seconds": one.seconds_until(one.found["ended"])} for name, one in turned.items()}


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    """Median and spread of tokens/s, and the ratio to bare, pairing by pairing."""
    rates = {name: [run["tokens"] / run["seconds"] for run in of] for name, of in runs.items()}
    ratios = {name: [a / b for a, b in zip(of, rates["bare"], strict=True)] for name, of in rates.items()}
    settings = {"rows": arguments.rows, "max_tokens": MAX_TOKENS, "concurrency": CONCURRENCY, "turn_s": _turns.TURN_S}
    return {
        **_common.about(load, device=arguments.device, **settings),
        "tokens_per_s": {name: _common.spread(values) for name, values in rates.items()},
        "of_bare": {name: _common.spread(values) for name, values in ratios.items() if name != "bare"},
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", default="")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(globals()[f"run_{arguments.one}"](arguments.model, arguments.rows, arguments.device)))
        return
    from moaa_ray.demo.tiny import make_tiny_model

    load = _common.load_before()
    arguments.model = arguments.model or str(make_tiny_model(tempfile.mkdtemp(), seed=0, window=2048))
    runs: dict[str, list[dict]] = {name: [] for name in arguments.variants}
    for _ in range(arguments.repeats):
        for name, found in measure(arguments).items():
            runs[name].append(found)
            print(name, json.dumps(found), flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
