"""Verdicts a second of the judge stage against the bare engine on the same requests, and what the prefix cache saves.

    python benchmarks/judging.py --kv-blocks 256 --out benchmarks/results/judging_<where>.json

A judge of one model (kind: llm) compares 5 candidates of every prompt in all 20 orders. The variants, each in processes
of its own with a fresh engine, take turns of two seconds (`_turns.py`):
* stage: the judge stage's own line: admission, engine, durable commit; the clock runs from the engine being up to the
  last committed block.
* bare: the very same requests at once on vLLM's asynchronous engine, in the order in which the stage lays them out.
* bare_shuffled: the same in a random order; what laying prompts out side by side brings.
--kv-blocks makes the cache so small that it cannot hold everything, as on a GPU with real models.
The hit rate is vLLM's own count of prompt tokens that were in its prefix cache. A tiny model babbles, so its verdicts
do not parse; the work is the same.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from pathlib import Path

import _common
import _turns

VARIANTS = ("stage", "bare", "bare_shuffled")
NUM_CANDIDATES = 5
MAX_TOKENS = 24
CONCURRENCY = 32
WINDOW = 2048
WORDS = "the river and sea are known for what they bring to people who live there in every long year"


def vllm_model(model: str, device: str, kv_blocks: int):
    from moaa_ray.settings.models import VllmModel

    args = {"num_gpu_blocks_override": kv_blocks} if kv_blocks else {}
    return VllmModel(
        engine="vllm", model=model, context_window=WINDOW, concurrency=CONCURRENCY, device=device, engine_args=args
    )


def the_line():
    """A judge of one model, as the recipe makes it."""
    from moaa_ray.lines.judge import judge_line
    from moaa_ray.settings.preference import LlmJudge

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


def run_bare(model: str, rows: int, device: str, kv_blocks: int, *, shuffled: bool = False) -> dict:
    """All requests at once: tokenisation, generation, nothing else."""
    from moaa_ray.engines.vllm import VllmEngine

    async def drive() -> dict:
        engine = VllmEngine(vllm_model(model, device, kv_blocks), on_gpu=device == "gpu")
        await engine.start()
        requests = the_requests(rows)
        if shuffled:
            random.Random(0).shuffle(requests)
        _turns.pass_gate()
        done = await asyncio.gather(*(engine.generate(request) for request in requests))
        ended = time.monotonic()
        await engine.stop()
        return {
            "ended": ended,
            "verdicts": len(done),
            "prompt_tokens": sum(one.prompt_tokens for one in done),
            "cached_tokens": sum(one.cached_tokens for one in done),
        }

    return asyncio.run(drive())


def run_bare_shuffled(model: str, rows: int, device: str, kv_blocks: int) -> dict:
    return run_bare(model, rows, device, kv_blocks, shuffled=True)


def run_stage(model: str, rows: int, device: str, kv_blocks: int) -> dict:
    """The judge stage's own line with one pool."""
    import _line

    requests_a_row = NUM_CANDIDATES * (NUM_CANDIDATES - 1)
    engine, at_once = vllm_model(model, device, kv_blocks), max(1, round(CONCURRENCY / requests_a_row))
    work = the_line().work("judge")
    line, blocks = _line.one_pool(the_rows(rows), work, engine, row_seconds=0.5, rows_at_once=at_once)
    ended, stats = _line.run_timed(line, blocks, rows)
    return {
        "ended": ended,
        "verdicts": stats.calls,
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
    }


def measure(arguments: argparse.Namespace) -> dict[str, dict]:
    """One run of every variant, by turns."""
    settings = ["--model", arguments.model, "--device", arguments.device]
    settings += ["--rows", str(arguments.rows), "--kv-blocks", str(arguments.kv_blocks)]
    turned = _turns.take_turns({name: [__file__, "--one", name, *settings] for name in VARIANTS})
    return {name: one.found | {"seconds": one.seconds_until(one.found["ended"])} for name, one in turned.items()}


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    """Median and spread of verdicts/s, the ratio to bare pairing by pairing, and the hit rates."""
    rates = {name: [run["verdicts"] / run["seconds"] for run in of] for name, of in runs.items()}
    ratios = {name: [a / b for a, b in zip(of, rates["bare"], strict=True)] for name, of in rates.items()}
    hits = {name: [run["cached_tokens"] / run["prompt_tokens"] for run in of] for name, of in runs.items()}
    settings = {
        "rows": arguments.rows,
        "num_candidates": NUM_CANDIDATES,
        "max_tokens": MAX_TOKENS,
        "kv_blocks": arguments.kv_blocks,
        "turn_s": _turns.TURN_S,
    }
    return {
        **_common.about(load, device=arguments.device, concurrency=CONCURRENCY, **settings),
        "verdicts_per_s": {name: _common.spread(values) for name, values in rates.items()},
        "of_bare": {name: _common.spread(values) for name, values in ratios.items() if name != "bare"},
        "prefix_cache_hit_rate": {name: _common.spread(values) for name, values in hits.items()},
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--model", default="")
    parser.add_argument("--kv-blocks", type=int, default=0, help="a small KV cache of so many blocks of tokens")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        run = globals()[f"run_{arguments.one}"]
        print(json.dumps(run(arguments.model, arguments.rows, arguments.device, arguments.kv_blocks)))
        return
    from moaa_ray.demo.tiny import make_tiny_model

    load = _common.load_before()
    arguments.model = arguments.model or str(make_tiny_model(tempfile.mkdtemp(), seed=0, window=WINDOW))
    runs: dict[str, list[dict]] = {name: [] for name in VARIANTS}
    for _ in range(arguments.repeats):
        for name, found in measure(arguments).items():
            runs[name].append(found)
            print(name, json.dumps(found), flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
