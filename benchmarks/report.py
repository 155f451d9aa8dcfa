"""Seconds, memory and size of `moaa report` on a made-up run of so many rows, through all stages and with two judges.

    python benchmarks/report.py --rows 100000 --repeats 3 --out benchmarks/results/report_<where>.json

Every row has a prompt, four proposals, a synthesis, five candidates, twenty verdicts of each of two judges and a pair;
texts are slices of random words with lengths as real ones have (log-normal), about 18,000 characters a row. Two starts
of every stage have left 240 moments each, training 20,000 steps. Each repeat is a process of its own, as a user starts
it; files are in the page cache, as they are just after a run. The goals are 30 s and 5 MB.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import _common
import pyarrow as pa

BATCH_ROWS = 4096
PROPOSERS = ("gemma", "llama", "qwen", "wizard")
NUM_CANDIDATES = 5
ORDERS = sorted(order for i, j in combinations(range(NUM_CANDIDATES), 2) for order in ((i, j), (j, i)))
STARTS, MOMENTS, STEPS = 2, 240, 20_000
BEGAN = 1_795_800_000.0
RECIPE = "name: made-up\nseed: 7\nmodels: {gemma: {engine: fake}, llama: {engine: fake}}\n"


class Texts:
    """Random words, cut into texts."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        words = ["".join(self.rng.choices("etaoinshrdlu", k=self.rng.randint(2, 9))) for _ in range(20_000)]
        self._all = " ".join(self.rng.choices(words, k=1_000_000))

    def many(self, num: int, median_chars: int) -> pa.Array:
        lengths = [int(median_chars * math.exp(0.6 * self.rng.gauss(0, 1))) + 1 for _ in range(num)]
        starts = [self.rng.randrange(len(self._all) - length) for length in lengths]
        return pa.array([self._all[i : i + n] for i, n in zip(starts, lengths, strict=True)], pa.string())


def lists(type_: pa.DataType, rows: int, **fields) -> pa.Array:
    """A column of lists of structs, equally many in every row; a field that is not an array is the same everywhere."""
    num = max(len(values) for values in fields.values() if isinstance(values, pa.Array))
    arrays = []
    for field in type_.value_type:
        values = fields[field.name] if field.name in fields else pa.nulls(num, field.type)
        arrays.append(values.cast(field.type) if isinstance(values, pa.Array) else pa.array([values] * num, field.type))
    structs = pa.StructArray.from_arrays(arrays, fields=list(type_.value_type))
    offsets = pa.array(range(0, num + 1, num // rows), pa.int32())
    return pa.ListArray.from_arrays(offsets, structs).cast(type_)


def batches(num_rows: int) -> Iterator[tuple[int, int]]:
    for first in range(0, num_rows, BATCH_ROWS):
        yield first, min(BATCH_ROWS, num_rows - first)


def table(schema: pa.Schema, first: int, num: int, **columns) -> pa.Table:
    """Rows of a schema; columns that are not given are empty."""
    empty = {"id": pa.array([f"r{first + i:07d}" for i in range(num)]), "source": pa.array(["made-up"] * num)}
    known = {**empty, **columns}
    arrays = []
    for field in schema:
        found = known.get(field.name)
        if found is None:
            found = (
                pa.array([[]] * num, field.type)
                if pa.types.is_list(field.type)
                else pa.repeat(pa.scalar("", field.type), num)
            )
        arrays.append(found.cast(field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def interleaved(one: pa.Array, other: pa.Array) -> pa.Array:
    """a0 b0 a1 b1 ..."""
    order = pa.array([i + side * len(one) for i in range(len(one)) for side in (0, 1)])
    return pa.chunked_array([one, other]).take(order).combine_chunks()


def sft_tables(texts: Texts, num_rows: int) -> Iterator[pa.Table]:
    from moaa_ray.data import schemas

    for first, num in batches(num_rows):
        contents = interleaved(texts.many(num, 400), texts.many(num, 1800))
        roles = pa.array(["user", "assistant"] * num)
        proposals = lists(
            pa.list_(schemas.PROPOSAL), num, proposer=pa.array(PROPOSERS * num), model="some/model", layer=0, turn=0,
            completion=texts.many(num * len(PROPOSERS), 1400), finish_reason="stop", prompt_tokens=100,
            completion_tokens=350, used=True, error="", revision="",
        )  # fmt: skip
        messages = lists(schemas.MESSAGES, num, role=roles, content=contents)
        yield table(schemas.SFT, first, num, messages=messages, proposals=proposals)


def judged_tables(texts: Texts, num_rows: int) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Candidates with a judge's verdicts, and the pairs of them."""
    from moaa_ray.data import schemas

    rng = texts.rng
    for first, num in batches(num_rows):
        candidates = texts.many(num * NUM_CANDIDATES, 1400)
        firsts, seconds = (pa.array([order[side] for order in ORDERS] * num) for side in (0, 1))
        scores = [[rng.randrange(9) / 8 for _ in range(NUM_CANDIDATES)] for _ in range(num)]
        best, worst = ([choose(range(NUM_CANDIDATES), key=row.__getitem__) for row in scores] for choose in (max, min))
        prompt = lists(schemas.MESSAGES, num, role="user", content=texts.many(num, 400))
        columns = {
            "scores": pa.array(scores),
            "ranking": pa.array([sorted(range(NUM_CANDIDATES), key=lambda i, row=row: -row[i]) for row in scores]),
            "candidates": lists(
                pa.list_(schemas.CANDIDATE), num, completion=candidates, finish_reason="stop", prompt_tokens=100,
                completion_tokens=350, error="",
            ),
        }  # fmt: skip
        verdicts = {"first": firsts, "second": seconds, "judge": "decide.m", "error": "", "criteria_chosen": False,
                    "verdict": pa.array(rng.choices(["first", "second"], k=num * len(ORDERS)))}  # fmt: skip
        judgments = lists(
            schemas.JUDGMENTS.field("judgments").type, num, text=texts.many(num * len(ORDERS), 120), **verdicts
        )
        picked = {
            side: lists(
                schemas.MESSAGES, num, role="assistant",
                content=candidates.take(pa.array([NUM_CANDIDATES * i + k for i, k in enumerate(which)])),
            )
            for side, which in (("chosen", best), ("rejected", worst))
        }  # fmt: skip
        margins = [row[i] - row[j] for row, i, j in zip(scores, best, worst, strict=True)]
        pairs = table(
            schemas.PAIRS, first, num, prompt=prompt, **picked, margin=pa.array(margins), scores=columns["scores"],
            chosen_index=pa.array(best), rejected_index=pa.array(worst),
            judgments=lists(schemas.PAIRS.field("judgments").type, num, **verdicts),
        )  # fmt: skip
        yield table(schemas.JUDGMENTS, first, num, messages=prompt, judgments=judgments, **columns), pairs


def make_run(folder: Path, num_rows: int) -> str:
    """The files of a finished run, published as the package does."""
    from moaa_ray.data import schemas
    from moaa_ray.data.store import open_store
    from moaa_ray.run_folders import judge_folder

    store = open_store(str(folder))
    store.put("recipe.yaml", RECIPE.encode())
    record(store, ("generate", "sample", "sft", "dpo"))
    put(store, "sft", sft_tables(Texts(0), num_rows), schemas.SFT)
    for name in ("jury", "other"):  # the same seed: the same candidates
        own = open_store(judge_folder(store.uri, name))
        record(own, ("judge",))
        put(own, "judgments", (judged for judged, _ in judged_tables(Texts(1), num_rows)), schemas.JUDGMENTS)
    put(store, "pairs", (pairs for _, pairs in judged_tables(Texts(1), num_rows)), schemas.PAIRS, {"judge": "jury"})
    put(store, "candidates", candidate_tables(num_rows), schemas.CANDIDATES)
    put_facts(store, num_rows)
    return store.uri


def candidate_tables(num_rows: int) -> Iterator[pa.Table]:
    from moaa_ray.data import schemas

    for judged, _ in judged_tables(Texts(1), num_rows):
        yield judged.select(schemas.CANDIDATES.names).cast(schemas.CANDIDATES)


def put(store, folder: str, tables: Iterator[pa.Table], schema: pa.Schema, facts: dict | None = None) -> None:
    from moaa_ray.data import commit, publish

    epoch = commit.take_epoch(store, commit.owner_record())
    publish.publish(store, epoch, folder, tables, schema, 10_000, facts=facts or {})


def record(store, stages: Sequence[str]) -> None:
    """run.json, and what the pools of its stages have left in metrics/."""
    from moaa_ray.generation.summary import PoolSummary
    from moaa_ray.generation.usage import write_usage

    at = "2026-11-27T21:00:00+00:00"
    sessions = [{"at": at, "host": "made-up", "python": "3.11", "versions": {"ray": "2.60.0"}}] * STARTS
    states = {stage: {"at": at, "status": "done", "epoch": 1, "counts": {"ok": 1}} for stage in stages}
    known = {"format": 1, "name": "made-up", "fingerprint": {}, "changes": [], "sessions": sessions, "stages": states}
    store.put("run.json", json.dumps(known).encode())
    pools = {
        "generate": [*(f"l0.{name}" for name in PROPOSERS), "aggregate"],
        "sample": ["candidates"],
        "judge": ["decide.m"],
    }
    for number, stage in enumerate(stages):
        for start in range(STARTS if stage in pools else 0):
            began = BEGAN + 40_000 * start + 8_000 * number
            lines = [json.dumps(moment(began + 30 * i, i, pools[stage])) for i in range(MOMENTS)]
            store.put(f"metrics/timeline/{stage}/e{start:06d}-000.jsonl", "\n".join(lines).encode())
            used = [
                PoolSummary(
                    name=name, calls=50_000, prompt_tokens=9_000_000, completion_tokens=4_000_000, tokens_per_s=617.0,
                    busy_s=6480.0, busy_fraction=0.9, engine_s=7200.0, gpu_s=7200.0, deaths=0, failures={},
                )
                for name in pools[stage]
            ]  # fmt: skip
            write_usage(store, stage, f"e{start:06d}-000", used)


def moment(at: float, i: int, names: Sequence[str]) -> dict:
    busy = 30.0 * i * 0.9
    counters = {"workers": 4, "starting": 0, "up": 4, "rows": 100 * i, "calls": 100 * i, "prompt_tokens": 9 * i,
                "completion_tokens": 4 * i, "busy_s": 4 * busy, "up_s": 4 * 30.0 * i}  # fmt: skip
    return {"at": at, "pools": dict.fromkeys(names, counters)}


def put_facts(store, num_rows: int) -> None:
    """The judge stage's numbers, and the steps of training."""
    from moaa_ray.core.judge_stats import JudgedPrompt, judge_stats
    from moaa_ray.core.ranking import Verdict

    verdicts = tuple(Verdict(first=i, second=j, winner="first" if i < j else "second") for i, j in ORDERS)
    prompt = JudgedPrompt(verdicts=verdicts, scores=(1.0, 0.75, 0.5, 0.25, 0.0), lengths=(9, 8, 7, 5, 6), top_tie="",
                          bottom_tie="", is_kept=True)  # fmt: skip
    pairs = {"num_judged": num_rows, "num_pairs": num_rows, "dropped": {}, "mean_margin": 0.8,
             "mean_chosen_chars": 1700.0, "mean_rejected_chars": 1600.0, "coin_kept_rate": 0.99}  # fmt: skip
    stage = {"num_prompts": num_rows, "statuses": {"ok": num_rows}, "dropped": {}, "failures": {}, "usage": [],
             "pairs": pairs,
             "judge_stats": {"decide.m": asdict(judge_stats([prompt] * 100, seed=0, num_resamples=50))}}  # fmt: skip
    for place in ("", "judges/other/"):
        store.put(f"{place}summary.json", json.dumps({"judge": stage}).encode())
    put_manifest_of_other(store)
    for stage_name, begun in (("sft", BEGAN + 90_000), ("dpo", BEGAN + 150_000)):
        steps = [{"step": i, "num_steps": STEPS, "epoch": i / STEPS, "loss": 2 / (1 + i / 500), "grad_norm": 1.0,
                  "learning_rate": 1e-5, "tokens": 50_000, "time": begun + 2.0 * i, "seconds": 2.0, "memory_bytes": 1,
                  "save_s": 0.0} for i in range(STEPS)]  # fmt: skip
        store.put(f"metrics/{stage_name}.jsonl", "".join(f"{json.dumps(step)}\n" for step in steps).encode())


def put_manifest_of_other(store) -> None:
    """The second judge's pairs: the same rows as the first one's."""
    from moaa_ray.data import schemas
    from moaa_ray.data.publish import read_batches
    from moaa_ray.data.store import open_store

    own = open_store(f"{store.uri}/judges/other")
    put(own, "pairs", read_batches(store, "pairs", BATCH_ROWS), schemas.PAIRS, {"judge": "other"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", type=Path, help="Keep the made-up run here, or take the one that is there.")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    load = _common.load_before()
    with tempfile.TemporaryDirectory(prefix="moaa-bench-") as scratch:
        folder = (arguments.run or Path(scratch) / "run").absolute()
        if not (folder / "candidates").exists():
            make_run(folder, arguments.rows)
        repeats = [one_report(folder) for _ in range(arguments.repeats)]
        size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    keys = ("seconds", "page_mb", "driver_rss_mb", "driver_cpu_s")
    head = _common.about(load, rows=arguments.rows, repeats=arguments.repeats, parquet_mb=size / 1e6)
    _common.save({**head, **_common.spreads(repeats, keys), "runs": repeats}, arguments.out)


def one_report(folder: Path) -> dict:
    watch = _common.Watch()
    began = time.perf_counter()
    _common.run_apart(["-m", "moaa_ray", "report", str(folder)], watch=watch)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "page_mb": (folder / "report.html").stat().st_size / 1e6, **watch.facts()}


if __name__ == "__main__":
    main()
