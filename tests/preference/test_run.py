"""`moaa run` with real vLLM and real training: the whole of it, undisturbed and killed once in every stage."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("vllm")

from moaa_ray.demo.tiny import make_tiny_model
from tests.generation import runs

NUM_ROWS = 24
STAGES = {
    "generate": "work/generate/*/e*/b*.parquet",
    "sft": "checkpoints/sft/*/complete.json",
    "sample": "work/sample/*/e*/b*.parquet",
    "judge": "judges/rule/work/judge/*/e*/b*.parquet",
    "dpo": "checkpoints/dpo/*/complete.json",
}
"""By stage, files that say that some of its work is done."""
RECIPE = """
name: {name}
run_dir: {folder}/{name}
prompts: {{sources: [{{path: prompts.jsonl}}]}}
models:
  tiny: {{engine: vllm, model: models/tiny, {engine}}}
  student: {{engine: vllm, model: RUN/models/sft, {engine}}}
  rule: {{engine: rule, function: "tests.preference.rules:slow_length"}}
mixture:
  layers: [{{proposers: [{{model: tiny, max_tokens: 24}}]}}]
  aggregator: {{model: tiny, max_tokens: 24}}
generate: {{block_rows: 4}}
student: {{model: models/student}}
sft: {{epochs: 2, batch: 2, packing: false, {training}}}
sample: {{max_tokens: 24, block_rows: 4, rows: 16}}
judges:
  rule: {{kind: score, model: rule}}
judge: {{block_rows: 2}}
dpo: {{epochs: 2, batch: 2, {training}}}
ray: {{address: local}}
"""
ENGINE = "context_window: 1024, concurrency: 8, dtype: float32, device: cpu, replicas: 1"
TRAINING = "max_tokens: 512, learning_rate: 1.0e-3, precision: float32, checkpoint_every: 2, device: cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for seed, name in enumerate(("tiny", "student")):
        make_tiny_model(folder / "models" / name, seed=seed, window=1024)
    runs.write_prompts(folder / "prompts.jsonl", NUM_ROWS)
    return folder


def write_recipe(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(RECIPE.format(name=name, folder=folder, engine=ENGINE, training=TRAINING), encoding="utf-8")
    return path


def start(recipe: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        [sys.executable, "-m", "moaa_ray", "run", str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment,
    )


def kill_in(stage: str, process: subprocess.Popen, run_dir: Path) -> None:
    """SIGKILL to everything as soon as the stage has finished some of its work."""
    deadline = time.monotonic() + 300
    while not list(run_dir.glob(STAGES[stage])):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{stage} did nothing"
        time.sleep(0.02)
    runs.kill_all(process)


def rows_of(run_dir: Path, folder: str) -> list[dict]:
    return [row for path in sorted((run_dir / folder).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def weights_of(run_dir: Path, stage: str) -> str:
    digest = hashlib.sha256()
    for path in sorted((run_dir / "models" / stage).glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def calm(folder) -> Path:
    code, output = runs.finish(start(write_recipe(folder, "calm")))
    assert code == 0, output
    assert "whole run:" in output
    return folder / "calm"


@pytest.mark.parametrize(
    "stages",
    [
        pytest.param(("judge",), marks=pytest.mark.slow, id="one"),
        pytest.param(tuple(STAGES), marks=pytest.mark.long, id="all"),
    ],
)
@pytest.mark.timeout(3600)
def test_a_whole_run_that_is_killed_within_its_stages_ends_as_one_that_is_not(folder, calm, stages):
    killed = folder / f"killed-in-{len(stages)}"
    recipe = write_recipe(folder, killed.name)
    for stage in stages:
        kill_in(stage, start(recipe), killed)
        assert not (killed / "models" / "dpo" / "README.md").exists()
    code, output = runs.finish(start(recipe))
    assert code == 0, output
    for name in ("sft", "candidates", "pairs"):
        assert rows_of(killed, name) == rows_of(calm, name), name
    assert len(rows_of(calm, "sft")) == NUM_ROWS
    assert 0 < len(rows_of(calm, "pairs")) <= 16
    for stage in ("sft", "dpo"):
        assert weights_of(killed, stage) == weights_of(calm, stage), stage
    code, output = runs.finish(start(recipe), timeout_s=60)
    assert code == 0, output
