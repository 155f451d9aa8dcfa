"""A finished judge stage to look at, written by the package's own publishing, with a judge made up here."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import pyarrow as pa

from moaa_ray.core.judge_rounds import Round
from moaa_ray.core.judge_stats import judge_stats
from moaa_ray.core.judged import JudgeWork
from moaa_ray.core.ranking import Verdict, pair_results, rank
from moaa_ray.data import commit, publish, schemas
from moaa_ray.data.store import Store, open_store
from moaa_ray.generation.results import write_failures, write_summary
from moaa_ray.generation.summary import PoolSummary, Summary
from moaa_ray.loading import load_preference
from moaa_ray.preference.pairs import publish_pairs
from moaa_ray.run_folders import judge_folder
from moaa_ray.run_record import join_run, set_stage

CRITERIA = ["Accuracy", "Depth", "Clarity"]
RECIPE = """
name: {name}
run_dir: {run}
models: {{a: {{engine: fake}}, b: {{engine: fake}}, big: {{engine: fake}}}}
judges:
  {judge}: {{kind: mixture, proposers: [{{model: a}}, {{model: b}}], aggregator: {{model: big}}}}
judge: {{min_margin: {min_margin}, use: {judge}}}
"""

Winner = Callable[[int, int], str]
"""Of (first, second): the verdict on this order, "first", "second" or ""."""


def user(text: str) -> list[dict]:
    """A prompt of one message."""
    return [{"role": "user", "content": text}]


def candidate(text: str, *, error: str = "", finish_reason: str = "stop") -> dict:
    """A CANDIDATE record."""
    tokens = None if error else len(text.split())
    return {"completion": text, "finish_reason": finish_reason, "prompt_tokens": 9, "completion_tokens": tokens,
            "error": error}  # fmt: skip


def judgment(first: int, second: int, verdict: str, *, judge: str = "decide.big", **fields) -> dict:
    """A JUDGMENT record."""
    known = {"criteria": CRITERIA, "criteria_chosen": True, "text": f"Therefore [[{verdict}]]", "assessments": []}
    error = "" if verdict else "no_verdict"
    return {"first": first, "second": second, "judge": judge, "verdict": verdict, "error": error, **known, **fields}


def _said(**texts: str) -> list[dict]:
    return [{"judge": f"assess.{judge}", "text": text} for judge, text in texts.items()]


def judged(row_id: str, texts: Sequence[str], winner: Winner, *, prompt: str = "Why?", **fields) -> dict:
    """A JUDGMENTS record: all pairs in both orders, scored as the package scores."""
    orders = sorted(order for i, j in combinations(range(len(texts)), 2) for order in ((i, j), (j, i)))
    verdicts = [Verdict(first=i, second=j, winner=winner(i, j) or None) for i, j in orders]  # pyright: ignore
    ranking = rank(len(texts), pair_results(verdicts), coins=list(range(len(texts))))
    return {
        "id": row_id,
        "source": "made-up",
        "messages": user(prompt),
        "candidates": [candidate(text) for text in texts],
        "scores": list(ranking.scores),
        "ranking": list(ranking.order),
        "top_tie": ranking.top_tie,
        "bottom_tie": ranking.bottom_tie,
        "judgments": [
            judgment(v.first, v.second, v.winner or "", assessments=_said(a=f"A is {v.first}", b=f"B is {v.second}"))
            for v in verdicts
        ],
        "ratings": [],
        "flags": [],
        **fields,
    }


def lower_wins(first: int, second: int) -> str:
    """A judge for whom the candidate of lower number is better."""
    return "first" if first < second else "second"


def noisy(seed: int, *, bias: float = 0.0, silent: float = 0.0) -> Winner:
    """A judge that tends to the lower number and to the first position, and sometimes says nothing."""
    rng = random.Random(seed)

    def winner(first: int, second: int) -> str:
        if rng.random() < silent:
            return ""
        chance = 0.5 + bias + 0.12 * (second - first)
        return "first" if rng.random() < chance else "second"

    return winner


def write_run(
    folder: Path | str,
    records: Sequence[dict],
    *,
    failed: Sequence[dict] = (),
    undecided: Sequence[dict] = (),
    judge: str = "moj",
    recipe: str = RECIPE,
    min_margin: float = 0.0,
    is_in_use: bool = True,
    facts: Mapping | None = None,
) -> Store:
    """A run directory with the judge stage done: judgments, pairs, failures and summary."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / "run"
    path = folder / "recipe.yaml"
    path.write_text(recipe.format(name="looked-at", run=run, judge=judge, min_margin=min_margin))
    loaded = load_preference(path)
    store, own = open_store(str(run)), open_store(judge_folder(str(run), judge))
    about = {"student": "digest-of-the-student", "judge": judge, **(facts or {})}
    join_run(store, loaded)
    join_run(own, loaded)
    put(own, "judgments", schemas.JUDGMENTS, records, facts={**about, "num_candidates": 5})
    put(own, "undecided", schemas.JUDGMENTS, undecided)
    set_stage(own, "judge", status="done", epoch=1, counts={"ok": len(records), "failed": len(failed)})
    write_failures(own, "judge", pa.Table.from_pylist(list(failed), schema=schemas.FAILURES))
    reading = JudgeWork(run_seed=0, rounds=(Round(run_seed=0, deciders=("decide.big",)),))
    pairs, prompts = publish_pairs(
        store, own, loaded, reading, facts=about, is_in_use=is_in_use
    )  # fmt: skip
    statuses = {"ok": len(records), "failed": len(failed)}
    pool = PoolSummary(name="decide.big", calls=20 * len(records), prompt_tokens=9_000, completion_tokens=4_000,
                       tokens_per_s=120.0, busy_fraction=0.9, engine_s=90.0, gpu_s=90.0, deaths=0, failures={},
                       cost_usd=0.05)  # fmt: skip
    summary = Summary(run_dir=own.uri, num_prompts=len(records) + len(failed), statuses=statuses, dropped={},
                      failures={}, flags={}, usage=[pool])  # fmt: skip
    stats = {name: asdict(judge_stats(of, seed=0)) for name, of in prompts.items()}
    more = {"judge": judge, "pairs": asdict(pairs), "judge_stats": stats}
    write_summary(store if is_in_use else own, "judge", summary, more)
    return store


def failure(row_id: str, *, status: str = "failed", reason: str = "judge: missing_verdicts", **fields) -> dict:
    """A FAILURES record."""
    return {"id": row_id, "source": "made-up", "status": status, "reason": reason, "detail": f"{reason}: 3 of 10",
            "messages": user("Why not?"), "proposals": [], **fields}  # fmt: skip


def put(store: Store, folder: str, schema: pa.Schema, records: Sequence[dict], *, facts: Mapping | None = None) -> None:
    """Publish a folder."""
    epoch = commit.take_epoch(store, commit.owner_record())
    table = pa.Table.from_pylist(list(records), schema=schema)
    publish.publish(store, epoch, folder, [table], schema, 50_000, facts=facts or {})


def proposal(proposer: str, text: str, **fields) -> dict:
    """A PROPOSAL record."""
    usual = {"turn": 0, "layer": 0, "model": f"models/{proposer}", "revision": "", "finish_reason": "stop",
             "prompt_tokens": 5, "completion_tokens": len(text.split()), "used": True, "error": ""}  # fmt: skip
    return {"proposer": proposer, "completion": text, **usual, **fields}


def synthesis(row_id: str, text: str, *, prompt: str = "Why?", proposals: Sequence[dict] = (), **fields) -> dict:
    """An SFT record."""
    messages = [*user(prompt), {"role": "assistant", "content": text}]
    return {
        "id": row_id,
        "source": "made-up",
        "messages": messages,
        "proposals": list(proposals),
        "flags": [],
        **fields,
    }


def moments(*, begin: float, pools: Mapping[str, Sequence[tuple[float, float]]]) -> list[dict]:
    """A phase's moments, ten seconds apart; by pool the busy and the up seconds so far; negative: still starting."""
    num = len(next(iter(pools.values())))
    return [
        {"at": begin + 10 * i, "pools": {name: _counters(*seconds[i]) for name, seconds in pools.items()}}
        for i in range(num)
    ]


def _counters(busy_s: float, up_s: float) -> dict:
    is_up = up_s >= 0
    return {"workers": 1, "starting": int(not is_up), "up": int(is_up), "rows": round(busy_s), "calls": round(busy_s),
            "prompt_tokens": 0, "completion_tokens": 20 * round(busy_s), "busy_s": busy_s,
            "up_s": max(0.0, up_s)}  # fmt: skip


def put_lines(store: Store, path: str, lines: Sequence[Mapping]) -> None:
    """A file of JSON lines."""
    store.put(path, "".join(f"{json.dumps(line)}\n" for line in lines).encode())


def steps(num: int, *, begin: float, **fields) -> list[dict]:
    """Lines of a training stage's metrics: a step takes two seconds, and the loss falls."""
    usual = {"num_steps": num, "epoch": 1.0, "grad_norm": 1.0, "learning_rate": 1e-5, "tokens": 100, "seconds": 2.0,
             "save_s": 0.0, "memory_bytes": 2**30}  # fmt: skip
    return [{"step": i, "loss": 2.0 - i / num, "time": begin + 2.0 * (i + 1), **usual, **fields} for i in range(num)]
