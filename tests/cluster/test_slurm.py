"""The Slurm script, with stand-ins for Slurm, Ray and Python that say what they were asked."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "run.sbatch"
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >>$LOG\n[ "$1" = show ] && printf "n1\\nn2\\n" || true',
    "srun": 'node=""; while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done\n'
    'echo "on $node: $*" >>$LOG\n[ -n "$RAY_AUTH_TOKEN" ] && echo "token ${#RAY_AUTH_TOKEN}" >>$LOG',
    "ray": "exit 0",
    "python": 'if [ "$1" = -c ]; then echo ${JOINED:-2}; exit; fi\necho "python $* at $RAY_ADDRESS" >>$LOG\n'
    'trap "exit 130" TERM\nfor _ in $(seq ${DRIVER_TENTHS:-1}); do sleep 0.1; done\nexit ${CODE:-0}',
    "sleep": '[[ $1 == 0.* ]] && exec /bin/sleep "$1" || exec /bin/sleep 0.01',
}


def begin(folder: Path, *args: str, **environment: str) -> subprocess.Popen:
    for name, body in STAND_INS.items():
        path = folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)
    known = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(folder / "log"), "SLURM_JOB_ID": "7"}
    known |= {"SLURM_JOB_NODELIST": "n[1-2]", **environment}
    return subprocess.Popen(["bash", str(SCRIPT), *args], env=known, stderr=subprocess.PIPE, text=True)


def end(process: subprocess.Popen) -> tuple[int, str]:
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def log(folder: Path) -> str:
    return (folder / "log").read_text()


def test_the_job_asks_for_whole_nodes():
    asked = {line for line in SCRIPT.read_text(encoding="utf-8").splitlines() if line.startswith("#SBATCH")}
    assert {"#SBATCH --exclusive", "#SBATCH --mem=0", "#SBATCH --ntasks-per-node=1"} <= asked


def test_ray_starts_on_every_node_and_the_run_on_the_first(tmp_path):
    code, _ = end(begin(tmp_path, "run", "recipe.yaml", "seed=1"))
    text = log(tmp_path)
    assert code == 0
    assert "on n1: ray start --block --disable-usage-stats --temp-dir=/tmp/moaa-7 --head --port=6379" in text
    assert "--dashboard-host=127.0.0.1" in text
    assert "on n2: ray start --block --disable-usage-stats --address=n1:6379" in text
    assert text.count("token 64") == 2
    assert "python -m moaa_ray run recipe.yaml seed=1 at n1:6379" in text
    assert "requeue" not in text


@pytest.mark.parametrize("code", [2, 4])
def test_the_job_ends_with_the_runs_exit_code_and_is_not_tried_again(tmp_path, code):
    assert end(begin(tmp_path, "run", "recipe.yaml", CODE=str(code)))[0] == code
    assert "requeue" not in log(tmp_path)


def test_when_its_time_is_up_the_driver_ends_in_order_and_the_job_is_queued_again(tmp_path):
    process = begin(tmp_path, "run", "recipe.yaml", DRIVER_TENTHS="600")
    while not (tmp_path / "log").exists() or "python -m" not in log(tmp_path):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    code, _ = end(process)
    assert code != 0
    assert "scontrol requeue 7" in log(tmp_path)


def test_a_node_that_does_not_join_is_told(tmp_path):
    code, said = end(begin(tmp_path, "run", "recipe.yaml", JOINED="1"))
    assert code == 4
    assert "1 of 2 nodes are in the Ray cluster at n1:6379" in said


def test_without_a_command_it_says_how_it_is_used(tmp_path):
    code, said = end(begin(tmp_path))
    assert code == 2
    assert "usage: sbatch" in said
