"""Several nodes on one machine: they come up, ask for a token, and go without a trace."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.documents import ROOT
from tests.generation import runs

LOOK = """
import ray, shutil
ray.init(log_to_driver=False)
print(ray.get(ray.remote(lambda: shutil.which("python")).remote()))
print(sorted(node["Resources"].get("CPU", 0) for node in ray.nodes()))
"""


def told(process: subprocess.Popen, pattern: str, *, timeout_s: float = 400) -> re.Match:
    assert process.stdout is not None
    end = time.monotonic() + timeout_s
    for line in process.stdout:
        if found := re.search(pattern, line):
            return found
        assert time.monotonic() < end
    raise AssertionError(f"it ended without {pattern}")


@pytest.mark.slow
def test_nodes_on_one_machine_are_a_cluster_and_end_when_told():
    command = [sys.executable, "cluster/local.py", "--nodes", "3", "--cpus", "2"]
    outside = {**os.environ, "PATH": os.defpath}  # as where this Python's environment is not activated
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True, env=outside
    )
    try:
        address, token = told(
            process, r"export RAY_ADDRESS=(\S+) RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=(\S+)"
        ).groups()
        access = {"RAY_ADDRESS": address, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token}
        seen = subprocess.run(
            [sys.executable, "-c", LOOK], env={**os.environ, **access}, capture_output=True, text=True
        )
        python = str(Path(sys.executable).parent / "python")
        assert seen.stdout.splitlines()[-2:] == [python, "[0, 2.0, 2.0]"], seen.stderr[-2000:]
        assert Path(token).stat().st_mode & 0o777 == 0o600
        started = runs.descendants(process.pid)
        assert len(started) > 6
        options = [word for pid in started for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0")]
        folders = {word for word in options if word.startswith("--session_dir=")}
        assert len(folders) == 3, "of a folder for two the second would take a job's working directory from its driver"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 0
        end = time.monotonic() + 30
        while left := [pid for pid in started if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < end, left
            time.sleep(0.5)
        assert not Path(token).exists()
    finally:
        runs.kill_all(process)


def test_a_cluster_without_a_worker_is_refused():
    command = [sys.executable, "cluster/local.py", "--nodes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "--nodes is at least 2" in done.stderr
