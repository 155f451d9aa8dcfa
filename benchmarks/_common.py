"""What the benchmarks share: recipes of fake engines, runs in processes of their own, memory samples, reports."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

QUIET_LOAD = 0.5
"""One-minute load average above which a result is marked as not quiet."""
_SAMPLE_EVERY_S = 0.25


def load_before() -> float:
    """The one-minute load average before anything of ours runs."""
    return os.getloadavg()[0]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range of repeats."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spreads(runs: Iterable[Mapping], keys: Iterable[str]) -> dict[str, dict[str, float]]:
    """The spread of some numbers of several runs."""
    runs = list(runs)
    return {key: spread([run[key] for run in runs]) for key in keys}


def about(load: float, *, device: str = "cpu", **config) -> dict:
    """The head of every report: command, hardware, load, versions and the benchmark's own settings."""
    from moaa_ray.run_record import versions

    return {
        "command": " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]),
        "hardware": {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "device": device},
        "load_before": load,
        "is_quiet": load <= QUIET_LOAD,
        "versions": versions(),
        "config": config,
    }


def save(report: dict, out: Path | None) -> None:
    """Print the report as JSON, and write it where `out` says."""
    text = json.dumps(report, indent=2) + "\n"
    print(text)
    if out:
        out.write_text(text, encoding="utf-8")


@contextmanager
def scratch(keep: Path | None) -> Iterator[Path]:
    """A folder for a benchmark's runs, deleted at the end unless one to keep is given."""
    if keep:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="moaa-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prompt(i: int, num_chars: int) -> str:
    """A user prompt of about so many characters."""
    sentence = "what is known about the river and the sea, and why? "
    return (f"Question {i}: " + sentence * (1 + num_chars // len(sentence)))[:num_chars].rstrip()


def write_prompts(folder: Path, num_rows: int, num_chars: int) -> Path:
    """A JSONL file of prompts; an existing one of that name is taken as it is."""
    path = folder / f"prompts-{num_rows}.jsonl"
    if not path.exists():
        lines = (json.dumps({"id": f"r{i:07d}", "prompt": prompt(i, num_chars)}) for i in range(num_rows))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_recipe(
    folder: Path,
    name: str,
    prompts: Path,
    models: Mapping[str, Mapping],
    *,
    seed: int = 0,
    max_tokens: int = 2048,
    **generate,
) -> Path:
    """A recipe in which the last of the fake models aggregates what the others propose."""
    *proposers, aggregator = models
    recipe = {
        "name": name,
        "seed": seed,
        "run_dir": str(folder / name),
        "prompts": {"sources": [{"path": str(prompts)}]},
        "models": {label: {"engine": "fake", "replicas": 1, **model} for label, model in models.items()},
        "mixture": {
            "layers": [{"proposers": [{"model": label, "max_tokens": max_tokens} for label in proposers]}],
            "aggregator": {"model": aggregator, "max_tokens": max_tokens},
        },
        "generate": {"hang_after_s": 600, **generate},
        "ray": {"address": "local", "start_timeout_s": 600},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    return path


def run_apart(command: Sequence[str], *, watch: Callable[[psutil.Process], None] | None = None) -> str:
    """Run `python <command>` to its end; its last line of output. What it says on stderr is shown when it fails."""
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=errors, text=True)
        if watch:
            watch(psutil.Process(child.pid))
        output, _ = child.communicate()
        if child.returncode:
            errors.seek(0)
            sys.exit(f"{' '.join(command)} ended with {child.returncode}:\n{output[-2000:]}\n{errors.read()[-4000:]}")
    return output.strip().splitlines()[-1] if output.strip() else ""


class WrappedEngine:
    """An engine that does what another does; for those that add something to it."""

    def __init__(self, engine):
        self._engine = engine

    @property
    def window(self) -> int:
        return self._engine.window

    @property
    def max_attempts(self) -> int:
        return self._engine.max_attempts

    async def start(self) -> None:
        await self._engine.start()

    async def generate(self, request):
        return await self._engine.generate(request)

    def count_tokens(self, messages) -> int:
        return self._engine.count_tokens(messages)

    async def stop(self) -> None:
        await self._engine.stop()


class Watch:
    """What the processes of a run have held and burnt, by kind, sampled from outside while it lasts.

    private_mb is the most that one process of the kind has held for itself (resident minus shared); rss_mb counts
    object-store pages too. cpu_s is user and system time of all processes of the kind together.
    """

    def __init__(self) -> None:
        self._peaks: dict[str, dict[str, float]] = {}
        self._cpu_s: dict[tuple[str, int], float] = {}

    def __call__(self, driver: psutil.Process) -> None:
        threading.Thread(target=self._sample, args=(driver,), daemon=True).start()

    def _sample(self, driver: psutil.Process) -> None:
        try:
            while driver.is_running() and driver.status() != psutil.STATUS_ZOMBIE:
                for process in [driver, *driver.children(recursive=True)]:
                    self._note(process, is_driver=process.pid == driver.pid)
                time.sleep(_SAMPLE_EVERY_S)
        except psutil.NoSuchProcess:
            return

    def _note(self, process: psutil.Process, *, is_driver: bool) -> None:
        try:
            kind = "driver" if is_driver else _kind_of(process.cmdline())
            memory, cpu = process.memory_info(), process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return
        self._cpu_s[kind, process.pid] = cpu.user + cpu.system
        peak = self._peaks.setdefault(kind, {"rss_mb": 0.0, "private_mb": 0.0})
        peak["rss_mb"] = max(peak["rss_mb"], memory.rss / 1e6)
        peak["private_mb"] = max(peak["private_mb"], (memory.rss - memory.shared) / 1e6)

    def facts(self) -> dict[str, float]:
        """Numbers by "<kind>_<what>"."""
        cpu = {f"{kind}_cpu_s": 0.0 for kind in self._peaks}
        for (kind, _), seconds in self._cpu_s.items():
            cpu[f"{kind}_cpu_s"] += seconds
        peaks = {f"{kind}_{what}": value for kind, found in self._peaks.items() for what, value in found.items()}
        return {**peaks, **cpu, "total_cpu_s": sum(cpu.values())}


def _kind_of(command: list[str]) -> str:
    """driver, worker (of a pool), coordinator, or ray for all else."""
    title = command[0] if command else ""
    names = {"ray::MapWorker": "worker", "ray::Coordinator": "coordinator"}
    return next((kind for start, kind in names.items() if title.startswith(start)), "ray")
