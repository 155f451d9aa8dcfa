"""How full the line keeps its slowest engine, against the same engine driven bare with asyncio.

    python benchmarks/plateau.py --rows 6000 --repeats 3 --out benchmarks/results/plateau_<where>.json

The engine sleeps: it has `concurrency` slots and answers of heavy-tailed length, so a slot is busy or it is not, and
tokens/s in the plateau (the middle half of the time between its first question and its last answer) say what part of
the slots was busy. bare gives it all requests at once. In the line it stands first (the other pools wait for it) or
last, as the aggregator (it waits for them); the other three pools are `--faster` times as fast. Interleaved.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import _common
import _logged

VARIANTS = ("bare", "first", "last")
LABELS = ("a", "b", "c", "agg")


def slow_model(arguments: argparse.Namespace) -> dict:
    return {
        "completion_tokens": arguments.words,
        "length_sigma": arguments.sigma,
        "concurrency": arguments.concurrency,
        "tokens_per_s": arguments.tokens_per_s,
    }


def measure_bare(arguments: argparse.Namespace) -> list[_logged.Question]:
    """All requests at once on one engine in this process."""
    from moaa_ray.engines.fake import FakeEngine
    from moaa_ray.settings.models import FakeModel
    from moaa_ray.types import Message, Request, Sampling

    engine = FakeEngine(FakeModel(engine="fake", **slow_model(arguments)))

    async def ask(i: int) -> _logged.Question:
        message = Message(role="user", content=_common.prompt(i, 200))
        request = Request(id=str(i), row_id=str(i), messages=(message,), sampling=Sampling(max_tokens=2048), seed=i)
        asked_at = time.time()
        completion = await engine.generate(request)
        return _logged.Question(str(i), "bare", asked_at, time.time(), completion.completion_tokens)

    async def drive() -> list[_logged.Question]:
        await engine.start()
        return await asyncio.gather(*(ask(i) for i in range(arguments.rows)))

    return asyncio.run(drive())


def measure_line(place: str, folder: Path, number: int, arguments: argparse.Namespace) -> dict:
    slow = LABELS[0] if place == "first" else LABELS[-1]
    fast = {**slow_model(arguments), "tokens_per_s": arguments.faster * arguments.tokens_per_s}
    models = {label: slow_model(arguments) if label == slow else fast for label in LABELS}
    prompts = _common.write_prompts(folder, arguments.rows, num_chars=200)
    name = f"{place}-{number}"
    extra = {} if arguments.block_rows == "auto" else {"block_rows": int(arguments.block_rows)}
    recipe = _common.write_recipe(folder, name, prompts, models, **extra)
    log = folder / f"{name}-log"
    log.mkdir()
    _common.run_apart([_logged.__file__, str(recipe), str(log)])
    asked_by = "aggregate" if place == "last" else f"l0.{slow}"
    mine = [question for question in _logged.read_log(log) if question.asked_by == asked_by]
    return plateau(mine, arguments) | _logged.lines_of(log)[0]


def plateau(questions: list[_logged.Question], arguments: argparse.Namespace) -> dict:
    """Tokens/s in the middle half of the run: each answer's tokens spread evenly over the time it held its slot."""
    began, ended = min(q.asked_at for q in questions), max(q.done_at for q in questions)
    start, stop = began + 0.25 * (ended - began), ended - 0.25 * (ended - began)
    slot_tokens_s = arguments.tokens_per_s / arguments.concurrency
    tokens = 0.0
    for question in questions:
        from_s = question.done_at - question.tokens / slot_tokens_s
        tokens += slot_tokens_s * max(0.0, min(question.done_at, stop) - max(from_s, start))
    whole = sum(question.tokens for question in questions) / (ended - began)
    return {
        "tokens_per_s": tokens / (stop - start),
        "of_engine": tokens / (stop - start) / arguments.tokens_per_s,
        "whole_run_tokens_per_s": whole,
        "plateau_s": stop - start,
        "rows": len(questions),
    }


def report(runs: dict[str, list[dict]], load: float, arguments: argparse.Namespace) -> dict:
    numbers = ("tokens_per_s", "of_engine", "whole_run_tokens_per_s")
    lines = [variant for variant in runs if variant != "bare" and "bare" in runs]
    ratios = {
        f"{variant}_{what}": _common.spread([r[key] / b[key] for r, b in zip(runs[variant], runs["bare"], strict=True)])
        for variant in lines
        for what, key in (("plateau", "tokens_per_s"), ("whole_run", "whole_run_tokens_per_s"))
    }
    settings = {
        key: getattr(arguments, key)
        for key in ("rows", "words", "sigma", "concurrency", "tokens_per_s", "faster", "block_rows")
    }
    return {
        **_common.about(load, **settings),
        "of_bare": ratios,
        "by_variant": {variant: _common.spreads(of, numbers) for variant, of in runs.items()},
        "runs": runs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--words", type=int, default=200, help="mean words (tokens) of a completion")
    parser.add_argument("--sigma", type=float, default=0.8, help="of the log of the length")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--tokens-per-s", type=float, default=12_800, help="of the slow engine, all slots busy")
    parser.add_argument("--faster", type=float, default=2.0, help="how much faster the other engines are")
    parser.add_argument("--block-rows", default="auto", help="auto: the planner's rule")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--folder", type=Path, help="keep the runs here")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    runs: dict[str, list[dict]] = {variant: [] for variant in arguments.variants}
    with _common.scratch(arguments.folder) as folder:
        for number in range(arguments.repeats):
            for variant in arguments.variants:
                if variant == "bare":
                    found = plateau(measure_bare(arguments), arguments)
                else:
                    found = measure_line(variant, folder, number, arguments)
                runs[variant].append(found)
                print(variant, json.dumps(found), file=sys.stderr, flush=True)
    _common.save(report(runs, load, arguments), arguments.out)


if __name__ == "__main__":
    main()
