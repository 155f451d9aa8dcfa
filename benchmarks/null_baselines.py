"""The two yardsticks of null_line.py: a Ray Data plan that only hands blocks on, and the passes without Ray."""

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import cast

import _common


class HandOn:
    """A pool worker that gives every block on as it is; the first pool's turn a ticket into a block."""

    def __init__(self, block_rows: int, text: str, *, is_first: bool):
        self._block_rows = block_rows
        self._text = text
        self._is_first = is_first

    async def __call__(self, block):
        import pyarrow as pa

        if not self._is_first:
            return block
        start = block.column("ticket")[0].as_py() * self._block_rows
        ids = [f"r{start + i:07d}" for i in range(self._block_rows)]
        return pa.table({"id": ids, "text": [self._text] * self._block_rows})


def run_bare(num_rows: int, block_rows: int, arguments: argparse.Namespace) -> dict:
    """Ray Data's own cost: the line's plan and its Ray settings, rows of a prompt and one completion."""
    import pyarrow as pa
    import ray

    from moaa_ray.generation.session import session
    from moaa_ray.recipe import RayConfig

    text = "x" * (arguments.prompt_chars + 6 * arguments.words)
    ends: list[float] = []
    began = time.perf_counter()
    with session(RayConfig(address="local"), cpu_slots=3):
        tickets = [pa.table({"ticket": pa.array([i], pa.int64())}) for i in range(num_rows // block_rows)]
        data = ray.data.from_arrow(tickets)
        for i in range(4):
            data = data.map_batches(
                HandOn,
                fn_constructor_args=(block_rows, text),
                fn_constructor_kwargs={"is_first": i == 0},
                batch_size=None,
                batch_format="pyarrow",
                zero_copy_batch=True,
                compute=ray.data.ActorPoolStrategy(
                    min_size=1, max_size=1, max_tasks_in_flight_per_actor=4, max_concurrent_calls_per_actor=2
                ),
                num_cpus=0.1,
            )
        counts = []
        for batch in data.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            counts.append(cast(pa.Table, batch).num_rows)
            ends.append(time.perf_counter())
    assert sum(counts) == num_rows, f"{num_rows} rows are no multiple of {block_rows}"
    return _rates(began, ends, counts) | {"seconds": time.perf_counter() - began}


def run_loop(num_rows: int, block_rows: int, arguments: argparse.Namespace) -> dict:
    """Every block through admission's read, four fake engines and the commit, in one event loop of one process."""
    return asyncio.run(_loop(num_rows, block_rows, arguments))


async def _loop(num_rows: int, block_rows: int, arguments: argparse.Namespace) -> dict:
    from moaa_ray.core.passes import Room
    from moaa_ray.data import commit, schemas
    from moaa_ray.data.store import open_store
    from moaa_ray.engines.build import build_engine
    from moaa_ray.generation import todo
    from moaa_ray.generation.blocks import in_flight_schema, rows_for_passes, with_answers
    from moaa_ray.generation.ends import Admit, Commit
    from moaa_ray.generation.stage import generate_work
    from moaa_ray.lines.mixture import mixture_passes
    from moaa_ray.loading import load_recipe

    folder = Path(arguments.folder, f"loop-{num_rows}-{os.getpid()}")
    folder.mkdir()
    models = {label: {"completion_tokens": arguments.words} for label in ("a", "b", "c", "agg")}
    prompts = _common.write_prompts(folder.parent, num_rows, arguments.prompt_chars)
    loaded = load_recipe(_common.write_recipe(folder, "loop", prompts, models))
    passes = mixture_passes(loaded.recipe)
    names = [p.name for p in passes]
    store = open_store(str(folder / "run"))
    epoch = commit.take_epoch(store, commit.owner_record())
    refs = _seed(store, epoch, names, num_rows, arguments.prompt_chars)
    blocks = todo.blocks_for([todo.Step(ref=ref, turn=0, first_pass=0) for ref in refs], block_rows=block_rows)
    work = generate_work(loaded)
    admit, end = Admit(store.uri, work, None), Commit(store.uri, work, epoch.number, len(passes), None)
    engines = [build_engine(loaded.recipe.models[p.engine]) for p in passes]
    for engine in engines:
        await engine.start()
    assert in_flight_schema(names).names[: len(schemas.work_schema(names).names)] == schemas.work_schema(names).names
    ends, engine_s, began = [], 0.0, time.perf_counter()
    for block in blocks:
        table = admit._read(block.key, block.refs)
        for p, engine in zip(passes, engines, strict=True):
            room = Room(window=engine.window, count_tokens=engine.count_tokens)
            rows = rows_for_passes(table, [*dict.fromkeys((p.name, *p.reads))])
            requests = [p.ask(row, room) for row in rows]
            asked = time.perf_counter()
            answers = [{r.id: await engine.generate(r) for r in of} for of in requests]
            engine_s += time.perf_counter() - asked
            rows = [p.fold(row, of) for row, of in zip(rows, answers, strict=True)]
            table = with_answers(table, rows, [p.name])
        end._write(block.key, table)
        ends.append(time.perf_counter())
    counts = [len(block.refs) for block in blocks]
    us_per_call = engine_s / num_rows / len(passes) * 1e6
    return _rates(began, ends, counts) | {"seconds": ends[-1] - began, "engine_us_per_call": us_per_call}


def _seed(store, epoch, names: list[str], num_rows: int, num_chars: int) -> list[tuple[str, int]]:
    """Open rows as the stage commits them; where they lie."""
    import pyarrow as pa

    from moaa_ray.data import commit, schemas
    from moaa_ray.generation.todo import SEED_ROWS
    from moaa_ray.lines.mixture import STAGE
    from moaa_ray.types import Message, Row

    refs = []
    for start in range(0, num_rows, SEED_ROWS):
        numbers = range(start, min(num_rows, start + SEED_ROWS))
        asked = [(Message(role="user", content=_common.prompt(i, num_chars)),) for i in numbers]
        rows = [Row(id=f"r{i:07d}", source="p", messages=m) for i, m in zip(numbers, asked, strict=True)]
        records = [schemas.row_record(row, pass_names=names) for row in rows]
        table = pa.Table.from_pylist(records, schema=schemas.work_schema(names))
        path = commit.commit_block(store, STAGE, "0.0", epoch.number, f"new-{start:09d}", table)
        refs += [(path, i) for i in range(len(rows))]
    return refs


def _rates(began: float, ends: list[float], counts: list[int]) -> dict:
    return {
        "start_s": ends[0] - began,
        "marginal_rows_s": sum(counts[1:]) / max(ends[-1] - ends[0], 1e-9),
        "line_rows_s": sum(counts) / (ends[-1] - began),
    }
