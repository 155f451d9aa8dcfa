"""Killed runs that are gone on with: what their committed blocks hold, and what a later start asked for."""

import json
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from moaa_ray.data import commit
from moaa_ray.data.store import open_store
from tests.generation import runs

POOLS = ("l0.a", "l0.b", "l0.c", "aggregate")
SLOW = "\n".join(f"{name}: {{engine: fake, tokens_per_s: 1000}}" for name in ("a", "b", "c", "agg"))


def read_prompts(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]


def put_prompts(folder: Path, prompts: list[dict]) -> None:
    lines = [json.dumps(prompt) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")


def prompt(name: str, *texts: str) -> dict:
    return {"id": name, "messages": [{"role": "user", "content": text} for text in texts]}


def kill_after(recipe: Path, run_dir: Path, num_blocks: int, *overrides: str) -> None:
    """Start a run and kill it with everything it started when so many blocks are committed."""
    process = runs.start(recipe, *overrides)
    found = runs.wait_for_blocks(run_dir, num_blocks, process)
    assert process.poll() is None, process.communicate()[0]
    runs.kill_all(process)
    assert found >= num_blocks
    assert not (run_dir / "sft").exists()


def copy_run(run: Path, folder: Path) -> Path:
    """The same run, its prompts and all it has committed, in a folder of its own; returns its recipe."""
    shutil.copytree(run.parent, folder)
    return runs.write_recipe(folder)


def answered(run_dir: Path) -> dict[str, set[tuple[str, int]]]:
    """For every pass the (row, turn) that have a completion in the committed blocks."""
    store = open_store(str(run_dir))
    done: dict[str, set[tuple[str, int]]] = {name: set() for name in POOLS}
    for file in commit.committed_so_far(store, "generate"):
        for row in pq.read_table(run_dir / file.path).to_pylist():
            for proposal in row["proposals"]:  # of turns that are closed
                done[f"l0.{proposal['proposer']}"].add((row["id"], proposal["turn"]))
                done["aggregate"].add((row["id"], proposal["turn"]))
            for name in POOLS:
                if any(answer["error_reason"] is None for answer in row[f"a.{name}"] or ()):
                    done[name].add((row["id"], row["turn"]))
    return done


def calls(run_dir: Path) -> dict[str, int]:
    """Engine calls of the last session, by pool; of a pool that stood in several phases or turns the sum."""
    counted = Counter(dict.fromkeys(POOLS, 0))
    for pool in summary(run_dir)["pools"]:
        counted[pool["name"]] += pool["calls"]
    return dict(counted)


def summary(run_dir: Path) -> dict:
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))["generate"]


def canonical(rows: list[dict]) -> dict[str, str]:
    """Every row as one text, by id."""
    return {row["id"]: json.dumps(row, sort_keys=True, ensure_ascii=False) for row in rows}


def wait_until(is_so: Callable[[], bool], process: subprocess.Popen, *, timeout_s: float = 600) -> None:
    """Wait for something to happen in a run that still goes on."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.1)


def pool_workers(pid: int) -> list[int]:
    """The processes of the pools of a run, by the id of its driver."""
    found = []
    for child in runs.descendants(pid):
        try:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [child] if b"PassWorker" in command else []
    return found
