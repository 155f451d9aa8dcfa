"""What a run's processes are, and how to kill some of them; for tests of runs that go on."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.generation import runs

NAMES = ("a", "b", "c", "agg")
_PATIENCE_S = 900
_STARTED: list[subprocess.Popen] = []


def slow_models(tokens_per_s: int, *, more: str = "") -> str:
    """Fake engines that take their time, so that rows are with every one of them at most moments."""
    settings = f"engine: fake, concurrency: 8, replicas: 1, tokens_per_s: {tokens_per_s}{more}"
    return "\n".join(f"{name}: {{{settings}}}" for name in NAMES)


def start(recipe: Path, *overrides: str, stage: str = "generate") -> subprocess.Popen:
    """The command, patient with a busy machine: only the deaths that a test causes shall happen."""
    process = runs.start(recipe, "ray.start_timeout_s=600", f"{stage}.hang_after_s=120", *overrides, stage=stage)
    _STARTED.append(process)
    return process


def finish(process: subprocess.Popen) -> tuple[int, str]:
    return runs.finish(process, timeout_s=_PATIENCE_S)


def end_all() -> None:
    """Leave no process of any run behind, however the tests went."""
    for process in _STARTED:
        kill(processes(process.pid))
        process.wait()
    _STARTED.clear()


def processes(session: int) -> dict[int, str]:
    """Living processes of a session, orphans too: pid and command line. `runs.start` gives each run a session."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def named(pids: dict[int, str], text: str) -> list[int]:
    return sorted(pid for pid, command in pids.items() if text in command)


def pool_workers(session: int) -> list[int]:
    """Pool workers that take blocks; those that still begin are called __init__."""
    return named({pid: c for pid, c in processes(session).items() if "__init__" not in c}, "PassWorker")


def send(number: int, pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill(pids: Iterable[int]) -> None:
    send(signal.SIGKILL, pids)


def wait_until(claim, *, timeout_s: float = _PATIENCE_S, what: str = "") -> None:
    end = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what or claim}"
        time.sleep(0.1)


def wait_for_flight(run_dir: Path, process: subprocess.Popen, more: int) -> None:
    """Wait until the living run has committed `more` blocks beyond what there is, so that others are in its line."""
    wanted = runs.num_blocks(run_dir) + more
    found = runs.wait_for_blocks(run_dir, wanted, process, timeout_s=_PATIENCE_S)
    assert process.poll() is None, process.communicate()[0]
    assert found >= wanted


def assert_nothing_left(process: subprocess.Popen, *, within_s: float = 90) -> None:
    """No process of the run lives on: no raylet, no worker, no engine. A worker that just begins may take 60 s."""
    end = time.monotonic() + within_s
    while left := processes(process.pid):
        assert time.monotonic() < end, f"left {within_s} s after the end: {left}"
        time.sleep(0.2)


def written(run_dir: Path) -> dict[str, tuple[int, int]]:
    """When and as which file everything outside work/ was last written: equal bytes written again are told apart."""
    files = [path for path in run_dir.rglob("*") if path.is_file() and path.relative_to(run_dir).parts[0] != "work"]
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def assert_same_data(run_dir: Path, undisturbed: Path, ids: Sequence[str]) -> None:
    """Every id once, in order, and the bytes of the run that nothing disturbed."""
    assert [row["id"] for row in runs.rows(run_dir)] == list(ids)
    assert runs.failures(run_dir) == []
    assert runs.digest(run_dir) == runs.digest(undisturbed)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[], object]]:
    """An empty folder as a disk of its own of that size; gives the means to make it larger."""
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    if subprocess.run([*mount, f"size={size}"], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs")
    try:
        yield lambda: subprocess.run([*mount, "remount,size=64m"], check=True)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
