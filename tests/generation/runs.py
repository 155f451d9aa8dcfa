"""Runs of the real command in a process of its own, for tests that kill it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq


def write_prompts(path: Path, num_rows: int, *, turns=lambda i: 1) -> None:
    with path.open("w", encoding="utf-8") as file:
        for i in range(num_rows):
            users = [f"Question {i}?", *(f"Follow-up {t} of {i}?" for t in range(1, turns(i)))]
            record = {"id": f"r{i:05d}", "messages": [{"role": "user", "content": text} for text in users]}
            file.write(json.dumps(record) + "\n")


def write_recipe(folder: Path, *, name: str = "run", models: str = "", generate: str = "", mixture: str = "") -> Path:
    """A recipe with three fake proposers a, b, c and a fake aggregator; `models` replaces single lines by name."""
    lines = {label: f"  {label}: {{engine: fake}}" for label in ("a", "b", "c", "agg")}
    for line in models.splitlines():
        lines[line.strip().split(":")[0]] = f"  {line.strip()}"
    path = folder / f"{name}.yaml"
    path.write_text(
        f"name: {name}\nrun_dir: {folder / name}\nprompts: {{sources: [{{path: prompts.jsonl}}]}}\n"
        f"models:\n{chr(10).join(lines.values())}\n"
        "mixture:\n  layers: [{proposers: [{model: a}, {model: b}, {model: c}]}]\n  aggregator: {model: agg}\n"
        f"{mixture}generate: {{block_rows: 16, hang_after_s: 3{generate}}}\nray: {{address: local}}\n",
        encoding="utf-8",
    )
    return path


def start(recipe: Path, *overrides: str, stage: str = "generate") -> subprocess.Popen:
    """The command in a session of its own, so that a kill takes all its children along."""
    command = [sys.executable, "-m", "moaa_ray", stage, str(recipe), *overrides]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen, *, timeout_s: float = 600) -> tuple[int, str]:
    """Exit code and output."""
    output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output


def run(recipe: Path, *overrides: str, timeout_s: float = 600) -> tuple[int, str]:
    return finish(start(recipe, *overrides), timeout_s=timeout_s)


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the driver and to everything it started, Ray's daemons included."""
    for pid in [*descendants(process.pid), process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, queue = [], [pid]
    while queue:
        queue += (mine := children.get(queue.pop(), []))
        found += mine
    return found


def wait_for_blocks(run_dir: Path, count: int, process: subprocess.Popen, *, timeout_s: float = 600) -> int:
    """Wait until so many blocks of answers are committed, or the process has ended; the number there is."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        if (found := num_blocks(run_dir)) >= count:
            return found
        time.sleep(0.05)
    return num_blocks(run_dir)


def num_blocks(run_dir: Path) -> int:
    return sum(1 for path in run_dir.glob("work/generate/*/e*/*.parquet") if not path.name.startswith("new-"))


def digest(run_dir: Path) -> str:
    """One number for all bytes that a reader of sft/ sees."""
    files = sorted((run_dir / "sft").iterdir())
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()


def rows(run_dir: Path) -> list[dict]:
    return [row for path in sorted((run_dir / "sft").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def failures(run_dir: Path) -> list[dict]:
    return pq.read_table(run_dir / "failures" / "generate.parquet").to_pylist()
